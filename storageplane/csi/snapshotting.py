"""Snapshots of claims' volumes at other people's drivers, kept by name on this node.

A claim's ``dataSource`` of kind VolumeSnapshot names one of these; the record takes the object's place.

Rule 1: the record is written before CreateSnapshot and removed after DeleteSnapshot, and the name asked of
        the driver follows from namespace and name: a call cut off is made again and finishes.
Rule 2: a snapshot is ready when its driver says so; until then nothing is made from it.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from netplane.model.base import Key
from netplane.model.errors import Conflict, Invalid, NotFound, Unavailable
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim

from ..claims.reclaim import Writer
from ..host.durable import Shelf
from .client import Clients
from .intents import FOLDER

ADVICE = "it was damaged; look for that snapshot at its driver, then remove the file"
PATIENCE = 120.0  # seconds until a snapshot must be ready


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """``handle``: the driver's id; "" until it has answered. ``size``: bytes to restore into."""

    namespace: str
    name: str
    claim: str
    driver: str
    volume: str
    handle: str = ""
    size: int = 0
    ready: bool = False


class Snapshotting:
    def __init__(self, root: str | Path, store: Writer | None = None, clients: Clients | None = None) -> None:
        self._store = store
        self._clients = clients or Clients(root)
        self._shelf = Shelf(Path(root) / FOLDER / "snapshots", Taken, ADVICE)

    def create(self, namespace: str, name: str, claim: str) -> Taken:
        """A snapshot of the claim's volume, ready. Raises Invalid, Unavailable; then ask again."""
        self._shelf.open()
        known = self._shelf.get(_id(namespace, name))
        if known is not None and known.claim != claim:
            raise Conflict(f"snapshot {namespace}/{name} exists, of claim {known.claim}; use another name")
        if known is None:
            driver, volume = self._volume(namespace, claim)
            known = Taken(namespace=namespace, name=name, claim=claim, driver=driver, volume=volume)
        if not self._clients.get(known.driver).can("Controller", "CREATE_DELETE_SNAPSHOT"):
            raise Invalid(f"CSI driver {known.driver} takes no snapshots")
        self._shelf.put(_id(namespace, name), known)
        give_up = time.monotonic() + PATIENCE
        while not known.ready:
            known = self._asked(known)
            if not known.ready and time.monotonic() > give_up:
                raise Unavailable(f"snapshot {namespace}/{name}: not ready after {PATIENCE:.0f} s; ask again")
        return known

    def _asked(self, taken: Taken) -> Taken:
        fields = {"source_volume_id": taken.volume, "name": _id(taken.namespace, taken.name)}
        made = self._clients.get(taken.driver).call("CreateSnapshot", **fields).snapshot
        answered = {"handle": made.snapshot_id, "size": made.size_bytes, "ready": made.ready_to_use}
        found: Taken = msgspec.structs.replace(taken, **answered)
        self._shelf.put(_id(taken.namespace, taken.name), found)
        if not found.ready:
            time.sleep(0.5)  # CSI tells no event
        return found

    def delete(self, namespace: str, name: str) -> None:
        """Gone already: fine. A handle that was never answered is learned by asking again."""
        taken = self._shelf.get(_id(namespace, name))
        if taken is None:
            return
        if not taken.handle:
            with suppress(NotFound):  # the volume is gone, and took what was begun with it
                taken = self._asked(taken)
        if taken.handle:
            with suppress(NotFound):
                self._clients.get(taken.driver).call("DeleteSnapshot", snapshot_id=taken.handle)
        self._shelf.remove(_id(namespace, name))

    def all(self) -> list[Taken]:
        return sorted(self._shelf.all(), key=lambda taken: (taken.namespace, taken.name))

    def find(self, namespace: str, name: str) -> Taken:
        """Raises Unavailable while there is no such snapshot, or it is not ready."""
        taken = self._shelf.get(_id(namespace, name))
        if taken is None or not taken.ready:
            where = f"snapshot {namespace}/{name}"
            raise Unavailable(f"{where} is not ready here: storageplane snapshot create CLAIM {name}")
        return taken

    def _volume(self, namespace: str, claim: str) -> tuple[str, str]:
        assert self._store is not None
        found: Any = self._store.get(Key(PersistentVolumeClaim.KIND, namespace, claim))
        if found is None:
            raise NotFound(f"PersistentVolumeClaim {namespace}/{claim} does not exist")
        volume: Any = self._store.get(Key(PersistentVolume.KIND, "", found.spec.volume_name))
        if volume is None or volume.spec.csi is None:
            raise Invalid(f"PersistentVolumeClaim {namespace}/{claim}: its volume is not of a CSI driver")
        return volume.spec.csi.driver, volume.spec.csi.volume_handle


def _id(namespace: str, name: str) -> str:
    return f"snapshot-{hashlib.sha256(f'{namespace}/{name}'.encode()).hexdigest()[:40]}"

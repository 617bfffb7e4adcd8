"""What becomes of a volume whose claim is gone: Retain keeps, Delete removes, Recycle is refused.

Rule 1: data goes only by an explicit `Erase`, never because nothing wants it any more.
Rule 2: before data goes, the volume is read again from the store, and left if it is not released now.
Rule 3: a published volume is in use: that is no failure, the removal waits.
Rule 4: data first, object last. A crash in between leaves the object, and the removal runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from netplane.model.base import Key, Object, amend
from netplane.model.changes import Event, Put, Write
from netplane.model.errors import Conflict, KernelError, Unavailable
from netplane.model.facts import Fact, FactKey, Facts, Mark, Plan, Scope
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim
from netplane.model.storage_facts import Data, Erase

from . import backends, names
from .bind import owner, phased, volume_scopes
from .match import fits_node
from .provision import is_ours

TRIES = 10


class Writer(Protocol):
    """The part of a store that the removal needs."""

    def get(self, key: Key) -> Object | None: ...
    def put(self, obj: Any, expect: int | None = None) -> Object: ...
    def delete(self, key: Key, expect: int | None = None) -> Object: ...


def holds(claim: Object | None, volume: PersistentVolume) -> bool:
    """Whether this claim has a right to the volume's data: it is the one meant, and not bound elsewhere."""
    ref = volume.spec.claim_ref
    if not isinstance(claim, PersistentVolumeClaim) or ref is None or claim.metadata.uid != ref.uid:
        return False
    return claim.spec.volume_name in ("", volume.name)


def released(volume: PersistentVolume, claimed: bool) -> bool:
    """Whether the data may go: policy Delete, and no claim holds the volume. ``claimed``: its claim lives."""
    if volume.spec.persistent_volume_reclaim_policy != "Delete" or claimed:
        return False
    return volume.status.phase in ("Released", "Failed") or volume.deleting


class Reclaimer:
    """Says what cannot be reclaimed, and lets go of volumes whose data is to be kept."""

    name = "reclaim"

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        return volume_scopes(self.name, event, snapshot)

    def decide(self, scope: Scope, snapshot: Snapshot) -> Iterable[Write]:
        volume = snapshot.get(PersistentVolume, "", scope.name.removeprefix("volume/"))
        if volume is None:
            return []
        policy = volume.spec.persistent_volume_reclaim_policy
        if volume.deleting and policy != "Delete" and names.DATA in volume.metadata.finalizers:
            return [Put(without(volume, names.DATA), volume.revision)]
        message = _impossible(volume, policy)
        if volume.status.phase == "Released" and message:
            return [Put(phased(volume, "Failed", message), volume.revision)]
        return []


def _impossible(volume: PersistentVolume, policy: str) -> str:
    if policy == "Recycle":
        return "Recycle is deprecated and not carried out: use Delete with a StorageClass, or Retain"
    if policy == "Delete" and names.PROVISIONED_BY not in volume.metadata.annotations:
        return (
            "Delete: nobody here provisioned this volume, so its data stays; remove it by hand, or use Retain"
        )
    return ""


class Volumes:
    """The room of provisioned volumes: the data of those that live, the removal of those released."""

    name = "volume"

    def __init__(self, node: str, root: str | Path) -> None:
        self.node = node
        self.root = Path(root)

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        return volume_scopes(self.name, event, snapshot)

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        volume = snapshot.get(PersistentVolume, "", scope.name.removeprefix("volume/"))
        if volume is None or not is_ours(volume, self.root):
            return []
        if not fits_node(volume.spec.node_affinity, self.node, snapshot):
            return []
        if released(volume, holds(owner(volume, snapshot), volume)):
            path = f"{names.FILESYSTEM_DIR}/{volume.name}"
            return [Erase(path=path, volume=volume.name, uid=volume.metadata.uid)]
        return [] if volume.deleting else [data(volume)]


def data(volume: PersistentVolume) -> Data:
    return Data(path=f"{names.FILESYSTEM_DIR}/{volume.name}")


class VolumeData:
    """The driver of `Data` and `Erase`. ``in_use(path)`` names who has the data published here, or "".

    It observes nothing on purpose: what is observed and wanted by nobody is swept, and data never is.
    """

    name = "volumes"
    accepts: tuple[type[Fact], ...] = (Data, Erase)
    parallel = False

    def __init__(self, root: str | Path, store: Writer, in_use: Callable[[str], str]) -> None:
        self.root = Path(root)
        self.store = store
        self.in_use = in_use

    def observe(self) -> Mapping[FactKey, Mark]:
        return {}

    def apply(self, plan: Plan) -> None:
        """Raises Unavailable while a volume is published, Conflict (decide again), KernelError."""
        for fact in (*plan.add, *plan.change):
            if isinstance(fact, Data):
                backends.ensure(self.root, fact)
            else:
                self._erase(fact)

    def _erase(self, fact: Erase) -> None:
        volume = self.store.get(Key(PersistentVolume.KIND, "", fact.volume))
        if not isinstance(volume, PersistentVolume) or volume.metadata.uid != fact.uid:
            return
        if not self._released_now(volume):
            raise Conflict(f"PersistentVolume {fact.volume} is not released any more; its data stays")
        user = self.in_use(str(self.root / fact.path))
        if user:
            raise Unavailable(f"PersistentVolume {fact.volume}: in use by {user}; unpublish it first")
        try:
            backends.erase(self.root, fact.path)
        except KernelError as exc:
            self.store.put(phased(volume, "Failed", str(exc)), expect=volume.revision)
            raise
        self._forget(volume)

    def _released_now(self, volume: PersistentVolume) -> bool:
        """The recheck on live objects; another claim of that name is not the volume's."""
        ref = volume.spec.claim_ref
        claim = self.store.get(Key("PersistentVolumeClaim", ref.namespace, ref.name)) if ref else None
        return is_ours(volume, self.root) and released(volume, holds(claim, volume))

    def _forget(self, volume: PersistentVolume) -> None:
        """Delete the object, whose data is gone; the binder may be taking its own finalizer off now."""
        for _ in range(TRIES):
            fresh = self.store.get(volume.key)
            if fresh is None or fresh.metadata.uid != volume.metadata.uid:
                return
            try:
                if fresh.deleting:
                    self.store.put(without(fresh, names.DATA, names.PV_PROTECTION), expect=fresh.revision)
                else:
                    self.store.delete(fresh.key, expect=fresh.revision)
            except Conflict:
                continue
        raise Unavailable(f"{volume.key}: its data is removed, but others keep writing to the object")


def without(obj: Any, *finalizers: str) -> Any:
    rest = tuple(f for f in obj.metadata.finalizers if f not in finalizers)
    return amend(obj, metadata=amend(obj.metadata, finalizers=rest))

"""Snapshots at other people's drivers: taken, found, and deleted for VolumeSnapshotContents.

Rule 1: what is to be asked is on record before CreateSnapshot, until the content in the store says the
        handle. So whatever step a crash falls on, either the store knows the snapshot, or a record does.
Rule 2: a snapshot is ready when its driver says so; until then it is asked again, since CSI tells no event.
Rule 3: a handle that was never answered is learned by the same call made again.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from netplane.model.base import Key, amend
from netplane.model.errors import Invalid, NetplaneError, NotFound, Unavailable
from netplane.model.volumesnapshots import (
    ContentStatus,
    SnapshotError,
    VolumeSnapshotClass,
    VolumeSnapshotContent,
)

from .. import names
from ..claims.capture import let_go, live, say
from ..claims.writer import Writer
from . import shape
from .client import Client, Clients
from .intents import Asked, snapshots


class Snapshotting:
    """``root`` as everywhere in storageplane; records lie in ROOT/csi-client/snapshots."""

    def __init__(self, root: str | Path, store: Writer, clients: Clients | None = None) -> None:
        self._store = store
        self._clients = clients or Clients(root)
        self._shelf = snapshots(root)

    def unfinished(self) -> list[str]:
        """The contents that a snapshot was asked for, and that may not know it."""
        return [asked.content for asked in self._shelf.all()]

    def capture(self, name: str, uid: str) -> None:
        """Bring a content's snapshot about, and say so in it. Raises Invalid, Unavailable."""
        content = live(self._store, name, uid)
        if content is None or content.deleting or content.status.ready_to_use:
            return
        try:
            status = self._found(content) if content.spec.source.snapshot_handle else self._taken(content)
        except NetplaneError as exc:
            told = amend(content.status, error=SnapshotError(message=str(exc)))
            say(self._store, content, told)
            raise
        say(self._store, content, status)
        self._forget(name)
        if not status.ready_to_use:
            raise Unavailable(f"{content.key}: driver {content.spec.driver} says that it is not ready yet")

    def _taken(self, content: VolumeSnapshotContent) -> ContentStatus:
        client = self._clients.get(content.spec.driver)
        if not client.can("Controller", "CREATE_DELETE_SNAPSHOT"):
            raise Invalid(f"CSI driver {content.spec.driver} takes no snapshots")
        asked = self._shelf.get(content.name)
        if asked is None:
            asked = self._asked(content)
            self._shelf.open()
            self._shelf.put(content.name, asked)
        try:
            made = self._create(client, asked)
        except Invalid:
            self._forget(content.name)  # a final refusal leaves nothing there
            raise
        return _status(made)

    def _asked(self, content: VolumeSnapshotContent) -> Asked:
        spec = content.spec
        cls = self._store.get(Key(VolumeSnapshotClass.KIND, "", spec.volume_snapshot_class_name))
        given = cls.parameters if isinstance(cls, VolumeSnapshotClass) else {}
        return Asked(
            content=content.name,
            driver=spec.driver,
            volume=spec.source.volume_handle,
            parameters={k: v for k, v in given.items() if not k.startswith(shape.PREFIX)},
            secret=_secret(content),
        )

    def _create(self, client: Client, asked: Asked) -> Any:
        """CSI's Snapshot; its handle is on record then."""
        made = client.call(
            "CreateSnapshot",
            source_volume_id=asked.volume,
            name=asked.name,
            parameters=asked.parameters,
            secrets=self._values(asked.secret),
        ).snapshot
        self._shelf.put(asked.content, amend(asked, handle=made.snapshot_id))
        return made

    def _found(self, content: VolumeSnapshotContent) -> ContentStatus:
        """One that somebody else took; a driver that lists none is believed to have it."""
        handle, driver = content.spec.source.snapshot_handle, content.spec.driver
        client = self._clients.get(driver)
        if not client.can("Controller", "LIST_SNAPSHOTS"):
            return ContentStatus(ready_to_use=True, snapshot_handle=handle)
        entries = client.call("ListSnapshots", snapshot_id=handle).entries
        if not entries:
            raise NotFound(f"spec.source.snapshotHandle: driver {driver} has no snapshot {handle}")
        return _status(entries[0].snapshot)

    # --- removing -----------------------------------------------------------------------------------

    def discard(self, name: str, uid: str) -> None:
        """Delete what a content stands for, and let the content go. Raises Invalid, Unavailable."""
        content = live(self._store, name, uid)
        if content is None or not content.deleting:
            return
        asked = self._shelf.get(name)
        handle = content.status.snapshot_handle or (self._learned(asked) if asked else "")
        if handle:
            self._delete(content.spec.driver, handle, _secret(content))
        self._forget(name)
        let_go(self._store, content)

    def take_back(self, name: str) -> None:
        """What was asked for a content that nobody wants: deleted, unless the store knows it."""
        asked = self._shelf.get(name)
        if asked is None:
            return
        handle = self._learned(asked)
        known: Any = self._store.get(Key(VolumeSnapshotContent.KIND, "", name))
        if handle and not (known and known.status.snapshot_handle == handle):
            self._delete(asked.driver, handle, asked.secret)
        self._forget(name)

    def _forget(self, name: str) -> None:
        if self._shelf.get(name) is not None:
            self._shelf.remove(name)

    def _learned(self, asked: Asked) -> str:
        if asked.handle:
            return asked.handle
        with suppress(NotFound, Invalid):  # the volume is gone, and took what was begun with it
            return str(self._create(self._clients.get(asked.driver), asked).snapshot_id)
        return ""

    def _delete(self, driver: str, handle: str, secret: tuple[str, str]) -> None:
        with suppress(NotFound):
            client = self._clients.get(driver)
            client.call("DeleteSnapshot", snapshot_id=handle, secrets=self._values(secret))

    def _values(self, named: tuple[str, str]) -> dict[str, str]:
        return shape.opened(self._store.get(Key("Secret", *named)), named) if named[1] else {}


def _status(made: Any) -> ContentStatus:
    return ContentStatus(
        creation_time=made.creation_time.ToNanoseconds(),
        ready_to_use=made.ready_to_use,
        restore_size=made.size_bytes,
        snapshot_handle=made.snapshot_id,
    )


def _secret(content: VolumeSnapshotContent) -> tuple[str, str]:
    notes = content.metadata.annotations
    return notes.get(f"{names.SNAPSHOT_SECRET}-namespace", ""), notes.get(f"{names.SNAPSHOT_SECRET}-name", "")

"""Snapshots of our own volumes: taken, found again, and removed. A pure room, and its driver.

    ROOT/snapshots/HANDLE.json          what it is of: written before anything is copied, removed last
    ROOT/snapshots/data/HANDLE/…        the data, as a volume of the same backend has it

Rule 1: a snapshot is an independent copy (reflinked where the disk can), taken on the node of its volume. An
        image in use is frozen meanwhile; a directory has no instant, and is synced.
Rule 2: whoever is killed leaves a record that the same call finishes, or `Discard` removes.
Rule 3: copies are made aside: nobody waits for one, and its progress is said in the snapshot's event.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from netplane.model.base import Key, amend
from netplane.model.changes import Event
from netplane.model.errors import Conflict, Invalid, NetplaneError, Unavailable
from netplane.model.facts import Fact, FactKey, Facts, Mark, Plan, Scope
from netplane.model.nodes import Node
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume
from netplane.model.storage_facts import Capture, Data, Discard
from netplane.model.volumesnapshots import ContentStatus, SnapshotError, VolumeSnapshotContent

from .. import backends, names
from ..host import freeze, progress
from ..host.durable import Shelf
from ..host.errand import Errands
from . import events, match, steps
from .contents import discardable
from .copies import PATIENCE, copy_size
from .provision import data_of, is_ours
from .sources import SNAPSHOT_DIR
from .writer import TRIES, Timed, Writer

ADVICE = "it was damaged; look at its data beneath snapshots/data, then remove the file"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One snapshot on this node. ``size``: bytes; ``created``: Unix time; ``phase``: making, ready."""

    handle: str
    volume: str
    backend: str
    size: int
    fstype: str = ""
    block: bool = False
    created: float = 0.0
    phase: str = "making"


def records(root: str | Path) -> Shelf[Kept]:
    return Shelf(Path(root) / "snapshots", Kept, ADVICE)


def damaged(root: str | Path) -> list[str]:
    """What is wrong with each record of a snapshot that cannot be read."""
    return records(root).damaged()


class OwnSnapshots:
    """The room: contents of our own drivers, on the node where their volume is."""

    name = "snapshot"

    def __init__(self, node: str, drivers: tuple[str, ...]) -> None:
        self.node = node
        self.drivers = drivers

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        return content_scopes(self.name, event, snapshot)

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        content = snapshot.get(VolumeSnapshotContent, "", scope.name.removeprefix("content/"))
        if content is None or content.spec.driver not in self.drivers:
            return []
        host = content.metadata.annotations.get(names.SNAPSHOT_HOST)
        if host is None and snapshot.count(Node) > 1:
            return []
        if host not in (None, match.hostname(self.node, snapshot)):
            return []
        return due(content, snapshot)


def content_scopes(room: str, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
    """The contents that an event touches; their snapshot's going is what lets them go."""
    if event is None:
        found = {c.name for c in snapshot.list(VolumeSnapshotContent)}
    elif isinstance(event.object, VolumeSnapshotContent):
        found = {event.object.name}
    elif event.object.KIND == "VolumeSnapshot":
        uid = event.object.metadata.uid
        named = event.object.spec.source.volume_snapshot_content_name  # type: ignore[attr-defined]
        found = {named or f"snapcontent-{uid}"}
    else:
        return ()
    return {Scope(room, f"content/{name}") for name in found}


def due(content: VolumeSnapshotContent, snapshot: Snapshot) -> Facts:
    """What is to be done about a content by whoever has its driver."""
    about = {"content": content.name, "uid": content.metadata.uid, "driver": content.spec.driver}
    if discardable(content, snapshot):
        return [Discard(**about)]
    bound = content.spec.volume_snapshot_ref.uid
    if content.deleting or content.status.ready_to_use or not bound:
        return []
    return [Capture(**about)]


class SnapshotData:
    """The driver of `Capture` and `Discard` for our own volumes."""

    name = "snapshots"
    accepts: tuple[type[Fact], ...] = (Capture, Discard)
    parallel = False

    def __init__(self, root: str | Path, store: Writer, timed: Timed) -> None:
        self.root = Path(root)
        self._store = store
        self._timed = timed
        self._shelf = records(root)
        self._copies = Errands()

    def observe(self) -> Mapping[FactKey, Mark]:
        """Nothing is swept; a freeze that was left by one who was killed ends."""
        freeze.thaw_beneath(self.root / names.FILESYSTEM_DIR)
        return {}

    def apply(self, plan: Plan) -> None:
        """All are set about. Raises Unavailable while one is copied, Conflict for several, KernelError."""
        facts = (*plan.add, *plan.change)
        failed: list[NetplaneError] = []
        for fact in facts:
            try:
                self._do(fact, PATIENCE if len(facts) == 1 else 0)
            except NetplaneError as exc:
                failed.append(exc)
        if failed and len(facts) > 1:
            raise Conflict("some of these snapshots must be looked at one by one")
        if failed:
            raise failed[0]

    def _do(self, fact: Capture | Discard, patience: float) -> None:
        work = self._capture if isinstance(fact, Capture) else self._discard
        taking = Capture(fact.content, fact.uid, fact.driver)
        if isinstance(fact, Discard) and self._copies.busy(str(taking.key), patience):
            raise Unavailable(f"VolumeSnapshotContent {fact.content}: still being taken; it goes after that")
        if not self._copies.done(str(fact.key), lambda: work(fact.content, fact.uid), patience):
            raise Unavailable(f"VolumeSnapshotContent {fact.content}: under way")

    # --- taking -------------------------------------------------------------------------------------

    def _capture(self, name: str, uid: str) -> None:
        content = live(self._store, name, uid)
        if content is None or content.deleting or content.status.ready_to_use:
            return
        try:
            kept = self._found(content) or self._taken(content)
        except NetplaneError as exc:
            say(self._store, content, ContentStatus(error=SnapshotError(message=str(exc))))
            raise
        notes = {names.BACKEND: kept.backend, names.FILE_SYSTEM: kept.fstype}
        status = ContentStatus(
            creation_time=int(kept.created * 1e9), ready_to_use=True, restore_size=kept.size,
            snapshot_handle=kept.handle,
        )  # fmt: skip
        mode = "Block" if kept.block else "Filesystem"
        say(self._store, content, status, notes, mode)

    def _found(self, content: VolumeSnapshotContent) -> Kept | None:
        """What a content names that nobody took for it; None for one that is to be taken."""
        handle = content.spec.source.snapshot_handle
        if not handle:
            return None
        kept = self._shelf.get(handle)
        if kept is None or kept.phase != "ready":
            raise Invalid(f"spec.source.snapshotHandle: there is no snapshot {handle} beneath {self.root}")
        return kept

    def _taken(self, content: VolumeSnapshotContent) -> Kept:
        handle = content.name.replace("snapcontent-", "snapshot-", 1)
        kept = self._shelf.get(handle)
        if kept is not None and kept.phase == "ready":
            return kept
        if kept is None or not backends.there(self.root, _data(kept)):  # the volume may have grown meanwhile
            kept = self._record(handle, content.spec.source.volume_handle)
        data = _data(kept)
        with (
            backends.copying(self.root, data),
            self._timed("snapshot_create", kept.backend),
            progress.telling(copy_size(self.root, data), lambda work: self._tell(content, work)),
            freeze.still(self.root / data.source / "image"),
        ):
            created = time.time()
            backends.fill(self.root, data)
        whole: Kept = amend(kept, phase="ready", created=created)
        self._shelf.put(handle, whole)
        return whole

    def _record(self, handle: str, name: str) -> Kept:
        volume = self._store.get(Key(PersistentVolume.KIND, "", name))
        if not isinstance(volume, PersistentVolume) or not is_ours(volume, self.root):
            raise Invalid(f"spec.source.volumeHandle: there is no volume {name} of ours beneath {self.root}")
        data = data_of(volume)
        size = data.size or match.capacity(volume)
        made = Kept(
            handle=handle, volume=name, backend=data.backend, size=size, fstype=data.fstype, block=data.block
        )
        self._shelf.open()
        self._shelf.put(handle, made)
        return made

    def _tell(self, content: VolumeSnapshotContent, work: progress.Work) -> None:
        ref = content.spec.volume_snapshot_ref
        found = self._store.get(Key("VolumeSnapshot", ref.namespace, ref.name))
        if found is not None:
            events.tell(self._store, found, "snapshot", ("CreatingSnapshot", f"copying: {work}"))

    # --- removing -----------------------------------------------------------------------------------

    def _discard(self, name: str, uid: str) -> None:
        content = live(self._store, name, uid)
        if content is None or not content.deleting:
            return
        handle = content.status.snapshot_handle or content.name.replace("snapcontent-", "snapshot-", 1)
        with self._timed("snapshot_delete", self.name):
            backends.erase(self.root, f"{SNAPSHOT_DIR}/{handle}")
        if self._shelf.path(handle).exists():
            self._shelf.remove(handle)
        let_go(self._store, content)


def _data(kept: Kept) -> Data:
    return Data(
        path=f"{SNAPSHOT_DIR}/{kept.handle}", backend=kept.backend, size=kept.size, fstype=kept.fstype,
        block=kept.block, overcommit=True, source=f"{names.FILESYSTEM_DIR}/{kept.volume}",
    )  # fmt: skip


# --- what the driver of other people's snapshots does too --------------------------------------------


def live(store: Writer, name: str, uid: str) -> VolumeSnapshotContent | None:
    found = store.get(Key(VolumeSnapshotContent.KIND, "", name))
    return found if isinstance(found, VolumeSnapshotContent) and found.metadata.uid == uid else None


def say(
    store: Writer,
    content: VolumeSnapshotContent,
    status: ContentStatus,
    notes: Mapping[str, str] | None = None,
    mode: str = "",
) -> None:
    """Write what became of it, unless it is gone or already said. Raises Unavailable."""
    for _ in range(TRIES):
        found = live(store, content.name, content.metadata.uid)
        if found is None or found.status == status:
            return
        told = steps.annotated(amend(found, status=status), {k: v for k, v in (notes or {}).items() if v})
        if mode and not told.spec.source_volume_mode:
            told = amend(told, spec=amend(told.spec, source_volume_mode=mode))
        with suppress(Conflict):
            store.put(told, expect=found.revision)
            return
    raise Unavailable(f"{content.key}: others keep writing to the object")


def let_go(store: Writer, content: VolumeSnapshotContent) -> None:
    """What is behind it is gone: so may the object be. Raises Unavailable."""
    for _ in range(TRIES):
        found = live(store, content.name, content.metadata.uid)
        if found is None or names.SNAPSHOT_CONTENT not in found.metadata.finalizers:
            return
        with suppress(Conflict):
            store.put(steps.without(found, names.SNAPSHOT_CONTENT), expect=found.revision)
            return
    raise Unavailable(f"{content.key}: others keep writing to the object")

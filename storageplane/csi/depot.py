"""What the driver keeps: records of volumes, snapshots and groups, and the data they stand for.

    ROOT/csi/volumes/ID.json and ROOT/csi/journal (see `volumes`)
    ROOT/csi/snapshots/ID.json    ROOT/csi/groups/ID.json
    ROOT/csi/spare: given up when the disk is full, so that what makes room can be recorded
    ROOT/csi/data/ID/image or ROOT/csi/data/ID/tree (see `backends`)

Rule 1: a record is written before what it stands for is made, and removed after that is gone, so that
        whatever step a crash falls on, the same call made again finishes the work. Only an empty directory
        comes before its record: without one it is nothing, and goes with the next start (`hollows`).
Rule 2: an id follows from the name, so a name can never get two volumes, and an id can never be a path.
Rule 3: one call at a time works on one volume; a second one is told so (ABORTED) and comes again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from netplane.model.base import amend
from netplane.model.errors import KernelError

from .. import backends
from ..backends import BACKENDS, Machine, Place
from ..host import binds, trash, tree
from ..host.durable import Shelf
from ..host.tree import sync_folder
from .refusal import CODE, Refused, missing
from .volumes import ADVICE, Volume, Volumes

SPARE = 1 << 16  # bytes
INLINE = "inline"  # the kind of a volume that a pod has for itself
_ID = re.compile(rf"(vol|snap|group|{INLINE})-[0-9a-f]{{32}}")
R = TypeVar("R", bound=msgspec.Struct)


class Records(Protocol[R]):
    """A `Shelf`, or `Volumes`."""

    def get(self, name: str) -> R | None: ...

    def put(self, name: str, record: R) -> None: ...


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    volume: str
    size: int
    backend: str
    fstype: str = ""
    block: bool = False
    group: str = ""
    created: float = 0.0
    phase: str = "making"


class Group(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    volumes: tuple[str, ...]
    snapshots: tuple[str, ...]
    created: float = 0.0
    phase: str = "making"


def id_of(kind: str, name: str) -> str:
    """vol-…, snap-…, group-…, inline-… from the name that the orchestrator chose."""
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


class Depot:
    """``root`` as everywhere in storageplane; what is kept lies in its directory csi.

    ``grace``: seconds for which the data of a deleted volume stays in csi/trash.
    """

    def __init__(self, root: str | Path, grace: float = 0.0) -> None:
        self.root = Path(os.path.realpath(root))
        self.trash = trash.Trash(self.root, "csi/trash", grace)
        self.data = self.root / "csi" / "data"
        self.volumes = Volumes(self.root / "csi" / "volumes", self.data)
        self.snapshots = Shelf(self.root / "csi" / "snapshots", Snapshot, ADVICE)
        self.groups = Shelf(self.root / "csi" / "groups", Group, ADVICE)
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        for shelf in (self.volumes, self.snapshots, self.groups):
            shelf.open()
        self._at = os.open(self.data, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._redo()
        self._spare = self.root / "csi" / "spare"
        self._spent = True
        self._save_spare()
        self._machine = backends.look(self.root)

    def close(self) -> None:
        """Leave files that need no journal, and the root to another driver."""
        self.volumes.close()
        os.close(self._at)

    def _redo(self) -> None:
        """After a crash of the machine: directories made and removed as the journal says."""
        for name, volume in self.volumes.unsettled().items():
            if volume is None:
                self.trash.take(f"csi/data/{name}")
            elif volume.phase == "ready" and volume.plain and not self.content(volume).exists():
                self.fill(volume, None)
        with suppress(KernelError):  # a full disk: the journal holds it further on
            self.volumes.settle()

    def alone(self, *ids: str) -> _Alone:
        """Work on these; Refused(ABORTED) when a call in flight does."""
        return _Alone(self._lock, self._busy, ids)

    def volume(self, name: str) -> Volume:
        """The volume with this id that is made, whole and not being removed. Raises Refused(NOT_FOUND)."""
        found = self.peek(self.volumes, name)
        if found is None or found.phase != "ready":
            raise missing("volume", name)
        return found

    def snapshot(self, name: str) -> Snapshot:
        found = self.peek(self.snapshots, name)
        if found is None or found.phase != "ready":
            raise missing("snapshot", name)
        return found

    def peek(self, shelf: Records[R], name: str) -> R | None:
        """The record, in whatever phase; None for what cannot be an id of ours."""
        return shelf.get(name) if self.ours(name) else None

    @staticmethod
    def ours(name: str) -> bool:
        """Whether this is an id as we make them."""
        return _ID.fullmatch(name) is not None

    def keep(self, volume: Volume) -> Volume:
        """Write it down, durably where it outlives the machine. Raises KernelError."""
        self.volumes.put(volume.id, volume)
        return volume

    def less(self, shelf: Records[R], record: R) -> R:
        """Write that less is there than before; a full disk does not stop that, by giving up the spare."""
        name = str(record.id)  # type: ignore[attr-defined]
        self._pressed(lambda: shelf.put(name, record))
        return record

    def _pressed(self, write: Callable[[], None]) -> None:
        try:
            write()
        except KernelError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._spent = True
            self._spare.unlink(missing_ok=True)
            write()

    def found(self, volume: Volume) -> Volume:
        """Make a plain volume, and put it on record whole: one entry, and one sync when all is done."""
        with tree.translated(f"make the directory of {volume.id}"):
            whole = tree.made_whole(self._at, volume.id, 0o700, ("tree", 0o777))
        if not whole:
            self.fill(volume, None)
        try:
            return self.keep(amend(volume, phase="ready"))
        except KernelError:
            tree.hollowed(self._at, volume.id, ("tree",))
            raise

    def discard(self, volume: Volume) -> None:
        """Remove a volume and its record, with one sync.

        What is empty is nothing to anybody: it goes at once, and then durably. Anything else is condemned
        durably before it goes, and a start finishes that whatever is lost of the rest.
        """
        condemned = amend(volume, phase="removing")
        hollow = volume.backend == "directory" and not self.trash.keeps
        self._pressed(lambda: self.volumes.put(volume.id, condemned, synced=not hollow))
        if hollow and not tree.hollowed(self._at, volume.id, ("tree",)):
            self.volumes.sync()
            hollow = False
        if not hollow:
            self._erase(volume.id, volume.backend, volume.phase != "making")
        self._save_spare()
        self.volumes.remove(volume.id, synced=hollow)

    def bound(self, volume: Volume, path: str) -> bool:
        """Show the directory of a volume at a place that is free; False: it takes more than that."""
        return volume.backend == "directory" and binds.bound(self._at, f"{volume.id}/tree", path)

    def hollows(self) -> Iterator[str]:
        """Take away empty homes that no record accounts for; their names."""
        known = {volume.id for volume in self.volumes.all()}
        for folder in ("volumes", "snapshots"):
            known.update(path.stem for path in (self.root / "csi" / folder).glob("*.json"))
        for name in sorted(os.listdir(self.data)):
            whole = name.removeprefix(".").removesuffix(".new")  # as `tree.make` calls what is half made
            if whole in known or not _ID.fullmatch(whole):
                continue
            if tree.hollowed(self._at, name, ("tree", tree.staging("tree"))):
                yield name

    def _save_spare(self) -> None:
        """Room for the records of calls that make room."""
        if self._spent:
            with suppress(OSError):
                if not self._spare.exists():
                    self._spare.write_bytes(bytes(SPARE))
                self._spent = False

    def home(self, name: str) -> Path:
        return self.data / name

    def place(self, what: Volume | Snapshot) -> Place:
        """Where it lies. A snapshot never grows, so it reserves nothing."""
        over = not isinstance(what, Volume) or what.parameters.get("overcommit") == "true"
        return Place(self.root, f"csi/data/{what.id}", what.size, what.fstype, what.block, over)

    def content(self, what: Volume | Snapshot) -> Path:
        return BACKENDS[what.backend].content(self.place(what))

    def free(self, draws: str = "disk") -> int:
        """Bytes that may still be promised of the disk or of memory."""
        making = [v for v in self.volumes.all() if v.phase == "making" and not self.place(v).overcommit]
        drawn = [v for v in making if BACKENDS[v.backend].draws == draws]
        promised = sum(v.size for v in drawn if not self.content(v).exists())
        return max(0, backends.free(self.root, draws) - promised)

    def machine(self) -> Machine:
        """What the machine has; what is free is asked anew at each admission."""
        return self._machine

    def admission(self) -> AbstractContextManager[object]:
        """Between asking `free` and writing the record nobody else may ask."""
        return backends.admission

    @contextmanager
    def copying(self, sources: Sequence[Volume | Snapshot], over: bool | None = None) -> Iterator[None]:
        """While these are copied nobody else is promised the room for it.

        ``over``: whether the copies overcommit; None: each as its source. Raises Refused(RESOURCE_EXHAUSTED)
        where others were promised it before.
        """
        needs = self._needed(sources, over)  # a walk, which keeps nobody waiting
        with ExitStack() as stack:
            with self.admission():
                self._refuse_crowding(needs)
                stack.enter_context(backends.reserved(self.root, needs))
            yield

    def _needed(self, sources: Sequence[Volume | Snapshot], over: bool | None) -> dict[str, int]:
        """What copies of these take, by what they draw on."""
        needs: dict[str, int] = {}
        for source in sources:
            backend, place = BACKENDS[source.backend], self.place(source)
            draws = backend.draws or "disk"
            if over is not None:
                place = place._replace(overcommit=over)
            needs[draws] = needs.get(draws, 0) + backend.costs(place)
        return needs

    def _refuse_crowding(self, needs: Mapping[str, int]) -> None:
        for draws, need in needs.items():
            if need > (have := self.free(draws)):
                advice = "remove something, or use a StorageClass with overcommit"
                message = f"{backends.crowded(need, have, draws)}; {advice}"
                raise Refused(CODE.RESOURCE_EXHAUSTED, message)

    def fill(self, new: Volume | Snapshot, source: Volume | Snapshot | None) -> None:
        """Make the data: empty, or a copy. Done already: fine. Raises KernelError, Invalid."""
        tree.make(self.root, f"csi/data/{new.id}", 0o700)
        backend = BACKENDS[new.backend]
        if source is None:
            backend.make(self.place(new))
        else:
            backend.copy(self.place(source), self.place(new))
        if not isinstance(new, Volume) or not new.plain:
            with tree.translated(f"sync {self.home(new.id)}"):
                sync_folder(self.home(new.id))
                sync_folder(self.data)

    def _called(self, name: str) -> str:
        found = self.peek(self.volumes, name)
        return found.name if found is not None else ""

    def drop(self, name: str, whole: bool = True) -> None:
        """Remove the data; gone already: fine. Raises KernelError(EBUSY) while anything is mounted in it."""
        if self.trash.keeps or not tree.hollowed(self._at, name, ("tree",)):
            self._erase(name, whole=whole)
        self._save_spare()

    def _erase(self, name: str, backend: str = "", whole: bool = True) -> None:
        """What is not whole is worth no place in the trash."""
        path = f"csi/data/{name}"
        if self.trash.keeps and whole:
            self.trash.take(path, lambda: self._called(name))
        else:
            backends.erase(self.root, path, backend)


class _Alone:
    """A class, because each call of the driver has one."""

    __slots__ = ("_busy", "_lock", "_wanted")

    def __init__(self, lock: threading.Lock, busy: set[str], ids: Iterable[str]) -> None:
        self._lock, self._busy = lock, busy
        self._wanted = {i for i in ids if i}

    def __enter__(self) -> None:
        with self._lock:
            taken = self._busy & self._wanted
            if taken:
                raise Refused(CODE.ABORTED, f"an operation on {min(taken)} is in progress; try again later")
            self._busy |= self._wanted

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._busy -= self._wanted


def now() -> float:
    return time.time()

"""What the driver keeps: records of volumes, snapshots and groups, and the data they stand for.

    ROOT/csi/volumes/ID.json    ROOT/csi/snapshots/ID.json    ROOT/csi/groups/ID.json
    ROOT/csi/here/ID.json: what of a volume is mounted
    ROOT/csi/spare: given up when the disk is full, so that what makes room can be recorded
    ROOT/csi/data/ID/image or ROOT/csi/data/ID/tree (see `backends`)

Rule 1: a record is written before what it stands for is made, and removed after that is gone, so that
        whatever step a crash falls on, the same call made again finishes the work.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from netplane.model.base import amend
from netplane.model.errors import KernelError

from .. import backends
from ..backends import BACKENDS, Machine, Place
from ..host import trash, tree
from ..host.durable import Shelf
from .refusal import CODE, Refused, missing

ADVICE = "it was damaged; look at its data beneath csi/data, then remove the file"
SPARE = 1 << 16  # bytes
_ID = re.compile(r"(vol|snap|group)-[0-9a-f]{32}")
R = TypeVar("R", bound=msgspec.Struct)


class Target(msgspec.Struct, frozen=True):
    """One NodePublish: a target path and how the volume is shown there."""

    path: str
    read_only: bool
    capability: str  # the request's capability, printed; what a repeated call is compared with


class Stage(msgspec.Struct, frozen=True):
    """``boot``: the boot it was mounted in; in another one nothing of it is left."""

    path: str
    capability: str
    options: tuple[str, ...] = ()
    boot: str = ""

    def same(self, other: Stage) -> bool:
        return (self.path, self.capability) == (other.path, other.capability)


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """``phase``: making, ready, removing. ``backend``: as in `backends`. ``fstype`` "": raw, or none."""

    id: str
    name: str
    size: int
    backend: str
    fstype: str = ""
    block: bool = False
    parameters: dict[str, str] = {}
    mutable: dict[str, str] = {}
    source: tuple[str, str] = ("", "")  # ("snapshot" or "volume", id)
    created: float = 0.0
    phase: str = "making"
    attached: tuple[str, bool] | None = None  # ControllerPublish: capability, read only
    stage: Stage | None = None
    targets: tuple[Target, ...] = ()


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
    """vol-…, snap-…, group-… from the name that the orchestrator chose."""
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:32]}"


class Here(msgspec.Struct, frozen=True):
    """What of a volume is mounted on this node; nothing of it outlives the boot."""

    stage: Stage | None
    targets: tuple[Target, ...]


class Volumes(Shelf[Volume]):
    """Volumes, in two records each: what they are, synced; what is mounted of them, not synced.

    The second is worth nothing after the machine has crashed, since nothing is mounted then. So a stage
    or a publish waits for no disk, and still a killed driver leaves it whole.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Volume, ADVICE)
        self._here = Shelf(folder.parent / "here", Here, ADVICE, synced=False)

    def open(self) -> None:
        super().open()
        self._here.open()
        began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        for path in self._here.folder.glob("*.json"):
            if path.stat().st_mtime < began and not path.stat().st_size:
                path.unlink()  # what a crash of the machine left of it

    def get(self, name: str) -> Volume | None:
        found, here = super().get(name), self._here.get(name)
        if found is None or here is None:
            return found
        joined: Volume = amend(found, stage=here.stage, targets=here.targets)
        return joined

    def put(self, name: str, record: Volume) -> None:
        lasting: Volume = amend(record, stage=None, targets=())
        if lasting != super().get(name):
            super().put(name, lasting)
        if record.stage or record.targets:
            self._here.put(name, Here(record.stage, record.targets))
        else:
            self._here.remove(name)

    def remove(self, name: str) -> None:
        self._here.remove(name)
        super().remove(name)


class Depot:
    """``root`` as everywhere in storageplane; what is kept lies in its directory csi.

    ``grace``: seconds for which the data of a deleted volume stays in csi/trash.
    """

    def __init__(self, root: str | Path, grace: float = 0.0) -> None:
        self.root = Path(os.path.realpath(root))
        self.trash = trash.Trash(self.root, "csi/trash", grace)
        self.data = self.root / "csi" / "data"
        self.volumes = Volumes(self.root / "csi" / "volumes")
        self.snapshots = Shelf(self.root / "csi" / "snapshots", Snapshot, ADVICE)
        self.groups = Shelf(self.root / "csi" / "groups", Group, ADVICE)
        self._busy: set[str] = set()
        self._admission = threading.Lock()
        self._lock = threading.Lock()
        for shelf in (self.volumes, self.snapshots, self.groups):
            shelf.open()
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._spare = self.root / "csi" / "spare"
        self._save_spare()
        self._machine = backends.look(self.root)

    @contextmanager
    def alone(self, *ids: str) -> Iterator[None]:
        """Work on these; Refused(ABORTED) when a call in flight does."""
        wanted = {i for i in ids if i}
        with self._lock:
            taken = self._busy & wanted
            if taken:
                raise Refused(CODE.ABORTED, f"an operation on {min(taken)} is in progress; try again later")
            self._busy |= wanted
        try:
            yield
        finally:
            with self._lock:
                self._busy -= wanted

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

    def peek(self, shelf: Shelf[R], name: str) -> R | None:
        """The record, in whatever phase; None for what cannot be an id of ours."""
        return shelf.get(name) if _ID.fullmatch(name) else None

    def keep(self, volume: Volume) -> Volume:
        self.volumes.put(volume.id, volume)
        return volume

    def less(self, shelf: Shelf[R], record: R) -> R:
        """Write that less is there than before; a full disk does not stop that, by giving up the spare."""
        name = str(record.id)  # type: ignore[attr-defined]
        try:
            shelf.put(name, record)
        except KernelError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._spare.unlink(missing_ok=True)
            shelf.put(name, record)
        return record

    def _save_spare(self) -> None:
        """Room for the records of calls that make room."""
        with suppress(OSError):
            if not self._spare.exists():
                self._spare.write_bytes(bytes(SPARE))

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
        left = backends.room(self.root) if draws == "disk" else backends.memory(self.root)
        return max(0, left - promised)

    def machine(self) -> Machine:
        """What the machine has; what is free is asked anew at each admission."""
        return self._machine

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Between asking `free` and writing the record nobody else may ask."""
        with self._admission:
            yield

    def fill(self, new: Volume | Snapshot, source: Volume | Snapshot | None) -> None:
        """Make the data: empty, or a copy. Done already: fine. Raises KernelError, Invalid."""
        tree.make(self.root, f"csi/data/{new.id}", 0o700)
        backend = BACKENDS[new.backend]
        if source is None:
            backend.make(self.place(new))
        else:
            backend.copy(self.place(source), self.place(new))

    def _called(self, name: str) -> str:
        found = self.peek(self.volumes, name)
        return found.name if found is not None else ""

    def drop(self, name: str) -> None:
        """Remove the data; gone already: fine. Raises KernelError(EBUSY) while anything is mounted in it."""
        self.trash.take(f"csi/data/{name}", lambda: self._called(name))
        self._save_spare()


def now() -> float:
    return time.time()

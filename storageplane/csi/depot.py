"""What the driver keeps: records of volumes, snapshots and groups, and the data they stand for.

    ROOT/csi/volumes/ID.json    ROOT/csi/snapshots/ID.json    ROOT/csi/groups/ID.json
    ROOT/csi/data/ID/image or ROOT/csi/data/ID/tree

Rule 1: a record is written before what it stands for is made, and removed after that is gone, so that
        whatever step a crash falls on, the same call made again finishes the work.
Rule 2: an id follows from the name, so a name can never get two volumes, and an id can never be a path.
Rule 3: one call at a time works on one volume; a second one is told so (ABORTED) and comes again.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from .. import images, tree
from ..durable import Shelf
from .refusal import CODE, Refused, missing

ADVICE = "it was damaged; look at its data beneath csi/data, then remove the file"
_ID = re.compile(r"(vol|snap|group)-[0-9a-f]{32}")
R = TypeVar("R", bound=msgspec.Struct)


class Target(msgspec.Struct, frozen=True):
    """One NodePublish: a target path and how the volume is shown there."""

    path: str
    read_only: bool
    capability: str  # the request's capability, printed; what a repeated call is compared with


class Stage(msgspec.Struct, frozen=True):
    path: str
    capability: str


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """``phase``: making, ready, removing. ``backend``: image or directory. ``fstype`` "": raw."""

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


class Depot:
    """``root`` as everywhere in storageplane; what is kept lies in its directory csi."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.realpath(root))
        self.data = self.root / "csi" / "data"
        self.volumes = Shelf(self.root / "csi" / "volumes", Volume, ADVICE)
        self.snapshots = Shelf(self.root / "csi" / "snapshots", Snapshot, ADVICE)
        self.groups = Shelf(self.root / "csi" / "groups", Group, ADVICE)
        self._busy: set[str] = set()
        self._admission = threading.Lock()
        self._lock = threading.Lock()
        for shelf in (self.volumes, self.snapshots, self.groups):
            shelf.open()
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)

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

    def home(self, name: str) -> Path:
        return self.data / name

    def content(self, what: Volume | Snapshot) -> Path:
        return self.home(what.id) / ("image" if what.backend == "image" else "tree")

    def free(self) -> int:
        """Bytes that an image may still have: what is free, less what other images may yet take."""
        found = os.statvfs(self.root)
        return max(0, found.f_bavail * found.f_frsize - self._promised())

    def _promised(self) -> int:
        return sum(
            max(0, v.size - _allocated(self.content(v)))
            for v in self.volumes.all()
            if v.backend == "image" and v.parameters.get("overcommit") != "true"
        )

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Between asking `free` and writing the record nobody else may ask."""
        with self._admission:
            yield

    def fill(self, new: Volume | Snapshot, source: Volume | Snapshot | None) -> None:
        """Make the data: empty, or a copy. Done already: fine. Raises KernelError, Invalid."""
        relative = f"csi/data/{new.id}"
        tree.make(self.root, relative, 0o700)
        content = self.content(new)
        if new.backend == "image":
            if source is None:
                images.make(content, new.size, new.fstype)
            else:
                images.copy(self.content(source), content)
                images.new_identity(content, new.fstype)
                images.grow(content, new.size)
        elif source is None:
            tree.make(self.root, f"{relative}/tree", 0o777)
        elif not content.exists():
            tree.remove(self.root, f"{relative}/tree.new")
            tree.make(self.root, f"{relative}/tree.new", 0o777)
            images.copy_tree(self.content(source), self.home(new.id) / "tree.new")
            os.rename(self.home(new.id) / "tree.new", content)

    def drop(self, name: str) -> None:
        """Remove the data; gone already: fine. Raises KernelError(EBUSY) while anything is mounted in it."""
        tree.remove(self.root, f"csi/data/{name}")


def _allocated(path: Path) -> int:
    try:
        return os.stat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def now() -> float:
    return time.time()

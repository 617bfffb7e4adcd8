"""Volumes: in memory, in a journal since the last settlement, and in one file each before that.

    ROOT/csi/volumes/ID.json    ROOT/csi/journal

Rule 1: a change is an entry of the journal. What must outlive the machine is synced there, with one sync
        for all calls that come at once; what is mounted does not outlive it, and waits for no disk.
Rule 2: when the journal is full, when the driver starts and when it ends, what it holds is settled: data
        and files are synced, then it begins again.
Rule 3: directories are made and removed without a sync of their own. If the machine crashed, what the
        journal says was made or removed is made or removed again (`unsettled`).
Rule 4: one process at a time has the volumes of a root.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from netplane.model.base import amend
from netplane.model.errors import Invalid, KernelError

from ..host.durable import Shelf
from ..host.journal import Journal, boot
from ..host.tree import sync_folder, translated

ADVICE = "it was damaged; look at its data beneath csi/data, then remove the file"
PATIENCE = 8.0  # seconds for a driver that ends


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

    @property
    def plain(self) -> bool:
        """A directory that was made empty: made again, it is the same."""
        return self.backend == "directory" and not self.source[0]

    def lasting(self) -> Volume:
        """What of it outlives the machine."""
        found: Volume = amend(self, stage=None, targets=())
        return found


class _Change(msgspec.Struct, frozen=True):
    name: str
    record: Volume | None


class Volumes:
    """``data``: the directory that holds each volume's home."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder, self._data = folder, data
        self._shelf = Shelf(folder, Volume, ADVICE)
        self._journal = Journal(folder.parent / "journal")
        self._decoder = msgspec.json.Decoder(_Change)
        self._lock = threading.Lock()
        self._known: dict[str, Volume] = {}
        self._changed: set[str] = set()
        self._bad: dict[str, str] = {}
        self._filed: set[str] = set()  # those that may have a file

    def open(self) -> None:
        """Raises Invalid while another driver has them, KernelError."""
        self._shelf.open()
        self._alone = _locked(self._folder)
        for path in sorted(self._folder.glob("*.json")):
            self._filed.add(path.stem)
            try:
                found = self._shelf.get(path.stem)
            except Invalid as exc:
                self._bad[path.stem] = str(exc)
            else:
                self._remember(path.stem, found)
        for text in self._journal.open():
            change = self._decoder.decode(text)
            self._remember(change.name, change.record)
            self._changed.add(change.name)

    def close(self) -> None:
        self.settle()
        self._journal.close()
        os.close(self._alone)

    def unsettled(self) -> dict[str, Volume | None]:
        """What the journal says of volumes, if the machine crashed since; None: it was removed."""
        crashed = self._journal.boot != boot()
        return {name: self._known.get(name) for name in sorted(self._changed)} if crashed else {}

    def get(self, name: str) -> Volume | None:
        """Raises Invalid when its record was damaged."""
        if name in self._bad:
            raise Invalid(self._bad[name])
        return self._known.get(name)

    def all(self) -> list[Volume]:
        """Every readable one, by id."""
        with self._lock:
            return [self._known[name] for name in sorted(self._known)]

    def damaged(self) -> list[str]:
        """What is wrong with each record that cannot be read."""
        aside = self._journal.aside
        lost = (
            [f"{aside}: the journal was damaged; list the volumes, then remove this"]
            if aside.exists()
            else []
        )
        return [*self._bad.values(), *lost]

    def put(self, name: str, record: Volume, synced: bool = True) -> None:
        """``synced`` False: durable with the next that is. Raises KernelError; then the old one stands."""
        before = self._known.get(name)
        if record == before:
            return
        lasting = synced and (before is None or record.lasting() != before.lasting())
        self._change(name, record, lasting)

    def sync(self) -> None:
        """All that was put is durable. Raises KernelError."""
        self._journal.sync()

    def remove(self, name: str, synced: bool = True) -> None:
        """``synced`` False: the journal says durably that it goes, whatever is lost of this."""
        self._change(name, None, synced or name in self._filed)
        if name not in self._filed:
            return
        with translated(f"remove the record of {name}"), suppress(FileNotFoundError):
            os.unlink(f"{self._folder}/{name}.json")  # what the last settlement left of it
        self._filed.discard(name)

    def _change(self, name: str, record: Volume | None, synced: bool) -> None:
        before = self._known.get(name)
        with self._lock:
            self._write(name, record)
        if not synced:
            return
        try:
            self._journal.sync()
        except KernelError:
            with self._lock:
                self._write(name, before)
            raise

    def _write(self, name: str, record: Volume | None) -> None:
        text = msgspec.json.encode(_Change(name, record))
        if not self._journal.fits(text):
            self._settle()
        if self._journal.fits(text):
            self._journal.add(text)
            self._changed.add(name)
        elif record is not None:
            self._filed.add(name)
            self._shelf.put(name, record)  # larger than all of the journal
        self._remember(name, record)

    def _remember(self, name: str, record: Volume | None) -> None:
        self._bad.pop(name, None)
        if record is None:
            self._known.pop(name, None)
        else:
            self._known[name] = record

    def settle(self) -> None:
        """Everything durable without the journal, which is empty then. Raises KernelError (ENOSPC)."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        if not self._changed and self._journal.boot == boot():
            return
        with translated(f"sync {self._data}"):
            for name in self._changed & self._known.keys():
                if (self._data / name).is_dir():
                    sync_folder(self._data / name)
            sync_folder(self._data)
        for name in sorted(self._changed):
            record = self._known.get(name)
            if record is not None:
                self._filed.add(name)
                self._shelf.put(name, record)
            elif self._shelf.path(name).exists():
                self._shelf.remove(name)
        self._journal.clear()
        self._changed.clear()


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder for this process. Raises Invalid while another does."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > give_up:
                os.close(fd)
                message = (
                    f"{folder}: another driver has these volumes; stop it, or give this one another --root"
                )
                raise Invalid(message) from None
        time.sleep(0.05)

"""Records on disk, one file each: whole, checksummed, synced, then renamed over the old one.

Rule 1: after a crash a record is the old one or the new one, never half of either.
Rule 2: a record that cannot be read is named with what to do, and stops nothing but itself.
Rule 3: a file from a newer version is refused, not guessed at.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from netplane.model.errors import Invalid, KernelError

VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
R = TypeVar("R", bound=msgspec.Struct)


class _File(msgspec.Struct, frozen=True):
    version: int
    sha256: str
    record: msgspec.Raw


class Shelf(Generic[R]):
    """Records of one type in one folder. ``advice``: what to do about one that was damaged.

    ``synced`` False: whole after a crash of the program, but maybe not of the machine.
    """

    def __init__(self, folder: str | Path, record: type[R], advice: str, synced: bool = True) -> None:
        self.folder = Path(folder)
        self._decoder = msgspec.json.Decoder(record)
        self._advice = advice
        self._synced = synced

    def open(self) -> None:
        """Make the folder, and remove what a crash left half written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob("*.new"):
            left.unlink()

    def path(self, name: str) -> Path:
        """Raises Invalid for a name that could be a path."""
        if not _NAME.fullmatch(name):
            raise Invalid(f"{name!r} cannot name a record: 1 to 128 of letters, digits, '-', '.' and '_'")
        return self.folder / f"{name}.json"

    def get(self, name: str) -> R | None:
        """Raises Invalid when it was damaged."""
        path = self.path(name)
        try:
            return self._decoded(path.read_bytes(), path)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise Invalid(f"{path}: unreadable ({exc.strerror}): {self._advice}") from None

    def all(self) -> list[R]:
        """Every readable record, by name."""
        return [record for record, _ in self._read() if record is not None]

    def damaged(self) -> list[str]:
        """What is wrong with each record that cannot be read."""
        return [why for record, why in self._read() if record is None]

    def _read(self) -> Iterator[tuple[R | None, str]]:
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else ():
            try:
                yield self.get(path.stem), ""
            except Invalid as exc:
                yield None, str(exc)

    def put(self, name: str, record: R) -> None:
        """Raises KernelError (ENOSPC, EIO); then the old record stands."""
        body = msgspec.json.encode(record)
        text = msgspec.json.encode(_File(VERSION, hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))
        path = self.path(name)
        fresh = path.with_suffix(".new")
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(text)
                file.flush()
                if self._synced:
                    os.fsync(fd)
            os.replace(fresh, path)
            self._sync()
        except OSError as exc:
            fresh.unlink(missing_ok=True)
            raise KernelError(exc.errno or 5, f"write {path}") from exc

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)
        self._sync()

    def _sync(self) -> None:
        if not self._synced:
            return
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _decoded(self, text: bytes, path: Path) -> R:
        try:
            file = msgspec.json.decode(text, type=_File)
            if file.version != VERSION:
                raise Invalid(f"{path}: version {file.version}; this program reads {VERSION}: upgrade it")
            if hashlib.sha256(bytes(file.record)).hexdigest() != file.sha256:
                raise Invalid(f"{path}: wrong checksum: {self._advice}")
            return self._decoder.decode(file.record)
        except msgspec.DecodeError as exc:
            raise Invalid(f"{path}: unreadable ({exc}): {self._advice}") from None

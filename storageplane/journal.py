"""What is published on this node, one file per pod: written before anything is done, removed last.

Rule 1: a record names everything that its publication makes, so whoever finds it can take all away,
        without the Pod object and whatever step a crash fell on.
Rule 2: a write is a whole file with a checksum, synced, then renamed over the old one.
Rule 3: it holds keys, never contents: no secret is ever in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from netplane.model.errors import Invalid, KernelError

VERSION = 1
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One pod's publication. ``keys`` in the order in which they are made."""

    uid: str
    namespace: str
    name: str
    node: str = ""
    target: str = ""  # real and absolute; "" when nothing is bound anywhere
    keys: tuple[tuple[str, str], ...] = ()
    sources: tuple[str, ...] = ()  # absolute paths of what is shown
    exclusive: tuple[str, ...] = ()  # ReadWriteOncePod volumes, by name


class _File(msgspec.Struct, frozen=True):
    version: int
    sha256: str
    record: msgspec.Raw


class Journal:
    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.folder = self.root / "published"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time on this root, over processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for left in self.folder.glob("*.new"):
                left.unlink()
            yield
        finally:
            os.close(fd)

    def path(self, uid: str) -> Path:
        if not _UID.fullmatch(uid):
            raise Invalid(f"metadata.uid {uid!r} is not a UID: letters, digits, '-', '.' and '_' only")
        return self.folder / f"{uid}.json"

    def read(self, uid: str) -> Record | None:
        path = self.path(uid)
        try:
            return _decoded(path.read_bytes(), path)
        except FileNotFoundError:
            return None

    def records(self) -> list[Record]:
        """Every readable record."""
        return [r for r, _ in self._all() if r is not None]

    def damaged(self) -> list[str]:
        """What is wrong with each record that cannot be read."""
        return [why for r, why in self._all() if r is None]

    def _all(self) -> Iterator[tuple[Record | None, str]]:
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else ():
            try:
                yield self.read(path.stem), ""
            except Invalid as exc:
                yield None, str(exc)

    def write(self, record: Record) -> None:
        body = msgspec.json.encode(record)
        text = msgspec.json.encode(_File(VERSION, hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))
        path = self.path(record.uid)
        fresh = path.with_suffix(".new")
        try:
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(fd)
            os.replace(fresh, path)
            self._sync()
        except OSError as exc:
            raise KernelError(exc.errno or 5, f"write {path}") from exc

    def remove(self, uid: str) -> None:
        self.path(uid).unlink(missing_ok=True)
        self._sync()

    def user_of(self, path: str) -> str:
        """Who has this path published here: "pod NS/NAME", or "". A damaged record may mean any path."""
        for record in self.records():
            if any(s == path or s.startswith(path + "/") for s in record.sources):
                return f"pod {record.namespace}/{record.name}"
        return next((f"an unknown pod ({why})" for why in self.damaged()), "")

    def _sync(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _decoded(text: bytes, path: Path) -> Record:
    advice = "it was damaged; unmount what lies beneath the root by hand, then remove the file"
    try:
        file = msgspec.json.decode(text, type=_File)
        if file.version != VERSION:
            raise Invalid(f"{path}: version {file.version}; this program reads {VERSION}: upgrade it")
        if hashlib.sha256(bytes(file.record)).hexdigest() != file.sha256:
            raise Invalid(f"{path}: wrong checksum: {advice}")
        return msgspec.json.decode(file.record, type=Record)
    except msgspec.DecodeError as exc:
        raise Invalid(f"{path}: unreadable ({exc}): {advice}") from None

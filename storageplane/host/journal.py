"""A log of changes in one file: appended, checksummed, and synced once for all who wait at that time.

Rule 1: the file's blocks are written when it is made. So an entry costs one write of the disk and no commit
        of the file system, and finds room on a full disk.
Rule 2: a sync covers all entries before it. The first whose checksum is wrong, or of an earlier generation
        of the file, ends the log: what a crash of the machine tore was never answered for.
Rule 3: who reads the log settles elsewhere, durably, what is in it, and only then clears it.
"""

from __future__ import annotations

import os
import struct
import zlib
from functools import cache
from pathlib import Path

from netplane.model.errors import Invalid
from netplane.model.gather import Gathering

from .tree import sync_folder, translated

SIZE = 1 << 18  # bytes
VERSION = 1
FIRST = 4096  # where entries begin; before them the header
_HEAD = struct.Struct("<8sI8s36sI")  # magic, version, generation, boot, checksum of these
_ENTRY = struct.Struct("<II")  # checksum of generation and text, length of the text
_MAGIC = b"SPJOURNL"


@cache
def boot() -> str:
    """This boot's number (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Journal:
    """One process has it open. Adding is for one thread at a time, syncing for any number.

    ``boot``: the boot that its entries are of. ``damaged``: it was not as we leave it; a copy was kept.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.aside = path, path.with_name(f"{path.name}.damaged")
        self.boot = ""
        self._end, self._generation = FIRST, b""
        self._syncs: Gathering[None] = Gathering(lambda _: os.fdatasync(self._fd))
        self._fd = -1
        self._writing, self._syncing = translated(f"write {path}"), translated(f"sync {path}")

    def open(self) -> list[bytes]:
        """Every entry, in order. Raises KernelError (ENOSPC), Invalid for a newer version's file."""
        with translated(f"open {self.path}"):
            if not self.path.exists():
                self._make()
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            return self._read(os.pread(self._fd, SIZE, 0))

    def close(self) -> None:
        os.close(self._fd)

    def fits(self, text: bytes) -> bool:
        return self._end + _ENTRY.size + len(text) <= SIZE

    def add(self, text: bytes) -> None:
        """Whole after a kill; durable with the next `sync`. Raises KernelError (EIO)."""
        with self._writing:
            raw = _ENTRY.pack(zlib.crc32(self._generation + text), len(text)) + text
            os.pwrite(self._fd, raw, self._end)
            self._end += len(raw)

    def sync(self) -> None:
        """All that was added before is durable. Raises KernelError (EIO)."""
        with self._syncing:
            self._syncs.do(None)

    def clear(self) -> None:
        """Begin again, with a generation of this boot."""
        generation = os.urandom(8)
        with translated(f"clear {self.path}"):
            os.pwrite(self._fd, _header(generation), 0)
            os.fdatasync(self._fd)
        self._generation, self._end, self.boot = generation, FIRST, boot()

    def _make(self) -> None:
        """All of its blocks, then its name: it is never found half made."""
        fresh = self.path.with_suffix(".new")
        try:
            with open(fresh, "wb") as file:
                file.write(_header(os.urandom(8)).ljust(SIZE, b"\0"))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            fresh.unlink(missing_ok=True)
            raise
        os.replace(fresh, self.path)
        sync_folder(self.path.parent)

    def _read(self, raw: bytes) -> list[bytes]:
        magic, version, self._generation, of, checksum = _HEAD.unpack(
            raw[: _HEAD.size].ljust(_HEAD.size, b"\0")
        )
        whole = magic == _MAGIC and checksum == zlib.crc32(raw[: _HEAD.size - 4])
        if whole and version != VERSION:
            raise Invalid(f"{self.path}: version {version}; this program reads {VERSION}: upgrade it")
        if not whole or len(raw) < SIZE:
            self.aside.write_bytes(raw)
            os.pwrite(self._fd, bytes(SIZE - len(raw)), len(raw))
        self.boot = of.rstrip(b"\0").decode("ascii", "replace")
        return list(self._entries(raw)) if whole else []

    def _entries(self, raw: bytes) -> list[bytes]:
        found = []
        while self._end + _ENTRY.size <= len(raw):
            checksum, length = _ENTRY.unpack_from(raw, self._end)
            begin = self._end + _ENTRY.size
            text = raw[begin : begin + length]
            if not length or len(text) < length or zlib.crc32(self._generation + text) != checksum:
                break
            found.append(text)
            self._end = begin + length
        return found


def _header(generation: bytes) -> bytes:
    raw = _HEAD.pack(_MAGIC, VERSION, generation, boot().encode(), 0)
    return raw[:-4] + struct.pack("<I", zlib.crc32(raw[:-4]))

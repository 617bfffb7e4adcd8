"""A btrfs subvolume with a qgroup limit, where the root itself is btrfs: grown and copied at once.

Rule 1: a write beyond the limit is EDQUOT; `df` would show the whole file system, so stats come from the
        qgroup.
Rule 2: a qgroup does not go with its subvolume, and cannot go before the kernel's cleaner is through with
        it. So its number is noted beside the subvolume (``qgroup``), then at the root (``qgroups.gone``),
        and destroyed when the kernel allows, at a later call at the latest.
Rule 3: the limit is a promise of space that the disk must keep, so it is admitted as an image is. What a
        subvolume shares with its snapshots is none of its own: written again, it takes new blocks.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from netplane.model.errors import Invalid, KernelError
from netplane.model.storage_facts import Mount

from ..host import images, syscalls, tree
from .base import Place, Usage, mark, marked
from .directory import InDirectory

MAGIC = 0x9123683E  # linux/magic.h
GONE = "qgroups.gone"
SUBVOLUME_INODE = 256  # BTRFS_FIRST_FREE_OBJECTID: the inode number of every subvolume's top
_INO_LOOKUP = 0xD0009412  # BTRFS_IOC_INO_LOOKUP, which tells the number of the subvolume


class Btrfs(InDirectory):
    name = "btrfs"
    enforced = True
    draws = "disk"

    def lacking(self, root: Path, fstype: str) -> str:
        del fstype
        if _magic(root) != MAGIC:
            return f"{root} is not on btrfs; put the root on one, or use image"
        return "" if images.program("btrfs") else "btrfs is needed (Debian: btrfs-progs)"

    def make(self, place: Place) -> None:
        self._quota(place.root)
        if not self.content(place).exists():
            self._clear(place)
            _btrfs("subvolume", "create", self._fresh(place))
            os.chmod(self._fresh(place), 0o777)
            self._settle(place)
        mark(place.path, place)
        self.grow(place)

    def copy(self, source: Place, place: Place) -> None:
        """A snapshot: every block is shared, and it is of one instant."""
        self._quota(place.root)
        if not self.content(place).exists():
            self._clear(place)
            _btrfs("subvolume", "snapshot", str(self.content(source)), self._fresh(place))
            self._settle(place)
        mark(place.path, place)
        self.grow(place)

    def grow(self, place: Place) -> None:
        found = self.usage(place)
        if found is None or found.total < place.size:
            _btrfs("qgroup", "limit", str(place.size), str(self.content(place)))

    def usage(self, place: Place) -> Usage | None:
        """By the qgroup; None when it has no limit (yet)."""
        limit, used, _ = _qgroup(self.content(place))
        return Usage(limit, used) if limit else None

    def promised(self, root: Path, homes: Sequence[str]) -> int:
        if _magic(root) != MAGIC:
            return 0
        keep = [home for home in homes if not marked(root / home) and _is_subvolume(root / home / "tree")]
        rows = [_qgroup(root / home / "tree") for home in keep]
        return sum(max(0, limit - own) for limit, _, own in rows)

    def costs(self, source: Place) -> int:
        if source.overcommit or marked(source.path) or not _is_subvolume(self.content(source)):
            return 0
        return _qgroup(self.content(source))[2]

    def let_go(self, place: Place) -> None:
        """The subvolume goes with what is in it; its qgroup is noted and goes when it can."""
        note = place.path / "qgroup"
        if not note.exists():
            return
        _append(place.root / GONE, note.read_text())
        for name in ("tree", "tree.new"):
            tree.remove(place.root, f"{place.home}/{name}")
        _sweep(place.root)

    def _quota(self, root: Path) -> None:
        """Turned on where it is not; that is what asking for this backend means."""
        try:
            _btrfs("qgroup", "show", str(root))
        except KernelError:
            _btrfs("quota", "enable", str(root))

    def _fresh(self, place: Place) -> str:
        return str(place.path / "tree.new")

    def _clear(self, place: Place) -> None:
        """What a crash left half made."""
        if os.path.lexists(self._fresh(place)):
            self._note(place)
            tree.remove(place.root, f"{place.home}/tree.new")

    def _settle(self, place: Place) -> None:
        self._note(place)
        with tree.translated(f"make {place.path}"):
            os.rename(self._fresh(place), self.content(place))

    def _note(self, place: Place) -> None:
        """One more number; a name that is not whole is never read, since the file only grows."""
        _append(place.path / "qgroup", f"{_number(self._fresh(place))}\n")

    def mount(self, place: Place, target: str, options: tuple[str, ...]) -> Mount:
        if options:
            raise Invalid(
                f"mount_flags {', '.join(options)}: a subvolume is shown as it is; use backend image"
            )
        return super().mount(place, target, options)


def _append(path: Path, text: str) -> None:
    with tree.translated(f"write {path}"), open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sweep(root: Path) -> None:
    """Destroy the qgroups of subvolumes that are gone, as far as the kernel lets go of them."""
    _btrfs("filesystem", "sync", str(root))
    with tree.translated(f"sweep {root / GONE}"), open(root / GONE, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        left = [number for number in file.read().split() if not _destroyed(root, number)]
        file.seek(0)
        file.truncate()
        file.write("".join(f"{number}\n" for number in left))


def _destroyed(root: Path, number: str) -> bool:
    """False while the kernel is not through with the subvolume (EBUSY, Linux 6.11 and later)."""
    try:
        _btrfs("qgroup", "destroy", f"0/{number}", str(root))
    except KernelError as exc:
        return "busy" not in exc.detail
    return True


def _btrfs(*words: str) -> str:
    return images.run("btrfs", *words, package="btrfs-progs")


def settled(root: Path) -> None:
    """What is free there is true: btrfs tells of written blocks only when they are committed."""
    if _magic(root) == MAGIC:
        syscalls.syncfs(str(root))


def _magic(root: Path) -> int:
    """statfs(2)'s f_type, which os.statvfs does not tell; 0 when the root is not there yet."""
    buffer = (ctypes.c_long * 32)()
    libc = ctypes.CDLL(None, use_errno=True)
    return int(buffer[0]) & 0xFFFFFFFF if libc.statfs(os.fsencode(root), buffer) == 0 else 0


def _is_subvolume(path: Path) -> bool:
    try:
        return os.stat(path, follow_symlinks=False).st_ino == SUBVOLUME_INODE
    except OSError:
        return False


def _number(path: str) -> int:
    """struct btrfs_ioctl_ino_lookup_args: treeid 0 asks for that of the descriptor."""
    buffer = bytearray(4096)
    struct.pack_into("=QQ", buffer, 0, 0, SUBVOLUME_INODE)
    with tree.translated(f"look at subvolume {path}"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _INO_LOOKUP, buffer)
        finally:
            os.close(fd)
    return int(struct.unpack_from("=Q", buffer)[0])


def _qgroup(path: Path) -> tuple[int, int, int]:
    """(limit, referenced, of that its own) of a subvolume in bytes; limit 0: none."""
    rows = _btrfs("qgroup", "show", "--raw", "-r", "-f", str(path)).splitlines()
    cells = rows[-1].split() if rows else []
    if len(cells) < 4 or not cells[1].isdigit():
        return 0, 0, 0
    return int(cells[3]) if cells[3].isdigit() else 0, int(cells[1]), int(cells[2])

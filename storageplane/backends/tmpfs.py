"""Memory with a size: a tmpfs mounted in the volume's home from its making to its removal.

Rule 1: its content goes with a reboot; a volume that had one comes back empty, and says so where it is
        asked (`content` is not there until it is staged again).
Rule 2: a size is promised from the memory that is available, since nobody swaps a data disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from netplane.model.errors import KernelError
from netplane.model.storage_facts import Mount

from ..host import images, mountinfo, syscalls, tree
from .base import Place, Usage, mark, marked
from .directory import InDirectory


class Tmpfs(InDirectory):
    name = "tmpfs"
    enforced = True
    draws = "memory"

    def lacking(self, root: Path, fstype: str) -> str:
        del root, fstype
        try:
            os.close(syscalls.new_filesystem("tmpfs", ("size=4096",)))
        except KernelError as exc:
            return f"no tmpfs can be made: {exc}"
        return ""

    def least(self, fstype: str) -> int:
        del fstype
        return os.sysconf("SC_PAGE_SIZE")

    def make(self, place: Place) -> None:
        """After a reboot: again, and empty."""
        tree.make(place.root, f"{place.home}/tree", 0o777)
        mark(place.path, place)
        if _there(self.content(place)):
            return
        made = syscalls.new_filesystem("tmpfs", _options(place.size))
        try:
            with tree.opened(syscalls.AT_FDCWD, str(self.content(place)), os.O_PATH, tree.LINKLESS) as at:
                syscalls.mount_setattr(made, False, syscalls.MS_PRIVATE)
                syscalls.move_mount(made, at, str(self.content(place)))
        finally:
            os.close(made)

    def copy(self, source: Place, place: Place) -> None:
        """What is half copied is copied again. Raises KernelError(ENOENT) for a source that a reboot took."""
        if (place.path / "whole").exists() and _there(self.content(place)):
            return
        if not _there(self.content(source)):
            why = "it was in memory, and went with a reboot; a volume comes back, empty, when it is staged"
            raise KernelError(errno.ENOENT, f"copy {source.path}", why)
        self.let_go(place)
        self.make(place)
        images.copy_tree(self.content(source), self.content(place))
        (place.path / "whole").touch()

    def grow(self, place: Place) -> None:
        found = os.statvfs(self.content(place))
        if found.f_blocks * found.f_frsize < place.size:
            syscalls.reconfigure(str(self.content(place)), _options(place.size)[1:])

    def mount(self, place: Place, target: str, options: tuple[str, ...]) -> Mount:
        self.make(place)
        return super().mount(place, target, options)

    def usage(self, place: Place) -> Usage | None:
        del place
        return None

    def promised(self, root: Path, homes: Sequence[str]) -> int:
        """What is in it is no longer available; what it may still take is promised."""
        keep = [h for h in homes if not marked(root / h) and _there(root / h / "tree")]
        rows = [os.statvfs(root / h / "tree") for h in keep]
        return sum(f.f_bavail * f.f_frsize for f in rows)

    def costs(self, source: Place) -> int:
        if source.overcommit or marked(source.path) or not _there(self.content(source)):
            return 0
        found = os.statvfs(self.content(source))
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def let_go(self, place: Place) -> None:
        with suppress(FileNotFoundError):
            (place.path / "whole").unlink()
        if _there(self.content(place)):
            with tree.opened(syscalls.AT_FDCWD, str(place.path), os.O_PATH, tree.LINKLESS) as at:
                syscalls.umount(f"/proc/self/fd/{at}/tree")


def _options(size: int) -> tuple[str, ...]:
    return ("mode=0777", f"size={size}")


def _there(path: Path) -> bool:
    return any(m.point == str(path) and m.fstype == "tmpfs" for m in mountinfo.read())

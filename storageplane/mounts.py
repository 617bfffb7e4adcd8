"""The driver of storage facts: directories, mount points and mounts of this node.

Rule 1: a relative path is beneath our root and resolved there without links. An absolute one was
        named by a user; it is real already (no links), and a link found in it later is refused.
Rule 2: a mount is made detached, whole with its read-only flag and propagation, and then attached
        to a descriptor: nobody ever sees it half made, or somewhere else.
Rule 3: removal is mounts first, then points, then directories. Before unmounting, a tree is made
        private, so that nothing propagates to the mounts it was copied from. Nothing that is mounted
        is ever deleted, and `Data` and `HostPath` never are.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from netplane.model.errors import Invalid, KernelError
from netplane.model.facts import Fact, FactKey, Mark, Plan
from netplane.model.storage_facts import CsiVolume, Data, Directory, HostPath, Mount, Point

from . import backends, hostpath, loops, mountinfo, syscalls, tree

if TYPE_CHECKING:
    from .csi.attach import Attachments

STRICT = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
PROPAGATION = {
    "private": (syscalls.MS_PRIVATE,),
    "rslave": (syscalls.MS_SLAVE, syscalls.MS_SHARED),  # a slave that hands on what it receives
    "rshared": (syscalls.MS_SHARED,),
}
_ORDER = {"mount": 0, "csi": 1, "point": 2, "directory": 3}


class Mounts:
    """``root``: the directory beneath which everything relative lies; it must exist."""

    name = "mounts"
    accepts: tuple[type[Fact], ...] = (Directory, Data, HostPath, Point, Mount, CsiVolume)
    parallel = False

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.realpath(root))

    def observe(self) -> Mapping[FactKey, Mark]:
        """The mounts beneath our root. Directories are not listed: adding them again costs nothing."""
        return {
            ("mount", os.path.relpath(m.point, self.root)): (_bound(m), m.read_only, m.propagation)
            for m in mountinfo.beneath(str(self.root))
            if m.point != str(self.root)
        }

    def apply(self, plan: Plan) -> None:
        """Raises KernelError, or Invalid for a path that is not what it must be; what stands, stands."""
        depth = sorted(plan.remove, key=lambda k: (_ORDER.get(str(k[0]), 9), -str(k[1]).count("/")))
        for key in depth:
            self._remove(str(key[0]), str(key[1]))
        for fact in plan.change:
            if isinstance(fact, Mount):
                self._unmount(fact.target)
            self._add(fact)
        for fact in plan.add:
            self._add(fact)

    def where(self, path: str) -> str:
        """The absolute path of a fact's path."""
        return path if path.startswith("/") else f"{self.root}/{path}"

    @cached_property
    def _drivers(self) -> Attachments:
        from .csi.attach import Attachments  # gRPC costs a quarter of a second: for CSI volumes only

        return Attachments(self.root)

    # --- making ---------------------------------------------------------------------------------

    def _add(self, fact: Fact) -> None:
        if isinstance(fact, Mount):
            self._mount(fact)
        elif isinstance(fact, Point):
            self._point(fact)
        elif isinstance(fact, HostPath):
            hostpath.ensure(fact)
        elif isinstance(fact, CsiVolume):
            self._drivers.publish(fact)
        elif isinstance(fact, Directory) and fact.path.startswith("/"):
            tree.make(Path("/"), fact.path[1:], fact.mode, resolve=STRICT | syscalls.RESOLVE_BENEATH)
        elif isinstance(fact, Directory):
            tree.make(self.root, fact.path, fact.mode, (fact.uid, fact.gid))
        elif isinstance(fact, Data):
            backends.ensure(self.root, fact)

    def _point(self, fact: Point) -> None:
        source = self.where(fact.source)
        head, name = os.path.split(self.where(fact.path))
        with tree.translated(f"look at {source}"):
            folder = stat.S_ISDIR(os.stat(source).st_mode)
        with self._strict(head) as at, tree.translated(f"make mount point {fact.path}"):
            try:
                have = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
            except FileNotFoundError:
                _make_point(at, name, folder)
                return
        if stat.S_ISLNK(have):
            raise Invalid(f"{fact.path} is a symbolic link; a target must be a real place, so remove it")
        if stat.S_ISDIR(have) != folder:
            raise Invalid(f"{fact.path} must be {'a directory' if folder else 'a file'}, as {source} is")

    def _mount(self, fact: Mount) -> None:
        target = self.where(fact.target)
        there = [m for m in mountinfo.read() if m.point == target]
        if there:
            if not self._same(there[-1], fact):
                raise KernelError(errno.EBUSY, f"mount at {target}", f"{there[-1].fstype} is mounted there")
            return
        with self._strict(target) as place:
            made = self._detached(fact)
            try:
                syscalls.move_mount(made, place, target)
            finally:
                os.close(made)

    def _detached(self, fact: Mount) -> int:
        if fact.fstype:
            made = self._fresh(fact)
        else:
            made = self._copied(fact)
        try:
            for kind in PROPAGATION[fact.propagation]:
                syscalls.mount_setattr(made, False, kind)
            if fact.read_only:
                syscalls.mount_setattr(made, True, 0, recursive=False)
        except KernelError:
            os.close(made)
            raise
        return made

    def _fresh(self, fact: Mount) -> int:
        """A file system of its own; one in an image takes a loop device that goes with the mount."""
        image = Path(self.where(fact.source))
        if "/" in fact.source and image.is_file():
            with loops.held(image) as device:
                return syscalls.new_filesystem(fact.fstype, (f"source={device}", *fact.options))
        return syscalls.new_filesystem(fact.fstype, (f"source={fact.source}", *fact.options))

    def _copied(self, fact: Mount) -> int:
        source = self.where(fact.source)
        with tree.opened(syscalls.AT_FDCWD, source, os.O_PATH, 0 if fact.follow else STRICT) as fd:
            return syscalls.open_tree(fd, fact.recursive, source)

    def _same(self, mounted: mountinfo.Mounted, fact: Mount) -> bool:
        """Whether what is mounted is what the fact wants; a bind is compared by device and inode."""
        if mounted.read_only != fact.read_only:
            return False
        if fact.fstype:
            return mounted.fstype == fact.fstype
        with tree.translated(f"compare {fact.target} with {fact.source}"):
            have, want = os.stat(self.where(fact.target)), os.stat(self.where(fact.source))
        return (have.st_dev, have.st_ino) == (want.st_dev, want.st_ino)

    # --- removing -------------------------------------------------------------------------------

    def _remove(self, kind: str, path: str) -> None:
        try:
            if kind == "mount":
                self._unmount(path)
            elif kind == "csi":
                self._drivers.unpublish(path)
            elif kind == "point":
                self._unpoint(path)
            elif kind == "directory" and path.startswith("/"):
                self._rmdir(path)
            elif kind == "directory":
                tree.remove(self.root, path)
        except KernelError as exc:
            linked = kind == "point" and exc.errno == errno.ELOOP  # nothing of ours lies behind a link
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR) and not linked:
                raise

    def _unmount(self, path: str) -> None:
        target = self.where(path)
        stack = mountinfo.beneath(target)
        if not stack:
            return
        with self._strict(target) as fd:
            if stack[0].propagation != "private" or len(stack) > 1:
                syscalls.mount_setattr(fd, False, syscalls.MS_PRIVATE)
        for mounted in reversed(stack):
            head, name = os.path.split(mounted.point)
            with self._strict(head) as at:
                _umount(f"/proc/self/fd/{at}/{name}", mounted.point)

    def _unpoint(self, path: str) -> None:
        """Remove an empty point; one that somebody filled or replaced is not ours any more."""
        head, name = os.path.split(self.where(path))
        with self._strict(head) as at, tree.translated(f"remove mount point {path}"):
            have = os.stat(name, dir_fd=at, follow_symlinks=False)
            if stat.S_ISDIR(have.st_mode):
                _rmdir(at, name)
            elif stat.S_ISREG(have.st_mode) and have.st_size == 0:
                os.unlink(name, dir_fd=at)

    def _rmdir(self, path: str) -> None:
        head, name = os.path.split(path)
        with self._strict(head) as at, tree.translated(f"remove directory {path}"):
            _rmdir(at, name)

    @staticmethod
    def _strict(path: str) -> tree.Opened:
        """A descriptor of an absolute path in which no link may stand."""
        return tree.opened(syscalls.AT_FDCWD, path, os.O_PATH, STRICT)


def _make_point(at: int, name: str, folder: bool) -> None:
    if folder:
        os.mkdir(name, 0o755, dir_fd=at)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(name, flags, 0o644, dir_fd=at))


def _rmdir(at: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=at)
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _umount(path: str, point: str) -> None:
    try:
        syscalls.umount(path)
    except KernelError as exc:
        if exc.errno == errno.EBUSY:
            reason = "a process still uses it; stop the containers of the pod first"
            raise KernelError(errno.EBUSY, f"unmount {point}", reason) from None
        if exc.errno != errno.EINVAL:  # EINVAL: not a mount (any more)
            raise KernelError(exc.errno, f"unmount {point}") from None


def _bound(mounted: mountinfo.Mounted) -> str:
    """The file system's type, or "" for a bind (its root is not the file system's)."""
    return "" if mounted.root != "/" else mounted.fstype

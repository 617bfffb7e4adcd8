"""The driver of storage facts: directories, files, mount points and mounts of this node.

Rule 1: a relative path is beneath our root and resolved there without links. An absolute one was
        named by a user; it is real already (no links), and a link found in it later is refused.
Rule 2: a mount is made detached, whole with its read-only flag and propagation, and then attached
        to a descriptor: nobody ever sees it half made, or somewhere else.
Rule 3: a mount that is there and right stays, whoever made it; one that is broken is replaced.
Rule 4: removal is mounts first, then CSI volumes, points, directories. Before unmounting, a tree is
        made private, so that nothing propagates to the mounts it was copied from. Nothing that is
        mounted is ever deleted, and what users keep never is.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netplane.model.errors import Invalid, KernelError
from netplane.model.facts import Fact, FactKey, Mark, Plan
from netplane.model.storage_facts import (
    CsiVolume,
    Data,
    Device,
    Directory,
    HostPath,
    Image,
    Mount,
    NetworkMount,
    Ownership,
    Payload,
    Point,
    SubPath,
)  # fmt: skip

from .. import backends
from . import (
    alive,
    atomic,
    attach,
    devices,
    helper,
    hostpath,
    limited,
    mountinfo,
    ownership,
    subpath,
    syscalls,
    tree,
)

if TYPE_CHECKING:
    from ..csi.attach import Attachments

STRICT = subpath.STRICT
_ORDER = {"mount": 0, "csi": 1, "point": 2, "device": 2, "directory": 3}
_LIST = os.O_RDONLY | os.O_DIRECTORY


class Mounts:
    """``root``: the directory beneath which everything relative lies; it must exist.

    ``local``: no server stands behind what it mounts, so that the kernel is asked about one place at once;
    else the list of all mounts is read, which waits for nobody.
    """

    name = "mounts"
    parallel = False

    def __init__(self, root: str | Path, local: bool = False) -> None:
        self.root = Path(os.path.realpath(root))
        self._local = local
        self._makers: dict[type[Fact], Callable[[Any], None]] = {
            Directory: self._directory,
            Data: lambda f: backends.ensure(self.root, f),
            Device: lambda f: devices.make(self.root, f.path, f.image),
            HostPath: hostpath.ensure,
            Image: lambda f: limited.make(self.root / f.path, f.size),
            Payload: self._payload,
            Ownership: self._ownership,
            SubPath: lambda f: subpath.make(self.where(f.source), f.path, f.follow),
            Point: self._point,
            Mount: self._mount,
            NetworkMount: self._network,
            CsiVolume: lambda f: self._drivers.publish(f),
        }

    @property
    def accepts(self) -> tuple[type[Fact], ...]:
        return tuple(self._makers)

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
        return attach.where(self.root, path)

    @cached_property
    def _drivers(self) -> Attachments:
        from ..csi.attach import Attachments  # gRPC costs a quarter of a second: for CSI volumes only

        return Attachments(self.root)

    # --- making ---------------------------------------------------------------------------------

    def _add(self, fact: Fact) -> None:
        self._makers[type(fact)](fact)

    def _directory(self, fact: Directory) -> None:
        if fact.path.startswith("/"):
            tree.make(Path("/"), fact.path[1:], fact.mode, resolve=STRICT | syscalls.RESOLVE_BENEATH)
        else:
            tree.make(self.root, fact.path, fact.mode, (fact.uid, fact.gid))

    def _payload(self, fact: Payload) -> None:
        path = self.where(fact.path)
        with tree.opened(syscalls.AT_FDCWD, path, _LIST, STRICT) as at:
            if fact.memory and not _in_memory(path, at):
                raise KernelError(errno.EINVAL, f"write {path}", "it must be a tmpfs: no secret goes to disk")
            with tree.translated(f"write the files of {path}"):
                atomic.write(at, fact)

    def _ownership(self, fact: Ownership) -> None:
        resolve = 0 if fact.path.startswith("/") else STRICT
        with tree.opened(syscalls.AT_FDCWD, self.where(fact.path), _LIST, resolve) as top:
            ownership.give(top, fact.gid, fact.always)

    def _point(self, fact: Point) -> None:
        source = self.where(fact.source)
        head, name = os.path.split(self.where(fact.path))
        with subpath.opened(source, fact.sub, fact.follow) as fd, tree.translated(f"look at {source}"):
            folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        with self._strict(head) as at, tree.translated(f"make mount point {fact.path}"):
            try:
                have = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
            except FileNotFoundError:
                _make_point(at, name, folder)
                return
            except OSError as exc:
                if exc.errno not in alive.BROKEN:
                    raise
                return  # what is mounted there is broken, and will be replaced
        if stat.S_ISLNK(have):
            raise Invalid(f"{fact.path} is a symbolic link; a target must be a real place, so remove it")
        if stat.S_ISDIR(have) != folder:
            raise Invalid(f"{fact.path} must be {'a directory' if folder else 'a file'}, as {source} is")

    def _mount(self, fact: Mount) -> None:
        target = self.where(fact.target)
        there = self._there(target)
        if there is not None and not self._cleared(there, fact.target):
            if attach.same(there, fact, self.root):
                return
            if not fact.sub:
                raise KernelError(errno.EBUSY, f"mount at {target}", f"{there.fstype} is mounted there")
            self._unmount(fact.target, lazily=True)  # whoever has the old file open keeps it
        with self._strict(target) as place:
            made = attach.detached(fact, self.root)
            try:
                syscalls.move_mount(made, place, target)
            finally:
                os.close(made)

    def _there(self, target: str) -> mountinfo.Mounted | None:
        free = self._local and syscalls.mount_root(target) is False
        return None if free else _mounted(target)

    def _network(self, fact: NetworkMount) -> None:
        target = self.where(fact.target)
        there = _mounted(target)
        if there is None or self._cleared(there, fact.target):
            helper.mount(fact, target)

    def _cleared(self, there: mountinfo.Mounted, path: str) -> bool:
        """Whether the mount was broken, and is gone now."""
        if not alive.broken(there.point, there.fstype):
            return False
        self._unmount(path)
        return True

    # --- removing -------------------------------------------------------------------------------

    def _remove(self, kind: str, path: str) -> None:
        try:
            if kind == "mount":
                self._unmount(path)
            elif kind == "point":
                self._unpoint(path)
            elif kind == "device":
                devices.remove(self.root, path)
            elif kind == "csi":
                self._drivers.unpublish(path)
            elif kind == "directory" and path.startswith("/"):
                self._rmdir(path)
            elif kind == "directory":
                tree.remove(self.root, path)
        except KernelError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise

    def _unmount(self, path: str, lazily: bool = False) -> None:
        target = self.where(path)
        if self._local and not lazily and self._unmounted(target):
            return
        stack = mountinfo.beneath(target)
        if not stack:
            return
        with self._strict(target) as fd:
            if stack[0].propagation != "private" or len(stack) > 1:
                syscalls.mount_setattr(fd, False, syscalls.MS_PRIVATE)
        for mounted in reversed(stack):
            head, name = os.path.split(mounted.point)
            with self._strict(head) as at:
                _umount(f"/proc/self/fd/{at}/{name}", mounted, lazily)

    def _unmounted(self, target: str) -> bool:
        """Unmount all that is mounted on just this place; False: what is mounted must be looked at."""
        head, name = os.path.split(target)
        taken = False
        try:
            with self._strict(head) as at:
                while True:
                    syscalls.umount(f"/proc/self/fd/{at}/{name}")
                    taken = True
        except KernelError as exc:
            return taken and exc.errno == errno.EINVAL  # not a mount any more

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


def _mounted(target: str) -> mountinfo.Mounted | None:
    """What is mounted at a place, uppermost."""
    return next((m for m in reversed(mountinfo.read()) if m.point == target), None)


def _in_memory(path: str, at: int) -> bool:
    there = _mounted(path)
    number = os.fstat(at).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    return there is not None and there.fstype == "tmpfs" and there.device == device


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


def _umount(path: str, mounted: mountinfo.Mounted, lazily: bool) -> None:
    point = mounted.point
    try:
        syscalls.umount(path, syscalls.MNT_DETACH if lazily else 0)
    except KernelError as exc:
        if exc.errno == errno.EBUSY and alive.broken(point, mounted.fstype):
            syscalls.umount(path, syscalls.MNT_DETACH)
        elif exc.errno == errno.EBUSY:
            reason = "a process still uses it; stop the containers of the pod first"
            raise KernelError(errno.EBUSY, f"unmount {point}", reason) from None
        elif exc.errno != errno.EINVAL:  # EINVAL: not a mount (any more)
            raise KernelError(exc.errno, f"unmount {point}") from None


def _bound(mounted: mountinfo.Mounted) -> str:
    """The file system's type, or "" for a bind (its root is not the file system's)."""
    return "" if mounted.root != "/" else mounted.fstype

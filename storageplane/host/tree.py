"""Directories beneath a root, made and removed by descriptor.

Rule 1: every path is relative to the root and resolved beneath it without links and without
        crossing a mount: openat2 with RESOLVE_BENEATH, NO_SYMLINKS, NO_MAGICLINKS and NO_XDEV.
Rule 2: removal descends by such descriptors only, so it stays on one mount of one file system and
        deletes a link, never what it points to (kubernetes#72257, CVE-2017-1002102).
Rule 3: a tree in which anything is mounted is not touched at all.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from netplane.model.errors import Invalid, KernelError

from . import mountinfo, syscalls

ANCHORED = (
    syscalls.RESOLVE_BENEATH
    | syscalls.RESOLVE_NO_SYMLINKS
    | syscalls.RESOLVE_NO_MAGICLINKS
    | syscalls.RESOLVE_NO_XDEV
)
LINKLESS = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
DEPTH = 64  # directories held open at once while removing
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class Opened:
    """A descriptor for as long as a ``with`` lasts; a class, because each call of a driver opens several."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def opened(at: int, path: str, flags: int = os.O_PATH, resolve: int = ANCHORED) -> Opened:
    """What stands at a path, open. Raises KernelError."""
    return Opened(syscalls.openat2(at, path, flags, resolve))


@contextmanager
def parent(root: Path, path: str, resolve: int = ANCHORED) -> Iterator[tuple[int, str]]:
    """(descriptor of the directory that holds ``path``, last name); ``path`` is beneath ``root``."""
    head, name = split(path)
    with opened(syscalls.AT_FDCWD, str(root), os.O_PATH | os.O_DIRECTORY, 0) as top:
        if not head:
            yield top, name
            return
        with opened(top, head, os.O_PATH | os.O_DIRECTORY, resolve) as fd:
            yield fd, name


def split(path: str) -> tuple[str, str]:
    """(head, last name) of a relative path. Raises Invalid when it could lead outside."""
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise Invalid(f"{path!r} is not a path beneath the root: use plain names joined by '/'")
    return "/".join(parts[:-1]), parts[-1]


def make(
    root: Path, path: str, mode: int, owner: tuple[int, int] = (-1, -1), resolve: int = ANCHORED
) -> None:
    """A directory of exactly ``mode`` whatever the umask, and its parents (0755), where absent.

    One that is there keeps its mode: its user may have changed it. It appears under its name whole,
    by rename, so a crash leaves none with half its attributes. Raises KernelError (ENOTDIR, ELOOP).
    """
    head, _ = split(path)
    try:
        _make_in(root, path, mode, owner, resolve)
    except KernelError as exc:
        if exc.errno != errno.ENOENT or not head:
            raise
        make(root, head, 0o755, resolve=resolve)
        _make_in(root, path, mode, owner, resolve)


def made_whole(at: int, name: str, mode: int, inner: tuple[str, int]) -> bool:
    """A directory with another in it, both of exactly their modes, under its name all at once.

    False: something is there already, and stays; or a crash left something, which is gone now.
    Raises OSError (ENOSPC); then nothing is left.
    """
    fresh = staging(name)
    try:
        os.mkdir(fresh, mode, dir_fd=at)
        with opened(at, fresh, _DIRECTORY) as home:
            os.mkdir(inner[0], inner[1], dir_fd=home)
            os.chmod(inner[0], inner[1], dir_fd=home)  # whatever the umask
            os.fchmod(home, mode)
        os.rename(fresh, name, src_dir_fd=at, dst_dir_fd=at)  # an empty one is taken over, any other refused
    except OSError as exc:
        hollowed(at, fresh, (inner[0], staging(inner[0])))
        if exc.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            return False
        raise
    return True


def _make_in(root: Path, path: str, mode: int, owner: tuple[int, int], resolve: int) -> None:
    with parent(root, path, resolve) as (fd, name), translated(f"make directory {root}/{path}"):
        _make_one(fd, name, mode, owner)


def staging(name: str) -> str:
    """The name that a directory has until it is whole."""
    if len(os.fsencode(name)) > 240:  # of 255 that a name may have
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}.new"


def _make_one(at: int, name: str, mode: int, owner: tuple[int, int]) -> None:
    if _is_made(at, name):
        return
    with suppress(FileExistsError):
        os.mkdir(staging(name), 0o700, dir_fd=at)
    try:
        with opened(at, staging(name), _DIRECTORY) as fresh:
            os.fchown(fresh, *owner)
            os.fchmod(fresh, mode)
        _give_name(at, name)
    except (OSError, KernelError):
        if not _is_made(at, name):
            raise
        with suppress(OSError):  # another maker was quicker
            os.rmdir(staging(name), dir_fd=at)


def _give_name(at: int, name: str) -> None:
    """A name that nothing has: an empty directory of another maker has users by now.

    nfs, ceph, 9p and many a FUSE server rename in one way only (EINVAL): there a look before it must do.
    """
    try:
        syscalls.rename_to_free(at, staging(name), name)
    except OSError as exc:
        if exc.errno != errno.EINVAL or _exists(at, name):
            raise
        os.rename(staging(name), name, src_dir_fd=at, dst_dir_fd=at)


def _is_made(at: int, name: str) -> bool:
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name)
    except FileNotFoundError:
        return False
    return True


def remove(root: Path, path: str) -> None:
    """Remove a tree beneath the root. Gone already: fine. Raises KernelError(EBUSY) when mounted in."""
    whole = str(root / path)
    within = mountinfo.beneath(os.path.realpath(root) + "/" + path)
    if within:
        raise KernelError(errno.EBUSY, f"remove {whole}", f"{within[-1].point} is mounted in it")
    try:
        with parent(root, path) as (fd, name), translated(f"remove {whole}"):
            remove_entry(fd, name)
            remove_entry(fd, staging(name))
    except KernelError as exc:
        if exc.errno != errno.ENOENT:
            raise


def hollowed(at: int, name: str, inner: tuple[str, ...]) -> bool:
    """Remove a directory that holds nothing but these, which hold nothing; False: there is more, or less.

    Nothing is listed and nothing is ever lost: rmdir(2) takes neither what is filled nor what is mounted.
    """
    try:
        with opened(at, name, os.O_PATH | os.O_DIRECTORY) as home:
            for one in inner:
                with suppress(FileNotFoundError):
                    os.rmdir(one, dir_fd=home)
        os.rmdir(name, dir_fd=at)
    except (OSError, KernelError):
        return False
    return True


def remove_entry(at: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=at)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        pass  # EISDIR on Linux for a directory; EPERM elsewhere and for immutable files
    _empty(at, name)
    os.rmdir(name, dir_fd=at)


def _empty(at: int, name: str) -> None:
    """Depth first with a stack of open directories; what lies deeper than DEPTH is moved to the top.

    So neither recursion nor the number of descriptors limits how deep a tree a user may leave.
    """
    stack: list[tuple[int, list[str]]] = []
    moves = (n for n in itertools.count() if not _exists(stack[0][0], f".deep-{n}"))
    try:
        stack.append(_listed(at, name))
        while stack:
            fd, entries = stack[-1]
            if not entries:
                stack.pop()
                os.close(fd)
                if stack:
                    os.rmdir(stack[-1][1].pop(), dir_fd=stack[-1][0])
            elif _unlinked(fd, entries[-1]):
                entries.pop()
            elif len(stack) < DEPTH:
                stack.append(_listed(fd, entries[-1]))
            else:
                top, listed = stack[0]
                moved = f".deep-{next(moves)}"
                os.rename(entries.pop(), moved, src_dir_fd=fd, dst_dir_fd=top)
                listed.insert(0, moved)
    finally:
        for fd, _ in stack:
            os.close(fd)


def _exists(at: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _listed(at: int, name: str) -> tuple[int, list[str]]:
    fd = syscalls.openat2(at, name, _DIRECTORY, ANCHORED)
    return fd, os.listdir(fd)


def _unlinked(at: int, name: str) -> bool:
    """Unlink unless it is a directory; False then."""
    try:
        os.unlink(name, dir_fd=at)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """The names in a directory are durable. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def kept(root: Path, path: str) -> None:
    """What a directory beneath the root holds has its names durably, and so has each on the way to it.

    Raises KernelError (EIO, ENOSPC).
    """
    with translated(f"sync {root / path}"):
        for folder in (root / path, *(root / path).parents):
            sync_folder(folder)
            if folder == root:
                return


class translated:
    """An OSError as KernelError; a size that is no number of the kernel's is one that it refuses too."""

    __slots__ = ("_operation",)

    def __init__(self, operation: str) -> None:
        self._operation = operation

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise KernelError(error.errno or errno.EIO, self._operation) from error
        if isinstance(error, OverflowError):
            raise KernelError(errno.EFBIG, self._operation) from error


SYSTEM = frozenset((
    "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/opt", "/proc", "/root", "/run",
    "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var",
))  # fmt: skip


def scrub(path: str, keep: str) -> None:
    """Empty a directory that a user named, which itself stays; anchored to its descriptor from then on.

    Refused for a path with a link in it, of the system, or around ``keep`` (our own root), and for a tree
    in which anything is mounted. Raises Invalid, KernelError.
    """
    plain = os.path.normpath(path)
    if plain == "/" or plain in SYSTEM or f"{keep}/".startswith(f"{plain}/"):
        raise Invalid(f"{path} is the system's or storageplane's own: nothing there is removed")
    within = [m for m in mountinfo.beneath(plain) if m.point != plain]
    if within:
        raise KernelError(errno.EBUSY, f"empty {path}", f"{within[-1].point} is mounted in it")
    with opened(syscalls.AT_FDCWD, plain, os.O_PATH | os.O_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS) as top:
        with translated(f"empty {path}"):
            _empty(top, ".")
        with opened(top, ".", _DIRECTORY) as fd:
            left = os.listdir(fd)
    if left:
        raise KernelError(errno.ENOTEMPTY, f"empty {path}", f"{left[0]} came while it was emptied")

"""The mount system calls that Python's os module lacks: openat2 and the descriptor-based mount API.

Rule 1: paths are resolved once, into descriptors; everything after works on the descriptors, so
        nobody can swap a component in between (CVE-2017-1002101, CVE-2021-25741).
Rule 2: a failure is KernelError with the errno and what was tried, on what.
Linux 5.2 (open_tree, move_mount, fsopen), 5.6 (openat2), 5.12 (mount_setattr). The numbers are the
same on every architecture that Linux has added since 5.1 unified them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from functools import cache, reduce
from operator import or_
from typing import Any

from netplane.model.errors import KernelError

OPEN_TREE, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT, FSPICK = 428, 429, 430, 431, 432, 433
OPENAT2, MOUNT_SETATTR = 437, 442
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
AT_SYMLINK_NOFOLLOW, AT_NO_AUTOMOUNT, AT_STATX_DONT_SYNC, MOUNT_ROOT = 0x100, 0x800, 0x4000, 0x2000
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 1, 2, 4, 8
OPEN_TREE_CLONE = 1
MOUNT_ATTR_RDONLY = 1
MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 18, 1 << 19, 1 << 20
UMOUNT_NOFOLLOW, MNT_DETACH = 8, 2
# Options of a mount, not of its file system: MOUNT_ATTR_* of linux/mount.h, or 0: so it is anyway.
ATTRIBUTES = {
    "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 0x10, "strictatime": 0x20, "nodiratime": 0x80,
    "suid": 0, "dev": 0, "exec": 0, "relatime": 0, "diratime": 0,
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def _typed(*arguments: Any) -> Any:
    """syscall(2) for one call that is made often, and so knows its arguments' types."""
    found = ctypes.CDLL(None, use_errno=True).syscall
    found.argtypes, found.restype = [ctypes.c_long, *arguments], ctypes.c_long
    return found


_int, _text, _size = ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t
_openat2 = _typed(_int, _text, ctypes.c_void_p, _size)
_open_tree = _typed(_int, _text, ctypes.c_uint)
_move_mount = _typed(_int, _text, _int, _text, ctypes.c_uint)
_mount_setattr = _typed(_int, _text, ctypes.c_uint, ctypes.c_void_p, _size)
_statx = ctypes.CDLL(None, use_errno=True).statx
_statx.argtypes = [_int, _text, _int, ctypes.c_uint, ctypes.c_void_p]
_umount = ctypes.CDLL(None, use_errno=True).umount2
_umount.argtypes = [_text, _int]
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


def syncfs(path: str) -> None:
    """Everything in the file system of this directory is on its disk. Raises KernelError (EIO, ENOSPC)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) < 0:
            raise KernelError(ctypes.get_errno(), f"sync the file system of {path}")
    finally:
        os.close(fd)


@cache
def _how(flags: int, resolve: int) -> Any:
    """struct open_how, which the kernel only reads."""
    return ctypes.byref(_OpenHow(flags | os.O_CLOEXEC, 0, resolve))


@cache
def _attr(read_only: bool, propagation: int) -> Any:
    return ctypes.byref(_MountAttr(MOUNT_ATTR_RDONLY if read_only else 0, 0, propagation, 0))


def _call(operation: str, number: int, *args: object) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = int(_libc.syscall(ctypes.c_long(number), *wide))
    if result < 0:
        raise KernelError(ctypes.get_errno(), operation)
    return result


def rename_to_free(at: int, old: str, new: str) -> None:
    """In one directory, to a name that nothing has. Raises OSError (EEXIST, ENOENT; EINVAL: it cannot)."""
    if _libc.renameat2(at, old.encode(_ENCODING, _ERRORS), at, new.encode(_ENCODING, _ERRORS), 1) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), new)


def openat2(at: int, path: str, flags: int, resolve: int) -> int:
    """A descriptor of ``path``, resolved beneath ``at`` under the RESOLVE_* rules."""
    fd = _openat2(OPENAT2, at, path.encode(_ENCODING, _ERRORS), _how(flags, resolve), 24)
    if fd < 0:
        raise KernelError(ctypes.get_errno(), f"open {path}")
    return int(fd)


def mount_root(path: str, at: int = AT_FDCWD) -> bool | None:
    """Whether something is mounted on ``path`` (statx(2), STATX_ATTR_MOUNT_ROOT, Linux 5.8); None: unclear.

    ``path`` "": on what ``at`` is open on.

    No file system is asked for anything, but one whose server is gone may be waited for all the same.
    """
    found = ctypes.create_string_buffer(256)
    flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC | (0 if path else AT_EMPTY_PATH)
    if _statx(at, path.encode(_ENCODING, _ERRORS), flags, 0, found) < 0:
        return False if ctypes.get_errno() in (errno.ENOENT, errno.ENOTDIR) else None
    have, known = struct.unpack_from("=8xQ40xQ", found)
    return bool(have & MOUNT_ROOT) if known & MOUNT_ROOT else None


def open_tree(fd: int, recursive: bool, what: str) -> int:
    """A detached copy of the mount that ``fd`` lies on, rooted at it."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    tree = _open_tree(OPEN_TREE, fd, b"", flags)
    if tree < 0:
        raise KernelError(ctypes.get_errno(), f"copy the mount of {what}")
    return int(tree)


def move_mount(tree: int, target: int, what: str) -> None:
    """Attach a detached mount at the place that ``target`` is open on."""
    both_empty = 0x4 | 0x40  # MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    if _move_mount(MOVE_MOUNT, tree, b"", target, b"", both_empty) < 0:
        raise KernelError(ctypes.get_errno(), f"mount at {what}")


def mount_setattr(fd: int, read_only: bool, propagation: int, recursive: bool = True) -> None:
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    if _mount_setattr(MOUNT_SETATTR, fd, b"", flags, _attr(read_only, propagation), 32) < 0:
        raise KernelError(ctypes.get_errno(), "set mount attributes")


def new_filesystem(fstype: str, options: tuple[str, ...]) -> int:
    """A detached mount of a fresh file system, such as tmpfs with size=65536; options as of mount(8)."""
    attributes = [ATTRIBUTES[option] for option in options if option in ATTRIBUTES]
    context = _call(f"open file system {fstype}", FSOPEN, fstype.encode(), 1)
    try:
        _set_options(context, fstype, tuple(option for option in options if option not in ATTRIBUTES))
        _call(f"create {fstype}", FSCONFIG, context, 6, None, None, 0)  # FSCONFIG_CMD_CREATE
        return _call(f"mount {fstype}", FSMOUNT, context, 1, reduce(or_, attributes, 0))
    finally:
        os.close(context)


def reconfigure(path: str, options: tuple[str, ...]) -> None:
    """Other options for the file system mounted at ``path``, such as size=131072."""
    context = _call(f"open the file system at {path}", FSPICK, AT_FDCWD, os.fsencode(path), 1)
    try:
        _set_options(context, path, options)
        _call(f"reconfigure {path}", FSCONFIG, context, 7, None, None, 0)  # FSCONFIG_CMD_RECONFIGURE
    finally:
        os.close(context)


def _set_options(context: int, what: str, options: tuple[str, ...]) -> None:
    for option in options:
        key, _, value = option.partition("=")
        command = 1 if value else 0  # FSCONFIG_SET_STRING, FSCONFIG_SET_FLAG
        text = value.encode() if value else None
        _call(f"{what} option {option}", FSCONFIG, context, command, key.encode(), text, 0)


def knows(fstype: str) -> bool:
    """Whether this kernel has a file system, built in or as a module that it loads now."""
    try:
        os.close(_call(f"open file system {fstype}", FSOPEN, fstype.encode(), 1))
    except KernelError as exc:
        if exc.errno == errno.ENODEV:
            return False
        raise
    return True


def chown(fd: int, gid: int) -> None:
    """Give what ``fd`` is open on, also by O_PATH and also a link itself, to a group."""
    if _libc.fchownat(fd, b"", ctypes.c_uint(-1), ctypes.c_uint(gid), AT_EMPTY_PATH) < 0:
        raise KernelError(ctypes.get_errno(), f"give a file to the group {gid}")


def umount(path: str, flags: int = 0) -> None:
    """Unmount what is mounted on exactly ``path``; a link there is not followed."""
    if _umount(path.encode(_ENCODING, _ERRORS), UMOUNT_NOFOLLOW | flags) < 0:
        raise KernelError(ctypes.get_errno(), f"unmount {path}")

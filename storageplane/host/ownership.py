"""fsGroup: whose group a volume and all in it have, as kubelet sets it.

Every entry gets the group; files also u+rw g+rw, directories u+rwx g+rwx and setgid, so that what is made
in them later has the group too. A symbolic link gets the group and nothing else.

Rule 1: children before their directory, the root last: a root that fits says that all is done, which is
        what fsGroupChangePolicy OnRootMismatch rests on, and what a crash cannot fake.
Rule 2: descriptors only; links are not followed and other mounts not entered.
Source: kubernetes pkg/volume/volume_linux.go.
"""

from __future__ import annotations

import errno
import os
import stat

from netplane.model.errors import KernelError

from . import syscalls, tree

FILE, FOLDER = 0o660, 0o2770
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_ENTRY = tree.ANCHORED & ~syscalls.RESOLVE_NO_SYMLINKS  # with O_NOFOLLOW: a link itself may be opened
_ELSEWHERE = (errno.ENOENT, errno.EXDEV, errno.ENOTDIR, errno.ELOOP)  # another mount, or gone meanwhile


def give(top: int, gid: int, always: bool) -> bool:
    """Give the tree whose root is open as ``top`` (not O_PATH) to the group; False: it fitted already.

    Raises KernelError.
    """
    if not always and fits(os.fstat(top), gid):
        return False
    with tree.translated(f"give a volume to the group {gid}"):
        _walk(top, gid)
    return True


def fits(root: os.stat_result, gid: int) -> bool:
    """Whether a volume's root is as `give` leaves it."""
    wanted = FOLDER if stat.S_ISDIR(root.st_mode) else FILE
    return root.st_gid == gid and stat.S_IMODE(root.st_mode) & wanted == wanted


def _walk(top: int, gid: int) -> None:
    """Post order without recursion: (descriptor, names left); a volume may be very deep."""
    stack = [(os.dup(top), os.listdir(top) if stat.S_ISDIR(os.fstat(top).st_mode) else [])]
    try:
        while stack:
            fd, names = stack[-1]
            if names:
                below = _one(fd, names.pop(), gid)
                if below >= 0:
                    stack.append((below, os.listdir(below)))
                continue
            _give(fd, gid)
            stack.pop()
            os.close(fd)
    finally:
        for fd, _ in stack:
            os.close(fd)


def _one(at: int, name: str, gid: int) -> int:
    """Give one entry; a directory is only opened, and comes after its content. -1: not a directory."""
    try:
        mode = os.stat(name, dir_fd=at, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            return syscalls.openat2(at, name, _LIST, tree.ANCHORED)
        fd = syscalls.openat2(at, name, os.O_PATH | os.O_NOFOLLOW, _ENTRY)
    except FileNotFoundError:
        return -1
    except KernelError as exc:
        if exc.errno in _ELSEWHERE:
            return -1
        raise
    try:
        _give(fd, gid)
    finally:
        os.close(fd)
    return -1


def _give(fd: int, gid: int) -> None:
    """By descriptor, also an O_PATH one: chown with AT_EMPTY_PATH, chmod through /proc."""
    have = os.fstat(fd)
    if have.st_gid != gid:
        syscalls.chown(fd, gid)
    if stat.S_ISLNK(have.st_mode):
        return
    wanted = have.st_mode | (FOLDER if stat.S_ISDIR(have.st_mode) else FILE)
    if have.st_gid != gid or wanted != have.st_mode:  # chown takes setuid and setgid bits away
        os.chmod(f"/proc/self/fd/{fd}", stat.S_IMODE(wanted))

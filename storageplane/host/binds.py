"""The plain case of a bind: a directory, shown at a place that is free, by as few system calls as can be.

Rule 1: as in `mounts`: source and target are resolved once, without links, and a mount is made detached,
        with its flags, before it is attached to a descriptor.
Rule 2: what is not plain (a link, a file, something mounted there already, a dead server) is not touched,
        and False says so. `Mounts` then does what is right, and has the words for what is wrong.
"""

from __future__ import annotations

import os

from netplane.model.errors import KernelError

from . import syscalls, tree
from .subpath import STRICT

_FOLDER = os.O_PATH | os.O_DIRECTORY
_MODE = 0o755  # of a point


def bound(at: int, source: str, target: str) -> bool:
    """Show ``source``, anchored beneath ``at``, at a directory that is there and not mounted on."""
    try:
        with tree.opened(syscalls.AT_FDCWD, target, _FOLDER, STRICT) as place:
            if syscalls.mount_root("", place) is not False:
                return False
            with tree.opened(at, source, _FOLDER) as shown:
                _attach(shown, place, target, False)
    except KernelError:
        return False
    return True


def pointed(source: str, target: str, read_only: bool) -> bool:
    """Show ``source`` at a point made for it; one that is there already is looked at by `Mounts`."""
    head, name = os.path.split(target)
    try:
        with (
            tree.opened(syscalls.AT_FDCWD, source, _FOLDER, STRICT) as shown,
            tree.opened(syscalls.AT_FDCWD, head, _FOLDER, STRICT) as at,
        ):
            os.mkdir(name, _MODE, dir_fd=at)
            with tree.opened(at, name, _FOLDER) as place:
                _attach(shown, place, target, read_only)
    except (OSError, KernelError):
        return False
    return True


def _attach(source: int, place: int, target: str, read_only: bool) -> None:
    made = syscalls.open_tree(source, False, target)
    try:
        syscalls.mount_setattr(made, read_only, syscalls.MS_PRIVATE, recursive=False)
        syscalls.move_mount(made, place, target)
    finally:
        os.close(made)


def unbound(target: str, point: bool) -> bool:
    """Unmount the one mount at ``target``; ``point``: and remove it. False: there is more, or less."""
    head, name = os.path.split(target)
    try:
        with tree.opened(syscalls.AT_FDCWD, head, _FOLDER, STRICT) as at:
            syscalls.umount(f"/proc/self/fd/{at}/{name}")
            if not point:
                return syscalls.mount_root(name, at) is False
            os.rmdir(name, dir_fd=at)
    except (OSError, KernelError):
        return False
    return True

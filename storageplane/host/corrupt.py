"""Mounts whose server is gone (a FUSE daemon killed, a stale NFS handle): found and taken away.

Rule 1: ENOTCONN, ESTALE, EIO and EACCES on a mount point that root looks at mean that nobody serves it
        (kubernetes, IsCorruptedMnt). Unmounting loses nothing that could still be reached.
Rule 2: only what is mounted on exactly this path; a path that is no mount is left alone.
"""

from __future__ import annotations

import errno
import os

from netplane.model.errors import KernelError

from . import mountinfo, syscalls

DEAD = (errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.EACCES)


def dead(path: str) -> bool:
    """Whether what is mounted at ``path`` is not served any more."""
    try:
        os.statvfs(path)
    except OSError as exc:
        return exc.errno in DEAD
    return False


def replaced(path: str) -> bool:
    """Take a dead mount away, so that it can be made anew; whether there was one. Raises KernelError."""
    taken = False
    while dead(path) and any(m.point == path for m in mountinfo.read()):
        try:
            syscalls.umount(path)
        except KernelError as exc:
            if exc.errno != errno.EBUSY:
                raise
            syscalls.umount(path, syscalls.MNT_DETACH)  # whoever has it open gets its errors as before
        taken = True
    return taken

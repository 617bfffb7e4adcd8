"""subPath: a path inside a volume, which whoever writes to the volume must not lead outside.

Rule 1: a path is resolved once, by openat2 with RESOLVE_BENEATH, from a descriptor of the volume.
        Links are followed while they stay inside (releases/current, and ..data of a configMap); one
        that leads out, a magic link or a race that would, is refused by the kernel itself.
Rule 2: what is mounted is that descriptor, so nothing can be swapped afterwards.
Rule 3: missing directories are made one by one beneath the descriptor of the one before, with the
        permissions of the volume's own directory, as kubelet makes them.
CVE-2017-1002101, CVE-2021-25741. Source: kubernetes pkg/volume/util/subpath.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from netplane.model.errors import Invalid, KernelError

from . import syscalls, tree

INSIDE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
PLAIN = INSIDE | syscalls.RESOLVE_NO_SYMLINKS
STRICT = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
TRIES = 100  # openat2 says EAGAIN while somebody renames what it walks through


@contextmanager
def opened(source: str, sub: str = "", follow: bool = False) -> Iterator[int]:
    """A descriptor (O_PATH) of ``sub`` in the volume at ``source``; of the volume itself without.

    ``follow``: links in ``source`` are followed; else one is refused. Raises Invalid, KernelError.
    """
    with tree.opened(syscalls.AT_FDCWD, source, os.O_PATH, 0 if follow else STRICT) as volume:
        if not sub:
            yield volume
            return
        fd = _beneath(volume, sub, source)
        try:
            yield fd
        finally:
            os.close(fd)


def make(source: str, sub: str, follow: bool = False) -> None:
    """Make what is missing of ``sub`` as directories; what is there stays. Raises Invalid, KernelError."""
    parts = [p for p in sub.split("/") if p not in ("", ".")]
    with opened(source, "", follow) as volume:
        mode = stat.S_IMODE(os.fstat(volume).st_mode) & 0o777
        at = os.dup(volume)
        try:
            for count in range(len(parts)):
                path = "/".join(parts[: count + 1])
                at, old = _entered(volume, at, path, source, mode), at
                os.close(old)
        finally:
            os.close(at)


def _entered(volume: int, at: int, path: str, source: str, mode: int) -> int:
    """A descriptor of ``path``, made in the directory ``at`` where it is absent."""
    try:
        return _beneath(volume, path, source)
    except KernelError as exc:
        if exc.errno != errno.ENOENT:
            raise
    name = path.rpartition("/")[2]
    try:
        with tree.translated(f"make {path} in {source}"):
            _make(at, name, mode)
        return syscalls.openat2(at, name, os.O_PATH | os.O_DIRECTORY, PLAIN)
    except KernelError as exc:
        if exc.errno in (errno.ELOOP, errno.EEXIST):
            raise Invalid(f"subPath {path} in {source} is a link to nothing; remove it") from None
        raise


def _make(at: int, name: str, mode: int) -> None:
    os.mkdir(name, mode, dir_fd=at)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        os.fchmod(fd, mode | (stat.S_IMODE(os.fstat(fd).st_mode) & stat.S_ISGID))
    finally:
        os.close(fd)


def _beneath(volume: int, path: str, source: str) -> int:
    for _ in range(TRIES):
        try:
            return syscalls.openat2(volume, path, os.O_PATH, INSIDE)
        except KernelError as exc:
            if exc.errno in (errno.EXDEV, errno.ELOOP):
                raise Invalid(f"subPath {path} leads outside of the volume {source} (a link in it)") from None
            if exc.errno != errno.EAGAIN:
                raise
    raise KernelError(
        errno.EAGAIN, f"open {path} in {source}", "somebody keeps renaming what lies on the way"
    )

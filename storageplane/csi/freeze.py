"""One instant of volumes that are in use, for as long as they are copied.

An image that is staged is frozen (FIFREEZE): what its file system has promised is on the disk, and no
write goes in meanwhile; several are frozen before the first is copied, so that a group is of one
instant. A directory has no instant: its files are copied one by one, after a sync.

Rule: nothing stays frozen. The freeze outlives whoever made it, and its writers hang until it ends; so
a guard process thaws when we die, and `thaw` at start does what a guard could not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ..host.tree import translated
from .volumes import Volume

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
_GUARD = ("sh", "-c", 'read _; exec fsfreeze --unfreeze "$1"', "sh")  # its stdin ends when we do


@contextmanager
def frozen(volumes: Sequence[Volume]) -> Iterator[None]:
    """The mounted file systems of these images take no write inside; directories are synced."""
    with ExitStack() as stack:
        for volume in volumes:
            if volume.stage is None or not os.path.ismount(volume.stage.path):
                continue
            if volume.backend == "image":
                stack.enter_context(_frozen(volume.stage.path))
            else:
                os.sync()
        yield


@contextmanager
def _frozen(path: str) -> Iterator[None]:
    guard = subprocess.Popen(
        [*_GUARD, path], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        with _opened(path) as fd:
            with translated(f"freeze {path}"):
                fcntl.ioctl(fd, FIFREEZE, 0)
            try:
                yield
            finally:
                fcntl.ioctl(fd, FITHAW, 0)
    finally:
        guard.kill()
        guard.communicate()


def thaw(path: str) -> bool:
    """End the freeze that a killed driver left; False when there was none."""
    with contextlib.suppress(OSError), _opened(path) as fd:
        fcntl.ioctl(fd, FITHAW, 0)
        return True
    return False


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)

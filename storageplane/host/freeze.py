"""One instant of a mounted file system: no write goes in while it is copied (FIFREEZE).

Rule: nothing stays frozen. The freeze outlives whoever made it, and its writers hang until it ends; so
a guard process thaws when we die, and `thaw` at start does what a guard could not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import loops, mountinfo, syscalls
from .tree import translated

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
_GUARD = ("sh", "-c", 'read _; exec fsfreeze --unfreeze "$1"', "sh")  # its stdin ends when we do


@contextmanager
def frozen(path: str) -> Iterator[None]:
    """The file system mounted at ``path`` takes no write inside; what it was given is on its device."""
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
    """End the freeze that a killed process left; False when there was none."""
    with contextlib.suppress(OSError), _opened(path) as fd:
        fcntl.ioctl(fd, FITHAW, 0)
        return True
    return False


@contextmanager
def still(image: Path) -> Iterator[None]:
    """An image, mounted here or not, at one instant. What is no image, or raw blocks, is only synced."""
    device = loops.find(image)
    points = points_of(device)
    if points:
        with frozen(points[0]):
            yield
        return
    if device:  # raw blocks, or what is mounted where we do not see it
        os.sync()
    elif image.parent.is_dir():  # others may have a disk that never answers
        syscalls.syncfs(str(image.parent))
    yield


def thaw_beneath(folder: Path) -> list[str]:
    """End every freeze of images beneath a folder; the mount points where there was one."""
    found = [points_of(device) for device, _ in loops.backed_by(folder)]
    return [points[0] for points in found if points and thaw(points[0])]


def points_of(device: str) -> list[str]:
    """Where a device is mounted in this mount namespace."""
    number = os.stat(device).st_rdev if device else 0
    where = f"{os.major(number)}:{os.minor(number)}"
    return [m.point for m in mountinfo.read() if device and m.device == where]


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)

"""Device nodes of pods for raw volumes: an image's loop device under a name of the pod's own.

Rule 1: several pods of a node may have the same device; it is detached with the last node of it beneath
        the root. The nodes themselves are the count, so none can be wrong after a crash.
Rule 2: a node whose number is not (any more) that of its image's device, as after a reboot, is made anew.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from . import loops, tree


def make(root: Path, path: str, image: str) -> None:
    """A block device at ``path`` that is the image; there already: fine. Raises KernelError."""
    with loops.alone(root / image):
        number = os.stat(loops.attach(root / image)).st_rdev
        if number_at(root / path) == number:
            return
        tree.make(root, os.path.dirname(path), 0o750)
        with tree.parent(root, path) as (at, name), tree.translated(f"make device {path}"):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=at)
            os.mknod(name, stat.S_IFBLK | 0o660, number, dir_fd=at)


def remove(root: Path, path: str) -> None:
    """Remove a node, and detach its device when it was the last one. Gone already: fine."""
    number = number_at(root / path)
    image = image_of(root, number) if number else ""
    if not image:
        _unlink(root, path)
        return
    with loops.alone(Path(image)):
        _unlink(root, path)
        if not any(number_at(other) == number for other in root.glob("pods/*/volumeDevices/*/*")):
            loops.detach(Path(image))


def number_at(path: Path) -> int:
    """The number of the block device at a path; 0 when there is none."""
    with suppress(OSError):
        found = os.stat(path, follow_symlinks=False)
        return found.st_rdev if stat.S_ISBLK(found.st_mode) else 0
    return 0


def image_of(root: Path, number: int) -> str:
    """The image beneath the root that backs a loop device, or ""."""
    backed = loops.backed_by(root)
    return next((image for device, image in backed if os.stat(device).st_rdev == number), "")


def _unlink(root: Path, path: str) -> None:
    with tree.parent(root, path) as (at, name), tree.translated(f"remove device {path}"):
        os.unlink(name, dir_fd=at)

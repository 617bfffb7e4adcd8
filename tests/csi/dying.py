"""A death in storageplane: SIGKILL at the N-th thing that it writes, makes or mounts.

Nothing is counted until the file of that death exists; it holds N. An operation counts when it begins and
when it is done.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from storageplane import backends
from storageplane.backends import btrfs
from storageplane.csi.depot import Depot
from storageplane.host import binds, images, loops, syscalls, tree
from storageplane.host.durable import Shelf
from storageplane.host.journal import Journal
from tests.faults.dying import Death

OPERATIONS: list[tuple[Any, str]] = [
    (Shelf, "put"),
    (Shelf, "remove"),
    (Journal, "add"),
    (Journal, "sync"),
    (Journal, "clear"),
    (tree, "make"),
    (tree, "remove"),
    (tree, "made_whole"),
    (tree, "hollowed"),
    (binds, "bound"),
    (binds, "pointed"),
    (binds, "unbound"),
    (syscalls, "mount_setattr"),
    (os, "chmod"),
    (images, "make"),
    (images, "copy"),
    (images, "copy_tree"),
    (images, "grow"),
    (images, "run"),
    (images, "thicken"),
    (btrfs, "_append"),
    (loops, "_configure"),
    (loops, "detach"),
    (loops, "resize"),
    (syscalls, "new_filesystem"),
    (syscalls, "open_tree"),
    (syscalls, "move_mount"),
    (syscalls, "umount"),
    (backends, "erase"),
    (Depot, "fill"),
    (os, "replace"),
    (os, "rename"),
    (os, "mkdir"),
    (os, "rmdir"),
]


def sow(file: Path) -> None:
    """Into this process, for as long as it lives."""
    death = Death(file)
    for place in OPERATIONS:
        death.sow(*place)

"""Run storageplane with a death in it: SIGKILL at the N-th thing that it writes, makes or mounts.

    python -m tests.csi.dying FILE csi --endpoint …     one life per line on stdin

Nothing is counted until FILE exists; it holds N. An operation counts when it begins and when it is done.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from storageplane import backends, cli
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


def nursery() -> None:
    """A life for each line on stdin, its pid on stdout, then "dead": starting Python takes a second."""
    from storageplane.csi import server  # noqa: F401 - imported once, for all of them

    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            cli.main()
            os._exit(0)
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    death = Death(Path(sys.argv[1]))
    for place in OPERATIONS:
        death.sow(*place)
    sys.argv[1:] = sys.argv[2:]
    nursery()

"""Volumes that are copied while they are used: image file systems of one instant.

Rule: what has no instant (a directory, raw blocks) is synced, so that a copy has every write that was done
      before it; a directory by its own file system alone, since others may have a disk that never answers.
      Several images are frozen before the first is copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ..host import freeze, loops, syscalls
from ..host.freeze import thaw
from .depot import Depot
from .volumes import Volume

__all__ = ["frozen", "thaw"]


@contextmanager
def frozen(depot: Depot, volumes: Sequence[Volume]) -> Iterator[None]:
    """The mounted file systems of these images take no write inside; what else is in use is synced."""
    shown = [v for v in volumes if v.backend == "image" and v.stage and os.path.ismount(v.stage.path)]
    rest = [v for v in volumes if v not in shown and _used(depot, v)]
    if any(v.backend == "image" for v in rest):  # raw blocks, or what is mounted where we do not see it
        os.sync()
    elif rest:
        syscalls.syncfs(str(depot.root))
    with ExitStack() as stack:
        for volume in shown:
            assert volume.stage is not None
            stack.enter_context(freeze.frozen(volume.stage.path))
        yield


def _used(depot: Depot, volume: Volume) -> bool:
    """Whether somebody may have written what is not on the disk yet."""
    if volume.backend == "image":
        return bool(loops.find(depot.content(volume)))
    return volume.stage is not None

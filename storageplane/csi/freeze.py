"""Volumes that are copied while they are used: image file systems of one instant.

Rule: what has no instant (a directory, raw blocks) is synced, so that a copy has every write that was done
      before it. Several images are frozen before the first is copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ..host import freeze, loops
from ..host.freeze import thaw
from .depot import Depot
from .volumes import Volume

__all__ = ["frozen", "thaw"]


@contextmanager
def frozen(depot: Depot, volumes: Sequence[Volume]) -> Iterator[None]:
    """The mounted file systems of these images take no write inside; what else is in use is synced."""
    shown = [v for v in volumes if v.backend == "image" and v.stage and os.path.ismount(v.stage.path)]
    if any(_used(depot, v) for v in volumes if v not in shown):
        os.sync()
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

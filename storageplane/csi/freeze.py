"""One instant of volumes that are in use, for as long as they are copied.

An image that is staged is frozen (`host.freeze`); several are frozen before the first is copied, so that
a group is of one instant. A directory has no instant: its files are copied one by one, after a sync.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ..host import freeze
from ..host.freeze import thaw
from .volumes import Volume

__all__ = ["frozen", "thaw"]


@contextmanager
def frozen(volumes: Sequence[Volume]) -> Iterator[None]:
    """The mounted file systems of these images take no write inside; directories are synced."""
    with ExitStack() as stack:
        for volume in volumes:
            if volume.stage is None or not os.path.ismount(volume.stage.path):
                continue
            if volume.backend == "image":
                stack.enter_context(freeze.frozen(volume.stage.path))
            else:
                os.sync()
        yield

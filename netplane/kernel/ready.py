"""Waiting for descriptors by poll(2): select(2) ends at 1,024, and a node with that many pods has more."""

from __future__ import annotations

import select


def readable(*descriptors: int, timeout: float | None = None) -> list[int]:
    """Those that can be read, or whose other end is gone; [] after ``timeout`` seconds."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)]

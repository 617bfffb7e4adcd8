"""Deletes for many at once, and knows when a link is gone.

Rule 1: callers that come while one deletion is under way join the next, which goes as one batch and
        its links as one group.
Rule 2: a link is gone when the kernel says so (RTM_DELLINK): no name, address, route or neighbour of it
        is left. The request itself returns about 20 ms later, when the last CPU has let the memory go
        (rcu_barrier, after the RTNL lock is released): a thread of ours waits for that, no caller does.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from concurrent.futures import Future

from ..model.facts import FactKey
from ..model.gather import Gathering
from . import netns
from . import nlmsg as nl
from .ready import readable
from .sockfilter import GIVE, JUMP_EQUAL, LOAD_BYTE, LOAD_HALF, big, pass_only

_RTMGRP_LINK = 1
_BUFFER = 1 << 20
_DEPARTURES = (  # a link's own, not a bridge's of its port; a link that goes is told of half a dozen times
    (LOAD_HALF, 0, 0, 4),  # nlmsg_type
    (JUMP_EQUAL, 0, 3, big(nl.RTM_DELLINK)),
    (LOAD_BYTE, 0, 0, 16),  # ifi_family
    (JUMP_EQUAL, 0, 1, 0),
    (GIVE, 0, 0, 0xFFFFFFFF),
    (GIVE, 0, 0, 0),
)


class Reaper:
    """Gathers what threads ask for while ``delete`` works for those who asked before."""

    def __init__(self, delete: Callable[[list[FactKey]], None]) -> None:
        self.together = Gathering[list[FactKey]](
            lambda asked: delete([key for keys in asked for key in keys])
        )

    def reap(self, keys: list[FactKey]) -> None:
        """Return when these are gone. Raises KernelError."""
        self.together.do(keys)


class Departures:
    """The kernel's notices of links that are gone, from the moment this is made."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(fileno=netns.open_socket(path, 0))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        pass_only(self._sock, _DEPARTURES)
        self._sock.bind((0, _RTMGRP_LINK))

    def __enter__(self) -> Departures:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def wait(self, indexes: list[int], request: Future[None]) -> None:
        """Return when all of these are gone, or the request is through. Raises its error."""
        left = set(indexes)
        wake = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            request.add_done_callback(_signal(wake))
            while left and not request.done():
                ready = readable(self._sock.fileno(), wake)
                if self._sock.fileno() in ready:
                    left -= self._gone()
            if request.done():
                request.result()
        finally:
            request.add_done_callback(lambda _: os.close(wake))  # the signal comes first

    def _gone(self) -> set[int]:
        try:
            data = self._sock.recv(1 << 18)
        except OSError:  # ENOBUFS: some are lost; the request's end will tell
            return set()
        heads = (
            nl.IFINFOMSG.unpack_from(body) for kind, *_, body in nl.messages(data) if kind == nl.RTM_DELLINK
        )
        return {index for family, _, index, *_ in heads if family == 0}


def _signal(wake: int) -> Callable[[Future[None]], None]:
    def signal(_: Future[None]) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(wake, 1)

    return signal

"""Deletes links of one namespace, many in one request, and returns as soon as they are gone.

Rule 1: callers that come while one deletion is under way join the next: a group of links goes with
        one request.
Rule 2: a link is gone when the kernel says so (RTM_DELLINK): no name, address, route or neighbour of it
        is left. The request itself returns about 20 ms later, when the last CPU has let the memory go
        (rcu_barrier, after the RTNL lock is released): a thread of ours waits for that, no caller does.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ..model.errors import NetplaneError
from . import linkmsg, netns
from . import nlmsg as nl
from .nlsocket import Pool, Socket
from .session import GONE

_OVERLAP = 8  # deletions whose memory is still being let go
_RTMGRP_LINK = 1
_BUFFER = 1 << 20


class Reaper:
    """Gathers what threads ask for while ``delete`` works for those who asked before."""

    def __init__(self, delete: Callable[[list[str]], None]) -> None:
        self._delete = delete
        self._change = threading.Condition()
        self._waiting: list[_Ticket] = []
        self._leading = False  # somebody is deleting for all who waited

    def reap(self, names: list[str]) -> None:
        """Return when those of these links that are ours are gone. Raises KernelError."""
        ticket = _Ticket(names)
        with self._change:
            self._waiting.append(ticket)
            self._change.wait_for(lambda: ticket.done or not self._leading)
            lead = not ticket.done
            self._leading = self._leading or lead
        if lead:
            self._lead()
        if ticket.error:
            raise ticket.error

    def _lead(self) -> None:
        with self._change:
            batch, self._waiting = self._waiting, []
        error: NetplaneError | None = None
        try:
            self._delete([name for ticket in batch for name in ticket.names])
        except NetplaneError as exc:
            error = exc
        finally:
            with self._change:
                for ticket in batch:
                    ticket.done, ticket.error = True, error
                self._leading = False
                self._change.notify_all()


class _Ticket:
    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.done = False
        self.error: NetplaneError | None = None


class Remover:
    """Deletes links. ``pool``: sockets of the namespace at ``path``."""

    def __init__(self, pool: Pool, path: str) -> None:
        self._pool = pool
        self._path = path
        self._threads = ThreadPoolExecutor(_OVERLAP, thread_name_prefix="reaper")

    def close(self) -> None:
        self._threads.shutdown()

    def delete(self, names: list[str]) -> None:
        """Delete those of these links that are ours. Raises KernelError."""
        with _Departures(self._path) as departures:  # listens before anything goes
            with self._pool.take() as sock:
                doomed = ours(sock, names)
            if doomed:
                departures.wait(doomed, self._threads.submit(self._send, doomed))

    def _send(self, doomed: list[int]) -> None:
        with self._pool.take() as sock:
            sock.must(linkmsg.delete_all(doomed), fine=GONE)


class _Departures:
    """The kernel's notices of links that are gone, from the moment this is made."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(fileno=netns.open_socket(path, 0))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._sock.bind((0, _RTMGRP_LINK))

    def __enter__(self) -> _Departures:
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
                ready, _, _ = select.select([self._sock.fileno(), wake], [], [])
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


def ours(sock: Socket, names: list[str]) -> list[int]:
    """The indexes of those links of these names that are ours. Raises KernelError."""
    answers = sock.must([linkmsg.get(name) for name in names], fine=GONE)
    states = [linkmsg.parse(answer.body) for answer in answers if answer.body]
    return [state.ifindex for state in states if state.ours]


def delete_ours(sock: Socket, names: list[str]) -> None:
    """The same for a namespace where deletions are rare: one request, which is waited for."""
    doomed = ours(sock, names)
    if doomed:
        sock.must(linkmsg.delete_all(doomed), fine=GONE)

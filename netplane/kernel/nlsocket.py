"""rtnetlink sockets: a batch of requests with an answer each, and dumps.

Rule 1: one socket belongs to one thread at a time; `Pool` hands them out.
Rule 2: a batch goes to the kernel in one call with the GIL released (csrc/rtnl).
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

from ..model.errors import KernelError
from . import nlmsg
from ._rtnl import ffi, lib
from .netns import open_socket
from .nlmsg import Answer, Request

NETLINK_ROUTE = 0
_GOOD = Answer()
_REPLY = 4096  # a link's answer, without statistics, is below 2 kB
_ALIGN = 512  # an acknowledgement with the kernel's words
_GETS = (nlmsg.RTM_GETLINK, nlmsg.RTM_GETROUTE)
_NUMBERS = 4096  # that making a pair may use
_errnos = partial(ffi.new, ffi.typeof("int[]"))
_answers = partial(ffi.new_allocator(should_clear_after_alloc=False), ffi.typeof("char[]"))


class Socket:
    """A socket of the namespace at ``netns`` (a path). Raises KernelError when it cannot be opened."""

    def __init__(self, netns: str, name: str | None = None) -> None:
        self.netns = netns
        self.name = netns if name is None else name  # for messages; "" is our own namespace
        self.fd = open_socket(netns, NETLINK_ROUTE)
        self._seq = 1

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def portid(self) -> int:
        """Who we are in the notifications about our own requests; 0 before the first request."""
        with socket.socket(fileno=os.dup(self.fd)) as sock:
            return int(sock.getsockname()[0])

    def send(self, requests: list[Request]) -> list[Answer]:
        """One answer per request, in order. Raises KernelError when the socket itself fails."""
        if not requests:
            return []
        n, first = len(requests), self._seq
        self._seq = (first + n) & 0x7FFFFFFF or 1
        data = nlmsg.pack(requests, first)
        asked = [r for r in requests if r.type in _GETS]
        size = len(asked) * _REPLY + n * _ALIGN
        errnos, out = _errnos(n), _answers(size)
        used = lib.np_batch_send(self.fd, data, len(data), errnos, n, out, size)
        if used < 0:
            raise KernelError(-used, f"send {n} rtnetlink requests ({requests[0].what}, …)")
        if not used:  # a refusal would have its words there
            return [_GOOD] * n
        answers = [_GOOD if e == 0 else Answer(-e) for e in ffi.unpack(errnos, n)]
        for kind, _, seq, _, body in nlmsg.messages(ffi.buffer(out, used)[:]):
            slot = seq - first
            if kind == nlmsg.NLMSG_ERROR:
                answers[slot] = Answer(answers[slot].errno, nlmsg.refusal(body))
            else:
                answers[slot] = Answer(0, "", body)
        return answers

    def make_pair(self, netns: bytes, told: bytes) -> int:
        """Make what `linkpair.pack` packed. 0 and all is there, or an errno and nothing is."""
        return -int(lib.np_pair_make(self.fd, self._numbers(), netns, told, len(told)))

    def begin_pair(self, netns: bytes, told: bytes) -> Callable[[], int]:
        """The same while the caller goes on, but not with this socket; what is returned waits for the end."""
        errand = lib.np_errand_begin(self.fd, self._numbers(), netns, told, len(told))
        if errand == ffi.NULL:
            return partial(self.make_pair, netns, told)
        return lambda: -int(lib.np_errand_end(errand))

    def _numbers(self) -> int:
        first, self._seq = self._seq, (self._seq + _NUMBERS) & 0x7FFFFFFF or 1
        return first

    def must(self, requests: list[Request], fine: tuple[int, ...] = ()) -> list[Answer]:
        """`send`, raising KernelError for the first refusal whose errno is not ``fine``."""
        answers = self.send(requests)
        for request, answer in zip(requests, answers, strict=True):
            if answer.errno and answer.errno not in fine:
                where = f" in {self.name}" if self.name else ""
                raise KernelError(answer.errno, request.what + where, answer.text)
        return answers

    def dump(self, kind: int, body: bytes) -> Iterator[tuple[int, bytes]]:
        """(type, body) of all that is there. Raises KernelError."""
        seq, self._seq = self._seq, (self._seq + 1) & 0x7FFFFFFF or 1
        head = nlmsg.NLMSGHDR.pack(16 + len(body), kind, nlmsg.NLM_F_REQUEST | nlmsg.NLM_F_DUMP, seq, 0)
        with socket.socket(fileno=os.dup(self.fd)) as sock:
            sock.sendto(head + body, (0, 0))
            while True:
                for got, _, number, _, payload in nlmsg.messages(sock.recv(1 << 18)):
                    if number != seq:
                        continue
                    if got in (nlmsg.NLMSG_DONE, nlmsg.NLMSG_ERROR):
                        errno = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
                        if errno:
                            raise KernelError(
                                errno, f"rtnetlink dump {kind} in {self.name or 'our namespace'}"
                            )
                        return
                    yield got, payload


def link_index(name: str, netns: str = "") -> int:
    """The index of a link in the namespace at the path; 0 without the link or the namespace."""
    found = int(lib.np_link_index(netns.encode(), name.encode()))
    return max(found, 0)


class Pool:
    """Sockets of one namespace; as many as there are threads at work, kept for the next."""

    def __init__(self, make: Callable[[], Socket]) -> None:
        self._make = make
        self._idle: list[Socket] = []
        self._lock = threading.Lock()
        self.portids: set[int] = set()

    def take(self) -> Lent:
        """For `with`: a socket that nobody else has meanwhile."""
        return Lent(self)

    def lend(self) -> Socket:
        with self._lock:
            sock = self._idle.pop() if self._idle else None
        if sock is None:
            sock = self._make()
            sock.send([Request(nlmsg.RTM_GETLINK, 0, nlmsg.IFINFOMSG.pack(0, 0, 1, 0, 0), "bind")])
            with self._lock:
                self.portids.add(sock.portid())
        return sock

    def give_back(self, sock: Socket) -> None:
        with self._lock:
            self._idle.append(sock)

    def close(self) -> None:
        with self._lock:
            for sock in self._idle:
                sock.close()
            self._idle.clear()


class Lent:
    """A class: each ADD has one, each DEL several."""

    __slots__ = ("_pool", "_sock")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __enter__(self) -> Socket:
        self._sock = self._pool.lend()
        return self._sock

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._pool.give_back(self._sock)
        else:
            self._sock.close()  # it may be in the middle of a dump

"""The C answering loop from Python: the table's twin, its threads, and what they leave to Python.

Rule 1: the twin holds what `View.find` holds, name by name, and `answer` stays the specification: what
        the twin does not know for certain comes back as a Miss.
Rule 2: one thread changes the twin (NameTable's lock sees to it); the loop's threads never take the GIL.
Rule 3: without the extension `available` is False, and the server answers all by itself.
"""

from __future__ import annotations

import enum
import os
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from ..model.errors import Invalid, KernelError

try:
    from ._answer import ffi, lib
except ImportError:  # not built here: no compiler
    ffi = lib = None

available = lib is not None

THREADS_MAX = 8
QUEUE = 1 << 20  # bytes of packets that wait for Python; more are dropped, as a full socket would
_MISS = struct.Struct("=IIQII28s20s")
_PUT = struct.Struct("=HBxI")
_LENGTH = struct.Struct("=H")
_V4, _V6 = struct.Struct("!xxH4s"), struct.Struct("!xxHI16s")


class Divert(enum.IntFlag):
    """What is left to Python beyond what the twin cannot know, of names that the table does not have.

    PODS: pod.<zone> and beneath. ENDPOINTS: names right beneath a service's. DENIALS: all of the zone.
    EVERYTHING: not only these, but whatever is well-formed.
    """

    NOTHING = 0
    PODS = 1
    ENDPOINTS = 2
    DENIALS = 4
    EVERYTHING = 8


class Records(Protocol):
    """What the twin wants to know of an RRset (`table.RRset`)."""

    @property
    def type(self) -> int: ...
    @property
    def records(self) -> tuple[bytes, ...]: ...
    @property
    def rotates(self) -> bool: ...


class Twin:
    """The table in C, a `table.Twin`; ``room`` is for how many names, before it must grow and so be
    copied. ``bytes`` and ``names`` say what it takes."""

    def __init__(self, apex: bytes, room: int = 0) -> None:
        table = lib.np_table_new(apex, len(apex), room)
        if table == ffi.NULL:
            raise MemoryError("the table of DNS names")
        self.table = ffi.gc(table, lib.np_table_free)

    def change(self, names: Iterable[tuple[bytes, Sequence[Records] | None]]) -> None:
        """Each name gets these RRsets, or None: it exists no more. Returns when no thread sees the old."""
        for name, rrsets in names:
            if rrsets is None:
                result = lib.np_table_remove(self.table, name, len(name))
            else:
                data = b"".join(map(_packed, sorted(rrsets, key=lambda rrset: rrset.type)))
                result = lib.np_table_put(self.table, name, len(name), data, len(data))
            if result:
                raise MemoryError(f"the table of DNS names: {os.strerror(-result)}")
        lib.np_table_commit(self.table)

    def sync(self, synced: bool) -> None:
        lib.np_table_sync(self.table, synced)

    def divert(self, what: Divert) -> None:
        lib.np_table_divert(self.table, what)

    def answer(self, packet: bytes, size: int = 1232) -> bytes | None:
        """The response; b"" is silence, None is Python's."""
        out = ffi.new("uint8_t[]", size)
        length = lib.np_answer_alone(self.table, packet, len(packet), out, size)
        if length == lib.NP_PYTHON:
            return None
        if length < 0:
            raise KernelError(-length, "answer a DNS query")
        return bytes(ffi.buffer(out, length))

    @property
    def bytes(self) -> int:
        return int(lib.np_table_bytes(self.table))

    @property
    def names(self) -> int:
        return int(lib.np_table_names(self.table))


def _packed(rrset: Records) -> bytes:
    parts = [_PUT.pack(rrset.type, rrset.rotates, len(rrset.records))]
    for record in rrset.records:
        parts += (_LENGTH.pack(len(record)), record)
    return b"".join(parts)


class RateLimit(NamedTuple):
    """Answers a second and at once for one /24 or /56 over UDP; every ``slip``-th over it gets TC."""

    per_second: float
    burst: float
    slip: int = 2


class Fast(NamedTuple):
    """How a server uses C. ``threads`` 0: one for each CPU that this process may use, in bounds."""

    threads: int = 0
    wanted: bool = True

    @property
    def on(self) -> bool:
        return available and self.wanted

    @property
    def workers(self) -> int:
        return min(self.threads or len(os.sched_getaffinity(0)), THREADS_MAX)


FAST = Fast()


class Miss(NamedTuple):
    """A packet that C left: which socket it came to, when (CLOCK_MONOTONIC), from whom."""

    socket: int
    arrived: float
    peer: Any
    ancillary: list[tuple[int, int, bytes]]
    packet: bytes


class Loop:
    """``threads`` that answer from ``twin`` on UDP ``sockets``; `misses` is readable when one is left."""

    def __init__(self, twin: Twin, sockets: Sequence[socket.socket], threads: int) -> None:
        """Raises KernelError; then nothing runs."""
        self._twin = twin
        self._sockets = tuple(sockets)  # they must outlive the threads
        self._limit: Any = None
        self.misses, self._their_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.misses.setblocking(False)
        self._their_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, QUEUE)
        error = ffi.new("int *")
        numbers = [sock.fileno() for sock in sockets]
        self._loop = lib.np_loop_start(
            twin.table, numbers, len(numbers), threads, self._their_end.fileno(), error
        )
        if self._loop == ffi.NULL:
            self.misses.close()
            self._their_end.close()
            raise KernelError(-error[0], "start the DNS answering threads")
        self._stopped = False

    def limit(self, limit: RateLimit | None) -> None:
        """From the next answer on; None: no limit. Raises Invalid for one that cannot be."""
        made = _limit(limit)
        lib.np_loop_limit(self._loop, made)
        self._limit = made  # and the one before goes, which no thread has any more

    def stop(self) -> None:
        """The threads end; what they left can still be read, and what they counted. Once is enough."""
        if not self._stopped:
            self._stopped = True
            lib.np_loop_stop(self._loop)

    def close(self) -> None:
        self.stop()
        self._last = self.counters()
        lib.np_loop_free(self._loop)
        self._loop = None
        self.misses.close()
        self._their_end.close()

    def counters(self) -> Any:
        """A struct np_counters, summed over the threads."""
        if self._loop is None:
            return self._last
        total = ffi.new("struct np_counters *")
        lib.np_loop_sum(self._loop, total)
        return total

    def take(self) -> Miss | None:
        """The next packet that was left, or None."""
        try:
            data = self.misses.recv(_MISS.size + 4096)
        except BlockingIOError:
            return None
        number, _, arrived, info_len, family, address, info = _MISS.unpack_from(data)
        ancillary = []
        if info_len:
            v6 = family == socket.AF_INET6
            level, kind = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) if v6 else (socket.IPPROTO_IP, 8)
            ancillary.append((level, kind, info[:info_len]))
        return Miss(number, arrived / 1e9, _peer(address), ancillary, data[_MISS.size :])


def _peer(address: bytes) -> Any:
    """A struct sockaddr as Python's sockets want it."""
    if int.from_bytes(address[:2], sys.byteorder) == socket.AF_INET:
        port, ip = _V4.unpack_from(address)
        return socket.inet_ntop(socket.AF_INET, ip), port
    port, flow, ip = _V6.unpack_from(address)
    return socket.inet_ntop(socket.AF_INET6, ip), port, flow, struct.unpack_from("=I", address, 24)[0]


def _limit(limit: RateLimit | None) -> Any:
    if limit is None:
        return ffi.NULL
    made = lib.np_limit_new(limit.per_second, limit.burst, limit.slip)
    if made == ffi.NULL:
        raise Invalid(
            f"DNS rate limit {limit.per_second:g}/s, burst {limit.burst:g}, slip {limit.slip}: "
            "the rate must be above 0, the burst at least 1, both at most 1,000,000, the slip not negative"
        )
    return ffi.gc(made, lib.np_limit_free)

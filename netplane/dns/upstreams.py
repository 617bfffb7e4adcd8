"""Whom to ask for other names: a fixed list, or a resolv.conf that may change at any time.

Rule 1: at most MAX of them, in the order given; one that failed lately is asked last.
Rule 2: a server that would ask itself is refused: a fixed list raises, a resolv.conf entry is left out.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..model.errors import Invalid

Address = tuple[str, int]  # (IP, port)

MAX = 3  # resolv.conf(5), MAXNS
REST = 10.0  # seconds that an upstream which failed is asked last
LOOK = 1.0  # seconds between looks at resolv.conf
_log = logging.getLogger("netplane.dns")


class Upstreams:
    """``source``: addresses, or the path of a resolv.conf. `guard` before the first `order`."""

    def __init__(self, source: Sequence[Address] | str) -> None:
        self._path = source if isinstance(source, str) else ""
        self._all: tuple[Address, ...] = () if isinstance(source, str) else tuple(source)[:MAX]
        self._own: tuple[Address, ...] = ()
        self._failed: dict[Address, float] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked = -LOOK

    def guard(self, own: Iterable[Address]) -> None:
        """These addresses are the server itself. Raises Invalid if the fixed list has one of them."""
        self._own = tuple(own)
        for upstream in self._all:
            if is_own(upstream, self._own):
                ip, port = upstream
                raise Invalid(f"DNS upstream {ip} port {port} is this server itself: name another resolver")

    def order(self) -> tuple[Address, ...]:
        """The upstreams to ask, the most promising first; empty when there are none."""
        now = time.monotonic()
        if self._path and now - self._looked >= LOOK:
            self._looked = now
            self._read()
        return tuple(sorted(self._all, key=lambda u: self._failed.get(u, -REST) + REST > now))

    def failed(self, upstream: Address) -> None:
        self._failed[upstream] = time.monotonic()

    def worked(self, upstream: Address) -> None:
        self._failed.pop(upstream, None)

    def _read(self) -> None:
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp == self._stamp:
                return
            named = nameservers(Path(self._path).read_text(errors="replace"))
        except OSError as exc:
            if self._all or self._stamp is None:
                _log.warning("no upstreams from %s: %s", self._path, exc.strerror)
            self._stamp, self._all = (0, 0), ()
            return
        self._stamp = stamp
        usable = [u for u in named if not is_own(u, self._own)]
        for ip, _ in set(named) - set(usable):
            _log.warning("nameserver %s of %s is this server itself: left out", ip, self._path)
        self._all, self._failed = tuple(usable[:MAX]), {}


def nameservers(text: str) -> list[Address]:
    """The nameserver lines of a resolv.conf; what is no address is passed over, as resolvers do."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver" and family(words[1]):
            found.append((words[1], 53))
    return found


def family(ip: str) -> int:
    """AF_INET or AF_INET6 of an address (with %zone or without); 0 for what is none."""
    kind = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        socket.inet_pton(kind, ip.partition("%")[0] if kind == socket.AF_INET6 else ip)
    except OSError:
        return 0
    return int(kind)


def is_own(upstream: Address, own: Iterable[Address]) -> bool:
    """Whether a server that listens on ``own`` would answer at ``upstream``."""
    ip, port = upstream
    for listening, its_port in own:
        if port == its_port and (ip == listening or (_wild(listening) and _is_local(ip))):
            return True
    return False


def _wild(ip: str) -> bool:
    return ip in ("0.0.0.0", "::")


def _is_local(ip: str) -> bool:
    """Only an address of this network namespace can be bound."""
    try:
        with socket.socket(family(ip), socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
    except OSError:
        return False
    return True

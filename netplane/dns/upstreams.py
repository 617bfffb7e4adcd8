"""Whom to ask for other names: fixed upstreams, or a resolv.conf that may change at any time.

Rule 1: an upstream that failed is asked last until it answers a probe; the others in the order given,
        at random or in turn, as the policy says.
Rule 2: a server that would ask itself is refused: a fixed one raises, a resolv.conf entry is left out.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from ..model.errors import Invalid

Address = tuple[str, int]  # (IP, port)

MAX = 3  # nameservers of a resolv.conf (resolv.conf(5), MAXNS)
LOOK = 1.0  # seconds between looks at resolv.conf
PORTS = {"udp": 53, "tcp": 53, "tls": 853}
POLICIES = ("sequential", "random", "roundRobin")
_log = logging.getLogger("netplane.dns")


class Upstream(NamedTuple):
    """One resolver. Over "udp" a truncated reply is asked for again over TCP; "tls" is RFC 7858."""

    ip: str
    port: int = 53
    transport: str = "udp"
    server_name: str = ""  # that the certificate must have; "": its IP

    @property
    def address(self) -> Address:
        return self.ip, self.port

    def __str__(self) -> str:
        where = f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"
        return where if self.transport == "udp" else f"{self.transport}://{where}"


def parse_upstream(text: str) -> Upstream:
    """``[udp://|tcp://|tls://]IP[:PORT][@NAME]``, IPv6 with a port in brackets. Raises Invalid."""
    transport, _, rest = text.rpartition("://")
    rest, _, server_name = rest.partition("@")
    transport = transport or "udp"
    ip, port = rest, str(PORTS.get(transport, 0))
    if rest.startswith("["):
        ip, bracket, tail = rest[1:].partition("]")
        port = tail.removeprefix(":") or port if bracket else ""
    elif rest.count(":") == 1:
        ip, _, port = rest.partition(":")
    good = family(ip) and port.isdigit() and 0 < int(port) < 65536 and transport in PORTS
    if not good or (server_name and transport != "tls"):
        raise Invalid(
            f"upstream {text!r}: it takes IP, IP:PORT, tcp://IP, tls://IP or tls://IP@NAME,"
            " or the path of a resolv.conf"
        )
    return Upstream(ip, int(port), transport, server_name)


class Upstreams:
    """``source``: upstreams, (IP, port) pairs and paths of resolv.conf files; one path alone may be text.

    `guard` before the first `order`.
    """

    def __init__(self, source: Sequence[Upstream | Address | str] | str, policy: str = "sequential") -> None:
        parts = (source,) if isinstance(source, str) else tuple(source)
        self._files = [ResolvConf(part) for part in parts if isinstance(part, str)]
        self._fixed = tuple(Upstream(*part) for part in parts if not isinstance(part, str))
        self._policy = policy
        self._turn = count()
        self._own: tuple[Address, ...] = ()
        self._down: set[Upstream] = set()
        self._looping: set[Upstream] = set()

    def guard(self, own: Iterable[Address]) -> None:
        """These addresses are the server itself. Raises Invalid if a fixed upstream is one of them."""
        self._own = tuple(own)
        for upstream in self._fixed:
            if is_own(upstream.address, self._own):
                ip, port = upstream.address
                raise Invalid(f"DNS upstream {ip} port {port} is this server itself: name another resolver")

    def all(self) -> tuple[Upstream, ...]:
        """Every upstream that is worth asking now; those of a resolv.conf may have changed."""
        found = self._fixed
        for file in self._files:
            if file.look(self._own):
                self._down.clear()
                self._looping.clear()
            found += file.upstreams
        return tuple(u for u in found if u not in self._looping) if self._looping else found

    def order(self) -> tuple[Upstream, ...]:
        """The upstreams to ask, the most promising first; empty when there are none."""
        found = self.all()
        if self._policy == "random":
            found = tuple(random.sample(found, len(found)))
        elif self._policy == "roundRobin" and found:
            first = next(self._turn) % len(found)
            found = found[first:] + found[:first]
        return tuple(sorted(found, key=self._down.__contains__)) if self._down else found

    @property
    def down(self) -> frozenset[Upstream]:
        return frozenset(self._down)

    def failed(self, upstream: Upstream) -> bool:
        """It did not answer; True when that is news."""
        news = upstream not in self._down
        self._down.add(upstream)
        return news

    def worked(self, upstream: Upstream) -> None:
        self._down.discard(upstream)

    def looped(self, upstream: Upstream) -> None:
        """What it was asked came back to us: it is not asked again, until its resolv.conf changes."""
        if upstream not in self._looping:
            _log.warning("DNS upstream %s asks this server: left out", upstream)
        self._looping.add(upstream)


class ResolvConf:
    """The nameservers of a file, read again when it changes."""

    def __init__(self, path: str) -> None:
        self.upstreams: tuple[Upstream, ...] = ()
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._looked = -LOOK

    def look(self, own: Iterable[Address]) -> bool:
        """Read it if it changed; True when it did."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return False
        self._looked = now
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp == self._stamp:
                return False
            named = nameservers(Path(self._path).read_text(errors="replace"))
        except OSError as exc:
            if self.upstreams or self._stamp is None:
                _log.warning("no upstreams from %s: %s", self._path, exc.strerror)
            self._stamp, self.upstreams = (0, 0), ()
            return False
        self._stamp = stamp
        usable = [u for u in named if not is_own(u, own)]
        for ip, _ in set(named) - set(usable):
            _log.warning("nameserver %s of %s is this server itself: left out", ip, self._path)
        self.upstreams = tuple(Upstream(*u) for u in usable[:MAX])
        return True


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

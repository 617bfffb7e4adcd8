"""Questions that others answer: to a group of upstreams over UDP, TCP or TLS, in bounds. An edge.

Rule 1: each UDP question goes from a socket and a port of its own (the kernel draws it at random),
        connected, with a random id; only a reply that `relay.is_reply` accepts ends the wait (RFC 5452).
Rule 2: a client waits at most ``attempts`` × ``timeout``; then, or when too many wait already, nothing
        is the answer, and the caller decides what the client gets.
Rule 3: an upstream that failed is probed until it answers; every probe's name is drawn at random, so
        that one which comes back to this server tells of a loop.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from . import relay, wire
from .answer import Forward
from .counters import Counters
from .streams import Streams
from .upstreams import Address, Upstream, Upstreams, family

TIMEOUT = 1.4  # seconds an upstream has; three of them fit into the 5 that resolvers wait (resolv.conf(5))
ATTEMPTS = 3
IN_FLIGHT = 1024  # questions that wait at once
PROBE = 0.5  # seconds between probes of an upstream that failed (CoreDNS' health_check)
LOOP = wire.name("loop.netplane.invalid")  # no such name exists (RFC 6761 6.4)


class Limits(NamedTuple):
    """``timeout`` and ``probe`` in seconds; ``in_flight`` questions wait at once at most."""

    timeout: float = TIMEOUT
    attempts: int = ATTEMPTS
    in_flight: int = IN_FLIGHT
    probe: float = PROBE


class Forwarder:
    """`ask` from the server's event loop. ``asking`` are the local addresses that questions left from."""

    def __init__(
        self,
        upstreams: Upstreams,
        counters: Counters,
        limits: Limits = Limits(),  # noqa: B008 (immutable)
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    ) -> None:
        self.upstreams = upstreams
        self.asking: set[Address] = set()
        self._counters = counters
        self._limits = limits
        self._waiting = 0
        self._streams = Streams(tls, self.asking)
        self._probes: dict[bytes, Upstream] = {}  # the names of probes under way
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def available(self) -> bool:
        return bool(self.upstreams.all())

    async def ask(self, forward: Forward) -> bytes | None:
        """An upstream's reply, as it came, maybe a refusal; b"" when none answered, None: none was asked."""
        if self._waiting >= self._limits.in_flight:
            self._counters.dropped["busy"] += 1
            return None
        self._waiting += 1
        try:
            return await self._ask(forward)
        finally:
            self._waiting -= 1

    def check(self) -> None:
        """Probe every upstream once: whether it answers, and whether it asks us."""
        for upstream in self.upstreams.all():
            self._start(self._probe(upstream))

    def is_probe(self, name: bytes) -> bool:
        """Whether a question that came to this server is one of the probes; its upstream is left out."""
        upstream = self._probes.get(name)
        if upstream is None:
            return False
        self.upstreams.looped(upstream)
        return True

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._streams.close()

    async def _ask(self, forward: Forward) -> bytes:
        order = self.upstreams.order()
        refusal = b""
        for upstream in (order * 2)[: min(self._limits.attempts, max(2, len(order)))]:
            reply = await self._try(upstream, forward)
            if reply and not relay.is_refusal(reply):
                return reply
            refusal = reply or refusal
        return refusal

    async def _try(self, upstream: Upstream, forward: Forward) -> bytes:
        """One attempt; b"" when it came to nothing."""
        reply, outcome = await self._exchange(upstream, relay.request(forward, secrets.randbelow(65536)))
        self._counters.upstream[str(upstream), outcome] += 1
        if reply:
            self.upstreams.worked(upstream)
        elif self.upstreams.failed(upstream):
            self._start(self._revive(upstream))
        return reply

    async def _exchange(self, upstream: Upstream, sent: bytes) -> tuple[bytes, str]:
        try:
            async with asyncio.timeout(self._limits.timeout):
                if upstream.transport != "udp":
                    return await self._streams.ask(upstream, sent), "answer"
                reply = await self._udp(upstream.address, sent)
        except TimeoutError:
            return b"", "timeout"
        except (OSError, EOFError):
            return b"", "error"
        if relay.is_truncated(reply):
            return await self._whole(upstream, sent, reply)
        return reply, "answer"

    async def _whole(self, upstream: Upstream, sent: bytes, truncated: bytes) -> tuple[bytes, str]:
        """The reply again over TCP; the truncated one if that fails."""
        try:
            async with asyncio.timeout(self._limits.timeout):
                return await self._streams.ask(upstream._replace(transport="tcp"), sent), "answer"
        except (OSError, EOFError, TimeoutError):
            return truncated, "truncated"

    async def _udp(self, address: Address, sent: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        with socket.socket(family(address[0]), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect(address)
            mine: Address = sock.getsockname()[:2]
            self.asking.add(mine)
            try:
                sock.send(sent)
                while True:
                    reply = await loop.sock_recv(sock, wire.TCP_LIMIT)
                    if relay.is_reply(sent, reply):
                        return reply
            finally:
                self.asking.discard(mine)

    # --- probes -----------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _revive(self, upstream: Upstream) -> None:
        """Probe until it answers, something else found that it does, or it is no longer an upstream."""
        while True:
            await asyncio.sleep(self._limits.probe)
            if upstream not in self.upstreams.down or upstream not in self.upstreams.all():
                return
            await self._probe(upstream)

    async def _probe(self, upstream: Upstream) -> None:
        """Any reply counts, an NXDOMAIN too: it is alive."""
        name = wire.name(secrets.token_hex(8))[:-1] + LOOP
        query = wire.HEADER.pack(secrets.randbelow(65536), wire.RD, 1, 0, 0, 0)
        self._probes[name] = upstream
        try:
            reply, _ = await self._exchange(upstream, query + name + wire.A_IN)
        finally:
            del self._probes[name]
        self._counters.upstream[str(upstream), "probe" if reply else "probe-failed"] += 1
        if reply:
            self.upstreams.worked(upstream)

"""Questions that others answer: to an upstream over UDP, over TCP when truncated, in bounds. An edge.

Rule 1: each question goes from a socket and a port of its own (the kernel draws it at random), connected,
        with a random id; only a reply that `relay.is_reply` accepts ends the wait (RFC 5452).
Rule 2: a client waits at most ATTEMPTS × TIMEOUT; then, or when too many wait already, it is SERVFAIL.
"""

from __future__ import annotations

import asyncio
import secrets
import socket

from . import answer, relay, wire
from .answer import Forward
from .counters import Counters
from .upstreams import Address, Upstreams, family

TIMEOUT = 1.4  # seconds an upstream has; three of them fit into the 5 that resolvers wait (resolv.conf(5))
ATTEMPTS = 3
IN_FLIGHT = 1024  # questions that wait at once


class Forwarder:
    """`ask` from the server's event loop. ``asking`` are the local addresses that questions left from."""

    def __init__(self, upstreams: Upstreams, counters: Counters, timeout: float = TIMEOUT) -> None:
        self._upstreams = upstreams
        self._counters = counters
        self._timeout = timeout
        self._waiting = 0
        self.asking: set[Address] = set()

    @property
    def available(self) -> bool:
        return bool(self._upstreams.order())

    async def ask(self, forward: Forward) -> bytes:
        """The client's response; SERVFAIL or the upstream's own refusal when none answers."""
        if self._waiting >= IN_FLIGHT:
            self._counters.dropped["busy"] += 1
            return answer.failure(forward)
        self._waiting += 1
        try:
            return await self._ask(forward)
        finally:
            self._waiting -= 1

    async def _ask(self, forward: Forward) -> bytes:
        order = self._upstreams.order()
        refusal = b""
        for upstream in (order * 2)[: min(ATTEMPTS, max(2, len(order)))]:
            reply = await self._try(upstream, forward)
            if reply and not relay.is_refusal(reply):
                return relay.finish(forward, reply)
            refusal = reply or refusal
        return relay.finish(forward, refusal) if refusal else answer.failure(forward)

    async def _try(self, upstream: Address, forward: Forward) -> bytes:
        """One attempt; b"" when it came to nothing."""
        sent = relay.request(forward, secrets.randbelow(65536))
        where = f"{upstream[0]}:{upstream[1]}"
        try:
            async with asyncio.timeout(self._timeout):
                reply = await self._udp(upstream, sent)
        except (OSError, TimeoutError) as exc:
            self._counters.upstream[where, "timeout" if isinstance(exc, TimeoutError) else "error"] += 1
            self._upstreams.failed(upstream)
            return b""
        self._counters.upstream[where, "answer"] += 1
        self._upstreams.worked(upstream)
        return await self._whole(upstream, sent, reply) if relay.is_truncated(reply) else reply

    async def _whole(self, upstream: Address, sent: bytes, truncated: bytes) -> bytes:
        """The reply again over TCP; the truncated one if that fails."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._tcp(upstream, sent)
        except (OSError, EOFError, TimeoutError):
            self._counters.upstream[f"{upstream[0]}:{upstream[1]}", "truncated"] += 1
            return truncated

    async def _udp(self, upstream: Address, sent: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        with socket.socket(family(upstream[0]), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect(upstream)
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

    async def _tcp(self, upstream: Address, sent: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*upstream)
        try:
            writer.write(len(sent).to_bytes(2, "big") + sent)
            while True:
                reply = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                if relay.is_reply(sent, reply):
                    return reply
        finally:
            writer.transport.abort()

"""Everything behind "ask somebody else": the cache, the stub domains, the upstreams. An edge.

Rule 1: clients that ask the same at the same time wait for one question; a flood of one name costs one.
Rule 2: when nobody answers, what has expired is better than nothing (RFC 8767), for as long as is set.
Rule 3: one configuration is one Resolver; a new one takes over between two packets, and the old one's
        questions end as they began.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from . import answer, relay, wire
from .answer import NO_NAMES, Forward, Names
from .cache import Cache, Key, key_of
from .forward import LOOP, Forwarder
from .stub import Routes
from .upstreams import Address

CLIENTS = 8192  # that wait at once, whatever for; one more gets SERVFAIL
STALE_WAIT = 1.8  # seconds that a fresh reply may take while there is a stale one (RFC 8767 5)


class Resolver:
    """`ask` from the server's event loop; ``names`` are those computed for `answer.answer`."""

    def __init__(
        self,
        forwarder: Forwarder,
        stubs: Mapping[bytes, Forwarder] | None = None,
        cache: Cache | None = None,
        names: Names = NO_NAMES,
    ) -> None:
        self.routes = Routes(forwarder, stubs or {})
        self.cache = cache
        self.names = names
        self._clients = 0
        self._under_way: dict[Key, asyncio.Future[bytes]] = {}
        self._tasks: set[asyncio.Task[bytes]] = set()

    def guard(self, own: tuple[Address, ...]) -> None:
        """These addresses are the server itself. Raises Invalid when an upstream is one of them."""
        for forwarder in self.routes:
            forwarder.upstreams.guard(own)

    def start(self) -> None:
        """In the event loop, before the first question."""
        for forwarder in self.routes:
            forwarder.check()

    def retire(self) -> None:
        """In the event loop: another has taken over. What is under way ends by itself."""
        if not self._under_way:
            self.close()
            return
        last = asyncio.gather(*self._under_way.values(), return_exceptions=True)
        last.add_done_callback(lambda _: self.close())

    def close(self) -> None:
        """In the event loop."""
        for task in self._tasks:
            task.cancel()
        for forwarder in self.routes:
            forwarder.close()

    @property
    def available(self) -> bool:
        """Somebody is there to ask."""
        return any(forwarder.available for forwarder in self.routes)

    @property
    def waiting(self) -> int:
        """Questions under way."""
        return len(self._under_way)

    def comes_round(self, peer: Address, packet: bytes) -> bool:
        """Whether a packet is a question of our own that came back: from our port, or one of our probes."""
        if any(peer in forwarder.asking for forwarder in self.routes):
            return True
        name = packet[wire.HEADER.size : -4].lower()
        return name.endswith(LOOP) and any(forwarder.is_probe(name) for forwarder in self.routes)

    async def ask(self, forward: Forward) -> bytes:
        """The client's response; SERVFAIL when nobody answers, or too many wait already."""
        if self._clients >= CLIENTS:
            return answer.failure(forward)
        self._clients += 1
        try:
            return await self._ask(forward)
        finally:
            self._clients -= 1

    async def _ask(self, forward: Forward) -> bytes:
        """Along the search list until a name exists."""
        while True:
            reply = await self._reply(forward)
            if not reply:
                return answer.failure(forward)
            if forward.otherwise is None or reply[3] & 15 != wire.NXDOMAIN:
                return relay.finish(forward, reply)
            if isinstance(forward.otherwise, bytes):
                return forward.otherwise
            forward = forward.otherwise

    async def _reply(self, forward: Forward) -> bytes:
        """An upstream's reply to this question, of now or of before; b"" when there is none."""
        key = key_of(forward)
        hit = self.cache.get(key, time.monotonic()) if self.cache is not None else None
        if hit is not None and not hit.stale:
            if hit.refresh:
                self._fetch(key, forward)
            return hit.reply
        fetch = asyncio.shield(self._fetch(key, forward))
        if hit is None or self.cache is None:
            return await fetch
        try:
            async with asyncio.timeout(STALE_WAIT):
                reply = await fetch
        except TimeoutError:
            reply = b""
        if reply and not relay.is_refusal(reply):
            return reply
        self.cache.stale += 1
        return hit.reply

    def _fetch(self, key: Key, forward: Forward) -> asyncio.Future[bytes]:
        """The question that is under way for this key already, or a new one."""
        future = self._under_way.get(key)
        if future is None:
            task = asyncio.ensure_future(self._upstream(key, forward))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            future = self._under_way[key] = task
        return future

    async def _upstream(self, key: Key, forward: Forward) -> bytes:
        try:
            reply = await self.routes.of(key[0]).ask(forward)
            if self.cache is not None and reply is not None:
                self.cache.put(key, reply or relay.failed(forward), time.monotonic())
            return reply or b""
        finally:
            del self._under_way[key]

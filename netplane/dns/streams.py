"""Connections to upstreams over TCP and TLS: one question at a time on each, kept for the next. An edge.

Rule 1: a connection that was kept may have been closed meanwhile: its question goes once more on a
        fresh one, and only then counts as failed.
Rule 2: TLS upstreams are verified (RFC 7858 strict): by the name given, or else by the IP.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable

from . import relay
from .upstreams import Address, Upstream

KEEP = 8  # idle connections for each upstream
IDLE = 10.0  # seconds that one is kept (CoreDNS' expire)


class Stream:
    """One connection. ``mine`` is its local address, by which a question that comes round is known."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.mine: Address = writer.get_extra_info("sockname")[:2]
        self.used = time.monotonic()
        self._reader, self._writer = reader, writer

    async def ask(self, sent: bytes) -> bytes:
        """Raises OSError, EOFError."""
        self._writer.write(len(sent).to_bytes(2, "big") + sent)
        while True:
            size = int.from_bytes(await self._reader.readexactly(2), "big")
            reply = await self._reader.readexactly(size)
            if relay.is_reply(sent, reply):
                self.used = time.monotonic()
                return reply

    @property
    def stale(self) -> bool:
        return time.monotonic() - self.used > IDLE or self._reader.at_eof()

    def close(self) -> None:
        self._writer.transport.abort()


class Streams:
    """`ask` from one event loop. ``tls`` makes the context for TLS upstreams when it is first needed."""

    def __init__(self, tls: Callable[[], ssl.SSLContext], asking: set[Address]) -> None:
        self._tls = tls
        self._asking = asking
        self._context: ssl.SSLContext | None = None
        self._idle: dict[Upstream, list[Stream]] = {}

    async def ask(self, upstream: Upstream, sent: bytes) -> bytes:
        """The reply. Raises OSError (ssl.SSLError is one), EOFError; give it a timeout."""
        kept = self._kept(upstream)
        if kept is not None:
            try:
                return await self._on(kept, upstream, sent)
            except (OSError, EOFError):
                pass
        return await self._on(await self._connect(upstream), upstream, sent)

    def close(self) -> None:
        for streams in self._idle.values():
            for stream in streams:
                stream.close()
        self._idle.clear()

    async def _on(self, stream: Stream, upstream: Upstream, sent: bytes) -> bytes:
        self._asking.add(stream.mine)
        try:
            reply = await stream.ask(sent)
        except BaseException:
            stream.close()
            raise
        finally:
            self._asking.discard(stream.mine)
        idle = self._idle.setdefault(upstream, [])
        idle.append(stream)
        while len(idle) > KEEP:
            idle.pop(0).close()
        return reply

    def _kept(self, upstream: Upstream) -> Stream | None:
        idle = self._idle.get(upstream, [])
        while idle:
            stream = idle.pop()
            if not stream.stale:
                return stream
            stream.close()
        return None

    async def _connect(self, upstream: Upstream) -> Stream:
        if upstream.transport != "tls":
            return Stream(*await asyncio.open_connection(*upstream.address))
        if self._context is None:
            self._context = self._tls()
        name = upstream.server_name or upstream.ip
        reader, writer = await asyncio.open_connection(
            *upstream.address, ssl=self._context, server_hostname=name
        )
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Stream(reader, writer)

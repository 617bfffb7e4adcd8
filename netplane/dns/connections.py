"""Clients over TCP and TLS: many questions at once on a connection, answered as they are ready (RFC 7766).

Rule 1: what the table knows is written before the next question is read; whatever has to wait for an
        upstream does so beside it, and what comes after may overtake it.
Rule 2: a connection has at most PIPELINE questions under way; it is not read while it has, so that TCP
        tells the client. Of CONNECTIONS, one more ends the one that has been silent for longest.
Rule 3: a message must come whole, and an answer be taken, within ``idle`` seconds; a client that is owed
        an answer may be silent for longer (RFC 7766 6.2.3), and may have closed its own side.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

CONNECTIONS = 256
PIPELINE = 64
LAST = 0.1  # seconds of silence that end a connection once the server is to stop

Answer = Callable[[bytes, Any, str], "bytes | Coroutine[Any, Any, bytes] | None"]


class Connections:
    """`serve` is what asyncio's servers call. ``answer(packet, peer, protocol)`` gives the response, or what
    will, or None, which closes the connection.
    """

    def __init__(self, answer: Answer, idle: float) -> None:
        self.idle = idle
        self.answer = answer
        self._open: dict[_Connection, asyncio.Task[None]] = {}

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: str = "tcp"
    ) -> None:
        if len(self._open) >= CONNECTIONS:
            oldest = min(self._open, key=lambda connection: connection.heard)
            del self._open[oldest]
            oldest.abort()
        connection = _Connection(self, reader, writer, protocol)
        task = asyncio.current_task()
        assert task is not None
        self._open[connection] = task
        try:
            await connection.run()
        finally:
            self._open.pop(connection, None)

    async def finish(self, drain: float) -> None:
        """Answer what has been asked, and what is in the next moment, in ``drain`` seconds; then close."""
        if drain:
            self.idle = min(self.idle, LAST)
            for connection in self._open:
                connection.hurry()
            await asyncio.sleep(LAST)  # handshakes come to their end
            if self._open:
                await asyncio.wait(self._open.values(), timeout=drain)
        for connection in self._open:
            connection.abort()


class _Connection:
    def __init__(
        self, all_: Connections, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: str
    ) -> None:
        self.heard = time.monotonic()
        self._all = all_
        self._reader, self._writer, self._protocol = reader, writer, protocol
        self._peer = writer.get_extra_info("peername")
        self._slots = asyncio.Semaphore(PIPELINE)
        self._waiting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.Timeout | None = None
        writer.transport.set_write_buffer_limits(high=1, low=0)  # `drain` waits until the kernel has it all

    async def run(self) -> None:
        try:
            while await self._one():
                pass
            if self._waiting:
                await asyncio.wait(self._waiting)
            self._writer.close()
        except (OSError, TimeoutError):
            self.abort()
        finally:
            for task in self._waiting:
                task.cancel()

    def abort(self) -> None:
        self._writer.transport.abort()

    def hurry(self) -> None:
        """Be silent no longer than is allowed now."""
        if self._pause is not None and not self._pause.expired():
            self._pause.reschedule(asyncio.get_running_loop().time() + self._all.idle)

    async def _one(self) -> bool:
        """Take one message; False: there will be no more. Raises OSError, TimeoutError."""
        await self._slots.acquire()
        packet = await self._message()
        found = self._all.answer(packet, self._peer, self._protocol) if packet is not None else None
        if found is None:
            return False
        if isinstance(found, bytes):
            await self._send(found)
            self._slots.release()
            await asyncio.sleep(0)  # a client that sends without end lets others have their turn
        else:
            task = asyncio.ensure_future(self._later(found))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
        return True

    async def _later(self, answer: Awaitable[bytes]) -> None:
        try:
            await self._send(await answer)
        except (OSError, TimeoutError):
            self.abort()
        finally:
            self._slots.release()

    async def _message(self) -> bytes | None:
        """The next one; None when the client ends, or owes us nothing and is silent."""
        try:
            size = await self._size()
            if size is None:
                return None
            async with asyncio.timeout(self._all.idle):
                packet = await self._reader.readexactly(size)
        except asyncio.IncompleteReadError:
            return None
        self.heard = time.monotonic()
        return packet

    async def _size(self) -> int | None:
        while True:
            try:
                async with asyncio.timeout(self._all.idle) as self._pause:
                    return int.from_bytes(await self._reader.readexactly(2), "big")
            except TimeoutError:
                if not self._waiting:
                    return None
            finally:
                self._pause = None

    async def _send(self, reply: bytes) -> None:
        self._writer.write(len(reply).to_bytes(2, "big") + reply)
        async with asyncio.timeout(self._all.idle):
            await self._writer.drain()

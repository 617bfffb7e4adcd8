"""The edge: UDP and TCP sockets around `answer`, on one thread with an event loop of its own.

Where the extension is built, C threads have the UDP sockets (`loop`), and what they leave comes here.

Rule 1: an answer from the table is sent before the next packet is read; only a forward becomes a task.
Rule 2: no client can hold the server: connections, waiting questions and time per message are bounded.
Rule 3: nothing that arrives ends the thread; what must not happen is logged, and SERVFAIL goes out.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import threading
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from . import wire
from .answer import Client, Forward, answer, failure
from .connections import Connections
from .counters import Counters
from .forward import TIMEOUT, Forwarder, Limits
from .handover import Inherited
from .loop import FAST, Divert, Fast, Loop, RateLimit, Twin
from .querylog import QueryLog
from .resolver import Resolver
from .sockets import Ancillary, Udp, group, listen
from .table import NameTable
from .tls import Listener, TlsListener
from .upstreams import Address, Upstreams

BATCH = 64  # packets read from one socket before the others have their turn
IDLE = 8.0  # seconds for a message to arrive whole, or to be taken (RFC 7766 6.2.3)
_log = logging.getLogger("netplane.dns")


class DnsServer:
    """Serves ``table`` on every (IP, port) of ``listen``, UDP and TCP.

    ``upstreams``: addresses, or the path of a resolv.conf, for other names; none: they are REFUSED.
    ``timeout``: seconds per upstream; ``idle``: seconds per TCP message. `use` replaces what is behind
    ``upstreams`` by a whole Resolver, and adds or ends DNS over TLS. ``fast`` is about the C threads.
    """

    def __init__(
        self,
        table: NameTable,
        listen: Sequence[Address],
        upstreams: Sequence[Address] | str = (),
        *,
        timeout: float = TIMEOUT,
        idle: float = IDLE,
        fast: Fast = FAST,
    ) -> None:
        self.counters = Counters(table.domain)
        self._table = table
        self._listen = tuple(listen)
        self.resolver = Resolver(Forwarder(Upstreams(upstreams), self.counters, Limits(timeout)))
        self.log = QueryLog(changed=self.divert)
        self._fast = fast
        self._c: Loop | None = None
        self._twin: Twin | None = None
        self._idle = idle
        self._connections = Connections(self._stream, idle)
        self._tls: TlsListener | None = None
        self._udp: list[Udp] = []
        self._tcp: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._drain = 0.0

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it listens, with the ports that were drawn for port 0."""
        return tuple(dict.fromkeys(udp.sock.getsockname()[:2] for udp in self._udp))

    @property
    def ready(self) -> bool:
        """Serving, and with the first full sync in the table: fit for /readyz."""
        return self._thread is not None and self._thread.is_alive() and self._table.synced

    def start(self, inherited: Inherited | None = None) -> None:
        """Bind, or take what was ``inherited``; then serve, in the network namespace of the caller.

        Raises KernelError (an address in use, no permission) and Invalid (an upstream that is
        ourselves); then nothing runs.
        """
        try:
            for address in self._listen:
                self._bind(address, inherited or Inherited())
            self.resolver.guard(self.addresses)
            self._start_fast()
        except BaseException:
            self._close()
            raise
        self._loop, self._stopping = asyncio.new_event_loop(), asyncio.Event()
        self._connections = Connections(self._stream, self._idle)
        self._thread = threading.Thread(target=self._run, args=(self._loop,), name="dns", daemon=True)
        self._thread.start()

    def _bind(self, address: Address, inherited: Inherited) -> None:
        count = self._fast.workers if self._fast.on else 1
        found = inherited.take(address, socket.SOCK_DGRAM) or group(address, count)
        self._udp += map(Udp, found)
        bound = found[0].getsockname()[:2]
        self._tcp += inherited.take(bound, socket.SOCK_STREAM)[:1] or [listen(bound, socket.SOCK_STREAM)]

    def _start_fast(self) -> None:
        if not self._fast.on:
            return
        view = self._table.view
        self._twin = Twin(view.apex, len(view.names) + len(view.below))
        self._table.attach(self._twin)
        self.divert()
        sockets = [udp.sock for udp in self._udp]
        self._c = Loop(self._twin, sockets, self._fast.workers)
        self.counters.follow(self._c)

    def divert(self) -> None:
        """Tell the C threads what is Python's to answer: computed names, and all while queries are logged."""
        if self._twin is not None:
            everything = Divert.EVERYTHING if self.log.every else Divert.NOTHING
            self._twin.divert(self.resolver.names.computes | everything)

    def limit(self, limit: RateLimit | None) -> None:
        """Bound the answers that C gives over UDP to each network; while running. Raises Invalid."""
        if self._c is not None:
            self._c.limit(limit)
        elif limit is not None:
            _log.warning("DNS rate limit: without the C extension there is none")

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """All that it listens on, to be kept by somebody before `stop`."""
        over_tls = self._tls.sockets if self._tls is not None else ()
        return (*(udp.sock for udp in self._udp), *self._tcp, *over_tls)

    def stop(self, drain: float = 0.0) -> None:
        """Stop reading, answer what was read within ``drain`` seconds, close; a second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None and self._loop is not None:
            self._drain = drain
            self._loop.call_soon_threadsafe(self._stopping.set)
            thread.join()
        self._close()

    def use(self, resolver: Resolver, tls: TlsListener | None = None) -> None:
        """From the next packet on; while running. The same ``tls`` as before goes on as it is.

        Raises Invalid for an upstream that is ourselves; then nothing has changed.
        """
        resolver.guard(self.addresses)
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self._use(resolver, tls), self._loop).result()

    async def _use(self, resolver: Resolver, tls: TlsListener | None) -> None:
        old, self.resolver = self.resolver, resolver
        self.counters.know(resolver.routes.zones)
        self.divert()
        resolver.start()
        old.retire()
        if self._tls is not tls and self._tls is not None:
            await self._tls.retire()
        if self._tls is not tls and tls is not None:
            await tls.secure(
                functools.partial(self._connections.serve, protocol="tls"), self._connections.idle
            )
        self._tls = tls

    def _close(self) -> None:
        if self._twin is not None:
            self._table.detach(self._twin)
            self._twin = None
        if self._c is not None:
            self._c.close()
            self._c = None
        for sock in (*(udp.sock for udp in self._udp), *self._tcp):
            sock.close()
        self._udp.clear()
        self._tcp.clear()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # which cancels what is left
            runner.run(self._serve())

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        if self._c is not None:
            loop.add_reader(self._c.misses, self._missed, self._c)
        for udp in self._udp if self._c is None else ():
            loop.add_reader(udp.sock, self._readable, udp)
        streams = Listener(self._tcp)
        await streams.serve(self._connections.serve)
        self.resolver.start()
        await self._stopping.wait()
        await streams.retire()
        if self._tls is not None:
            await self._tls.retire()
            self._tls = None
        await self._connections.finish(self._drain)  # UDP is served meanwhile
        if self._c is not None:
            self._c.stop()
        await self._finish()
        self.resolver.close()

    async def _finish(self) -> None:
        """Answer what C has left, and let the questions that wait come to their end."""
        while self._c is not None and self._missed(self._c):
            pass
        for udp in self._udp if self._c is None else ():
            asyncio.get_running_loop().remove_reader(udp.sock)
        if self._tasks and self._drain:
            await asyncio.wait(self._tasks, timeout=self._drain)

    def _decide(self, packet: bytes, peer: Any, udp: bool) -> bytes | Forward | None:
        client, names = Client(peer[0], udp), self.resolver.names
        try:
            found = answer(packet, self._table.view, client, True, names)
            if isinstance(found, Forward) and not self._may_forward(peer, packet):
                found = answer(packet, self._table.view, client, False, names)
        except Exception:
            _log.exception("a query of %d bytes from %s", len(packet), peer[0])
            self.counters.dropped["error"] += 1
            return None
        if found is None:
            self.counters.dropped["silence"] += 1
        return found

    def _may_forward(self, peer: Any, packet: bytes) -> bool:
        """Somebody is there to ask, and the question is not one of our own, come round."""
        if self.resolver.comes_round(peer[:2], packet):
            self.counters.loops += 1
            return False
        return self.resolver.available

    def _answered(self, peer: Any, protocol: str, source: str, reply: bytes, began: float) -> None:
        seconds = time.perf_counter() - began
        self.counters.answered(protocol, source, reply, seconds)
        self.log.note(peer, protocol, reply, seconds)

    # --- UDP ------------------------------------------------------------------------------------

    def _readable(self, udp: Udp) -> None:
        for _ in range(BATCH):
            try:
                packet, peer, ancillary = udp.receive()
            except OSError:
                return
            self._packet(packet, udp, peer, ancillary, time.perf_counter())

    def _missed(self, c: Loop) -> bool:
        """What the C threads left; whether there may be more."""
        for _ in range(BATCH):
            miss = c.take()
            if miss is None:
                return False
            self._packet(miss.packet, self._udp[miss.socket], miss.peer, miss.ancillary, miss.arrived)
        return True

    def _packet(self, packet: bytes, udp: Udp, peer: Any, ancillary: Ancillary, began: float) -> None:
        found = self._decide(packet, peer, udp=True)
        if isinstance(found, bytes):
            self._send(udp, found, peer, ancillary)
            self._answered(peer, "udp", "cluster", found, began)
        elif found is not None:
            task = asyncio.ensure_future(self._forward_udp(udp, found, peer, ancillary))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward_udp(self, udp: Udp, forward: Forward, peer: Any, ancillary: Ancillary) -> None:
        self._send(udp, await self._forward(forward, "udp", peer), peer, ancillary)

    def _send(self, udp: Udp, reply: bytes, peer: Any, ancillary: Ancillary) -> None:
        try:
            udp.send(reply, peer, ancillary)
        except OSError:  # no route back, or the buffer is full: as if the network had lost it
            self.counters.dropped["send"] += 1

    async def _forward(self, forward: Forward, protocol: str, peer: Any) -> bytes:
        began = time.perf_counter()
        try:
            reply = await self.resolver.ask(forward)
        except Exception:
            _log.exception("forwarding a question for %s", wire.to_text(forward.name))
            reply = failure(forward)
        self._answered(peer, protocol, "forward", reply, began)
        return reply

    # --- TCP and TLS ----------------------------------------------------------------------------

    def _stream(self, packet: bytes, peer: Any, protocol: str) -> bytes | Coroutine[Any, Any, bytes] | None:
        began = time.perf_counter()
        found = self._decide(packet, peer, udp=False)
        if isinstance(found, Forward):
            return self._forward(found, protocol, peer)
        if found is not None:
            self._answered(peer, protocol, "cluster", found, began)
        return found

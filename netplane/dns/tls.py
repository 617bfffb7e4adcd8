"""TLS contexts: the listener's, whose certificate may change under it, and the upstreams'. An edge.

Rule: a new certificate is a new context, taken for handshakes from then on; one that does not fit its
key, or is cut off while it is written, changes nothing, and the old one goes on being shown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ..model.errors import Invalid
from .handover import Inherited
from .sockets import listen
from .upstreams import Address

Connection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_log = logging.getLogger("netplane.dns")


class Certificate:
    """``context`` for the listener; `refresh` loads the files again when they changed. Raises Invalid."""

    def __init__(self, cert: str, key: str) -> None:
        self._files = (cert, key)
        self._stamp = self._look()
        self._current = self.context = self._load()
        self.context.sni_callback = self._show
        self.problem = ""

    def refresh(self) -> bool:
        """Connections made from now on see the new certificate; True when there was one."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self._current = self._load()
        except Invalid as exc:
            self.problem = str(exc)
            _log.error("%s; the old certificate stays", exc)
            return False
        self.problem = ""
        _log.info("DNS over TLS: new certificate from %s", self._files[0])
        return True

    def _show(self, handshake: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called by each client hello, with a server name in it or without."""
        handshake.context = self._current

    def _look(self) -> tuple[tuple[int, int], ...]:
        try:
            return tuple((s.st_mtime_ns, s.st_ino) for s in map(os.stat, self._files))
        except OSError:
            return ()

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 9325
        context.set_alpn_protocols(["dot"])  # RFC 7858 8.1 by way of RFC 9539
        try:
            context.load_cert_chain(*self._files)
        except OSError as exc:  # ssl.SSLError is one
            reason = getattr(exc, "reason", None) or exc.strerror or str(exc)
            raise Invalid(f"certificate {self._files[0]} with key {self._files[1]}: {reason}") from None
        return context


class Listener:
    """Sockets that wait for connections; this object's from now on."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.sockets = tuple(sockets)
        self._servers: list[asyncio.Server] = []

    async def serve(self, connection: Connection, **how: Any) -> None:
        """``how``: of asyncio.start_server."""
        for sock in self.sockets:
            self._servers.append(await asyncio.start_server(connection, sock=sock, **how))

    async def retire(self) -> None:
        """Close, when all that was accepted has its connection: asyncio drops what it finds in between."""
        for sock in self.sockets:
            asyncio.get_running_loop().remove_reader(sock)
        await asyncio.sleep(0)  # the tasks of connections just accepted run first
        self.close()

    def close(self) -> None:
        """Once it serves: in its event loop."""
        for server in self._servers:
            server.close()
        for sock in self.sockets:
            sock.close()


class TlsListener(Listener):
    """A Listener for TLS, and the certificate that it shows. Raises Invalid, KernelError.

    What ``before`` listens on already is shared with it, so that no connection is lost when it closes;
    what was ``inherited`` is taken.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        certificate: Certificate,
        before: TlsListener | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        self.certificate = certificate
        self._addresses = tuple(addresses)
        super().__init__(())
        try:
            for address in self._addresses:
                found = inherited.take(address, socket.SOCK_STREAM) if inherited is not None else []
                shared = found[0] if found else before.share(address) if before is not None else None
                self.sockets += (shared or listen(address, socket.SOCK_STREAM),)
        except BaseException:
            self.close()
            raise

    def share(self, address: Address) -> socket.socket | None:
        """Another descriptor of the socket on this address."""
        if address not in self._addresses:
            return None
        return self.sockets[self._addresses.index(address)].dup()

    async def secure(self, connection: Connection, patience: float) -> None:
        """``patience``: seconds for the handshake."""
        await self.serve(
            connection,
            ssl=self.certificate.context,
            ssl_handshake_timeout=patience,
            ssl_shutdown_timeout=patience,
        )


def client(ca: str = "") -> ssl.SSLContext:
    """For upstreams: verified against ``ca`` (a PEM file), or the system's authorities. Raises Invalid."""
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except OSError as exc:
        raise Invalid(f"authorities of DNS upstreams, {ca}: {exc.strerror or exc}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context

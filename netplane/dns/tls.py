"""TLS contexts: the listener's, whose certificate may change under it, and the upstreams'. An edge.

Rule: a new certificate is tried in a context of its own first; one that does not fit its key, or is cut
off while it is written, changes nothing, and the old one goes on being shown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence

from ..model.errors import Invalid
from .sockets import listen
from .upstreams import Address

Connection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_log = logging.getLogger("netplane.dns")


class Certificate:
    """``context`` for the listener; `refresh` loads the files again when they changed. Raises Invalid."""

    def __init__(self, cert: str, key: str) -> None:
        self._files = (cert, key)
        self._stamp = self._look()
        self.context = self._load()
        self.problem = ""

    def refresh(self) -> bool:
        """Connections made from now on see the new certificate; True when there was one."""
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self._load()
        except Invalid as exc:
            self.problem = str(exc)
            _log.error("%s; the old certificate stays", exc)
            return False
        self.context.load_cert_chain(*self._files)
        self.problem = ""
        _log.info("DNS over TLS: new certificate from %s", self._files[0])
        return True

    def replace(self, other: Certificate) -> None:
        """Show what ``other`` has, which was loaded without a fault."""
        self._files, self._stamp, self.problem = other._files, other._stamp, ""
        self.context.load_cert_chain(*self._files)

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


class TlsListener:
    """Sockets that wait for TLS, and the certificate that they show. Raises Invalid, KernelError."""

    def __init__(self, addresses: Sequence[Address], certificate: Certificate) -> None:
        self.certificate = certificate
        self._addresses = tuple(addresses)
        self._socks: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        try:
            for address in self._addresses:
                self._socks.append(listen(address, socket.SOCK_STREAM))
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> tuple[Address, ...]:
        return self._addresses

    async def serve(self, connection: Connection, patience: float) -> None:
        """``patience``: seconds for the handshake."""
        for sock in self._socks:
            server = await asyncio.start_server(
                connection,
                sock=sock,
                ssl=self.certificate.context,
                ssl_handshake_timeout=patience,
                ssl_shutdown_timeout=patience,
            )
            self._servers.append(server)

    def close(self) -> None:
        """Once it serves: in its event loop."""
        for server in self._servers:
            server.close()
        for sock in self._socks:
            sock.close()


def client(ca: str = "") -> ssl.SSLContext:
    """For upstreams: verified against ``ca`` (a PEM file), or the system's authorities. Raises Invalid."""
    try:
        context = ssl.create_default_context(cafile=ca or None)
    except OSError as exc:
        raise Invalid(f"authorities of DNS upstreams, {ca}: {exc.strerror or exc}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context

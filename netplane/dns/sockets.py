"""The server's sockets: bound before their address exists, answering from the address that was asked.

The address of a pod CIDR's gateway comes with the bridge, maybe after us: hence IP_FREEBIND.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

from ..model.errors import Invalid, KernelError
from .upstreams import Address, family

IP_FREEBIND, IP_PKTINFO = 15, 8  # linux/in.h; Python has no names for them
IPV6_FREEBIND = 78  # linux/in6.h, Linux 4.15
MAX_QUERY = 4096  # bytes of a UDP packet that are read; a query is a name and some options
RECEIVE_BUFFER = 4 << 20  # bytes: ten thousand queries that wait while the agent is restarted
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; beyond rmem_max, for CAP_NET_ADMIN
BACKLOG = 128
_CMSG = socket.CMSG_SPACE(20)
Ancillary = list[tuple[int, int, bytes]]


def group(address: Address, count: int) -> list[socket.socket]:
    """UDP sockets that share an address; the kernel spreads clients over them. As `listen`.

    The first bind is without sharing, so that another process at this address is an error.
    """
    with listen(address, socket.SOCK_DGRAM) as alone:
        bound = alone.getsockname()[:2]
    made: list[socket.socket] = []
    try:
        while len(made) < count:
            made.append(listen(bound, socket.SOCK_DGRAM, shared=True))
    except BaseException:
        for sock in made:
            sock.close()
        raise
    return made


def listen(address: Address, kind: socket.SocketKind, shared: bool = False) -> socket.socket:
    """A non-blocking socket bound to an IP and port. Raises Invalid (no IP), KernelError."""
    ip, port = address
    if not family(ip):
        raise Invalid(f"DNS listen address {ip!r} is not an IPv4 or IPv6 address")
    sock = socket.socket(family(ip), kind | socket.SOCK_NONBLOCK)
    v6 = sock.family == socket.AF_INET6
    try:
        if v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a former run
        else:
            _enlarge(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        proto = "tcp" if kind == socket.SOCK_STREAM else "udp"
        raise KernelError(exc.errno or 5, f"listen for DNS on {ip} port {port}/{proto}") from None
    return sock


def _enlarge(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


class Udp:
    """Receive and send; a socket on all addresses answers from the one that a query came to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._wild = sock.getsockname()[0] in ("0.0.0.0", "::")
        if self._wild and sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif self._wild:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)

    def receive(self) -> tuple[bytes, Any, Ancillary]:
        """A packet, its sender, and what `send` needs to answer. Raises OSError (BlockingIOError: none)."""
        if not self._wild:
            packet, peer = self.sock.recvfrom(MAX_QUERY)
            return packet, peer, []
        packet, ancillary, _, peer = self.sock.recvmsg(MAX_QUERY, _CMSG)
        return packet, peer, [_source(*message) for message in ancillary]

    def send(self, packet: bytes, peer: Any, ancillary: Ancillary) -> None:
        if ancillary:
            self.sock.sendmsg((packet,), ancillary, 0, peer)
        else:
            self.sock.sendto(packet, peer)


def _source(level: int, kind: int, data: bytes) -> tuple[int, int, bytes]:
    """The packet info of a query as that of its answer: the source set, the interface left to routing.

    in_pktinfo: interface, local address, header's destination; in6_pktinfo: address, interface. A
    link-local address of IPv6 means nothing without its interface.
    """
    if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
        return level, kind, struct.pack("=i4s4s", 0, data[4:8], bytes(4))
    if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and data[:2] != b"\xfe\x80":
        return level, kind, data[:16] + bytes(4)
    return level, kind, data

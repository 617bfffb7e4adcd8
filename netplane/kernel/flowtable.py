"""The flows that the kernel tracks, all of them, and the end of single ones (ctnetlink).

Rule 1: a dump is one pass over the table of this namespace, and reads only what names a flow.
Rule 2: a flow is deleted with its identity (CTA_ID), never a later one with equal addresses.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from errno import ENOENT
from typing import NamedTuple

from ..model.errors import KernelError
from . import netns
from . import nlmsg as nl

NETLINK_NETFILTER = 12
GET, DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK; IPCTNL_MSG_CT_GET, _DELETE
_HEAD = struct.Struct(">BBH")  # nfgenmsg
_U16 = struct.Struct(">H")
_ORIG, _REPLY, _PROTOINFO, _ID, _ZONE = 1, 2, 4, 12, 18  # CTA_TUPLE_ORIG, …
_TCP, _TCP_FLAGS = 1, (4, 5)  # CTA_PROTOINFO_TCP; CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, _REPLY
_LIBERAL = 0x08  # IP_CT_TCP_FLAG_BE_LIBERAL
_SIZE = 1 << 18
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}


class Tracked(NamedTuple):
    """``source`` began the flow, ``target``:``port`` answers it, behind whatever translation.

    ``loose``: the kernel took a TCP flow up in its middle, so who began it is a guess.
    """

    source: str
    target: str
    protocol: str
    port: int
    handle: bytes  # what deletes it
    source_port: int = 0
    loose: bool = False


class FlowTable:
    """The tracker of the namespace of the thread that makes this. Thread-safe."""

    def __init__(self, path: str = "") -> None:
        self._sock = socket.socket(fileno=netns.open_socket(path, NETLINK_NETFILTER))
        self._lock = threading.Lock()

    def close(self) -> None:
        self._sock.close()

    def flows(self) -> list[Tracked]:
        """Every tracked flow of both families. Raises KernelError."""
        with self._lock:
            return [flow for body in self._dump() if (flow := tracked(body)) is not None]

    def forget(self, flows: Iterable[Tracked]) -> int:
        """Delete these flows; how many were still there. Raises KernelError."""
        done = 0
        with self._lock:
            for flow in flows:
                self._send(DELETE, nl.NLM_F_ACK, flow.handle)
                done += _errno(self._sock.recv(_SIZE)[16:], "delete a tracked flow") == 0
        return done

    def _dump(self) -> Iterator[bytes]:
        self._send(GET, nl.NLM_F_DUMP, _HEAD.pack(socket.AF_UNSPEC, 0, 0))
        while True:
            for kind, _, _, _, payload in nl.messages(self._sock.recv(_SIZE)):
                if kind in (nl.NLMSG_DONE, nl.NLMSG_ERROR):
                    _errno(payload, "dump the tracked flows")
                    return
                yield payload

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        head = nl.NLMSGHDR.pack(16 + len(body), kind, nl.NLM_F_REQUEST | flags, 1, 0)
        self._sock.sendto(head + body, (0, 0))


def tracked(body: bytes) -> Tracked | None:
    """One dumped entry; None when it names no addresses."""
    found = nl.attrs(body, 4)
    if _ORIG not in found or _REPLY not in found:
        return None
    source, _, number, source_port = _tuple(found[_ORIG])
    target, _, _, port = _tuple(found[_REPLY])
    zone = nl.attr(_ZONE, found[_ZONE]) if _ZONE in found else b""
    handle = body[:4] + nl.nest(_ORIG, found[_ORIG]) + nl.attr(_ID, found[_ID]) + zone
    protocol = PROTOCOLS.get(number, str(number))
    return Tracked(source, target, protocol, port, handle, source_port, _loose(found.get(_PROTOINFO)))


def _loose(info: bytes | None) -> bool:
    """nf_conntrack_proto_tcp.c: a flow without its SYN is tracked liberally, in both directions."""
    tcp = nl.attrs(nl.attrs(info or b"").get(_TCP, b""))
    return all(which in tcp and bool(tcp[which][0] & _LIBERAL) for which in _TCP_FLAGS)


def _tuple(data: bytes) -> tuple[str, str, int, int]:
    """(source, destination, protocol, source port) of a CTA_TUPLE; port 0 where there are none."""
    parts = nl.attrs(data)
    addresses, proto = nl.attrs(parts[1]), nl.attrs(parts[2])
    source, destination = addresses.get(1) or addresses[3], addresses.get(2) or addresses[4]
    port = _U16.unpack(proto[2])[0] if 2 in proto else 0
    return nl.ip_text(source), nl.ip_text(destination), proto[1][0], port


def _errno(payload: bytes, operation: str) -> int:
    (error,) = struct.unpack_from("=i", payload)
    if error not in (0, -ENOENT):
        raise KernelError(-error, operation)
    return -int(error)

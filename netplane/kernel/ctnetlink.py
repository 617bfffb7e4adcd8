"""The kernel's table of tracked flows: the two requests that flowtable and conntrack make of it (ctnetlink).

Rule 1: a flow is deleted with its identity (CTA_ID), never a later one with equal addresses.
Rule 2: who uses a Tracker from several threads holds a lock of its own.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from errno import ENOENT

from ..model.errors import KernelError
from . import netns
from . import nlmsg as nl

ORIG, REPLY, PROTOINFO, ID, ZONE, FILTER = 1, 2, 4, 12, 18, 25  # CTA_TUPLE_ORIG, …
_NETLINK_NETFILTER = 12
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK; IPCTNL_MSG_CT_GET, _DELETE
_HEAD = struct.Struct(">BBH")  # nfgenmsg
_SIZE = 1 << 18


class Tracker:
    """A socket in the namespace at ``path``; "" is that of the thread that makes this."""

    def __init__(self, path: str = "") -> None:
        self._sock = socket.socket(fileno=netns.open_socket(path, _NETLINK_NETFILTER))

    def close(self) -> None:
        self._sock.close()

    def dump(self, body: bytes, operation: str) -> Iterator[bytes]:
        """The flows that ``body`` asks for, each as the kernel says it. Raises KernelError(operation)."""
        self._send(_GET, nl.NLM_F_DUMP, body)
        while True:
            for kind, _, _, _, payload in nl.messages(self._sock.recv(_SIZE)):
                if kind in (nl.NLMSG_DONE, nl.NLMSG_ERROR):
                    _finish(payload, operation)
                    return
                yield payload

    def delete(self, body: bytes, operation: str) -> bool:
        """False when there was no such flow. Raises KernelError(operation)."""
        self._send(_DELETE, nl.NLM_F_ACK, body)
        return _finish(self._sock.recv(_SIZE)[16:], operation)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        head = nl.NLMSGHDR.pack(16 + len(body), kind, nl.NLM_F_REQUEST | flags, 1, 0)
        self._sock.sendto(head + body, (0, 0))


def head(family: int) -> bytes:
    """How a request begins: about one family (socket.AF_INET, …), or AF_UNSPEC for both."""
    return _HEAD.pack(family, 0, 0)


def exactly(flow: bytes) -> bytes:
    """The body that deletes this dumped flow and no other."""
    found = nl.attrs(flow, 4)
    zone = nl.attr(ZONE, found[ZONE]) if ZONE in found else b""
    return flow[:4] + nl.nest(ORIG, found[ORIG]) + nl.attr(ID, found[ID]) + zone


def _finish(payload: bytes, operation: str) -> bool:
    (error,) = struct.unpack_from("=i", payload)
    if error not in (0, -ENOENT):
        raise KernelError(-error, operation)
    return not error

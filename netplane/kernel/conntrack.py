"""Forget tracked flows, so that the next packet is decided anew (ctnetlink).

UDP has no end that a tracker could see: a client that goes on sending keeps the translation of its
first packet, to a pod that is gone or past one that has come.

Rule 1: the kernel compares protocol and ports (CTA_FILTER, Linux 5.8); addresses are compared here,
        because its comparison of IPv6 addresses is inverted (6.18: equal ones do not match).
Rule 2: a pattern names at least a protocol and one port or address: nothing forgets everything.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from errno import ENOENT

from ..model.errors import Invalid, KernelError
from ..model.flows import Flows
from . import netns
from . import nlmsg as nl

__all__ = ["Conntrack", "Flows"]

NETLINK_NETFILTER = 12
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET and _DELETE
_HEAD = struct.Struct(">BBH")  # nfgenmsg
_PORT = struct.Struct(">H")
_ORIG, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25  # CTA_TUPLE_ORIG, …
_NUM, _SRC_PORT, _DST_PORT = 8, 16, 32  # what of a tuple the kernel compares
_SIZE = 1 << 18
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


class Conntrack:
    """The tracker of the namespace of the thread that makes this. Thread-safe."""

    def __init__(self, path: str = "") -> None:
        self._sock = socket.socket(fileno=netns.open_socket(path, NETLINK_NETFILTER))
        self._lock = threading.Lock()

    def close(self) -> None:
        self._sock.close()

    def forget(self, patterns: Iterable[Flows]) -> None:
        """Delete every flow that matches one of the patterns. Raises KernelError, Invalid."""
        for pattern in dict.fromkeys(patterns):
            body = request(pattern)
            with self._lock:
                if not pattern.dst and not pattern.backend:
                    self._delete(body, pattern)
                    continue
                found = [flow for _, flow in self._dump(body, pattern) if matches(pattern, flow)]
                for flow in found:
                    self._delete(exactly(pattern.version, flow), pattern)

    def sweep(self, protocol: str, version: int, stale: Callable[[bytes], bool]) -> int:
        """Delete every flow of a protocol that ``stale`` says yes to, shown as it was dumped.

        One dump, whatever there is to compare; how many went. Raises KernelError.
        """
        pattern = Flows(protocol, version)
        with self._lock:
            found = [flow for _, flow in self._dump(_filtered(pattern), pattern) if stale(flow)]
            for flow in found:
                self._delete(exactly(version, flow), pattern)
        return len(found)

    def _delete(self, body: bytes, pattern: Flows) -> None:
        self._send(_DELETE, nl.NLM_F_ACK, body)
        _finish(self._sock.recv(_SIZE)[16:], pattern)

    def _dump(self, body: bytes, pattern: Flows) -> Iterator[tuple[int, bytes]]:
        self._send(_GET, nl.NLM_F_DUMP, body)
        while True:
            for kind, _, _, _, payload in nl.messages(self._sock.recv(_SIZE)):
                if kind in (nl.NLMSG_DONE, nl.NLMSG_ERROR):
                    _finish(payload, pattern)
                    return
                yield kind, payload

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        head = nl.NLMSGHDR.pack(16 + len(body), kind, nl.NLM_F_REQUEST | flags, 1, 0)
        self._sock.sendto(head + body, (0, 0))


def _finish(payload: bytes, pattern: Flows) -> None:
    (error,) = struct.unpack_from("=i", payload)
    if error not in (0, -ENOENT):
        raise KernelError(-error, f"forget {describe(pattern)}")


def request(flows: Flows) -> bytes:
    """What the kernel compares: protocol and ports. Raises Invalid for a pattern that names nothing."""
    if flows.protocol not in _PROTOCOLS or not any(flows[2:]):
        raise Invalid(f"flows {flows}: name tcp, udp or sctp, and an address or a port")
    return _filtered(flows)


def _filtered(flows: Flows) -> bytes:
    number = nl.attr(1, bytes([_PROTOCOLS[flows.protocol]]))
    dport = nl.attr(3, _PORT.pack(flows.dport)) if flows.dport else b""
    parts = [nl.nest(_ORIG, nl.nest(2, number, dport))]
    flags = [nl.attr32(1, _NUM | (_DST_PORT if flows.dport else 0))]
    if flows.backend_port:
        parts.append(nl.nest(_REPLY, nl.nest(2, number, nl.attr(2, _PORT.pack(flows.backend_port)))))
        flags.append(nl.attr32(2, _NUM | _SRC_PORT))
    return _head(flows.version) + b"".join(parts) + nl.nest(_FILTER, *flags)


def matches(pattern: Flows, flow: bytes) -> bool:
    """Whether the addresses of a flow as it was dumped are the pattern's."""
    found = nl.attrs(flow, 4)
    wanted = ((pattern.dst, _ORIG, 2), (pattern.backend, _REPLY, 1))
    return all(_address(found[which], kind) == nl.ip_bytes(text) for text, which, kind in wanted if text)


def _address(flow_tuple: bytes, kind: int) -> bytes | None:
    """CTA_TUPLE_IP: V4_SRC 1, V4_DST 2, V6_SRC 3, V6_DST 4."""
    found = nl.attrs(nl.attrs(flow_tuple)[1])
    return found.get(kind, found.get(kind + 2))


def exactly(version: int, flow: bytes) -> bytes:
    """The body that deletes this one flow and no later one with the same addresses (CTA_ID)."""
    found = nl.attrs(flow, 4)
    zone = [nl.attr(_ZONE, found[_ZONE])] if _ZONE in found else []
    return b"".join((_head(version), nl.nest(_ORIG, found[_ORIG]), nl.attr(_ID, found[_ID]), *zone))


def _head(version: int) -> bytes:
    return _HEAD.pack(socket.AF_INET if version == 4 else socket.AF_INET6, 0, 0)


def describe(flows: Flows) -> str:
    to = f" to {flows.dst or 'any'}:{flows.dport or 'any'}" if flows.dst or flows.dport else ""
    behind = f" answered by {flows.backend or 'any'}:{flows.backend_port or 'any'}"
    return f"{flows.protocol} flows{to}{behind if flows.backend or flows.backend_port else ''}"

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
from collections.abc import Callable, Iterable
from functools import partial

from ..model.errors import Invalid
from ..model.flows import Flows
from . import nlmsg as nl
from .ctnetlink import FILTER, ORIG, REPLY, Tracker, exactly, head

__all__ = ["Conntrack", "Flows"]

_PORT = struct.Struct(">H")
_NUM, _SRC_PORT, _DST_PORT = 8, 16, 32  # what of a tuple the kernel compares
_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}


class Conntrack:
    """The tracker of the namespace of the thread that makes this. Thread-safe."""

    def __init__(self, path: str = "") -> None:
        self._tracker = Tracker(path)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._tracker.close()

    def forget(self, patterns: Iterable[Flows]) -> None:
        """Delete every flow that matches one of the patterns. Raises KernelError, Invalid."""
        for pattern in dict.fromkeys(patterns):
            body = request(pattern)
            with self._lock:
                if not pattern.dst and not pattern.backend:
                    self._tracker.delete(body, f"forget {describe(pattern)}")
                else:
                    self._forget(body, pattern, partial(matches, pattern))

    def sweep(self, protocol: str, version: int, stale: Callable[[bytes], bool]) -> int:
        """Delete every flow of a protocol that ``stale`` says yes to, shown as it was dumped.

        One dump, whatever there is to compare; how many went. Raises KernelError.
        """
        pattern = Flows(protocol, version)
        with self._lock:
            return self._forget(_filtered(pattern), pattern, stale)

    def _forget(self, body: bytes, pattern: Flows, wanted: Callable[[bytes], bool]) -> int:
        operation = f"forget {describe(pattern)}"
        found = list(filter(wanted, self._tracker.dump(body, operation)))
        for flow in found:
            self._tracker.delete(exactly(flow), operation)
        return len(found)


def request(flows: Flows) -> bytes:
    """What the kernel compares: protocol and ports. Raises Invalid for a pattern that names nothing."""
    if flows.protocol not in _PROTOCOLS or not any(flows[2:]):
        raise Invalid(f"flows {flows}: name tcp, udp or sctp, and an address or a port")
    return _filtered(flows)


def _filtered(flows: Flows) -> bytes:
    number = nl.attr(1, bytes([_PROTOCOLS[flows.protocol]]))
    dport = nl.attr(3, _PORT.pack(flows.dport)) if flows.dport else b""
    parts = [nl.nest(ORIG, nl.nest(2, number, dport))]
    flags = [nl.attr32(1, _NUM | (_DST_PORT if flows.dport else 0))]
    if flows.backend_port:
        parts.append(nl.nest(REPLY, nl.nest(2, number, nl.attr(2, _PORT.pack(flows.backend_port)))))
        flags.append(nl.attr32(2, _NUM | _SRC_PORT))
    family = socket.AF_INET if flows.version == 4 else socket.AF_INET6
    return head(family) + b"".join(parts) + nl.nest(FILTER, *flags)


def matches(pattern: Flows, flow: bytes) -> bool:
    """Whether the addresses of a flow as it was dumped are the pattern's."""
    found = nl.attrs(flow, 4)
    wanted = ((pattern.dst, ORIG, 2), (pattern.backend, REPLY, 1))
    return all(_address(found[which], kind) == nl.ip_bytes(text) for text, which, kind in wanted if text)


def _address(flow_tuple: bytes, kind: int) -> bytes | None:
    """CTA_TUPLE_IP: V4_SRC 1, V4_DST 2, V6_SRC 3, V6_DST 4."""
    found = nl.attrs(nl.attrs(flow_tuple)[1])
    return found.get(kind, found.get(kind + 2))


def describe(flows: Flows) -> str:
    to = f" to {flows.dst or 'any'}:{flows.dport or 'any'}" if flows.dst or flows.dport else ""
    behind = f" answered by {flows.backend or 'any'}:{flows.backend_port or 'any'}"
    return f"{flows.protocol} flows{to}{behind if flows.backend or flows.backend_port else ''}"

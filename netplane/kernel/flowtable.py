"""The flows that the kernel tracks, all of them, and the end of single ones (ctnetlink).

A dump is one pass over the table of this namespace, and reads only what names a flow.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable
from typing import NamedTuple

from . import nlmsg as nl
from .ctnetlink import ORIG, PROTOINFO, REPLY, Tracker, exactly, head

_U16 = struct.Struct(">H")
_TCP, _TCP_FLAGS = 1, (4, 5)  # CTA_PROTOINFO_TCP; CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, _REPLY
_LIBERAL = 0x08  # IP_CT_TCP_FLAG_BE_LIBERAL
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
        self._tracker = Tracker(path)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._tracker.close()

    def flows(self) -> list[Tracked]:
        """Every tracked flow of both families. Raises KernelError."""
        with self._lock:
            dumped = self._tracker.dump(head(socket.AF_UNSPEC), "dump the tracked flows")
            return [flow for body in dumped if (flow := tracked(body)) is not None]

    def forget(self, flows: Iterable[Tracked]) -> int:
        """Delete these flows; how many were still there. Raises KernelError."""
        with self._lock:
            return sum(self._tracker.delete(flow.handle, "delete a tracked flow") for flow in flows)


def tracked(body: bytes) -> Tracked | None:
    """One dumped entry; None when it names no addresses."""
    found = nl.attrs(body, 4)
    if ORIG not in found or REPLY not in found:
        return None
    source, _, number, source_port = _tuple(found[ORIG])
    target, _, _, port = _tuple(found[REPLY])
    protocol = PROTOCOLS.get(number, str(number))
    return Tracked(source, target, protocol, port, exactly(body), source_port, _loose(found.get(PROTOINFO)))


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

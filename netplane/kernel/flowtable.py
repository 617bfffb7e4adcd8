"""The flows that the kernel tracks, all of them, and the end of single ones (ctnetlink).

A dump is one pass over the table of this namespace, and reads only what names a flow: a policy that changes
looks at all of them before it cuts one, so those that look as most do are read by their places (`_Usual`).
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from . import nlmsg as nl
from .ctnetlink import ORIG, PROTOINFO, REPLY, Tracker, exactly, head

_U16 = struct.Struct(">H")
_TCP, _TCP_FLAGS = 1, (4, 5)  # CTA_PROTOINFO_TCP; CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, _REPLY
_LIBERAL = 0x08  # IP_CT_TCP_FLAG_BE_LIBERAL
_NESTED = 0x8000  # NLA_F_NESTED
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}


class Tracked(NamedTuple):
    """``source`` began the flow, ``target``:``port`` answers it, behind whatever translation.

    ``loose``: the kernel took a TCP flow up in its middle, so who began it is a guess.
    """

    source: str
    target: str
    protocol: str
    port: int
    body: bytes  # as the kernel told it: what deletes it is made of that
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
            return sum(self._tracker.delete(exactly(flow.body), "delete a tracked flow") for flow in flows)


def tracked(body: bytes) -> Tracked | None:
    """One dumped entry; None when it names no addresses."""
    usual = _USUAL.get(body[0])
    return usual.read(body) if usual is not None and usual.fits(body) else unusual(body)


def unusual(body: bytes) -> Tracked | None:
    """The same of any protocol, whatever the kernel says beside."""
    found = nl.attrs(body, 4)
    if ORIG not in found or REPLY not in found:
        return None
    source, _, number, source_port = _tuple(found[ORIG])
    target, _, _, port = _tuple(found[REPLY])
    protocol = PROTOCOLS.get(number, str(number))
    return Tracked(source, target, protocol, port, body, source_port, _loose(found.get(PROTOINFO)))


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


class _Usual:
    """A flow of a protocol with ports, as ctnetlink_fill_info writes it for addresses of one size: nfgenmsg,
    CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, …, each tuple with two addresses, the protocol and two ports."""

    def __init__(self, size: int, first: int) -> None:
        """``first``: CTA_IP_V4_SRC or CTA_IP_V6_SRC; the destination's follows."""
        address, whole = size + 4, 4 + 4 + 2 * (size + 4) + 28
        ip = _ATTR(4 + 2 * address, _NESTED | 1) + _ATTR(address, first)
        proto = _ATTR(28, _NESTED | 2) + _ATTR(5, 1)
        marks: dict[int, bytes] = {}  # what stands where
        for begin, kind in ((4, ORIG), (4 + whole, REPLY)):
            after = begin + 12 + size + address  # the heads, both addresses
            marks |= {begin: _ATTR(whole, _NESTED | kind) + ip, after: proto, after + 12: _ATTR(6, 2)}
        self._at, self._what = tuple(marks), tuple(marks.values())
        # source, protocol, its port; behind the other port and three heads the same of who answers
        self._form = struct.Struct(f">16x{size}s{address + 8}xB7xH{2 + 8 + 12}x{size}s{address + 16}xH")

    def fits(self, body: bytes) -> bool:
        return all(map(body.startswith, self._what, self._at))

    def read(self, body: bytes) -> Tracked:
        source, number, source_port, target, port = self._form.unpack_from(body)
        loose = number == socket.IPPROTO_TCP and _is_loose(body)
        return Tracked(
            _text(source), _text(target), PROTOCOLS.get(number) or str(number), port, body, source_port, loose
        )


def _is_loose(body: bytes) -> bool:
    """`_loose`, by their places where they are as tcp_to_nlattr writes them: state, two scales, two flags."""
    at = body.find(_TCP_INFO)
    if at < 0 or body[at + 32 : at + 36] != _FLAGS[0] or body[at + 40 : at + 44] != _FLAGS[1]:
        return _loose(nl.attrs(body, 4).get(PROTOINFO))
    return bool(body[at + 36] & body[at + 44] & _LIBERAL)


_ATTR = struct.Struct("=HH").pack
_text = lru_cache(maxsize=65536)(nl.ip_text)
_TCP_INFO = _ATTR(48, _NESTED | PROTOINFO) + _ATTR(44, _NESTED | _TCP)
_FLAGS = tuple(_ATTR(6, which) for which in _TCP_FLAGS)
_USUAL = {int(socket.AF_INET): _Usual(4, 1), int(socket.AF_INET6): _Usual(16, 3)}

"""Flows whose every packet is made by hand: raw ends in a lab, and two labs that are given the same.

No socket takes part, and the ends' own kernels neither answer nor take anything in, so that what is
sent and what arrives is all there is.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from netplane.kernel import netns

ETH_P_ALL, SOL_PACKET, PACKET_VNET_HDR, OUTGOING = 3, 263, 15, 4
PATIENCE = 3.0  # seconds until a packet that must arrive is missed
GRACE = 0.004  # and how much longer others, which went another way, may take
SILENT = """table inet quiet { chain in { type filter hook input priority 0; policy drop;
 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; }; }"""


class Raw:
    """An end on its place's eth0: frames of one family out and in, but for neighbours' talk."""

    def __init__(self, place: Any, family: str) -> None:
        self.family = family
        self.out: socket.socket = place.python(_raw, 0)
        self.out.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self._in: socket.socket = place.python(_raw, ETH_P_ALL)
        self.mac = self.out.getsockname()[4]

    def send(self, frame: bytes, offload: bytes = bytes(10)) -> None:
        """``offload``: struct virtio_net_hdr, of a packet that is cut or summed up by a device."""
        self.out.send(offload + frame)

    def gather(self, mark: bytes) -> list[bytes]:
        """Frames that came in, until one holds the mark (left out), and a moment more."""
        found: list[bytes] = []
        give_up = time.monotonic() + PATIENCE
        while select.select([self._in], [], [], max(0, give_up - time.monotonic()))[0]:
            frame, address = self._in.recvfrom(1 << 17)
            if address[2] == OUTGOING or not self._wanted(frame):
                continue
            if mark and mark in frame:
                give_up = min(give_up, time.monotonic() + GRACE)
            else:
                found.append(frame)
        return found

    def drain(self) -> list[bytes]:
        found = []
        while select.select([self._in], [], [], 0)[0]:
            frame, address = self._in.recvfrom(1 << 17)
            if address[2] != OUTGOING and self._wanted(frame):
                found.append(frame)
        return found

    def _wanted(self, frame: bytes) -> bool:
        kind = frame[12:14]
        if self.family == "IPv4":
            return kind == b"\x08\x00"
        # neighbours, routers and multicast listeners talk whenever they like
        return kind == b"\x86\xdd" and not (frame[20] == 58 and 130 <= frame[54] <= 143) and frame[20] != 0xFE

    def close(self) -> None:
        self.out.close()
        self._in.close()


def _raw(protocol: int) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    made.bind(("eth0", protocol))
    return made


def silence(place: Any) -> None:
    """The place's own kernel takes nothing in, and so answers nothing."""
    place.run("nft", SILENT)


def mac_of(place: Any, device: str) -> str:
    """``aa:bb:…``"""
    return str(place.python(_mac_of, device).hex(":"))


def _mac_of(device: str) -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((device, 0))
        return bytes(sock.getsockname()[4])


@dataclass
class Flow:
    """One direction of a flow as its sender writes it. ``drawn``: a kernel chose the port it goes to."""

    sender: Raw
    receiver: Raw
    hop: bytes  # MAC of the sender's router
    source: str
    destination: str
    sport: int
    dport: int
    protocol: str
    drawn: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # sequence numbers

    @property
    def family(self) -> str:
        return "IPv6" if ":" in self.source else "IPv4"


def parse_ends(frame: bytes) -> tuple[str, str, int, int]:
    """Addresses and ports of a plain TCP or UDP frame."""
    if frame[12:14] == b"\x08\x00":
        ports = struct.unpack("!HH", frame[34:38])
        return str(ip_address(frame[26:30])), str(ip_address(frame[30:34])), *ports
    ports = struct.unpack("!HH", frame[54:58])
    return str(ip_address(frame[22:38])), str(ip_address(frame[38:54])), *ports


def settled(frame: bytes, own: bytes, drawn: int | None = None) -> bytes:
    """A frame that arrived, with what a kernel draws put in order: the receiver's MAC (``own``), and the
    source port of a masqueraded flow, for which ``drawn`` is put; its checksum follows (RFC 1624)."""
    data = bytearray(frame)
    if data[:6] == own:
        data[:6] = b"my own"
    start, protocol = _transport(data)
    if drawn is None or protocol not in (6, 17):
        return bytes(data)
    port = int.from_bytes(data[start : start + 2], "big")
    data[start : start + 2] = drawn.to_bytes(2, "big")
    at = start + (16 if protocol == 6 else 6)
    old = int.from_bytes(data[at : at + 2], "big")
    if len(data) >= at + 2 and (old or protocol == 6):
        total = (~old & 0xFFFF) + (~port & 0xFFFF) + drawn
        made = ~((total - 1) % 0xFFFF + 1) & 0xFFFF
        data[at : at + 2] = (made if made or protocol == 6 else 0xFFFF).to_bytes(2, "big")
    return bytes(data)


def answered(frame: bytes, own: bytes, drawn: dict[int, int]) -> bytes:
    """A router's own answer: an ICMP error or a reset, without what it draws for itself and for the
    flow (``drawn``: its ports), and without the sums over that."""
    data = bytearray(frame)
    if data[:6] == own:
        data[:6] = b"my own"
    start, protocol = _transport(data)
    if start == 34:
        data[18:20] = data[24:26] = b"\0\0"  # identification, and the header's checksum
    else:
        data[14:18] = b"\x60\0\0\0"  # flow label
    if protocol in (1, 58):
        inner = start + 8 + (20 if start == 34 else 40)
        _without_ports(data, inner, data[start + 8 + (9 if start == 34 else 6)], drawn)
        data[start + 2 : start + 4] = b"\0\0"
    else:
        _without_ports(data, start, protocol, drawn)
    return bytes(data)


def _without_ports(data: bytearray, start: int, protocol: int, drawn: dict[int, int]) -> None:
    for at in (start, start + 2):
        port = int.from_bytes(data[at : at + 2], "big")
        data[at : at + 2] = drawn.get(port, port).to_bytes(2, "big")
    at = start + (16 if protocol == 6 else 6)
    if len(data) >= at + 2:
        data[at : at + 2] = b"\0\0"


def _transport(data: bytes) -> tuple[int, int]:
    """Where it begins, and its protocol; 0 for a later fragment."""
    if data[12:14] != b"\x08\x00":
        return 54, data[20]
    later = int.from_bytes(data[20:22], "big") & 0x1FFF
    return 14 + (data[14] & 15) * 4, 0 if later else data[23]


def is_sum_right(frame: bytes) -> bool:
    """Whether a receiver would take a plain TCP or UDP frame for whole."""
    v4 = frame[12:14] == b"\x08\x00"
    start = 14 + (frame[14] & 15) * 4 if v4 else 54
    end = 14 + int.from_bytes(frame[16:18], "big") if v4 else 54 + int.from_bytes(frame[18:20], "big")
    protocol, addresses = (frame[23], frame[26:34]) if v4 else (frame[20], frame[22:54])
    body = frame[start:end]
    if protocol == 17 and body[6:8] == b"\0\0":
        return v4
    data = addresses + bytes((0, protocol)) + len(body).to_bytes(2, "big") + body
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    return total > 0 and total % 0xFFFF == 0


def no_limit_on_errors(places: Iterable[Any]) -> None:
    """Every ICMP error is sent, so that none is missing by chance."""
    for place in places:
        netns.call(place.netns, _no_limit)


def _no_limit() -> None:
    for knob in ("ipv4/icmp_ratelimit", "ipv4/icmp_ratemask", "ipv6/icmp/ratelimit"):
        with contextlib.suppress(OSError), open(f"/proc/sys/net/{knob}", "w") as out:
            out.write("0")

"""Packets of an established flow that are odd in one way each, as bytes.

The kernel path's answer to each is what the fast path must give too: carried on unchanged but for what
every router does, answered by an error, or dropped.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any, NamedTuple

from scapy.layers.inet import IP, TCP, UDP, IPOption, fragment
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    fragment6,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw as Payload

from .packet_ends import Flow

MTU, IDENTIFICATION, NONE = 1450, 0x4242, bytes(10)
NEEDS_CSUM, GSO_TCP4, GSO_TCP6, GSO_UDP = 1, 1, 4, 5  # struct virtio_net_hdr
ORDINARY = b"an ordinary packet of its flow"


class Case(NamedTuple):
    name: str
    frames: tuple[bytes, ...]
    offload: bytes = NONE


def packet(flow: Flow, payload: bytes = ORDINARY, **fields: Any) -> Any:
    """A scapy packet of the flow; fields of TCP, UDP (by their names) or of IP (``ip_…``)."""
    own = {name.removeprefix("ip_"): value for name, value in fields.items() if name.startswith("ip_")}
    rest = {name: value for name, value in fields.items() if not name.startswith("ip_")}
    if flow.family == "IPv4":
        ip = IP(src=flow.source, dst=flow.destination, **{"id": IDENTIFICATION, "ttl": 64, **own})
    else:
        ip = IPv6(src=flow.source, dst=flow.destination, **{"hlim": 64, **own})
    ports = {"sport": flow.sport, "dport": flow.dport}
    if flow.protocol == "tcp":
        transport = TCP(**{**ports, "flags": "PA", "window": 60000, **flow.extra, **rest})
    else:
        transport = UDP(**{**ports, **rest})
    return ip / transport / Payload(payload)


def frame(flow: Flow, made: Any) -> bytes:
    return bytes(Ether(src=flow.sender.mac, dst=flow.hop) / made)


def ordinary(flow: Flow, payload: bytes = ORDINARY) -> bytes:
    return frame(flow, packet(flow, payload))


def cases(flow: Flow) -> list[Case]:
    """Every case that the flow's family and protocol has; those that may end it come last."""
    v4, tcp = flow.family == "IPv4", flow.protocol == "tcp"
    found = list(_sizes(flow))
    found += _ip4(flow) if v4 else _ip6(flow)
    found += _tcp(flow) if tcp else _udp(flow)
    found += _frames(flow)
    found.append(_offloaded(flow))
    found += _endings(flow) if tcp else ()
    return found


def _one(flow: Flow, name: str, made: Any, patch: Callable[[bytearray], None] | None = None) -> Case:
    data = bytearray(frame(flow, made))
    if patch is not None:
        patch(data)
    return Case(name, (bytes(data),))


def _sizes(flow: Flow) -> Iterator[Case]:
    headers = len(packet(flow, b""))
    for name, size in {"empty": 0, "one byte": 1, "odd length": 333, "whole MTU": MTU - headers}.items():
        yield _one(flow, name, packet(flow, b"s" * size))


def _ip4(flow: Flow) -> Iterator[Case]:
    for ecn in (1, 2, 3):
        yield _one(flow, f"ECN {ecn}", packet(flow, ip_tos=ecn))
    yield _one(flow, "DSCP", packet(flow, ip_tos=0xB8))
    yield _one(flow, "DSCP, ECN", packet(flow, ip_tos=0xBB))
    for ttl in (0, 1, 2, 255):
        yield _one(flow, f"TTL {ttl}", packet(flow, ip_ttl=ttl))
    for flags in ("DF", "evil", "evil+DF"):
        yield _one(flow, flags, packet(flow, ip_flags=flags))
    yield _one(flow, "identification 0", packet(flow, ip_id=0))
    for name, option in {"option nop": b"\1\1\1\0", "router alert": b"\x94\4\0\0",
                         "record route": b"\7\7\4\0\0\0\0\0", "unknown option": b"\x9e\4\0\0",
                         "source route": b"\x83\7\4\x0a\xf4\0\1\0",
                         "broken option": b"\7\0\0\0"}.items():  # fmt: skip
        yield _one(flow, name, packet(flow, ip_options=IPOption(option)))
    whole = packet(flow, b"f" * 1200)
    pieces = tuple(frame(flow, piece) for piece in fragment(IP(bytes(whole)), 600))
    yield Case("fragments", pieces)
    yield Case("fragments, last first", pieces[::-1])
    right = packet(flow)
    for name, change in {
        "checksum of the header": {"ip_chksum": 0x1234}, "checksum of the header 0": {"ip_chksum": 0},
        "shorter than its header says": {"ip_len": len(right) + 9},
        "longer than its header says": {"ip_len": len(right) - 9},
        "length 20": {"ip_len": 20}, "length 0": {"ip_len": 0}, "header length 4": {"ip_ihl": 4},
        "header length 15": {"ip_ihl": 15}, "version 5": {"ip_version": 5}, "protocol 0": {"ip_proto": 0},
        "protocol 132": {"ip_proto": 132},
    }.items():  # fmt: skip
        yield _one(flow, name, packet(flow, **change))


def _ip6(flow: Flow) -> Iterator[Case]:
    for ecn in (1, 2, 3, 0xB8, 0xBB):
        yield _one(flow, f"traffic class {ecn}", packet(flow, ip_tc=ecn))
    for hops in (0, 1, 2, 255):
        yield _one(flow, f"hop limit {hops}", packet(flow, ip_hlim=hops))
    yield _one(flow, "flow label", packet(flow, ip_fl=0xABCDE))
    right = packet(flow)
    inner = right.payload
    for name, header in {
        "hop by hop": IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0\0")]),
        "destination options": IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0\0")]),
        "routing": IPv6ExtHdrRouting(type=253, segleft=0),
        "routing, unknown": IPv6ExtHdrRouting(type=77, segleft=3, addresses=["::1"]),
        "atomic fragment": IPv6ExtHdrFragment(id=77),
    }.items():  # fmt: skip
        ip = IPv6(src=flow.source, dst=flow.destination, hlim=64)
        chain = bytes(ip / header / _summed(right))
        yield _one(flow, name, IPv6(chain))
    whole = IPv6(src=flow.source, dst=flow.destination, hlim=64) / IPv6ExtHdrFragment(id=78)
    whole = whole / _summed(packet(flow, b"f" * 1200))
    pieces = tuple(frame(flow, piece) for piece in fragment6(whole, 700))
    yield Case("fragments", pieces)
    yield Case("fragments, last first", pieces[::-1])
    for name, change in {"no next header": {"ip_nh": 59}, "length 0": {"ip_plen": 0},
                         "next header 132": {"ip_nh": 132},
                         "shorter than its header says": {"ip_plen": len(inner) + 9},
                         "longer than its header says": {"ip_plen": len(inner) - 9},
                         "version 4": {"ip_version": 4}}.items():  # fmt: skip
        yield _one(flow, name, packet(flow, **change))


def _summed(made: Any) -> Any:
    """The transport of a packet with its checksum filled in, so that a header may be put before it."""
    return type(made.payload)(bytes(made)[len(made) - len(made.payload) :])


def _tcp(flow: Flow) -> Iterator[Case]:
    for flags in ("A", "PA", "AU", "PAU", "AE", "AC", "AEC", "PAECN"):
        yield _one(flow, f"flags {flags}", packet(flow, flags=flags, urgptr=7 if "U" in flags else 0))
    yield _one(flow, "urgent pointer alone", packet(flow, urgptr=7))
    yield _one(flow, "reserved bits", packet(flow, reserved=5))
    for name, change in {
        "checksum": {"chksum": 0x1234}, "checksum 0": {"chksum": 0}, "checksum ffff": {"chksum": 0xFFFF},
        "data offset 4": {"dataofs": 4}, "data offset 0": {"dataofs": 0},
        "data offset beyond": {"dataofs": 15},
        "window 0": {"window": 0},
    }.items():  # fmt: skip
        short = b"x" * 3 if "beyond" in name else ORDINARY
        yield _one(flow, name, packet(flow, short, **change))
    for name, options in {
        "timestamps": [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))], "SACK": [("SAck", (5001, 5002))],
        "unknown option": [(253, b"\1\2")], "options that end early": [("EOL", None), ("MSS", 5)],
    }.items():  # fmt: skip
        yield _one(flow, name, packet(flow, options=options))
    yield _one(flow, "cut in its header", packet(flow), _cut)


def _cut(data: bytearray) -> None:
    del data[44:]


def _udp(flow: Flow) -> Iterator[Case]:
    length = 8 + len(ORDINARY)
    for name, change in {
        "checksum": {"chksum": 0x1234}, "no checksum": {"chksum": 0}, "checksum ffff": {"chksum": 0xFFFF},
        "length short": {"len": length - 5}, "length long": {"len": length + 5}, "length 0": {"len": 0},
        "length 7": {"len": 7},
    }.items():  # fmt: skip
        yield _one(flow, f"UDP {name}", packet(flow, **change))
    if flow.drawn:
        return
    # a payload that makes the sum come out as zero, which is written as ffff
    plain = packet(flow, b"\0\0")
    rest = int.from_bytes(bytes(plain)[len(plain) - 4 : len(plain) - 2], "big")
    yield _one(flow, "UDP sum of zero", packet(flow, rest.to_bytes(2, "big")))


def _frames(flow: Flow) -> Iterator[Case]:
    yield Case("padded frame", (ordinary(flow, b"p") + bytes(20),))
    tagged = Ether(src=flow.sender.mac, dst=flow.hop) / Dot1Q(vlan=7) / packet(flow)
    yield Case("VLAN", (bytes(tagged),))
    for name, target in {
        "broadcast frame": "ff:ff:ff:ff:ff:ff",
        "a stranger's frame": "02:00:00:00:00:99",
    }.items():
        yield Case(name, (bytes(Ether(src=flow.sender.mac, dst=target) / packet(flow)),))
    yield Case("cut in the IP header", (ordinary(flow)[:30],))


def _offloaded(flow: Flow) -> Case:
    """Ten segments in one packet, as a pod's own kernel hands them on."""
    tcp, v4 = flow.protocol == "tcp", flow.family == "IPv4"
    made, start = packet(flow, b"g" * 12000), 14 + (20 if v4 else 40)
    header = start + (20 if tcp else 8)
    kind = (GSO_TCP4 if v4 else GSO_TCP6) if tcp else GSO_UDP
    data = bytearray(frame(flow, made))
    at = start + (16 if tcp else 6)
    data[at : at + 2] = _pseudo_sum(flow, len(data) - start)
    offload = struct.pack("=BBHHHH", NEEDS_CSUM, kind, header, 1200, start, at - start)
    return Case("ten segments in one", (bytes(data),), offload)


def _pseudo_sum(flow: Flow, length: int) -> bytes:
    data = ip_address(flow.source).packed + ip_address(flow.destination).packed
    total = sum(struct.unpack(f"!{len(data) // 2}H", data)) + length + {"tcp": 6, "udp": 17}[flow.protocol]
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total.to_bytes(2, "big")


def _endings(flow: Flow) -> Iterator[Case]:
    for name, flags in {
        "no flags": "",
        "all flags": "FSRPAUEC",
        "SYN": "S",
        "SYN, ACK": "SA",
        "FIN": "FA",
    }.items():
        yield _one(flow, f"flags: {name}", packet(flow, flags=flags))
    yield _one(flow, "flags: RST", packet(flow, b"", flags="RA"))

"""Packets in, packets out (BPF_PROG_TEST_RUN): what is carried comes out as the kernel path would send it,
and what is unusual comes out untouched, with a verdict that has its reason counted.

packet ──> np_from_wire ──> REDIRECT, rewritten, one hop less │ UNSPEC, byte for byte the same
"""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw, raw

from .kit import HERE, MAC_A, MAC_B, REDIRECT, UNSPEC, Path, ends, now, struct

pytestmark = pytest.mark.root

ENDS = {4: ("10.244.0.2", "10.244.1.3"), 6: ("fd00:10::2", "fd00:11::3")}
VIPS = {4: ("192.0.2.9", "10.96.0.1"), 6: ("2001:db8::9", "fd00:96::1")}
NUMBER = {TCP: 6, UDP: 17}
FAMILIES, KINDS = [4, 6], [TCP, UDP]
ETHER = Ether(dst="00:00:00:00:00:00", src="02:00:00:00:00:01")


def frame(family: int = 4, kind: Any = TCP, payload: bytes = b"data", at: Any = ENDS, **more: Any) -> Packet:
    source, destination = at[family]
    ip = IP(src=source, dst=destination, **more) if family == 4 else IPv6(src=source, dst=destination, **more)
    transport = TCP(sport=1000, dport=2000, flags="PA") if kind is TCP else UDP(sport=1000, dport=2000)
    return ETHER / ip / transport / Raw(payload)


def known(path: Path, family: int = 4, kind: Any = TCP, **fields: Any) -> None:
    before = ends(*ENDS[family], 1000, 2000)
    path.remember(before, before, NUMBER[kind], **fields)


def expected(packet: Packet, **changes: Any) -> bytes:
    """The packet with the entry's MACs and one hop less, all checksums made anew by scapy."""
    out = Ether(raw(packet))
    out.src, out.dst = MAC_A.hex(":"), MAC_B.hex(":")
    inner = out.payload
    for name, value in changes.items():
        setattr(inner.payload if name in ("sport", "dport") else inner, name, value)
    if inner.name == "IP":
        inner.ttl -= 1
        del inner.chksum
    else:
        inner.hlim -= 1
    del inner.payload.chksum
    return raw(out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_hit_gets_new_macs_and_one_hop_less(path: Path, family: int, kind: Any) -> None:
    known(path, family, kind)
    for payload in (b"x", b"data" * 300):
        packet = frame(family, kind, payload)
        assert path.run("np_from_wire", raw(packet)) == (REDIRECT, expected(packet))
    assert path.counted("FAST") == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rewrite_leaves_both_checksums_right(path: Path, family: int, kind: Any) -> None:
    source, destination = VIPS[family]
    path.remember(ends(*ENDS[family], 1000, 2000), ends(source, destination, 40000, 80), NUMBER[kind])
    for payload in (b"", b"x", b"odd", b"data" * 300):
        if kind is TCP and not payload:
            continue
        packet = frame(family, kind, payload)
        changed = expected(packet, src=source, dst=destination, sport=40000, dport=80)
        assert path.run("np_from_wire", raw(packet)) == (REDIRECT, changed)


def test_udp_without_a_checksum_stays_so(path: Path) -> None:
    path.remember(ends(*ENDS[4], 1000, 2000), ends(*VIPS[4], 40000, 80), 17)
    packet = frame(4, UDP)
    packet[UDP].chksum = 0
    verdict, out = path.run("np_from_wire", raw(packet))
    assert verdict == REDIRECT and Ether(out)[UDP].chksum == 0


def test_ecn_and_the_traffic_class_are_kept(path: Path) -> None:
    for family, more in ((4, {"tos": 0xB9}), (6, {"tc": 0xB9, "fl": 0x12345})):
        known(path, family)
        packet = frame(family, **more)
        assert path.run("np_from_wire", raw(packet)) == (REDIRECT, expected(packet))


def test_window_reductions_and_ecn_echoes_are_ordinary(path: Path) -> None:
    known(path)
    packet = frame()
    for flags in ("A", "PA", "EA", "CA", "CEPA"):
        packet[TCP].flags = flags
        assert path.run("np_from_wire", raw(packet))[0] == REDIRECT, flags


def wrong_sum(packet: Packet) -> Packet:
    packet[IP].chksum = 0x1234
    return packet


def with_flags(flags: str) -> Packet:
    packet = frame()
    packet[TCP].flags = flags
    return packet


UNUSUAL = {
    "the last hop": frame(ttl=1),
    "no hop left": frame(ttl=0),
    "the last hop of IPv6": frame(6, hlim=1),
    "IP options": frame(options=IPOption_RR()),
    "a first fragment": Ether(raw(ETHER / fragment(frame(payload=bytes(2000))[IP], 1000)[0])),
    "a later fragment": Ether(raw(ETHER / fragment(frame(payload=bytes(2000))[IP], 1000)[1])),
    "a fragment header": ETHER
    / IPv6(src=ENDS[6][0], dst=ENDS[6][1])
    / IPv6ExtHdrFragment()
    / TCP(dport=2000),
    "an extension header": ETHER
    / IPv6(src=ENDS[6][0], dst=ENDS[6][1])
    / IPv6ExtHdrDestOpt()
    / TCP(dport=2000),
    "a wrong header checksum": wrong_sum(frame()),
    "the reserved flag": frame(flags="evil"),
    "ICMP": ETHER / IP(src=ENDS[4][0], dst=ENDS[4][1]) / ICMP(),
    "a VLAN tag": ETHER / Dot1Q(vlan=7) / frame()[IP],
    "a length beyond the packet": frame(len=1400),
    "a length short of the packet": frame(len=42),
    "a UDP length that is not its packet's": ETHER / frame(4, UDP)[IP].__class__(raw(frame(4, UDP)[IP])),
    "a TCP header beyond the packet": frame(),
    "nothing behind the IP header": ETHER / IP(src=ENDS[4][0], dst=ENDS[4][1], proto=6),
}
UNUSUAL["a UDP length that is not its packet's"][UDP].len = 9
UNUSUAL["a TCP header beyond the packet"][TCP].dataofs = 15


@pytest.mark.parametrize("what", UNUSUAL)
def test_what_is_unusual_is_the_kernel_s_untouched(path: Path, what: str) -> None:
    for family in FAMILIES:
        for kind in KINDS:
            known(path, family, kind)
    packet = raw(UNUSUAL[what]).ljust(60, b"\0") if "nothing" in what else raw(UNUSUAL[what])
    assert path.run("np_from_wire", packet) == (UNSPEC, packet)
    assert (path.counted("UNUSUAL"), path.counted("FAST")) == (1, 0)


@pytest.mark.parametrize("flags", ["S", "SA", "FA", "R", "RA", "PAU", "", "SF", "FPU"])
def test_what_opens_or_closes_a_flow_is_the_kernel_s(path: Path, flags: str) -> None:
    known(path)
    packet = raw(with_flags(flags))
    assert path.run("np_from_wire", packet) == (UNSPEC, packet)
    assert path.counted("CONTROL") == 1
    ends_it = bool(set(flags) & {"F", "R"})
    assert path.flows() == (0 if ends_it else 1)


@pytest.mark.parametrize(
    ("verdict", "fields"),
    [
        ("STALE", {"generation": Path.generation - 1}),
        ("ASK", {"asked": now() - 1_100_000_000}),
        ("LARGE", {"size": 40}),
    ],
)
def test_an_entry_that_may_not_be_used_says_why(path: Path, verdict: str, fields: dict[str, int]) -> None:
    known(path, **fields)
    packet = raw(frame())
    assert path.run("np_from_wire", packet) == (UNSPEC, packet)
    assert (path.counted(verdict), path.counted("FAST")) == (1, 0)


def test_an_entry_is_of_the_place_it_was_learnt_at(path: Path) -> None:
    """What was learnt from the wire says nothing of a pod that sends the same."""
    known(path)
    path.configure(gateway_mac=HERE)
    packet = raw(frame())
    assert path.run("np_from_pod", packet) == (UNSPEC, packet)
    assert path.run("np_from_tunnel", packet) == (UNSPEC, packet)
    assert path.counted("MISS") == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pod_s_ordinary_packets_go_past_the_switching(path: Path, family: int) -> None:
    """Those that the kernel is to route; to it they have come by the bridge's device."""
    path.configure(gateway_mac=HERE)
    ports, port = path.loaded.maps["np_ports"], (1).to_bytes(4, "little")
    ports.put(port, struct("np_port", bridge=1))
    ordinary, opening = frame(family), frame(family)
    opening[TCP].flags = "S"
    for number, packet in enumerate((ordinary, opening), 1):
        assert path.run("np_from_pod", raw(packet)) == (REDIRECT, raw(packet))
        assert path.counted("MISS") + path.counted("CONTROL") == number
    path.configure(gateway_mac=MAC_A)
    for packet in (*(raw(one) for one in UNUSUAL.values()), raw(ordinary)):  # the last is for another MAC
        assert path.run("np_from_pod", packet) == (UNSPEC, packet)
    ports.drop(port)
    path.configure(gateway_mac=HERE)
    assert path.run("np_from_pod", raw(ordinary)) == (UNSPEC, raw(ordinary))


def test_a_routed_packet_goes_to_the_port_of_the_pod_s_mac(path: Path) -> None:
    pods = path.loaded.maps["np_pods"]
    pods.put(HERE + bytes(2), (1).to_bytes(4, "little"))
    packet = raw(frame())
    assert path.run("np_to_bridge", packet) == (REDIRECT, packet)
    pods.drop(HERE + bytes(2))
    assert path.run("np_to_bridge", packet) == (UNSPEC, packet)


def test_switched_off_every_packet_is_the_kernel_s(path: Path) -> None:
    known(path)
    path.configure(enabled=0)
    packet = raw(frame())
    for program in path.loaded.programs:
        assert path.run(program, packet) == (UNSPEC, packet)


def tunnelled(inner: Packet, **outer: Any) -> Packet:
    ip = IP(src="192.0.2.1", dst="192.0.2.2", **outer)
    return ETHER / ip / UDP(sport=50000, dport=8472, chksum=0) / VXLAN(vni=1, flags=8) / inner


def test_a_tunnel_packet_of_an_unproven_node_is_the_kernel_s(path: Path) -> None:
    path.configure(tunnel_mac=HERE, tunnel=1)
    packet = raw(tunnelled(frame()))
    assert path.run("np_from_wire", packet) == (UNSPEC, packet)
    assert path.counted("PULLED") == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_proven_node_s_packet_comes_out_of_its_tunnel(path: Path, family: int) -> None:
    path.configure(tunnel_mac=HERE, tunnel=1)
    path.prove("192.0.2.1", "192.0.2.2")
    inner = frame(family)
    assert path.run("np_from_wire", raw(tunnelled(inner))) == (REDIRECT, raw(inner))
    assert path.counted("PULLED") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_known_flow_comes_out_of_its_tunnel_rewritten(path: Path, family: int) -> None:
    path.configure(tunnel_mac=HERE, tunnel=1)
    path.prove("192.0.2.1", "192.0.2.2")
    source, destination = VIPS[family]
    before = ends(*ENDS[family], 1000, 2000)
    path.remember(before, ends(source, destination, 40000, 80), place="TUNNEL")
    inner = frame(family)
    changed = expected(inner, src=source, dst=destination, sport=40000, dport=80)
    assert path.run("np_from_wire", raw(tunnelled(inner))) == (REDIRECT, changed)
    assert path.counted("FAST") == 1


OUTER = {
    "congestion to be passed on": tunnelled(frame(), tos=3),
    "another VNI": ETHER / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=5, dport=8472, chksum=0)
    / VXLAN(vni=2, flags=8) / frame(),
    "a checksum to be verified": ETHER / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=5, dport=8472)
    / VXLAN(vni=1, flags=8) / frame(),
    "another node": ETHER / IP(src="192.0.2.7", dst="192.0.2.2") / UDP(sport=5, dport=8472, chksum=0)
    / VXLAN(vni=1, flags=8) / frame(),
    "a frame to another MAC": tunnelled(Ether(dst="02:00:00:00:00:99") / frame()[IP]),
    "flags that are not VXLAN's": ETHER / IP(src="192.0.2.1", dst="192.0.2.2")
    / UDP(sport=5, dport=8472, chksum=0) / VXLAN(vni=1, flags=0) / frame(),
    "a broken outer header": tunnelled(frame(), chksum=0x4321),
}  # fmt: skip


@pytest.mark.parametrize("what", OUTER)
def test_an_unusual_tunnel_packet_is_the_kernel_s_untouched(path: Path, what: str) -> None:
    path.configure(tunnel_mac=HERE, tunnel=1)
    path.prove("192.0.2.1", "192.0.2.2")
    known(path)
    packet = raw(OUTER[what])
    assert path.run("np_from_wire", packet) == (UNSPEC, packet)
    assert path.counted("FAST") == path.counted("PULLED") == 0


@pytest.mark.parametrize(("ecn", "outer_ecn"), [(0, 0), (1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_packet_into_the_tunnel_gets_the_header_that_is_remembered(
    path: Path, family: int, ecn: int, outer_ecn: int
) -> None:
    """RFC 6040 in compatibility mode: congestion within is not shown outside, where it would be lost."""
    inner = frame(family, **({"tos": ecn} if family == 4 else {"tc": ecn}))
    path.remember_tunnel(raw(tunnelled(inner))[:64])
    verdict, out = path.run("np_to_tunnel", raw(inner))
    found = Ether(out)
    assert verdict == REDIRECT and path.counted("PUSHED") == 1
    again = Ether(out)
    for layer, field in ((IP, "chksum"), (IP, "len"), (UDP, "len")):
        delattr(again[layer], field)
    assert raw(again) == out  # lengths and checksum are what scapy makes of the rest
    assert (found[IP].src, found[IP].dst, found[IP].tos & 3) == ("192.0.2.1", "192.0.2.2", outer_ecn)
    assert (found[UDP].dport, found[UDP].chksum, found[VXLAN].vni) == (8472, 0, 1)
    assert 32768 <= found[UDP].sport < 60999
    assert out[50:] == raw(inner)

"""Bandwidth and spoof protection: what happens to an attachment's packets at its host end (pure).

Rule 1: what comes to the pod waits in a token bucket at the host end; what it sends waits in one at
        its own end, where a full queue slows the sender down instead of losing packets.
Rule 2: a container that may configure its interface could remove its bucket: then the same rate,
        a tenth and two large packets added, is the limit at the host end, where the excess is dropped: for
        a bridge's port an element of a set that is the same for all, else a rule at the link's ingress.
Rule 3: with macspoofchk only the pod's own MAC and addresses pass the host end: in Ethernet, ARP, IPv4,
        IPv6 and neighbour discovery. It is seen before anything else, and by the port: what two pods of
        one bridge exchange is checked, too.
Rule 4: of IPv6 the pod also has the link-local address that follows from its MAC, and while it looks
        whether an address is free (DAD) it speaks as ::. In neighbour discovery it names its own
        addresses and its own MAC, is no router, and sends nothing that could be read in two ways: no
        header between IPv6 and ICMPv6 (RFC 6980), one option at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv6Address

from ..model.facts import Fact, Guard, Limit, Shaper
from ..model.own import Attachment, Bandwidth

_PACKET = 1 << 16
_SMALLEST = 14  # Ethernet's header: a bucket holds a packet of the interface's MTU at least


def render_shaping(attachment: Attachment) -> Iterator[Fact]:
    spec, given = attachment.spec, attachment.spec.bandwidth
    if given is None:
        return
    least = (spec.mtu or 1500) + _SMALLEST
    if given.ingress_rate:
        burst = max(given.ingress_burst // 8, least)
        yield Shaper(link=spec.host_ifname, rate=given.ingress_rate // 8, burst=burst)
    if given.egress_rate:
        burst = max(given.egress_burst // 8, least)
        yield Shaper(link=spec.ifname, rate=given.egress_rate // 8, burst=burst, netns=spec.netns)
        if spec.kind == "bridge":
            rate, most = _beyond(given)
            yield Limit(link=spec.host_ifname, rate=rate, burst=most)


def _beyond(given: Bandwidth) -> tuple[int, int]:
    """Bytes per second and a burst in bytes that a pod with its bucket in place never exceeds."""
    rate = given.egress_rate // 8
    return max(rate + rate // 10, 1), min(given.egress_burst // 8 + 2 * _PACKET, 0xFFFFFFFF)


def render_guard(attachment: Attachment) -> Iterator[Fact]:
    """At the host end, when there is one and anything to look for."""
    rules = tuple(_rules(attachment))
    if rules and attachment.spec.host_ifname:
        yield Guard(link=attachment.spec.host_ifname, rules=rules)


def _rules(attachment: Attachment) -> Iterator[str]:
    spec = attachment.spec
    if spec.config.get("macspoofchk"):
        plain = [entry.address.partition("/")[0] for entry in spec.ips]
        yield from _sources(spec.mac, plain)
    given = spec.bandwidth
    if given and given.egress_rate and spec.kind != "bridge":
        rate, most = _beyond(given)
        yield f"limit rate over {rate} bytes/second burst {most} bytes drop"


def _sources(mac: str, addresses: list[str]) -> Iterator[str]:
    four = sorted(a for a in addresses if ":" not in a)
    six = sorted(a for a in addresses if ":" in a)
    yield "meta protocol { 8021q, 8021ad } drop"  # behind a first tag, which the kernel has taken off by now
    yield f"ether saddr != {mac} drop"
    yield f"arp saddr ether != {mac} drop"
    if four:
        yield f"arp saddr ip != {{ {', '.join(four)} }} drop"
        yield f"ip saddr != {{ {', '.join(four)} }} drop"
    else:
        yield "ether type { ip, arp } drop"
    own = [*six, link_local(mac)]
    yield f"ip6 saddr != {{ {', '.join(own)}, :: }} drop"
    yield from _neighbours(mac.replace(":", ""), own)


_SOLICIT, _ADVERT, _ROUTERS = "nd-neighbor-solicit", "nd-neighbor-advert", "nd-router-solicit"
_UNSPECIFIED = f"{_SOLICIT}, {_ROUTERS}, mld-listener-report, mld2-listener-report"


def _neighbours(mac: str, own: list[str]) -> Iterator[str]:
    """Offsets are RFC 4861's: a solicitation and an advertisement have 8 bytes and the target, then options
    (type, length in 8 bytes, MAC: 1 the source's, 2 the target's; 14 is a nonce, RFC 7527)."""
    foreign = " ".join(f"@th,64,128 != 0x{int(IPv6Address(address)):032x}" for address in own)
    yield "ip6 saddr :: meta l4proto != ipv6-icmp drop"
    yield f"ip6 saddr :: icmpv6 type != {{ {_UNSPECIFIED} }} drop"
    yield "icmpv6 type { nd-router-advert, nd-redirect } drop"
    yield f"icmpv6 type {{ {_SOLICIT}, {_ADVERT}, {_ROUTERS} }} ip6 nexthdr != ipv6-icmp drop"
    yield f"icmpv6 type {{ {_SOLICIT}, {_ADVERT} }} ip6 length != {{ 24, 32 }} drop"
    yield f"icmpv6 type {_ROUTERS} ip6 length != {{ 8, 16 }} drop"
    yield f"icmpv6 type {_ADVERT} {foreign} drop"
    yield f"icmpv6 type {_ADVERT} ip6 length 32 @th,192,64 != 0x0201{mac} drop"
    yield f"ip6 saddr :: icmpv6 type {_SOLICIT} {foreign} drop"
    yield f"ip6 saddr :: icmpv6 type {_SOLICIT} ip6 length 32 @th,192,16 != 0x0e01 drop"
    yield f"ip6 saddr != :: icmpv6 type {_SOLICIT} ip6 length 32 @th,192,64 != 0x0101{mac} drop"
    yield f"icmpv6 type {_ROUTERS} ip6 length 16 @th,64,64 != 0x0101{mac} drop"


def link_local(mac: str) -> str:
    """What the kernel gives an interface of this MAC (RFC 4291, modified EUI-64)."""
    six = bytes.fromhex(mac.replace(":", ""))
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + bytes((six[0] ^ 2,)) + six[1:3] + b"\xff\xfe" + six[3:]))

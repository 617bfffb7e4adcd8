"""What all attachments with a feature share in nftables: constant chains and sets; pods are elements (pure).

Rule 1: these facts are wanted by each attachment that needs them; the last one takes them away.
Rule 2: a chain never grows with pods: a packet's cost and an ADD's are the same with one and a thousand.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface

from ..model.facts import Chain, Element, Fact, Set, Sysctl
from ..model.own import Attachment, AttachmentIP

FAMILIES = ((4, "ip", "ipv4_addr", "224.0.0.0/4"), (6, "ip6", "ipv6_addr", "ff00::/8"))
_INSIDE = tuple(
    Set(name=f"cni-inside{v}", spec=(f"type {kind} . {kind}", "flags interval")) for v, _, kind, _ in FAMILIES
)
_MASKED = (
    *_INSIDE,
    *(Set(name=f"cni-masked{v}", spec=(f"type {kind}",)) for v, _, kind, _ in FAMILIES),
    Chain(
        name="cni-networks",
        type="nat",
        hook="postrouting",
        priority="srcnat",
        rules=tuple(
            rule
            for v, ip, _, multicast in FAMILIES
            for rule in (
                f"{ip} saddr . {ip} daddr @cni-inside{v} return",
                f"{ip} saddr @cni-masked{v} {ip} daddr != {multicast} masquerade fully-random",
            )
        ),
    ),
)
_ISOLATION = (
    *(Set(name=f"cni-isolated{v}", spec=(f"type {kind}",)) for v, _, kind, _ in FAMILIES),
    Chain(
        name="cni-isolation",
        type="filter",
        hook="forward",
        priority="filter",
        rules=tuple(
            f"{ip} saddr @cni-isolated{v} {ip} daddr @cni-isolated{v} drop" for v, ip, _, _ in FAMILIES
        ),
    ),
)
_LOCALNET = (
    Set(name="cni-localnet", spec=("type ifname",)),
    Chain(
        name="cni-martians",
        type="filter",
        hook="prerouting",
        priority="raw",
        rules=("iifname @cni-localnet ip daddr 127.0.0.0/8 drop",),
    ),
)


def version_of(address: str) -> int:
    return 6 if ":" in address else 4


def localnet(link: str) -> Iterator[Fact]:
    """A port of 127.0.0.1 may lead to a pod behind ``link``, whose pods still never reach 127.0.0.0/8.

    route_localnet lets replies of such flows in; what a pod itself sends there is dropped, before
    conntrack has given replies their address back, as the kernel drops it without the setting.
    """
    yield from _LOCALNET
    yield from opened(link)


def opened(link: str) -> Iterator[Fact]:
    """What `localnet` has for each link, where it is there for another anyway."""
    yield Element(of="cni-localnet", item=(link,))
    yield Sysctl(name=f"net/ipv4/conf/{link}/route_localnet", value="1")


def masked(attachment: Attachment) -> Iterator[Fact]:
    """A network of its own whose pods take the node's address towards everywhere else."""
    yield from _MASKED
    for entry in attachment.spec.ips:
        yield inside(entry)
        plain = entry.address.partition("/")[0]
        yield Element(of=f"cni-masked{version_of(plain)}", item=(plain,))


def inside_sets() -> tuple[Fact, ...]:
    return _INSIDE


def inside(entry: AttachmentIP) -> Element:
    subnet = str(ip_interface(entry.subnet or entry.address).network)
    if subnet.endswith(("/32", "/128")):
        subnet = subnet.partition("/")[0]
    return Element(of=f"cni-inside{version_of(subnet)}", item=(subnet, subnet))


def isolation() -> tuple[Fact, ...]:
    return _ISOLATION

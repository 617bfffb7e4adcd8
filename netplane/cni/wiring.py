"""An attachment's interface, addresses and routes, for each kind (pure).

    bridge, node's pod CIDRs   eth0 ═ npv… ─ npbr0…    routed: host addresses, all by the gateway
    bridge, own ranges         eth0 ═ npv… ─ <bridge>  one segment, as the reference plugin has it
    ptp                        eth0 ═ npv…             routed, no bridge
    macvlan                    eth0 ─ <master>         the master's segment; nothing on the node

Rule 1: the node knows a pod's MAC by a permanent neighbour entry, and a ptp pod its gateway's: the first
        packet waits for no ARP, and an address used again never meets the last holder's MAC.
Rule 2: on the node's bridge nothing is flooded to pods but unicast: their neighbours' multicast (each new
        pod's solicitations and listener reports) would cost every ADD as much as there are pods, and pass
        policy by. What a pod sends to all reaches the gateway alone.
Rule 3: a bridge that is not the node's is wanted by its attachments alone: it goes with the last. One that
        somebody else made (`FOREIGN` in the record) is no fact of ours, what we put on it is (bridges.py).
Rule 4: the pod CIDRs are npbr0's, so a pod on another of the node's bridges (nodebridges.py), which has the
        gateway's address, too, has a route of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_interface

from ..model.facts import ALIAS, Address, Element, Fact, Link, Neighbour, Route, Sysctl
from ..model.own import Attachment, AttachmentIP, AttachmentRoute, AttachmentSpec
from .masquerade import localnet, version_of
from .names import BRIDGE, bridge_mac, host_mac
from .ranges import scope_word
from .together import MODES

ROOM = "cni"
# words of a record's config
FOREIGN = "foreignBridge"  # its bridge is somebody else's; its MAC
LEFT = "leftAddresses"  # gateway addresses that are not, or no longer, this attachment's to want
METRIC = "routeMetric"  # that its routes have, since another interface of the pod has the same ones
OPENED = "openedLocalnet"  # we let 127.0.0.1 lead to pods by somebody else's bridge
_FORWARDING = {
    4: Sysctl(name="net/ipv4/ip_forward", value="1"),
    6: Sysctl(name="net/ipv6/conf/all/forwarding", value="1"),
}


def forwarding(addresses: Iterable[str]) -> Iterator[Sysctl]:
    """Of the families that there are: a node that forwards IPv6 listens to no router any more."""
    for version in sorted({version_of(address) for address in addresses}):
        yield _FORWARDING[version]


def render_interface(attachment: Attachment) -> Iterator[Fact]:
    """Everything but what a chained or an ipam attachment has not: a link of ours."""
    spec = attachment.spec
    if spec.kind == "macvlan":
        yield _macvlan(attachment)
    else:
        yield from _own_bridge(attachment)
        yield _veth(attachment)
    yield Link(name="lo", netns=spec.netns)  # the pair's own ends come up with it
    for entry in spec.ips:
        yield from _address(attachment, entry)
    for route in spec.routes:
        yield _route(attachment, route)


def _veth(attachment: Attachment) -> Link:
    spec = attachment.spec
    bridged = spec.kind == "bridge"
    port = (("hairpin", int(bool(spec.config.get("hairpinMode", True)))),) if bridged else ()
    flood = (("bcast_flood", 0), ("mcast_flood", 0)) if bridged and not own_bridge(attachment) else ()
    place = (("clsact", 1),) if bridged and spec.config.get("bandwidth") else ()
    isolated = (("isolated", 1),) if bridged and spec.config.get("portIsolation") else ()
    return Link(
        name=spec.host_ifname,
        kind="veth",
        alias=f"{ALIAS}{ROOM}:{attachment.name}",
        mtu=spec.mtu,
        mac=host_mac(spec.kind, spec.host_ifname),
        master=(spec.bridge or BRIDGE) if bridged else "",
        options=(
            *flood[:1],
            *place,
            *port,
            *isolated,
            *flood[1:],
            ("peer", spec.ifname),
            ("peer_mac", spec.mac),
            ("peer_mtu", spec.mtu),
            ("peer_netns", spec.netns),
        ),
    )


def _macvlan(attachment: Attachment) -> Link:
    spec = attachment.spec
    return Link(
        name=spec.ifname,
        kind="macvlan",
        netns=spec.netns,
        alias=f"{ALIAS}{ROOM}:{attachment.name}",
        mtu=spec.mtu,
        mac=spec.mac,
        options=(("link", spec.bridge), ("mode", MODES[spec.config.get("mode", "bridge")])),
    )


def on_node_bridge(attachment: Attachment) -> bool:
    """Whether its host end is a port of one of the bridges of the node's pods."""
    return attachment.spec.kind == "bridge" and not attachment.spec.ipam


def further_bridge(attachment: Attachment) -> str:
    """The bridge of the node's pods that it is on, unless that is the first; "" for that, or for none."""
    name = attachment.spec.bridge
    return name if on_node_bridge(attachment) and name not in ("", BRIDGE) else ""


def own_bridge(attachment: Attachment) -> str:
    """The bridge that is this network's and not the node's; "" without one."""
    return attachment.spec.bridge if attachment.spec.kind == "bridge" and attachment.spec.ipam else ""


def _own_bridge(attachment: Attachment) -> Iterator[Fact]:
    name, spec = own_bridge(attachment), attachment.spec
    addresses = [entry.address for entry in spec.ips]
    if not name:
        if spec.kind == "ptp":
            yield from forwarding(addresses)
        return
    foreign = FOREIGN in spec.config
    if not foreign:
        yield _bridge(spec.node, name, bool(spec.config.get("promiscMode")))
    if spec.config.get("isGateway"):
        yield from forwarding(addresses)
        if not foreign or spec.config.get(OPENED):
            yield from localnet(name)
        if spec.config.get("forceAddress"):  # the old address may be the subnet's first
            yield Sysctl(name=f"net/ipv4/conf/{name}/promote_secondaries", value="1")


def _bridge(node: str, name: str, promisc: bool) -> Link:
    return Link(
        name=name,
        kind="bridge",
        alias=f"{ALIAS}{ROOM}:",
        mac=bridge_mac(f"{node}/{name}"),
        options=(("promisc", 1),) if promisc else (),
    )


def gateways(attachment: Attachment) -> list[str]:
    """The addresses that the attachment wants on its network's own bridge."""
    spec = attachment.spec
    if not own_bridge(attachment) or not spec.config.get("isGateway"):
        return []
    every = [gateway_address(entry) for entry in spec.ips if entry.gateway]
    left = spec.config.get(LEFT, ())
    return [address for address in every if address not in left]


def gateway_address(entry: AttachmentIP) -> str:
    """The gateway with the length of the network that the address is from."""
    length = ip_interface(entry.subnet or entry.address).network.prefixlen
    return f"{entry.gateway}/{length}"


def _address(attachment: Attachment, entry: AttachmentIP) -> Iterator[Fact]:
    spec = attachment.spec
    plain, _, length = entry.address.partition("/")
    routed = int(length) == (128 if ":" in plain else 32)
    wide = "/128" if ":" in plain else "/32"
    yield Address(link=spec.ifname, address=entry.address, netns=spec.netns)
    if routed and entry.gateway:
        far = metric(spec, entry.gateway)
        yield Route(dst=entry.gateway + wide, link=spec.ifname, netns=spec.netns, scope="link", metric=far)
    if spec.kind == "bridge":
        name, further = own_bridge(attachment), further_bridge(attachment)
        if name and gateway_address(entry) in gateways(attachment):
            yield Address(link=name, address=gateway_address(entry))
        if further:
            yield Address(link=further, address=entry.gateway + wide)
            yield Route(dst=plain + wide, link=further, scope="link")
        if not name or spec.config.get("isGateway"):
            yield Neighbour(link=spec.bridge or BRIDGE, address=plain, mac=spec.mac)
    elif spec.kind == "ptp":
        yield Route(dst=plain + wide, link=spec.host_ifname, scope="link")
        yield Neighbour(link=spec.host_ifname, address=plain, mac=spec.mac)
        if entry.gateway:
            mac = host_mac(spec.kind, spec.host_ifname)
            yield Neighbour(link=spec.ifname, address=entry.gateway, mac=mac, netns=spec.netns)
            if spec.ipam:  # else it is on the node's bridge
                yield Address(link=spec.host_ifname, address=entry.gateway + wide)
                yield from _to_neighbours(attachment, entry)


def metric(spec: AttachmentSpec, dst: str, given: int = 0) -> int:
    """Of a route in the pod, 0 being the kernel's choice: that is 0 for IPv4 and 1024 for IPv6."""
    more = int(spec.config.get(METRIC, 0))
    return given or (more and more + (1024 if ":" in dst else 0))


def pod_routes(attachment: Attachment) -> Iterator[Route]:
    if attachment.spec.kind not in ("chained", "ipam"):
        yield from (f for f in render_interface(attachment) if isinstance(f, Route) and f.netns)


def _to_neighbours(attachment: Attachment, entry: AttachmentIP) -> Iterator[Route]:
    """As the ptp plugin has it: the rest of the subnet is behind the gateway, without any ``routes``."""
    given = {route.dst for route in attachment.spec.routes}
    if entry.subnet and not entry.subnet.endswith(("/32", "/128")) and entry.subnet not in given:
        yield _route(attachment, AttachmentRoute(dst=entry.subnet, gw=entry.gateway))


def _route(attachment: Attachment, route: AttachmentRoute) -> Route:
    spec = attachment.spec
    scope = scope_word(route)
    six = ":" in route.dst
    gateways = (e.gateway for e in spec.ips if (":" in e.address) == six and e.gateway)
    via = route.gw or ("" if scope == "link" else next(gateways, ""))
    return Route(
        dst=route.dst,
        link=spec.ifname,
        via=via,
        netns=spec.netns,
        mtu=route.mtu,
        advmss=route.advmss,
        metric=metric(spec, route.dst, route.priority),
        table=route.table or 254,
        scope=scope,
    )


def isolated(attachment: Attachment) -> Iterator[Fact]:
    """Pods with portIsolation do not reach each other by the gateway either (`masquerade.ISOLATION`)."""
    for entry in attachment.spec.ips:
        plain = entry.address.partition("/")[0]
        yield Element(of=f"cni-isolated{6 if ':' in plain else 4}", item=(plain,))

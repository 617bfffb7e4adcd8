"""What the node's kernel must hold for pods: the bridge and its surroundings, and each attachment.

Rule 1: pods are routed, also to their neighbours on the same bridge: a pod's address is a host
        address and everything goes by the gateway. So replies of a service's endpoint on the same
        node come back through the NAT that sent them there, and policy sees every packet, with
        no need of br_netfilter.
Rule 2: the bridge would tell pods of the shorter way (ICMP redirect), around rule 1: dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import collapse_addresses, ip_address, ip_network

import msgspec

from ..model.facts import (
    ALIAS,
    Address,
    Chain,
    Element,
    Fact,
    Facts,
    Link,
    Scope,
    Set,
    Sysctl,
)
from ..model.nodes import Node
from ..model.own import Attachment
from ..model.snapshot import Snapshot
from .ipam import gateway
from .masquerade import isolation, localnet, masked, opened
from .names import BRIDGE, EVERY_BRIDGE, bridge_mac, headroom, node_bridge_number
from .ports import render_ports
from .shaping import render_guard, render_shaping
from .wiring import ROOM, forwarding, further_bridge, isolated, render_interface

BASE = Scope(ROOM)
_NO_VNI = 0xFFFFFF  # the last there is
_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


class CniConfig(msgspec.Struct, frozen=True):
    """What the agent's command line and the overlay decide. ``pod_mtu`` 0: the kernel's choice.
    ``tunnel``: pods of other nodes are reached through one.

    ``boot_id``: this boot's (/proc/sys/kernel/random/boot_id); what another boot recorded is not
    rendered, since its namespaces are gone. "" renders everything. ``dns_domain``: the cluster's, when
    the node answers its names at ``dns_servers`` ((): the pod's gateways); ``resolv_conf``: its own file.
    """

    cluster_cidrs: tuple[str, ...] = ()
    pod_mtu: int = 0
    tunnel: bool = False
    ip_masq: bool = True
    boot_id: str = ""
    dns_domain: str = ""
    dns_servers: tuple[str, ...] = ()
    resolv_conf: str = ""


class CniRoom:
    """A Room: scope ("cni", "") is the node's base, ("cni", <attachment>) one pod's interface.

    ``undone``: attachments whose ADD failed and whose record the store does not let go, its disk being
    full. They want nothing, as if the record were gone; a process that starts anew undoes them itself.
    """

    name = ROOM
    kinds = frozenset((Attachment.KIND, Node.KIND))

    def __init__(self, node: str, config: CniConfig) -> None:
        self.node = node
        self.config = config
        self.undone: set[str] = set()

    def scopes(self, event: object, snapshot: Snapshot) -> Iterable[Scope]:
        if event is None:
            return [BASE, *(Scope(ROOM, a.name) for a in snapshot.by(Attachment, "node", self.node))]
        old, new = getattr(event, "old", None), getattr(event, "new", None)
        if isinstance(old, Attachment) and isinstance(new, Attachment) and old.spec == new.spec:
            return []  # its phase is of no matter to the kernel
        found = dict.fromkeys(scope for obj in (old, new) for scope in self._touched(obj))
        return list(found)

    def _touched(self, obj: object) -> Iterator[Scope]:
        if isinstance(obj, Attachment) and obj.spec.node == self.node:
            yield Scope(ROOM, obj.name)
        elif isinstance(obj, Node) and obj.name == self.node:
            yield BASE

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        if not scope.name:
            node = snapshot.get(Node, "", self.node)
            return tuple(render_base(node, self.config)) if node else ()
        attachment = snapshot.get(Attachment, "", scope.name)
        if attachment is None or attachment.spec.node != self.node or attachment.name in self.undone:
            return ()
        if self.config.boot_id and attachment.spec.boot_id not in ("", self.config.boot_id):
            return ()
        return tuple(render_attachment(attachment, self.config))


def _headroom(bridge: str, config: CniConfig) -> Link:
    """A port that is never up: by it the bridge knows what room the tunnel's header takes before a packet.

    The bridge tells its ports (ndo_set_rx_headroom, Linux 4.6), so pods' packets are born with that room. A
    port that goes changes nothing of it; without, the kernel asks all ports anew, and tells them, each time.
    """
    number = node_bridge_number(bridge) or 0
    return Link(
        name=headroom(number),
        kind="vxlan",
        alias=f"{ALIAS}{ROOM}",
        mtu=config.pod_mtu,
        master=bridge,
        up=False,
        options=(("id", _NO_VNI - number), ("port", 8472)),
    )


def _bridge(name: str, node: str, config: CniConfig) -> Iterator[Fact]:
    """One of the bridges of the node's pods. All have one MAC: that of the gateway, which each of them is."""
    yield Link(
        name=name,
        kind="bridge",
        alias=f"{ALIAS}{ROOM}",
        mtu=config.pod_mtu,
        mac=bridge_mac(node),
        # no port is sent multicast, and with snooping a port that goes costs as much as there are ports
        options=(("mcast_snooping", 0),),
    )
    if config.tunnel:
        yield _headroom(name, config)


def render_base(node: Node, config: CniConfig) -> Iterator[Fact]:
    """The bridge, its addresses, forwarding, and masquerade; nothing before the node has pod CIDRs."""
    if not node.pod_cidrs:
        return
    yield from _bridge(BRIDGE, node.name, config)
    for cidr in node.pod_cidrs:
        network = ip_network(cidr)
        yield Address(link=BRIDGE, address=f"{gateway(cidr)}/{network.prefixlen}")
    yield from forwarding(node.pod_cidrs)
    yield from localnet(BRIDGE)
    yield Chain(
        name="cni-redirects",
        type="filter",
        hook="output",
        priority="filter",
        rules=(
            f'oifname "{EVERY_BRIDGE}" icmp type redirect drop',
            f'oifname "{EVERY_BRIDGE}" icmpv6 type nd-redirect drop',
        ),
    )
    if config.ip_masq:
        yield from _masquerade(node.pod_cidrs, config.cluster_cidrs)


def _masquerade(pods: tuple[str, ...], cluster: tuple[str, ...]) -> Iterator[Fact]:
    """What leaves the cluster takes the node's address; ``ipMasq: false`` pods are elements of a set."""
    rules = []
    for family, word, version in (("ip", "ipv4", 4), ("ip6", "ipv6", 6)):
        yield Set(name=f"cni-unmasked{version}", spec=(f"type {word}_addr",))
        own = _collapsed(pods, version)
        if not own:
            continue
        inside = _collapsed([*(cluster or pods), _MULTICAST[version]], version)
        rules.append(f"{family} saddr @cni-unmasked{version} return")
        rules.append(
            f"{family} saddr {{ {', '.join(own)} }}"
            f" {family} daddr != {{ {', '.join(inside)} }} masquerade fully-random"
        )
    yield Chain(name="cni-masquerade", type="nat", hook="postrouting", priority="srcnat", rules=tuple(rules))


def _collapsed(cidrs: Iterable[str], version: int) -> list[str]:
    """Of one family, sorted, none inside another: nft refuses overlapping elements."""
    networks = [ip_network(c) for c in cidrs]
    if version == 4:
        return [str(n) for n in collapse_addresses(n for n in networks if n.version == 4)]
    return [str(n) for n in collapse_addresses(n for n in networks if n.version == 6)]


def render_attachment(attachment: Attachment, config: CniConfig) -> Iterator[Fact]:
    """Everything that one attachment wants of the kernel, by its kind and what was asked for."""
    spec = attachment.spec
    if spec.kind == "ipam":  # another plugin's interface, whose addresses alone are ours
        return
    if spec.kind == "chained":
        yield from _tuned(attachment)
    else:
        if further := further_bridge(attachment):
            yield from _bridge(further, spec.node, config)
            yield from opened(further)
        yield from render_interface(attachment)
    for name, value in spec.sysctls.items():
        yield Sysctl(name=name, value=value, netns=spec.netns)
    yield from render_shaping(attachment)
    yield from render_guard(attachment)
    yield from render_ports(attachment, {"ptp": spec.host_ifname, "chained": spec.bridge}.get(spec.kind, ""))
    if spec.config.get("portIsolation"):
        yield from isolation()
        yield from isolated(attachment)
    masquerade = spec.config.get("ipMasq")
    if spec.ipam and masquerade:
        yield from masked(attachment)
    elif not spec.ipam and config.ip_masq and masquerade is False:
        for entry in spec.ips:
            plain = entry.address.partition("/")[0]
            yield Element(of=f"cni-unmasked{ip_address(plain).version}", item=(plain,))


def _tuned(attachment: Attachment) -> Iterator[Fact]:
    """An interface that another plugin made: only what was asked for is changed."""
    spec = attachment.spec
    if spec.mtu or spec.config.get("mac"):
        yield Link(name=spec.ifname, netns=spec.netns, mtu=spec.mtu, mac=spec.config.get("mac", ""))

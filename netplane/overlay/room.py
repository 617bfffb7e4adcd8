"""Node objects into the facts of a VXLAN overlay: one device, and three entries per remote node.

Rule 1: no flooding and no learning: who is where is known from the Node objects alone. Per remote
        node: a forwarding entry (VTEP MAC → node address), and per pod CIDR a permanent neighbour
        (the CIDR's network address → VTEP MAC) and an onlink route via that address.
Rule 2: the underlay's family is one that both nodes have, the preferred one first. A VXLAN device
        carries one underlay family and both inner families; a second device exists only while a
        node shares nothing but the other family.
Rule 3: a node that is being deleted, lacks an address or pod CIDRs, or whose CIDRs were refused, has
        no facts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, ClassVar

from ..model.errors import Invalid
from ..model.facts import ALIAS, Address, Facts, Fdb, Link, Neighbour, Route, Scope, Sysctl
from ..model.nodes import Node
from ..model.snapshot import Snapshot

MTU_ANNOTATION = "netplane.io/underlay-mtu"
DEFAULT_UNDERLAY_MTU = 1500
OVERHEAD = {4: 50, 6: 70}  # outer IP 20 or 40, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348)
IPV6_MIN_MTU = 1280  # RFC 8200 section 5

Network = IPv4Network | IPv6Network


def vtep_mac(node_name: str) -> str:
    """The MAC of a node's VXLAN device: from the name's hash, locally administered, unicast."""
    raw = bytearray(hashlib.sha256(b"netplane vtep " + node_name.encode()).digest()[:6])
    raw[0] = raw[0] & 0xFC | 0x02
    return raw.hex(":")


def pod_mtu(underlay_mtu: int, family: int) -> int:
    """The largest packet of a pod that fits through the tunnel; ``family`` (4, 6) of the underlay."""
    return underlay_mtu - OVERHEAD[family]


@dataclass
class OverlayRoom:
    """``node``: ours. ``prefer``: the underlay's family where there is a choice. ``ipv6``: whether
    this kernel has IPv6; without, nothing of that family is rendered. Nothing here ever changes."""

    node: str
    prefer: int = 4
    ipv6: bool = True
    vni: int = 1
    port: int = 8472  # flannel's and Linux's; IANA's 4789 is taken by many underlays' own VXLAN
    device: str = "npvx0"
    second_device: str = "npvx1"
    name: str = field(default="overlay", init=False)
    kinds: ClassVar[frozenset[str]] = frozenset((Node.KIND,))

    def scopes(self, event: Any, snapshot: Snapshot) -> Iterable[Scope]:
        if event is not None:
            if not isinstance(event.object, Node) or not self._matters(event):
                return
            if event.object.name != self.node:
                yield Scope(self.name, event.object.name)
                return
        yield Scope(self.name)
        yield from (Scope(self.name, n.name) for n in snapshot.list(Node) if n.name != self.node)

    def _matters(self, event: Any) -> bool:
        """A heartbeat or a condition changes nothing here."""
        return event.old is None or event.new is None or _essence(event.old) != _essence(event.new)

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        """Raises Invalid when a node's data make no overlay; the message names the node."""
        own = snapshot.get(Node, "", self.node)
        if own is None or own.deleting or own.refused or not self._addresses(own) or not own.pod_cidrs:
            return
        if not scope.name:
            yield from self._base(own)
            return
        remote = snapshot.get(Node, "", scope.name)
        if remote is None or remote.deleting or remote.refused or remote.name == self.node:
            return
        if self._addresses(remote) and remote.pod_cidrs:
            yield from self._remote(own, remote)

    # --- our own side -------------------------------------------------------------------------

    def family(self, own: Node, remote: Node | None = None) -> int | None:
        """The underlay family towards ``remote`` (None: of our first device), None if none is shared."""
        mine = self._addresses(own)
        theirs = self._addresses(remote) if remote is not None else mine
        for family in (self.prefer, 10 - self.prefer):
            if family in mine and family in theirs:
                return family
        return None

    def _base(self, own: Node) -> Iterator[Any]:
        first = self.family(own)
        assert first is not None  # render looked: the node has an address
        yield from self._device(own, first)
        for cidr in self._cidrs(own):
            if cidr.version == 4:
                yield Sysctl(name="net/ipv4/ip_forward", value="1")
            else:
                yield Sysctl(name="net/ipv6/conf/all/forwarding", value="1")

    def _device(self, own: Node, family: int) -> Iterator[Any]:
        """The device, its addresses, and loose reverse path filtering on it.

        The addresses (as flannel's: the network address of our pod CIDR, alone) are the source that
        this node uses towards remote pods, so that their answers come back through the overlay.
        """
        device = self._device_name(own, family)
        checksum = {4: {"udp_csum": 0}, 6: {"udp_zero_csum6_rx": 0, "udp_zero_csum6_tx": 0}}[family]
        options: dict[str, str | int] = {
            "id": self.vni, "port": self.port, "local": self._addresses(own)[family],
            "learning": 0, **checksum,
        }  # fmt: skip
        yield Link(
            name=device,
            kind="vxlan",
            alias=ALIAS + self.name,
            mtu=self._mtu(own, family),
            mac=vtep_mac(own.name),
            options=tuple(sorted(options.items())),
        )
        yield Sysctl(name=f"net/ipv4/conf/{device}/rp_filter", value="2")
        if device == self.device:
            for cidr in self._cidrs(own):
                yield Address(link=device, address=f"{cidr.network_address}/{cidr.max_prefixlen}")

    def _device_name(self, own: Node, family: int) -> str:
        return self.device if family == self.family(own) else self.second_device

    # --- a remote node --------------------------------------------------------------------------

    def _remote(self, own: Node, remote: Node) -> Iterator[Any]:
        family = self.family(own, remote)
        if family is None:
            raise Invalid(
                f"node {remote.name}: shares no address family with {own.name}, so no tunnel can be"
            )
        self._refuse_twins(own, remote, family)
        device, mac = self._device_name(own, family), vtep_mac(remote.name)
        if device == self.second_device:
            yield from self._device(own, family)  # wanted by every node that needs it
        yield Fdb(link=device, mac=mac, dst=self._addresses(remote)[family])
        mtu, limit = self._mtu(own, family), self._mtu(remote, family)
        inner = {cidr.version for cidr in self._cidrs(own)}
        for cidr in self._cidrs(remote):
            if cidr.version not in inner:
                continue  # we have no pods of that family
            via = str(cidr.network_address)
            yield Neighbour(link=device, address=via, mac=mac)
            yield Route(dst=str(cidr), link=device, via=via, onlink=True, mtu=limit if limit < mtu else 0)

    def _refuse_twins(self, own: Node, remote: Node, family: int) -> None:
        if self._addresses(own)[family] == self._addresses(remote)[family]:
            shared = self._addresses(own)[family]
            raise Invalid(
                f"node {remote.name}: has the InternalIP {shared} of {own.name}; each needs its own"
            )
        for mine in self._cidrs(own):
            for theirs in self._cidrs(remote):
                if mine.version == theirs.version and mine.overlaps(theirs):
                    raise Invalid(f"node {remote.name}: pod CIDR {theirs} overlaps {mine} of {own.name}")

    # --- reading a Node ---------------------------------------------------------------------------

    def _addresses(self, node: Node) -> dict[int, str]:
        """The first InternalIP of each family that we can use."""
        found: dict[int, str] = {}
        for text in node.internal_ips:
            address = ip_address(text)
            if self.ipv6 or address.version == 4:
                found.setdefault(address.version, str(address))
        return found

    def _cidrs(self, node: Node) -> list[Network]:
        networks = (ip_network(text, strict=False) for text in node.pod_cidrs)
        return [n for n in networks if self.ipv6 or n.version == 4]

    def _mtu(self, node: Node, family: int) -> int:
        text = node.metadata.annotations.get(MTU_ANNOTATION, str(DEFAULT_UNDERLAY_MTU))
        if not text.isdigit():
            raise Invalid(f"node {node.name}: annotation {MTU_ANNOTATION} is {text!r}, not a number of bytes")
        mtu = pod_mtu(int(text), family)
        if mtu < IPV6_MIN_MTU and any(cidr.version == 6 for cidr in self._cidrs(node)):
            least = IPV6_MIN_MTU + OVERHEAD[family]
            raise Invalid(
                f"node {node.name}: underlay MTU {text} is too small for IPv6 pods, which need {least}"
            )
        return mtu


def _essence(node: Node) -> tuple[Any, ...]:
    annotation = node.metadata.annotations.get(MTU_ANNOTATION)
    return node.internal_ips, node.pod_cidrs, annotation, node.deleting, bool(node.refused)

"""Policies of both kinds compiled into one form: tiers of rules over peers and ports. Pure.

Rule 1: what the API leaves to defaults is decided here and nowhere else: policyTypes, protocol TCP, an
        empty `from` or `to` (anybody), an empty `ports` (everything, ICMP too).
Rule 2: a peer of an unknown type fails closed (network-policy-api v1alpha2): an Accept rule then
        matches nothing, a Deny or Pass rule denies everything.
Rule 3: equal peers have equal keys, whatever policy they stand in, so the kernel holds them once.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from ..model.base import Key
from ..model.clusterpolicies import (
    ClusterNetworkPolicy,
    DestinationPort,
    EgressPeer,
    IngressPeer,
    Protocol,
)
from ..model.facts import digest
from ..model.policies import NetworkPolicy, Peer, PolicyPort
from ..model.selectors import LabelSelector

INGRESS, EGRESS = "in", "out"
ACCEPT, DENY, PASS = "accept", "deny", "pass"
PROTOCOLS = ("tcp", "udp", "sctp")
ADMIN, NAMESPACED, BASELINE = "Admin", "NetworkPolicy", "Baseline"
EVERYTHING = LabelSelector()
METADATA_NAME = "kubernetes.io/metadata.name"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Pods(NamedTuple):
    """Pods of one namespace (``namespace``), or of all that ``namespaces`` selects."""

    pods: LabelSelector
    namespaces: LabelSelector | None = None
    namespace: str = ""


class Nodes(NamedTuple):
    nodes: LabelSelector


class Peers(NamedTuple):
    """Whom a rule speaks of: any of these. ``key`` names the members (pods and nodes)."""

    key: str
    members: tuple[Pods | Nodes, ...] = ()
    blocks: tuple[Network, ...] = ()  # disjoint, sorted, exceptions taken out


class Port(NamedTuple):
    """A range, or a ``name`` that each destination pod resolves; ``protocol`` "": of any protocol."""

    protocol: str
    low: int = 0
    high: int = 65535
    name: str = ""


class Rule(NamedTuple):
    """``peers`` None: anybody. ``ports`` None: everything, also what has no ports."""

    action: str
    peers: Peers | None
    ports: tuple[Port, ...] | None
    where: str  # "spec.ingress[0]", or the rule's name


class Policy(NamedTuple):
    """``ingress``/``egress`` None: this policy says nothing of the direction."""

    key: Key
    tier: str
    priority: int
    subject: Pods
    ingress: tuple[Rule, ...] | None
    egress: tuple[Rule, ...] | None

    def rules(self, direction: str) -> tuple[Rule, ...] | None:
        return self.ingress if direction == INGRESS else self.egress


class Group(NamedTuple):
    """A set of addresses that the kernel holds: members, or where members have ports of these names."""

    key: str
    peers: Peers | None
    names: tuple[Port, ...] = ()


def group_of(peers: Peers | None, names: tuple[Port, ...] = ()) -> Group:
    if not names:
        assert peers is not None
        return Group(peers.key, peers)
    who = (peers.key, *map(str, peers.blocks)) if peers else ("any",)
    return Group(digest(*who, *(f"{p.protocol}:{p.name}" for p in names)), peers, names)


def groups(policy: Policy) -> Iterator[Group]:
    """The groups that the rules of a policy need."""
    for rule in policy.ingress or ():
        if rule.peers is not None and rule.peers.members:
            yield group_of(rule.peers)
    for rule in policy.egress or ():
        numbers, names = numbered(rule.ports), named(rule.ports)
        if rule.peers is not None and rule.peers.members and (numbers or rule.ports is None):
            yield group_of(rule.peers)
        if names:
            yield group_of(rule.peers, names)


def numbered(ports: tuple[Port, ...] | None) -> tuple[Port, ...]:
    return tuple(p for p in ports or () if not p.name)


def named(ports: tuple[Port, ...] | None) -> tuple[Port, ...]:
    return tuple(p for p in ports or () if p.name)


def compiled(policy: NetworkPolicy | ClusterNetworkPolicy) -> Policy:
    if isinstance(policy, NetworkPolicy):
        return _namespaced(policy)
    spec, subject = policy.spec, policy.spec.subject
    pods = subject.pods
    whom = Pods(pods.pod_selector, pods.namespace_selector) if pods else Pods(EVERYTHING, subject.namespaces)
    rules: dict[str, list[tuple[Any, Any]]] = {
        INGRESS: [(r, r.from_) for r in spec.ingress],
        EGRESS: [(r, r.to) for r in spec.egress],
    }
    made: dict[str, tuple[Rule, ...] | None] = {}
    for direction, found in rules.items():
        word = "ingress" if direction == INGRESS else "egress"
        made[direction] = (
            tuple(
                one
                for i, (rule, peers) in enumerate(found)
                for one in _cluster_rule(
                    rule.action.lower(), peers, rule.protocols, rule.name or f"spec.{word}[{i}]"
                )
            )
            or None
        )
    return Policy(policy.key, spec.tier, spec.priority, whom, made[INGRESS], made[EGRESS])


def _namespaced(policy: NetworkPolicy) -> Policy:
    spec = policy.spec
    types = spec.policy_types or (("Ingress", "Egress") if spec.egress else ("Ingress",))
    ingress = [(r.from_, r.ports) for r in spec.ingress or ()]
    egress = [(r.to, r.ports) for r in spec.egress or ()]
    return Policy(
        policy.key,
        NAMESPACED,
        0,
        Pods(spec.pod_selector, namespace=policy.namespace),
        _rules(policy.namespace, "ingress", ingress) if "Ingress" in types else None,
        _rules(policy.namespace, "egress", egress) if "Egress" in types else None,
    )


def _rules(
    namespace: str, section: str, rules: Iterable[tuple[tuple[Peer, ...], tuple[PolicyPort, ...]]]
) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            ACCEPT,
            _peers(namespace, peers) if peers else None,
            tuple(map(_port, ports)) if ports else None,
            f"spec.{section}[{i}]",
        )
        for i, (peers, ports) in enumerate(rules)
    )


def _port(port: PolicyPort) -> Port:
    protocol = port.protocol.lower()
    if port.port is None:
        return Port(protocol)
    if isinstance(port.port, str):
        return Port(protocol, name=port.port)
    return Port(protocol, port.port, port.end_port or port.port)


def _peers(namespace: str, peers: Iterable[Peer]) -> Peers:
    members: list[Pods | Nodes] = []
    blocks: list[Network] = []
    for peer in peers:
        if peer.ip_block is not None:
            blocks += _without(peer.ip_block.cidr, peer.ip_block.except_)
        elif peer.namespace_selector is not None:
            members.append(Pods(peer.pod_selector or EVERYTHING, peer.namespace_selector))
        else:
            members.append(Pods(peer.pod_selector or EVERYTHING, namespace=namespace))
    return _made(members, blocks)


def _made(members: Iterable[Pods | Nodes], blocks: Iterable[Network]) -> Peers:
    ordered = tuple(members)
    key = digest(
        *sorted(msgspec.json.encode((type(m).__name__, m), order="deterministic").decode() for m in ordered)
    )
    return Peers(key, ordered, tuple(_disjoint(blocks)))


def _without(cidr: str, exceptions: Iterable[str]) -> list[Network]:
    """A block less its exceptions, as networks. "Except" holds for this block alone."""
    left: list[Any] = [ipaddress.ip_network(cidr)]
    for text in exceptions:
        hole: Any = ipaddress.ip_network(text)
        cut: list[Any] = []
        for network in left:
            if hole.supernet_of(network):
                continue
            cut += network.address_exclude(hole) if hole.subnet_of(network) else [network]
        left = cut
    return left


def _disjoint(blocks: Iterable[Network]) -> Iterator[Network]:
    """Of both families, none inside another: nft refuses overlapping elements."""
    found = list(blocks)
    yield from ipaddress.collapse_addresses(b for b in found if isinstance(b, ipaddress.IPv4Network))
    yield from ipaddress.collapse_addresses(b for b in found if isinstance(b, ipaddress.IPv6Network))


# --- ClusterNetworkPolicy ---------------------------------------------------------------------------


def _cluster_rule(
    action: str,
    peers: tuple[IngressPeer, ...] | tuple[EgressPeer, ...],
    protocols: tuple[Protocol, ...],
    where: str,
) -> Iterator[Rule]:
    """One rule, or none (rule 2)."""
    members: list[Pods | Nodes] = []
    blocks: list[Network] = []
    for peer in peers:
        nodes = getattr(peer, "nodes", None)
        networks = getattr(peer, "networks", ())
        if peer.pods is not None:
            members.append(Pods(peer.pods.pod_selector, peer.pods.namespace_selector))
        elif peer.namespaces is not None:
            members.append(Pods(EVERYTHING, peer.namespaces))
        elif nodes is not None:
            members.append(Nodes(nodes))
        elif networks:
            blocks += [ipaddress.ip_network(text) for text in networks]
        else:
            if action != ACCEPT:
                yield Rule(DENY, None, None, f"{where} (a peer of an unknown type)")
            return
    ports = tuple(p for protocol in protocols for p in _cluster_ports(protocol))
    yield Rule(action, _made(members, blocks), ports or None, where)


def _cluster_ports(protocol: Protocol) -> Iterator[Port]:
    if protocol.destination_named_port:
        yield Port("", name=protocol.destination_named_port)
    for word in PROTOCOLS:
        transport = getattr(protocol, word)
        if transport is not None:
            yield _cluster_port(word, transport.destination_port)


def _cluster_port(protocol: str, port: DestinationPort | None) -> Port:
    if port is None:
        return Port(protocol)
    if port.range is not None:
        return Port(protocol, port.range.start, port.range.end)
    return Port(protocol, port.number or 0, port.number or 0)

"""ClusterNetworkPolicy (policy.networking.k8s.io/v1alpha2): what an administrator rules for all pods.

Rule: a peer without any known field is kept, not refused: an API server of another version leaves it
      behind when it drops a field that it does not know, and the API says that such a peer fails closed.
      `nodes` and `networks` are understood; `domainNames` is not, and fails closed in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from msgspec import field

from . import checks
from .base import Fault, Object, Struct
from .selectors import LabelSelector

TIERS = ("Admin", "Baseline")
ACTIONS = ("Accept", "Deny", "Pass")
MOST = 25  # rules, peers, protocols and networks in one list, as the API has it


class NamespacedPods(Struct, frozen=True, kw_only=True):
    namespace_selector: LabelSelector = field(default_factory=LabelSelector)
    pod_selector: LabelSelector

    def check(self, path: str) -> Iterator[Fault]:
        yield from self.namespace_selector.check(f"{path}.namespaceSelector")
        yield from self.pod_selector.check(f"{path}.podSelector")


class Subject(Struct, frozen=True, kw_only=True):
    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None

    def check(self, path: str) -> Iterator[Fault]:
        if (self.namespaces is None) == (self.pods is None):
            yield path, "exactly one of namespaces and pods is required"
        parts: dict[str, Any] = {"namespaces": self.namespaces, "pods": self.pods}
        for name, part in parts.items():
            if part is not None:
                yield from part.check(f"{path}.{name}")


class IngressPeer(Struct, frozen=True, kw_only=True):
    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None

    def check(self, path: str) -> Iterator[Fault]:
        parts: dict[str, Any] = {"namespaces": self.namespaces, "pods": self.pods}
        yield from _at_most_one(path, parts)
        for name, part in parts.items():
            if part is not None:
                yield from part.check(f"{path}.{name}")


class EgressPeer(Struct, frozen=True, kw_only=True):
    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None
    nodes: LabelSelector | None = None
    networks: tuple[str, ...] = ()
    domain_names: tuple[str, ...] = ()

    def check(self, path: str) -> Iterator[Fault]:
        parts: dict[str, Any] = {"namespaces": self.namespaces, "pods": self.pods, "nodes": self.nodes}
        lists = {"networks": self.networks or None, "domainNames": self.domain_names or None}
        yield from _at_most_one(path, {**parts, **lists})
        for name, part in parts.items():
            if part is not None:
                yield from part.check(f"{path}.{name}")
        yield from _at_most(f"{path}.networks", self.networks)
        for i, text in enumerate(self.networks):
            yield from checks.cidr(f"{path}.networks[{i}]", text)


class PortRange(Struct, frozen=True, kw_only=True):
    start: int
    end: int


class DestinationPort(Struct, frozen=True, kw_only=True):
    number: int | None = None
    range: PortRange | None = None

    def check(self, path: str) -> Iterator[Fault]:
        if (self.number is None) == (self.range is None):
            yield path, "exactly one of number and range is required"
        if self.number is not None:
            yield from checks.port(f"{path}.number", self.number)
        if self.range is not None:
            yield from checks.port(f"{path}.range.start", self.range.start)
            yield from checks.port(f"{path}.range.end", self.range.end)
            if self.range.end <= self.range.start:
                yield f"{path}.range.end", f"{self.range.end} must be above start {self.range.start}"


class Transport(Struct, frozen=True, kw_only=True):
    """Without a port: all of the protocol."""

    destination_port: DestinationPort | None = None

    def check(self, path: str) -> Iterator[Fault]:
        if self.destination_port is not None:
            yield from self.destination_port.check(f"{path}.destinationPort")


class Protocol(Struct, frozen=True, kw_only=True):
    tcp: Transport | None = None
    udp: Transport | None = None
    sctp: Transport | None = None
    destination_named_port: str = ""

    def check(self, path: str) -> Iterator[Fault]:
        parts = {"tcp": self.tcp, "udp": self.udp, "sctp": self.sctp}
        named = self.destination_named_port or None
        yield from _at_most_one(path, {**parts, "destinationNamedPort": named})
        if named is None and not any(p is not None for p in parts.values()):
            yield path, "one of tcp, udp, sctp or destinationNamedPort is required"
        for name, part in parts.items():
            if part is not None:
                yield from part.check(f"{path}.{name}")


class ClusterIngressRule(Struct, frozen=True, kw_only=True):
    name: str = ""
    action: str
    from_: tuple[IngressPeer, ...] = field(name="from")
    protocols: tuple[Protocol, ...] = ()


class ClusterEgressRule(Struct, frozen=True, kw_only=True):
    name: str = ""
    action: str
    to: tuple[EgressPeer, ...]
    protocols: tuple[Protocol, ...] = ()


class ClusterNetworkPolicySpec(Struct, frozen=True, kw_only=True):
    tier: str
    priority: int
    subject: Subject
    ingress: tuple[ClusterIngressRule, ...] = ()
    egress: tuple[ClusterEgressRule, ...] = ()


class ClusterNetworkPolicy(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "ClusterNetworkPolicy"
    API_VERSION: ClassVar[str] = "policy.networking.k8s.io/v1alpha2"
    NAMESPACED: ClassVar[bool] = False

    spec: ClusterNetworkPolicySpec
    status: Any = None

    def check(self) -> Iterator[Fault]:
        spec = self.spec
        yield from checks.dns_subdomain("metadata.name", self.name)
        yield from checks.one_of("spec.tier", spec.tier, TIERS)
        if not 0 <= spec.priority <= 1000:
            yield "spec.priority", f"{spec.priority} is out of range: 0 (first) to 1000 (last)"
        yield from spec.subject.check("spec.subject")
        yield from _at_most("spec.ingress", spec.ingress)
        yield from _at_most("spec.egress", spec.egress)
        for i, rule in enumerate(spec.ingress):
            yield from _check_rule(f"spec.ingress[{i}]", "from", rule, rule.from_)
        for i, leaving in enumerate(spec.egress):
            where = f"spec.egress[{i}]"
            yield from _check_rule(where, "to", leaving, leaving.to)
            plain = any(p.nodes is not None or p.networks or p.domain_names for p in leaving.to)
            if plain and any(p.destination_named_port for p in leaving.protocols):
                yield f"{where}.protocols", "nodes, networks and domainNames have no named ports"
            if leaving.action != "Accept" and any(p.domain_names for p in leaving.to):
                yield f"{where}.to", "domainNames may stand in Accept rules only"


def _check_rule(
    path: str,
    word: str,
    rule: ClusterIngressRule | ClusterEgressRule,
    peers: tuple[IngressPeer | EgressPeer, ...],
) -> Iterator[Fault]:
    yield from checks.one_of(f"{path}.action", rule.action, ACTIONS)
    if len(rule.name) > 100:
        yield f"{path}.name", f"is {len(rule.name)} characters long, at most 100"
    if not peers:
        yield f"{path}.{word}", "at least one peer is required"
    yield from _at_most(f"{path}.{word}", peers)
    yield from _at_most(f"{path}.protocols", rule.protocols)
    for j, peer in enumerate(peers):
        yield from peer.check(f"{path}.{word}[{j}]")
    for j, protocol in enumerate(rule.protocols):
        yield from protocol.check(f"{path}.protocols[{j}]")


def _at_most(path: str, items: tuple[Any, ...]) -> Iterator[Fault]:
    if len(items) > MOST:
        yield path, f"holds {len(items)} items, at most {MOST}"


def _at_most_one(path: str, parts: dict[str, Any]) -> Iterator[Fault]:
    given = [name for name, part in parts.items() if part is not None]
    if len(given) > 1:
        yield path, f"{' and '.join(given)} may not stand beside each other"

"""NetworkPolicy (networking.k8s.io/v1)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any, ClassVar

from msgspec import field

from . import checks
from .base import Fault, Object, Struct
from .selectors import LabelSelector


class IPBlock(Struct, frozen=True, kw_only=True):
    cidr: str
    except_: tuple[str, ...] = field(default=(), name="except")

    def check(self, path: str) -> Iterator[Fault]:
        faults = list(checks.cidr(f"{path}.cidr", self.cidr))
        yield from faults
        for i, text in enumerate(self.except_):
            where = f"{path}.except[{i}]"
            bad = list(checks.cidr(where, text))
            yield from bad
            if bad or faults:
                continue
            outer, inner = ipaddress.ip_network(self.cidr), ipaddress.ip_network(text)
            if outer.version != inner.version or not inner.subnet_of(outer) or inner == outer:  # type: ignore[arg-type]
                yield where, f"{text!r} must lie strictly inside cidr {self.cidr!r}"


class Peer(Struct, frozen=True, kw_only=True):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None

    def check(self, path: str) -> Iterator[Fault]:
        selectors = (self.pod_selector, self.namespace_selector)
        if self.ip_block:
            yield from self.ip_block.check(f"{path}.ipBlock")
            if any(selectors):
                yield path, "ipBlock may not stand beside podSelector or namespaceSelector"
        elif not any(s is not None for s in selectors):
            yield path, "one of podSelector, namespaceSelector or ipBlock is required"
        if self.pod_selector:
            yield from self.pod_selector.check(f"{path}.podSelector")
        if self.namespace_selector:
            yield from self.namespace_selector.check(f"{path}.namespaceSelector")


class PolicyPort(Struct, frozen=True, kw_only=True):
    protocol: str = "TCP"
    port: int | str | None = None
    end_port: int | None = None

    def check(self, path: str) -> Iterator[Fault]:
        yield from checks.one_of(f"{path}.protocol", self.protocol, checks.PROTOCOLS)
        if self.port is not None:
            yield from checks.port_or_name(f"{path}.port", self.port)
        if self.end_port is not None:
            yield from checks.port(f"{path}.endPort", self.end_port)
            if not isinstance(self.port, int):
                yield f"{path}.endPort", "needs a numeric port"
            elif self.end_port < self.port:
                yield f"{path}.endPort", f"{self.end_port} is below port {self.port}"


class IngressRule(Struct, frozen=True, kw_only=True):
    from_: tuple[Peer, ...] = field(default=(), name="from")
    ports: tuple[PolicyPort, ...] = ()


class EgressRule(Struct, frozen=True, kw_only=True):
    to: tuple[Peer, ...] = ()
    ports: tuple[PolicyPort, ...] = ()


class NetworkPolicySpec(Struct, frozen=True, kw_only=True):
    pod_selector: LabelSelector = field(default_factory=LabelSelector)
    policy_types: tuple[str, ...] = ()
    ingress: tuple[IngressRule, ...] | None = None
    egress: tuple[EgressRule, ...] | None = None


class NetworkPolicy(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "NetworkPolicy"
    API_VERSION: ClassVar[str] = "networking.k8s.io/v1"

    spec: NetworkPolicySpec = field(default_factory=NetworkPolicySpec)
    status: Any = None

    def check(self) -> Iterator[Fault]:
        yield from checks.dns_subdomain("metadata.name", self.name)
        yield from self.spec.pod_selector.check("spec.podSelector")
        for i, direction in enumerate(self.spec.policy_types):
            yield from checks.one_of(f"spec.policyTypes[{i}]", direction, ("Ingress", "Egress"))
        sections = (
            ("ingress", "from", [(r.from_, r.ports) for r in self.spec.ingress or ()]),
            ("egress", "to", [(r.to, r.ports) for r in self.spec.egress or ()]),
        )
        for section, word, rules in sections:
            for i, (peers, ports) in enumerate(rules):
                for j, peer in enumerate(peers):
                    yield from peer.check(f"spec.{section}[{i}].{word}[{j}]")
                for j, port in enumerate(ports):
                    yield from port.check(f"spec.{section}[{i}].ports[{j}]")

"""What goes with a service beside its rules: where its UDP flows may be answered from, and the health
check of its load balancer. Pure: objects in, facts out.

Rule 1: flows stay with an endpoint for as long as it serves, ready or not, terminating or not.
Rule 2: a health check counts the ready endpoints on this node, as kube-proxy does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from ..model.facts import Fact, FactKey, HealthCheck, Translation
from ..model.services import EndpointSlice, Service
from .address import canonical
from .frontends import Frontend, families, family
from .words import WORDS

Backends = tuple[tuple[str, int], ...]
Counts = Callable[[str], Iterable[tuple[Any, ...]]]


def upkeep(
    service: Service, slices: tuple[EndpointSlice, ...], found: Iterable[tuple[str, Frontend]], node: str
) -> Iterator[Fact]:
    """The facts of a served service; ``found`` pairs a port's name with each of its frontends."""
    known: dict[tuple[str, str], Backends] = {}
    for name, frontend in found:
        if frontend.protocol == "udp":
            which = family(frontend.address)
            if (name, which) not in known:
                known[name, which] = serving(slices, name, which)
            yield Translation("udp", frontend.address, frontend.port, known[name, which])
    spec = service.spec
    if (
        spec.type == "LoadBalancer"
        and spec.external_traffic_policy == "Local"
        and spec.health_check_node_port
    ):
        count = len(ready_here(slices, families(service), node))
        yield HealthCheck(spec.health_check_node_port, service.namespace, service.name, count)


def translated(counts: Counts) -> Iterator[FactKey]:
    """The translations that the rules in the kernel mean, whoever made them."""
    for digit, _, _ in WORDS.values():
        for address, protocol, port in counts(f"svc-services{digit}"):
            if protocol == "udp":
                yield ("translation", protocol, address, port)


def serving(slices: Iterable[EndpointSlice], name: str, which: str) -> Backends:
    """(address, port) of the endpoints of a UDP port that serve, in one family."""
    found = {
        (canonical(endpoint.addresses[0]), port.port)
        for piece in slices
        if piece.address_type == which
        for port in piece.ports
        if port.port and port.name == name and port.protocol == "UDP"
        for endpoint in piece.endpoints
        if endpoint.addresses and (endpoint.ready or endpoint.serving)
    }
    return tuple(sorted(found))


def ready_here(slices: Iterable[EndpointSlice], which: Collection[str], node: str) -> set[str]:
    """Addresses of the ready endpoints on this node that a service of these families has; of a pod with
    both one counts."""
    found: dict[str, set[str]] = {}
    for piece in slices:
        if piece.address_type in which and any(port.port for port in piece.ports):
            for endpoint in piece.endpoints:
                if endpoint.node_name == node and endpoint.ready and endpoint.addresses:
                    found.setdefault(piece.address_type, set()).add(canonical(endpoint.addresses[0]))
    return max(found.values(), key=len, default=set())

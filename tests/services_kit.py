"""Services, slices and plans in a line each, for tests and benchmarks of the services room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from netplane.model.base import ObjectMeta
from netplane.model.facts import Fact, FactKey, Mark, Plan
from netplane.model.services import (
    SERVICE_NAME,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
)


def service(name: str = "web", ips: Iterable[str] = ("10.96.0.1",), **spec: Any) -> Service:
    """``default/<name>`` with port 80 → 8080/TCP unless ``ports`` says otherwise."""
    ips = tuple(ips)
    spec.setdefault("ports", (ServicePort(port=80, target_port=8080),))
    spec.setdefault("cluster_ip", ips[0] if ips else "")
    labels, notes = spec.pop("labels", {}), spec.pop("annotations", {})
    meta = ObjectMeta(name=name, namespace="default", labels=labels, annotations=notes)
    return Service(metadata=meta, spec=ServiceSpec(cluster_ips=ips, **spec))


def endpoints(
    *addresses: str | Endpoint, of: str = "web", name: str = "", ports: Iterable[EndpointPort] = ()
) -> EndpointSlice:
    """A slice of ``default/<of>`` on port 8080/TCP unless ``ports`` says otherwise."""
    found = tuple(a if isinstance(a, Endpoint) else endpoint(a) for a in addresses)
    v6 = any(":" in e.addresses[0] for e in found)
    meta = ObjectMeta(
        name=name or f"{of}-{'v6' if v6 else 'v4'}", namespace="default", labels={SERVICE_NAME: of}
    )
    ports = tuple(ports) or (EndpointPort(port=8080),)
    return EndpointSlice(metadata=meta, address_type="IPv6" if v6 else "IPv4", endpoints=found, ports=ports)


def endpoint(address: str, node: str = "", **conditions: bool | None) -> Endpoint:
    return Endpoint(addresses=(address,), node_name=node, conditions=EndpointConditions(**conditions))


def load_balanced(*ips: str, mode: str = "") -> ServiceStatus:
    """The status that a load balancer gives a service: its addresses."""
    ingress = tuple(LoadBalancerIngress(ip=ip, ip_mode=mode) for ip in ips)
    return ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress))


def diff(held: Mapping[FactKey, Mark], wanted: Iterable[Fact]) -> Plan:
    """The plan that leads from what is held to exactly what is wanted."""
    facts = {fact.key: fact for fact in wanted}
    return Plan(
        add=tuple(f for key, f in facts.items() if key not in held),
        change=tuple(f for key, f in facts.items() if key in held and held[key] != f.mark),
        remove=tuple(key for key in held if key not in facts),
    )

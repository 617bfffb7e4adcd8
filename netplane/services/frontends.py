"""Where a service can be reached: every (address, protocol, port) that is its own, on this node.

Rule 1: a ClusterIP, an external IP, a load balancer's IP and a node port are the same thing, an
        address with a port. A node port is reached at the node's own addresses (the primary ones, or
        those that --node-port-addresses names), never at localhost.
Rule 2: headless and ExternalName services have none, nor has one that names another proxy, nor one
        that asks for what another service holds.
Rule 3: addresses are written as RFC 5952 has them, whatever form the objects use: what the kernel
        lists must be what was wanted.
Rule 4: an address of a family that the service is not served in is not its own.
Rule 5: dnsrr only changes what the DNS answers: a ClusterIP or node port that such a service holds
        works like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

from ..model.errors import Invalid
from ..model.services import HEADLESS, PROXY_NAME, PUBLISH_MODE, Service, ServicePort
from .address import canonical


class Frontend(NamedTuple):
    address: str
    protocol: str  # tcp, udp, sctp
    port: int
    external: bool  # reached from outside the cluster: not a ClusterIP
    local: bool  # traffic policy Local: only endpoints on this node
    guarded: bool = False  # has source ranges
    mesh: bool = False  # published in mode ingress: masquerade only towards other nodes
    host: bool = False  # published in mode host: not there at all without an endpoint on this node

    @property
    def key(self) -> tuple[str, str, int]:
        return self[:3]


def family(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def served(service: Service) -> bool:
    labels = service.labels
    skip = service.headless or service.spec.type == "ExternalName" or service.refused
    return not (skip or PROXY_NAME in labels or HEADLESS in labels)


def cluster_ips(service: Service) -> tuple[str, ...]:
    spec = service.spec
    return tuple(canonical(ip) for ip in spec.cluster_ips or (spec.cluster_ip,) if ip not in ("", "None"))


def families(service: Service) -> tuple[str, ...]:
    """The families a service is served in; a service that says nothing is served in both."""
    declared = service.spec.ip_families or tuple(map(family, cluster_ips(service)))
    return declared or ("IPv4", "IPv6")


def frontends(service: Service, port: ServicePort, node_ips: tuple[str, ...]) -> Iterator[Frontend]:
    """All frontends of one port of a served service; the first of equal ones counts."""
    known = families(service)
    return (found for found in _all(service, port, node_ips) if family(found.address) in known)


def _all(service: Service, port: ServicePort, node_ips: tuple[str, ...]) -> Iterator[Frontend]:
    spec, protocol = service.spec, port.protocol.lower()
    inside = spec.internal_traffic_policy == "Local"
    outside = spec.external_traffic_policy == "Local"
    mode = service.metadata.annotations.get(PUBLISH_MODE)
    mesh = mode == "ingress" and not outside
    for address in cluster_ips(service):
        yield Frontend(address, protocol, port.port, False, inside)
    guarded = bool(spec.load_balancer_source_ranges)
    for address in _ingress(service):  # before external IPs: an address that is both is guarded
        yield Frontend(address, protocol, port.port, True, outside, guarded, mesh)
    for address in spec.external_ips:
        yield Frontend(canonical(address), protocol, port.port, True, outside, mesh=mesh)
    if port.node_port and spec.type in ("NodePort", "LoadBalancer"):
        host = mode == "host"
        for address in node_ips:
            yield Frontend(address, protocol, port.node_port, True, outside, mesh=mesh, host=host)


def _ingress(service: Service) -> Iterator[str]:
    if service.spec.type == "LoadBalancer":
        for ingress in service.status.load_balancer.ingress:
            if ingress.ip and ingress.ip_mode != "Proxy":  # Proxy: KEP-1860, not ours to shortcut
                yield _address(ingress.ip, service)


def _address(text: str, service: Service) -> str:
    """In the form that the kernel gives back. Nobody checks a status that a load balancer writes."""
    try:
        return str(ip_address(text))
    except ValueError:
        raise Invalid(f"{service.key}: status.loadBalancer.ingress: {text!r} is no IP address") from None

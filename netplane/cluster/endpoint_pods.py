"""Which endpoint a Pod makes for a Service: address, port, conditions. Kubernetes' rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..model.errors import Invalid
from ..model.nodes import Node
from ..model.own import Attachment
from ..model.pods import Container, Pod
from ..model.selectors import subset
from ..model.services import (
    NEAR,
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    HintName,
    ObjectReference,
    Service,
    ServicePort,
)
from ..model.snapshot import Snapshot
from .config import ClusterConfig, family_of
from .families import BOTH, families

ZONE = "topology.kubernetes.io/zone"  # label of a Node


class Group(NamedTuple):
    """Endpoints that may share a slice: one family, and the same resolved ports."""

    family: str
    ports: tuple[EndpointPort, ...]


class Place(NamedTuple):
    """Where a pod is: its addresses by family, its node, and the node's zone."""

    ips: dict[str, str]
    node: str
    zone: str = ""


def pods_of(service: Service, snapshot: Snapshot) -> list[Pod]:
    """The pods that the selector means; costs what its rarest label costs."""
    selector = service.spec.selector
    pairs = [f"{service.namespace}/{k}={v}" for k, v in selector.items()]
    rarest = min(pairs, key=lambda pair: snapshot.count_by(Pod, "label", pair))
    return [p for p in snapshot.by(Pod, "label", rarest) if subset(selector, p.labels)]


def services_of(pod: Pod, snapshot: Snapshot) -> Iterator[Service]:
    """The services that select a pod, found by its labels alone."""
    for key, value in pod.labels.items():
        for service in snapshot.by(Service, "selector", f"{pod.namespace}/{key}={value}"):
            if subset(service.spec.selector, pod.labels):
                yield service


def wanted(service: Service, snapshot: Snapshot, config: ClusterConfig) -> dict[Group, list[Endpoint]]:
    """The endpoints of a service, grouped; pods by name within a group."""
    groups: dict[Group, list[Endpoint]] = {}
    names = _families(service, config)
    for pod in pods_of(service, snapshot):
        place = placed(pod, snapshot)
        for family in names:
            if family in place.ips and not pod.finished:
                group = Group(family, ports_of(service, pod))
                groups.setdefault(group, []).append(_endpoint(service, pod, place, family))
    return groups


def _families(service: Service, config: ClusterConfig) -> tuple[str, ...]:
    if service.spec.ip_families:
        return service.spec.ip_families
    try:
        return families(service, config.families).names
    except Invalid:  # said on the service by the addresses' controller
        return config.families or BOTH


def placed(pod: Pod, snapshot: Snapshot) -> Place:
    """From the pod's status; where nobody writes one, from its node or its CNI attachments."""
    ips, node = pod.ips, pod.spec.node_name
    if not ips and pod.spec.host_network:
        found = snapshot.get(Node, "", node)
        ips = found.internal_ips if found else ()
    elif not ips or not node:
        attachments = snapshot.by(Attachment, "pod", f"{pod.namespace}/{pod.name}")
        ready = [a for a in attachments if a.phase == "Ready"]
        for first in sorted(ready, key=lambda a: a.spec.ifname)[:1]:
            ips = ips or tuple(ip.address.partition("/")[0] for ip in first.spec.ips)
            node = node or first.spec.node
    by_family: dict[str, str] = {}
    for ip in ips:
        by_family.setdefault(family_of(ip), ip)
    return Place(by_family, node, zone_of(snapshot.get(Node, "", node)))


def zone_of(node: object) -> str:
    return node.labels.get(ZONE, "") if isinstance(node, Node) else ""


def _hints(service: Service, place: Place) -> EndpointHints | None:
    """For whom an endpoint is near (KEP-3015): its node, if that is asked for, and its zone."""
    wanted = service.spec.traffic_distribution
    nodes = (HintName(name=place.node),) if wanted == "PreferSameNode" and place.node else ()
    zones = (HintName(name=place.zone),) if wanted in NEAR and place.zone else ()
    return EndpointHints(for_nodes=nodes, for_zones=zones) if nodes or zones else None


def ports_of(service: Service, pod: Pod) -> tuple[EndpointPort, ...]:
    """The service's ports on this pod; a named target that the pod has not is left out."""
    resolved = ((port, _target(port, pod)) for port in service.spec.ports)
    return tuple(
        EndpointPort(name=p.name, protocol=p.protocol, port=number, app_protocol=p.app_protocol)
        for p, number in resolved
        if number
    )


def _target(port: ServicePort, pod: Pod) -> int:
    if isinstance(port.target_port, int):
        return port.target_port or port.port
    for container in _listeners(pod):
        for candidate in container.ports:
            if (candidate.name, candidate.protocol) == (port.target_port, port.protocol):
                return candidate.container_port
    return 0


def _listeners(pod: Pod) -> Sequence[Container]:
    sidecars = (c for c in pod.spec.init_containers if c.restart_policy == "Always")
    return (*pod.spec.containers, *sidecars)


def _endpoint(service: Service, pod: Pod, place: Place, family: str) -> Endpoint:
    serving, terminating = _ready(pod), pod.deleting
    ready = service.spec.publish_not_ready_addresses or (serving and not terminating)
    named = pod.spec.hostname and pod.spec.subdomain == service.name
    return Endpoint(
        addresses=(place.ips[family],),
        conditions=EndpointConditions(ready=ready, serving=serving, terminating=terminating),
        hostname=pod.spec.hostname if named else "",
        node_name=place.node,
        zone=place.zone,
        hints=_hints(service, place) if ready else None,
        target_ref=ObjectReference(
            kind=Pod.KIND, namespace=pod.namespace, name=pod.name, uid=pod.metadata.uid
        ),
    )


def _ready(pod: Pod) -> bool:
    """As Pod.ready, for pods whose address is known from elsewhere than their status."""
    if any(c.type == "Ready" for c in pod.status.conditions):
        return pod.ready
    return pod.status.phase in ("", "Running")

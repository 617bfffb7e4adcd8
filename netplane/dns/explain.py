"""Why a name answers what it answers: the objects behind it, in words. Pure.

The answer itself is made by the very functions that serve clients; only the reasons are found here.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from ..model.nodes import Namespace
from ..model.pods import Pod
from ..model.services import EndpointSlice, Service
from ..model.snapshot import Snapshot
from . import pods, swarm, wire
from .answer import Client
from .names import LocalNames
from .table import View
from .zone import cluster_ips


def explain(name: bytes, view: View, client: Client, names: LocalNames, snapshot: Snapshot) -> list[str]:
    """Lines for a name in wire form, lower case."""
    labels = wire.labels_of(name)
    if wire.within(name, view.apex):
        inner = labels[: len(labels) - len(wire.labels_of(view.apex))]
        return list(_inside(inner, view.find(name) is not None, names, snapshot))
    if name in view.names:
        return list(_reverse(labels, snapshot))
    pod = pods.pod_of(snapshot, client.address)
    if names.find(name, view, client) is None:
        who = f"client {client.address} is pod {pod.namespace}/{pod.name}" if pod else "the client is no pod"
        return ["not a name of the cluster: forwarded to the upstreams", who]
    if names.options.hosts.find(name) is not None:
        return ["from the hosts file"]
    assert pod is not None
    asks = f"pod {pod.namespace}/{pod.name} asks"
    service = snapshot.get(Service, pod.namespace, labels[-1])
    if service is None:
        return [f"{asks}: {labels[0]!r} is an alias in its network"]
    host = () if len(labels) == 1 else (labels[0],)
    return [
        f"{asks}: a short name means namespace {pod.namespace}",
        *_service(service, host, True, snapshot),
    ]


def _inside(labels: tuple[str, ...], known: bool, names: LocalNames, snapshot: Snapshot) -> Iterator[str]:
    """``labels`` without the domain's; ``known``: the table has the name."""
    if labels[-1:] == ("pod",):
        yield from _pod(labels[:-1], names.options.pods, snapshot)
    elif labels[-1:] != ("svc",):
        yield "the zone's own name" if known or not labels else "nothing of the zone has this name"
    elif len(labels) == 1:
        yield "the zone's own name: it holds the namespaces"
    elif len(labels) == 2:
        there = snapshot.get(Namespace, "", labels[0]) is not None
        yield f"namespace {labels[0]}: " + ("declared" if there else "declared by nobody")
    else:
        namespace, name, host = labels[-2], labels[-3], labels[:-3]
        service = snapshot.get(Service, namespace, name)
        if service is None:
            yield f"no Service {namespace}/{name}"
        else:
            yield from _service(service, host, known, snapshot)


def _pod(labels: tuple[str, ...], mode: str, snapshot: Snapshot) -> Iterator[str]:
    yield f"names of pods are {mode}"
    address = pods.undashed(labels[0]) if len(labels) == 2 else ""
    for pod in snapshot.by(Pod, "ip", address) if address else ():
        yield f"Pod {pod.namespace}/{pod.name} has {address}"


def _service(service: Service, host: tuple[str, ...], known: bool, snapshot: Snapshot) -> Iterator[str]:
    yield f"Service {service.namespace}/{service.name}, {_kind(service)}"
    if service.spec.type == "ExternalName":
        return
    if not host and cluster_ips(service) and not service.dnsrr:
        return
    if host and host[-1].startswith("_"):
        ports = ", ".join(f"{p.name or '(unnamed)'}/{p.protocol}" for p in service.spec.ports)
        yield f"ports: {ports or 'none'}; only named ones have SRV records"
    slices = snapshot.by(EndpointSlice, "service", f"{service.namespace}/{service.name}")
    for part in slices:
        ready = [a for e in part.endpoints if e.ready for a in e.addresses]
        waiting = [a for e in part.endpoints if not e.ready for a in e.addresses]
        also = f"; not ready, so not answered: {', '.join(waiting)}" if waiting else ""
        yield f"EndpointSlice {part.namespace}/{part.name}: ready {', '.join(ready) or 'none'}{also}"
    if not slices:
        yield "no EndpointSlice carries its label"
    if host == (swarm.TASKS,):
        yield "tasks: all ready endpoints, whatever the endpoint mode"
    elif len(host) == 1 and not known:
        yield f"no record {host[0]!r}: it must be a ready endpoint's hostname, or its address with dashes"


def _kind(service: Service) -> str:
    spec = service.spec
    if spec.type == "ExternalName":
        return f"ExternalName {spec.external_name}"
    if service.headless:
        return "headless: the ready endpoints answer"
    if service.dnsrr:
        return "endpoint mode dnsrr: the ready endpoints answer in turn"
    addresses = ", ".join(cluster_ips(service))
    return f"virtual IP {addresses}" if addresses else "no virtual IP is allocated yet"


def _reverse(labels: tuple[str, ...], snapshot: Snapshot) -> Iterator[str]:
    address = _address(labels)
    for service in snapshot.list(Service):
        if address in cluster_ips(service):
            yield f"virtual IP of Service {service.namespace}/{service.name}"
    for part in snapshot.list(EndpointSlice):
        service_of = snapshot.get(Service, part.namespace, part.service)
        if service_of and service_of.headless and any(address in e.addresses for e in part.endpoints):
            yield f"an endpoint of Service {part.namespace}/{part.service} ({part.name})"


def _address(labels: tuple[str, ...]) -> str:
    """The address of a reverse name."""
    parts = labels[:-2][::-1]
    if labels[-2:] == ("ip6", "arpa"):
        text = "".join(parts)
        return str(ip_address(":".join(text[i : i + 4] for i in range(0, 32, 4))))
    return ".".join(parts)

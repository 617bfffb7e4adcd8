"""Why a connection to a service goes where it goes: from the objects, with the facts that say so. Pure.

Rule 1: the answer follows the same functions that make the rules; only its words are its own.
Rule 2: it names every element that decides, so that the kernel can be asked for exactly these.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..model.base import Key
from ..model.errors import Invalid, NotFound
from ..model.facts import Element, Fact
from ..model.pods import Pod
from ..model.services import Service, ServicePort
from ..model.snapshot import Snapshot
from .endpoints import Backend, Choice
from .frontends import Frontend, cluster_ips, family, frontends, served
from .room import ROOM, ServicesRoom

PROTOCOLS = ("tcp", "udp", "sctp")


@dataclass
class Explanation:
    """``facts``: what the kernel must hold for the verdict to be true."""

    source: str
    destination: str
    verdict: str  # dnat, refuse, drop, pass
    reason: str
    service: str = ""
    endpoints: tuple[Backend, ...] = ()
    notes: list[str] = field(default_factory=list)
    facts: tuple[Element, ...] = ()


def explain(room: ServicesRoom, snapshot: Snapshot, source: str, destination: str) -> Explanation:
    """``source``: an address or a pod ([NAMESPACE/]NAME); ``destination``: [NAMESPACE/]SERVICE:PORT or
    IP:PORT, with /PROTOCOL (tcp). Raises Invalid, NotFound."""
    host, port, protocol = parse(destination)
    address = _vip(snapshot, host) if not _is_ip(host) else str(ipaddress.ip_address(host))
    number = _port(snapshot, host, port)
    client = _source(snapshot, source, family(address))
    target = f"{f'[{address}]' if ':' in address else address}:{number}/{protocol}"
    found = next(_matches(room, snapshot, (address, protocol, number)), None)
    if found is None:
        return _unserved(room, snapshot, client, target, address)
    service, service_port, frontend = found
    answer = _decide(room, snapshot, found, client, target)
    answer.service = f"{service.namespace}/{service.name}" + (
        f":{service_port.name}" if service_port.name else ""
    )
    answer.facts = tuple(_facts(room, snapshot, service, frontend, answer.endpoints))
    return answer


def parse(text: str) -> tuple[str, str, str]:
    """(host, port, protocol) of "web:80", "ns/web:http/udp", "10.0.0.1:53/udp", "[fd00::1]:80"."""
    rest, protocol = text, "tcp"
    head, slash, tail = text.rpartition("/")
    if slash and tail.lower() in PROTOCOLS:
        rest, protocol = head, tail.lower()
    host, colon, port = rest.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port:
        raise Invalid(f"{text!r} is not SERVICE:PORT or IP:PORT, with /PROTOCOL of {', '.join(PROTOCOLS)}")
    return host, port, protocol


def _decide(
    room: ServicesRoom,
    snapshot: Snapshot,
    found: tuple[Service, ServicePort, Frontend],
    client: str,
    target: str,
) -> Explanation:
    service, port, frontend = found
    choice = room.choice(service, port, family(frontend.address), snapshot)
    if frontend.guarded and not _within(client, service.spec.load_balancer_source_ranges):
        ranges = ", ".join(service.spec.load_balancer_source_ranges)
        return Explanation(client, target, "drop", f"{client} is not in loadBalancerSourceRanges {ranges}")
    if not choice.cluster and not choice.local:
        return Explanation(client, target, "refuse", "the service has no endpoint that could answer")
    inside = _within(client, room.cluster_cidrs) or client in room.node_ips
    local = (frontend.local or frontend.host) and not (frontend.local and frontend.external and inside)
    backends = choice.local if local else choice.cluster
    if not backends:
        where = f"none of its {len(choice.cluster)} endpoints is on {room.node}"
        return Explanation(client, target, "drop", f"traffic policy Local, and {where}")
    reason = f"one of {len(backends)} endpoints{' on this node (traffic policy Local)' if local else ''}"
    notes = list(_notes(room, service, frontend, choice, client, local))
    return Explanation(client, target, "dnat", reason, endpoints=tuple(backends), notes=notes)


def _notes(
    room: ServicesRoom, service: Service, frontend: Frontend, choice: Choice, client: str, local: bool
) -> Iterator[str]:
    for backend, why in sorted(room.ejected.get(f"{service.namespace}/{service.name}", {}).items()):
        address, port = backend
        if family(address) == family(frontend.address):
            tried = backend in (choice.local if local else choice.cluster)
            words = "would be out of rotation, but most endpoints fail" if tried else "is out of rotation"
            yield f"{address} port {port} {words}: {why}"
    if service.spec.session_affinity == "ClientIP":
        yield "session affinity: a client keeps its endpoint"
    outside = frontend.external and not local and not frontend.mesh
    kept = frontend.local and client not in room.node_ips  # a pod's, under externalTrafficPolicy Local
    if (outside and not kept) or (not frontend.external and not _within(client, room.cluster_cidrs)):
        yield "masqueraded: the endpoint sees this node's address"
    elif client in choice.nearby:
        yield "masqueraded if the client is drawn itself (hairpin)"


def _unserved(room: ServicesRoom, snapshot: Snapshot, client: str, target: str, address: str) -> Explanation:
    holder = next((s for s in snapshot.list(Service) if served(s) and address in cluster_ips(s)), None)
    if holder is not None:
        offered = ", ".join(f"{p.port}/{p.protocol.lower()}" for p in holder.spec.ports)
        name = f"{holder.namespace}/{holder.name}"
        return Explanation(client, target, "refuse", f"{name} has no such port; it has {offered}", name)
    if _within(address, room.service_cidrs):
        return Explanation(
            client, target, "drop", f"{address} is of the service range, and no service holds it"
        )
    return Explanation(client, target, "pass", f"{address} is no service's: routed as it is")


def _facts(
    room: ServicesRoom,
    snapshot: Snapshot,
    service: Service,
    frontend: Frontend,
    backends: tuple[Backend, ...],
) -> Iterator[Element]:
    """The elements that stand under this frontend, and those that lead to its endpoints."""
    from ..model.facts import Scope

    facts: list[Fact] = list(room.render(Scope(ROOM, f"{service.namespace}/{service.name}"), snapshot))
    values = {tuple(b) for b in backends}
    for fact in facts:
        if not isinstance(fact, Element) or fact.of.startswith("svc-sources"):
            continue  # ranges: the kernel keeps them cut to pieces
        if fact.item[:3] == frontend.key or (
            fact.item[:2] == (frontend.address, frontend.port) and fact.value in values
        ):
            yield fact


def _matches(
    room: ServicesRoom, snapshot: Snapshot, wanted: tuple[str, str, int]
) -> Iterator[tuple[Service, ServicePort, Frontend]]:
    for service in snapshot.list(Service):
        if served(service):
            for port in service.spec.ports:
                for frontend in frontends(service, port, room.node_port_ips):
                    if frontend.key == wanted:
                        yield service, port, frontend


def _vip(snapshot: Snapshot, host: str) -> str:
    service = _service(snapshot, host)
    found = cluster_ips(service)
    if not found:
        raise Invalid(f"service {host} has no cluster IP (headless or ExternalName); name an address")
    return found[0]


def _service(snapshot: Snapshot, host: str) -> Service:
    namespace, _, name = host.rpartition("/")
    service = snapshot.get(Service, namespace or "default", name)
    if service is None:
        raise NotFound(f"{Key('Service', namespace or 'default', name)} is not there")
    return service


def _port(snapshot: Snapshot, host: str, port: str) -> int:
    if port.isdigit():
        return int(port)
    for offered in _service(snapshot, host).spec.ports if not _is_ip(host) else ():
        if offered.name == port:
            return offered.port
    raise Invalid(f"{host} has no port named {port!r}")


def _source(snapshot: Snapshot, source: str, which: str) -> str:
    """The address that a source has in this family."""
    if _is_ip(source):
        return str(ipaddress.ip_address(source))
    namespace, _, name = source.rpartition("/")
    pod = snapshot.get(Pod, namespace or "default", name)
    if pod is None:
        raise NotFound(f"{Key('Pod', namespace or 'default', name)} is not there, and it is no address")
    for address in pod.ips:
        if family(address) == which:
            return address
    raise Invalid(f"pod {source} has no {which} address; it has {', '.join(pod.ips) or 'none'}")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _within(address: str, cidrs: tuple[str, ...]) -> bool:
    ip = ipaddress.ip_address(address)
    networks = (ipaddress.ip_network(c.strip(), strict=False) for c in cidrs)
    return any(ip in n for n in networks if n.version == ip.version)

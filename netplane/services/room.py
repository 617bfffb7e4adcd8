"""The services room: one scope for each Service, and two for what they share.

Scopes: "" the shared ruleset; "bridge-netfilter" the sysctls that let the node see replies between
pods on its bridge; "<namespace>/<name>" one service, its frontends and endpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..model import checks
from ..model.errors import Invalid
from ..model.facts import Element, Fact, Facts, Scope, Sysctl
from ..model.nodes import Node
from ..model.services import COUNT_PACKETS, HEADLESS, PROXY_NAME, EndpointSlice, Service, ServicePort
from ..model.snapshot import Snapshot
from . import chains, ejection, packets, watch
from .address import canonical
from .endpoints import Backend, Choice, choose
from .frontends import Frontend, cluster_ips, family, frontends, served
from .publish import Port
from .topology import ZONE
from .upkeep import upkeep

ROOM = "services"
BASE = Scope(ROOM)
BRIDGE = Scope(ROOM, "bridge-netfilter")


class ServicesRoom:
    """``node_ips``: this node's, where node ports answer unless ``node_port_ips`` names others. CIDRs:
    pods' and services', of both families.

    Raises Invalid for a CIDR that is none.
    """

    name = ROOM
    kinds = frozenset((Service.KIND, EndpointSlice.KIND, Node.KIND))

    def __init__(
        self,
        node: str,
        node_ips: Iterable[str] = (),
        cluster_cidrs: Iterable[str] = (),
        service_cidrs: Iterable[str] = (),
        bridge_netfilter: bool = True,
        node_port_ips: Iterable[str] | None = None,
    ) -> None:
        self.node = node
        self.node_ips = tuple(map(canonical, node_ips))
        self.node_port_ips = self.node_ips if node_port_ips is None else tuple(map(canonical, node_port_ips))
        self.cluster_cidrs = tuple(cluster_cidrs)
        self.service_cidrs = tuple(service_cidrs)
        self.bridge_netfilter = bridge_netfilter
        self.ejected: ejection.Ejected = {}  # replaced whole by the edge that watches (see ejector)
        for path in ("cluster_cidrs", "service_cidrs"):
            for fault in (f for cidr in getattr(self, path) for f in checks.cidr(path, cidr)):
                raise Invalid("services: {}: {}".format(*fault))

    def scopes(self, event: tuple[object, object] | None, snapshot: Snapshot) -> Iterable[Scope]:
        """The shared ruleset first: every service's elements need its maps."""
        if event is None:
            yield BASE
            if self.bridge_netfilter:
                yield BRIDGE
            yield from _every(snapshot)
            return
        if any(isinstance(obj, Node) for obj in event):
            if self._moved(event):
                yield from _every(snapshot)
            return
        names = {_service_of(obj) for obj in event}
        yield from (Scope(ROOM, name) for name in sorted(names - {""}))

    def _moved(self, event: tuple[object, object]) -> bool:
        """This node is in another zone now, so hints mean others."""
        zones = {o.labels.get(ZONE, "") for o in event if isinstance(o, Node) and o.name == self.node}
        return len(zones | {""} if None in event else zones) > 1

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        if scope == BASE:
            return chains.base(self.cluster_cidrs, self.service_cidrs)
        if scope == BRIDGE:
            return bridge_netfilter()
        namespace, _, name = scope.name.partition("/")
        service = snapshot.get(Service, namespace, name)
        if service is None or not served(service):
            return ()
        return self._service(service, snapshot)

    def _service(self, service: Service, snapshot: Snapshot) -> Iterator[Fact]:
        ejects = ejection.rule(service) is not None
        for address in cluster_ips(service):
            yield Element(f"svc-cluster-ips{'6' if ':' in address else '4'}", (address,))
        seen: dict[tuple[str, str, int], tuple[str, Frontend]] = {}
        for port in service.spec.ports:
            for which, mine in self._reached(service, port, seen).items():
                choice = self._choice(service, port, which, snapshot)
                if ejects and port.protocol == "TCP":
                    yield from watch.facts(which, {*choice.cluster, *choice.local})
                yield from Port(service, self._left(service, port, choice), mine, self.node_ips).facts()
        yield from upkeep(service, _slices(service, snapshot), seen.values(), self.node)
        if service.metadata.annotations.get(COUNT_PACKETS) == "on":
            yield from packets.facts(frontend for _, frontend in seen.values())

    def _reached(
        self, service: Service, port: ServicePort, seen: dict[tuple[str, str, int], tuple[str, Frontend]]
    ) -> dict[str, list[Frontend]]:
        """A port's frontends by family, without those that ``seen`` knows already, and into it."""
        reached: dict[str, list[Frontend]] = {}
        for frontend in frontends(service, port, self.node_port_ips):
            if frontend.key not in seen:
                seen[frontend.key] = port.name, frontend
                reached.setdefault(family(frontend.address), []).append(frontend)
        return reached

    def choice(self, service: Service, port: ServicePort, which: str, snapshot: Snapshot) -> Choice:
        """The endpoints that answer for a port in a family ("IPv4", "IPv6") on this node, now."""
        return self._left(service, port, self._choice(service, port, which, snapshot))

    def _choice(self, service: Service, port: ServicePort, which: str, snapshot: Snapshot) -> Choice:
        own = snapshot.get(Node, "", self.node)
        zone = own.labels.get(ZONE, "") if own else ""
        return choose(_slices(service, snapshot), port, which, self.node, zone)

    def _left(self, service: Service, port: ServicePort, choice: Choice) -> Choice:
        out = self.ejected.get(f"{service.namespace}/{service.name}")
        return ejection.without(choice, out) if out and port.protocol == "TCP" else choice

    def watched(self, service: Service, snapshot: Snapshot) -> set[Backend]:
        """The endpoints that may be ejected, whether they are or not."""
        return self._backends(service, snapshot, self._choice)

    def tried(self, service: Service, snapshot: Snapshot) -> set[Backend]:
        """Those of them that connections are sent to now."""
        return self._backends(service, snapshot, self.choice)

    def _backends(self, service: Service, snapshot: Snapshot, choice: Callable[..., Choice]) -> set[Backend]:
        found: set[Backend] = set()
        for port in service.spec.ports if served(service) else ():
            for which in ("IPv4", "IPv6") if port.protocol == "TCP" else ():
                chosen = choice(service, port, which, snapshot)
                found |= {*chosen.cluster, *chosen.local}
        return found


def _slices(service: Service, snapshot: Snapshot) -> tuple[EndpointSlice, ...]:
    """Without those that are labelled as another proxy's, as a service is."""
    found = snapshot.by(EndpointSlice, "service", f"{service.namespace}/{service.name}")
    return tuple(s for s in found if not (PROXY_NAME in s.labels or HEADLESS in s.labels))


def bridge_netfilter() -> Iterator[Sysctl]:
    """Replies between two pods of one bridge must pass conntrack, or their DNAT is not undone.

    Both are the kernel's default in each namespace (5.3); somebody may have turned them off.
    """
    for name in ("iptables", "ip6tables"):
        yield Sysctl(f"net/bridge/bridge-nf-call-{name}", "1")


def _every(snapshot: Snapshot) -> Iterator[Scope]:
    return (Scope(ROOM, f"{service.namespace}/{service.name}") for service in snapshot.list(Service))


def _service_of(obj: object) -> str:
    if isinstance(obj, Service):
        return f"{obj.namespace}/{obj.name}"
    if isinstance(obj, EndpointSlice) and obj.service:
        return f"{obj.namespace}/{obj.service}"
    return ""

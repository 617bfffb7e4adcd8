"""The services room: one scope for each Service, and two for what they share.

Scopes: "" the shared ruleset; "bridge-netfilter" the sysctls that let the node see replies between
pods on its bridge; "<namespace>/<name>" one service, its frontends and endpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..model import checks
from ..model.errors import Invalid
from ..model.facts import Element, Fact, Facts, Scope, Sysctl
from ..model.services import EndpointSlice, Service, ServicePort
from ..model.snapshot import Snapshot
from . import chains
from .endpoints import Choice, choose
from .frontends import Frontend, cluster_ips, families, family, frontends, served
from .upkeep import upkeep

ROOM = "services"
BASE = Scope(ROOM)
BRIDGE = Scope(ROOM, "bridge-netfilter")


class ServicesRoom:
    """``node_ips``: where node ports answer. CIDRs: pods' and services', of both families.

    Raises Invalid for a CIDR that is none.
    """

    name = ROOM

    def __init__(
        self,
        node: str,
        node_ips: Iterable[str] = (),
        cluster_cidrs: Iterable[str] = (),
        service_cidrs: Iterable[str] = (),
        bridge_netfilter: bool = True,
    ) -> None:
        self.node = node
        self.node_ips = tuple(node_ips)
        self.cluster_cidrs = tuple(cluster_cidrs)
        self.service_cidrs = tuple(service_cidrs)
        self.bridge_netfilter = bridge_netfilter
        for path in ("cluster_cidrs", "service_cidrs"):
            for fault in (f for cidr in getattr(self, path) for f in checks.cidr(path, cidr)):
                raise Invalid("services: {}: {}".format(*fault))

    def scopes(self, event: tuple[object, object] | None, snapshot: Snapshot) -> Iterable[Scope]:
        """The shared ruleset first: every service's elements need its maps."""
        if event is None:
            yield BASE
            if self.bridge_netfilter:
                yield BRIDGE
            for service in snapshot.list(Service):
                yield Scope(ROOM, f"{service.namespace}/{service.name}")
            return
        names = {_service_of(obj) for obj in event}
        yield from (Scope(ROOM, name) for name in sorted(names - {""}))

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        if scope == BASE:
            return chains.base(self.cluster_cidrs, self.service_cidrs)
        if scope == BRIDGE:
            return bridge_netfilter()
        namespace, _, name = scope.name.partition("/")
        service = snapshot.get(Service, namespace, name)
        if service is None or not served(service):
            return ()
        slices = snapshot.by(EndpointSlice, "service", scope.name)
        return self._service(service, slices)

    def _service(self, service: Service, slices: tuple[EndpointSlice, ...]) -> Iterator[Fact]:
        for address in cluster_ips(service):
            yield Element(f"svc-cluster-ips{_digit(address)}", (address,))
        seen: dict[tuple[str | int, ...], tuple[str, Frontend]] = {}
        for port in service.spec.ports:
            choices: dict[str, Choice] = {}
            for frontend in frontends(service, port, self.node_ips):
                if frontend[:3] not in seen:
                    seen[frontend[:3]] = port.name, frontend
                    yield from frontend_facts(frontend, self._choice(frontend, choices, slices, port))
            for which in families(service):
                yield from hairpin_facts(choices.get(which, Choice()))
        yield from upkeep(service, slices, seen.values(), self.node)

    def _choice(
        self,
        frontend: Frontend,
        choices: dict[str, Choice],
        slices: tuple[EndpointSlice, ...],
        port: ServicePort,
    ) -> Choice:
        which = family(frontend.address)
        if which not in choices:
            choices[which] = choose(slices, port, which, self.node)
        return choices[which]


def frontend_facts(frontend: Frontend, choice: Choice) -> Iterator[Fact]:
    """One frontend: its class, the chain that this leads to, and a slot for each endpoint."""
    address, protocol, port = key = frontend[:3]
    which, services = family(address), f"svc-services{_digit(address)}"
    backends = choice.local if frontend.local else choice.cluster
    if not backends:
        # nobody anywhere: say so at once; nobody here alone: drop, another node may answer
        yield Element(services, key, (chains.DROPPED if choice.cluster else chains.REFUSED,))
        return
    count, outside = len(backends), frontend.external and not frontend.local
    yield from chains.ways(which, protocol, count, outside)
    yield Element(services, key, (chains.klass(chains.EXT if outside else chains.LB, count),))
    table = chains.endpoints(which, protocol)
    for slot, backend in enumerate(backends):
        yield Element(table, (address, port, slot), (backend.address, backend.port))


def hairpin_facts(choice: Choice) -> Iterator[Element]:
    """Pods of this node that could reach themselves: only their own flows to them are masked."""
    for address in choice.nearby:
        yield Element(f"svc-hairpin{_digit(address)}", (address, address))


def bridge_netfilter() -> Iterator[Sysctl]:
    """Replies between two pods of one bridge must pass conntrack, or their DNAT is not undone.

    Both are the kernel's default in each namespace (5.3); somebody may have turned them off.
    """
    for name in ("iptables", "ip6tables"):
        yield Sysctl(f"net/bridge/bridge-nf-call-{name}", "1")


def _service_of(obj: object) -> str:
    if isinstance(obj, Service):
        return f"{obj.namespace}/{obj.name}"
    if isinstance(obj, EndpointSlice) and obj.service:
        return f"{obj.namespace}/{obj.service}"
    return ""


def _digit(address: str) -> str:
    return "6" if ":" in address else "4"

"""What one Service wants, and what it gets: an address per family, a port per node port.

Pure and local: reads the service, its own claims, and the names that it tries.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

from ..model.base import amend
from ..model.errors import Invalid
from ..model.own import Allocation
from ..model.services import Service, ServicePort, ServiceSpec
from ..model.snapshot import Snapshot
from . import claims
from .claims import Claim, claim_name
from .config import ClusterConfig, family_of, network
from .families import families, requested_ips

HEALTH = "health"  # purpose: spec.healthCheckNodePort
OPEN = ("NodePort", "LoadBalancer")


class Ask(NamedTuple):
    """One service and what its wants are decided on."""

    service: Service
    held: tuple[Allocation, ...]
    snapshot: Snapshot
    config: ClusterConfig

    def taken(self, type_: str, value: str) -> str:
        return claims.taken_by(self.snapshot, claim_name(type_, value), self.service)


class Grant(NamedTuple):
    """``spec`` is to be written and ``claims`` made when nothing was refused; ``keep`` in any case."""

    spec: ServiceSpec
    claims: tuple[Claim, ...] = ()
    refusals: tuple[str, ...] = ()
    keep: frozenset[str] = frozenset()  # names of Allocations


def grant(ask: Ask) -> Grant:
    """Decide all wants of a service."""
    spec = ask.service.spec
    if spec.type == "ExternalName":
        return Grant(amend(spec, cluster_ip="", cluster_ips=(), ip_families=(), ip_family_policy=""))
    spec, addresses, refusals = _grant_addresses(ask)
    spec, ports, more = _grant_ports(ask, spec)
    wanted = (*addresses, *ports)
    keep = frozenset(claim.name for claim in wanted)
    if refusals or more:
        keep |= _in_use(ask)
    return Grant(spec, wanted, (*refusals, *more), keep)


def _in_use(ask: Ask) -> frozenset[str]:
    """What the spec names and the service holds: a refusal of one thing costs it no other."""
    spec = ask.service.spec
    named = {*requested_ips(spec), *(str(p.node_port) for p in spec.ports)}
    named.add(str(spec.health_check_node_port))
    return frozenset(held.name for held in ask.held if held.spec.value in named)


# --- addresses --------------------------------------------------------------------------------


def _grant_addresses(ask: Ask) -> tuple[ServiceSpec, list[Claim], list[str]]:
    spec = ask.service.spec
    granted: list[Claim] = []
    refusals: list[str] = []
    try:
        names, policy = families(ask.service, ask.config.families)
    except Invalid as exc:
        return spec, [], [str(exc)]
    spec = amend(spec, ip_families=names, ip_family_policy=policy)
    if ask.service.headless:
        return amend(spec, cluster_ips=("None",)), [], []
    requested = {family_of(ip): ip for ip in requested_ips(spec)}
    for name in names:
        try:
            granted.append(_address(ask, name, requested.get(name, "")))
        except Invalid as exc:
            refusals.append(str(exc))
    if not refusals:
        ips = tuple(claim.value for claim in granted)
        spec = amend(spec, cluster_ip=ips[0], cluster_ips=ips)
    return spec, granted, refusals


def _address(ask: Ask, family: str, requested: str) -> Claim:
    """The claim of this family's ClusterIP. Raises Invalid saying why there is none."""
    cidr = ask.config.service_cidr(family)
    if requested:
        return _requested_address(ask, requested, cidr)
    for held in ask.held:
        if held.name.startswith("clusterip.") and _usable(held.spec.value, cidr):
            return Claim("clusterip", held.spec.value)
    base, size = int(network(cidr).network_address) + 1, _size(cidr)
    make = type(network(cidr).network_address)
    seed = f"{ask.service.namespace}/{ask.service.name}"
    static = claims.static_band(size, 16, 256)
    offset = claims.first_free(
        size, static, seed, lambda i: bool(ask.taken("clusterip", str(make(base + i))))
    )
    if offset is None:
        raise Invalid(f"spec.clusterIP: service CIDR {cidr} is exhausted: {size} of {size} addresses in use")
    return Claim("clusterip", str(make(base + offset)))


def _requested_address(ask: Ask, requested: str, cidr: str) -> Claim:
    if not _usable(requested, cidr):
        raise Invalid(f"spec.clusterIP: {requested} is not a usable address of service CIDR {cidr}")
    holder = ask.taken("clusterip", requested)
    if holder:
        raise Invalid(f"spec.clusterIP: {requested} is taken by {holder}")
    return Claim("clusterip", requested, settled=True)


def _size(cidr: str) -> int:
    """Addresses to give: all but the first, and but IPv4's broadcast address."""
    return network(cidr).num_addresses - (2 if network(cidr).version == 4 else 1)


def _usable(address: str, cidr: str) -> bool:
    if family_of(address) != family_of(cidr):
        return False
    net = network(cidr)
    number = int(ip_address(address))  # not `network`, which would remember it
    return 0 < number - int(net.network_address) <= _size(cidr)


# --- node ports -------------------------------------------------------------------------------


class PortWant(NamedTuple):
    where: str
    protocol: str  # tcp, udp, sctp
    requested: int
    purpose: str
    seed: str


def _wants(service: Service) -> list[PortWant]:
    spec = service.spec
    if spec.type not in OPEN:
        return []
    automatic = spec.type == "NodePort" or spec.allocate_load_balancer_node_ports
    found = []
    for i, port in enumerate(spec.ports):
        if automatic or port.node_port:
            protocol = port.protocol.lower()
            seed = f"{service.namespace}/{service.name}:{port.port}"
            where, purpose = f"spec.ports[{i}].nodePort", f"{protocol}/{port.port}"
            found.append(PortWant(where, protocol, port.node_port, purpose, seed))
    if spec.type == "LoadBalancer" and spec.external_traffic_policy == "Local":
        seed = f"{service.namespace}/{service.name}:{HEALTH}"
        asked = spec.health_check_node_port
        found.append(PortWant("spec.healthCheckNodePort", "tcp", asked, HEALTH, seed))
    return found


def _grant_ports(ask: Ask, spec: ServiceSpec) -> tuple[ServiceSpec, list[Claim], list[str]]:
    wants = _wants(ask.service)
    got: dict[str, Claim] = {}
    refusals: list[str] = []
    passes = (_requested_port, _held_port, _sibling_port, _new_port)  # in this order, over all ports
    for attempt in passes:
        for want in wants:
            if want.purpose in got:
                continue
            try:
                claim = attempt(ask, want, {c.name for c in got.values()})
            except Invalid as exc:
                refusals.append(f"{want.where}: {exc}")
                continue
            if claim:
                got[want.purpose] = claim
        if refusals:
            break
    if not refusals:
        spec = _with_ports(spec, {purpose: int(claim.value) for purpose, claim in got.items()})
    return spec, list(got.values()), refusals


def _requested_port(ask: Ask, want: PortWant, used: set[str]) -> Claim | None:
    low, high = ask.config.node_port_range
    if not want.requested:
        return None
    if not low <= want.requested <= high:
        raise Invalid(f"{want.requested} is outside of the node port range {low}-{high}")
    claim = Claim(f"nodeport.{want.protocol}", str(want.requested), want.purpose, settled=True)
    if claim.name in used:
        raise Invalid(f"{want.requested}/{want.protocol} stands twice in this service")
    holder = ask.taken(claim.type, claim.value)
    if holder:
        raise Invalid(f"{want.requested}/{want.protocol} is taken by {holder}")
    return claim


def _held_port(ask: Ask, want: PortWant, used: set[str]) -> Claim | None:
    """The port that this want got before."""
    low, high = ask.config.node_port_range
    for held in ask.held:
        type_ = f"nodeport.{want.protocol}"
        mine = held.spec.purpose == want.purpose and held.name.startswith(f"{type_}.")
        if mine and held.name not in used and low <= int(held.spec.value) <= high:
            return Claim(type_, held.spec.value, want.purpose)
    return None


def _sibling_port(ask: Ask, want: PortWant, used: set[str]) -> Claim | None:
    """The port that the manifest names for the same number in another protocol, as Kubernetes has it."""
    type_, (_, _, number) = f"nodeport.{want.protocol}", want.purpose.partition("/")
    for port in ask.service.spec.ports:
        value = str(port.node_port)
        free = claim_name(type_, value) not in used and not ask.taken(type_, value)
        if port.node_port and str(port.port) == number and free:
            return Claim(type_, value, want.purpose)
    return None


def _new_port(ask: Ask, want: PortWant, used: set[str]) -> Claim | None:
    low, high = ask.config.node_port_range
    type_, size = f"nodeport.{want.protocol}", high - low + 1

    def taken(offset: int) -> bool:
        value = str(low + offset)
        return claim_name(type_, value) in used or bool(ask.taken(type_, value))

    offset = claims.first_free(size, claims.static_band(size, 32, 128), want.seed, taken)
    if offset is None:
        raise Invalid(
            f"node port range {low}-{high} is exhausted: {size} of {size} {want.protocol} ports in use"
        )
    return Claim(type_, str(low + offset), want.purpose)


def _with_ports(spec: ServiceSpec, got: dict[str, int]) -> ServiceSpec:
    def filled(port: ServicePort) -> ServicePort:
        granted = got.get(f"{port.protocol.lower()}/{port.port}", 0)
        return port if port.node_port == granted else amend(port, node_port=granted)

    ports = tuple(filled(port) for port in spec.ports)
    written: ServiceSpec = amend(spec, ports=ports, health_check_node_port=got.get(HEALTH, 0))
    return written

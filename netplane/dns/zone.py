"""Services and endpoints into the records of the cluster's zone (Kubernetes DNS specification 1.1.0). Pure.

Rule 1: a service's forward names all lie under its own name, so no two services ever claim one record;
        an address may belong to several, so a PTR record carries its owner.
Rule 2: a virtual IP answers with or without endpoints. Without one (headless, or endpoint-mode dnsrr)
        the ready endpoints answer in turn, and the name exists only while there are any.
Rule 3: scopes are "namespace/service", "namespace" (which makes its empty name exist) and "" (the zone).

Reference: https://github.com/kubernetes/dns/blob/master/docs/specification.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, ClassVar, NamedTuple

from ..model import checks
from ..model.errors import Invalid
from ..model.facts import Address, Chain, Fact, Facts, Record, Scope
from ..model.nodes import Namespace, Node
from ..model.services import EndpointSlice, Service
from ..model.snapshot import Snapshot
from . import notrack, wire

VERSION = "1.1.0"  # of the specification
MAX_TTL = 3600  # CoreDNS' bound
MAX_DOMAIN = 58  # so that hostname.service.namespace.svc.domain, of labels of 63, fits into 253
MAX_PORT_NAME = 62  # "_" makes it a label of 63


class Target(NamedTuple):
    """One address of a ready endpoint: the name that stands for it under its service."""

    name: str
    address: str


@dataclass(frozen=True)
class DnsRoom:
    """The Room "dns". ``ttl`` in seconds, 0 to 3600; ``negative_ttl`` is that of denials, None: the same.

    Raises Invalid for a domain or TTL that cannot be.

    ``addresses``: where this node's server answers, for the zone's NS record; by default the gateways
    of the node's pod CIDRs. Those of ``held`` are nobody's but this server's (a link-local address, one
    of the service range): they are set on ``link``, once the node has pod CIDRs and so the link.
    ``notrack``: where it listens, so that conntrack is passed by; (): at these gateways, port 53; None:
    it is not.
    """

    node: str
    domain: str = "cluster.local"
    ttl: int = 5
    addresses: tuple[str, ...] = ()
    negative_ttl: int | None = None
    held: tuple[str, ...] = ()
    link: str = ""
    notrack: tuple[tuple[str, int], ...] | None = None
    name: ClassVar[str] = "dns"
    kinds: ClassVar[frozenset[str]] = frozenset(
        kind.KIND for kind in (Service, EndpointSlice, Namespace, Node)
    )

    def __post_init__(self) -> None:
        for _, reason in checks.dns_subdomain("domain", self.domain):
            raise Invalid(f"cluster domain: {reason}")
        if len(self.domain) > MAX_DOMAIN:
            raise Invalid(f"cluster domain {self.domain!r}: more than {MAX_DOMAIN} characters leave no room")
        for ttl in (self.ttl, self.negative_ttl or 0):
            if not 0 <= ttl <= MAX_TTL:
                raise Invalid(f"DNS TTL {ttl}: it must be 0 to {MAX_TTL} seconds")

    def scopes(self, event: Any, snapshot: Snapshot) -> Iterable[Scope]:
        """The scopes of an event (any object with ``old`` and ``new``), or all for None."""
        if event is None:
            return self._all(snapshot)
        found = (self._touched(obj, snapshot) for obj in (event.old, event.new) if obj is not None)
        return dict.fromkeys(scope for scopes in found for scope in scopes)

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        return tuple(self._render(scope, snapshot))  # so that Invalid is raised here and now

    def _render(self, scope: Scope, snapshot: Snapshot) -> Iterable[Fact]:
        if not scope.name:
            return (*self._zone(snapshot), *self._held(snapshot), *self._untracked(snapshot))
        namespace, _, name = scope.name.partition("/")
        if not name:
            known = snapshot.get(Namespace, "", namespace)
            return [self._record(f"{namespace}.svc", "A", ())] if known else []
        service = snapshot.get(Service, namespace, name)
        return self._service(service, scope.name, snapshot) if service else []

    # --- which scopes ---------------------------------------------------------------------------

    def _all(self, snapshot: Snapshot) -> Iterator[Scope]:
        yield Scope(self.name)
        for namespace in snapshot.list(Namespace):
            yield Scope(self.name, namespace.name)
        for service in snapshot.list(Service):
            yield Scope(self.name, f"{service.namespace}/{service.name}")

    def _touched(self, obj: object, snapshot: Snapshot) -> Iterator[Scope]:
        if isinstance(obj, Service):
            yield Scope(self.name, f"{obj.namespace}/{obj.name}")
        elif isinstance(obj, EndpointSlice) and obj.service:
            service = snapshot.get(Service, obj.namespace, obj.service)
            if service is not None and _by_endpoint(service):  # a virtual IP's answer is the same
                yield Scope(self.name, f"{obj.namespace}/{obj.service}")
        elif isinstance(obj, Namespace):
            yield Scope(self.name, obj.name)
        elif isinstance(obj, Node) and obj.name == self.node:
            yield Scope(self.name)

    # --- what they hold -------------------------------------------------------------------------

    def _record(self, name: str, kind: str, data: Iterable[str], rotate: bool = False) -> Record:
        """A record of the zone; ``name`` is relative to the domain, "" the domain itself."""
        absolute = f"{name}.{self.domain}" if name else self.domain
        return Record(absolute, kind, tuple(data), self.ttl, rotate)

    def _addresses(self, name: str, addresses: Iterable[str], rotate: bool = False) -> Iterator[Record]:
        families: dict[str, dict[str, None]] = {}
        for address in addresses:
            families.setdefault("AAAA" if ":" in address else "A", {})[address] = None
        for kind, found in families.items():
            yield self._record(name, kind, sorted(found), rotate)

    def _zone(self, snapshot: Snapshot) -> Iterator[Record]:
        """The apex. The serial stands still: nobody transfers this zone."""
        host = f"ns.dns.{self.domain}"
        ttl = self.ttl if self.negative_ttl is None else self.negative_ttl
        numbers = f"1 7200 1800 86400 {ttl}"  # the last one is how long a denial may be kept (RFC 2308)
        yield Record(self.domain, "SOA", (f"{host} hostmaster.{self.domain} {numbers}",), ttl)
        yield self._record("", "NS", (host,))
        yield self._record("dns-version", "TXT", (VERSION,))
        yield self._record("svc", "A", ())
        yield from self._addresses("ns.dns", self.addresses or self._gateways(snapshot))

    def _untracked(self, snapshot: Snapshot) -> Iterator[Chain]:
        if self.notrack is not None:
            listen = self.notrack or tuple((ip, 53) for ip in self._gateways(snapshot))
            yield from notrack.chains(listen)

    def _held(self, snapshot: Snapshot) -> Iterator[Fact]:
        node = snapshot.get(Node, "", self.node)
        for address in self.held if node and node.pod_cidrs else ():
            yield Address(link=self.link, address=f"{address}/{128 if ':' in address else 32}")

    def _gateways(self, snapshot: Snapshot) -> Iterator[str]:
        node = snapshot.get(Node, "", self.node)
        for cidr in node.pod_cidrs if node else ():
            network = ip_network(cidr)
            if network.num_addresses > 1:
                yield str(network[1])

    def _service(self, service: Service, owner: str, snapshot: Snapshot) -> Iterator[Record]:
        name = f"{service.name}.{service.namespace}.svc"
        if service.spec.type == "ExternalName":
            yield self._record(name, "CNAME", (_external(service),))
            return
        vips = cluster_ips(service)
        yield from self._reverse(owner, [Target(name, vip) for vip in vips])
        if _by_endpoint(service):
            yield from self._endpoints(service, owner, snapshot)
        elif vips:
            yield from self._addresses(name, vips)
            ports = ((p.name, p.protocol, p.port, name) for p in service.spec.ports for _ in vips)
            yield from self._srv(name, ports)

    def _endpoints(self, service: Service, owner: str, snapshot: Snapshot) -> Iterator[Record]:
        name = f"{service.name}.{service.namespace}.svc"
        slices = snapshot.by(EndpointSlice, "service", owner)
        every: list[Target] = []
        ports: list[tuple[str, str, int, str]] = []
        for part in slices:
            targets = list(ready_targets(part, name))
            every += targets
            named = [(p.name, p.protocol, p.port) for p in part.ports if p.port is not None]
            ports += [(*port, target.name) for port in named for target in targets]
        yield from self._addresses(name, (t.address for t in every), rotate=True)
        by_name: dict[str, list[str]] = {}
        for target in every:
            by_name.setdefault(target.name, []).append(target.address)
        for host, addresses in by_name.items():
            yield from self._addresses(host, addresses, rotate=True)
        yield from self._srv(name, ports, rotate=True)
        if service.headless:
            yield from self._reverse(owner, every)

    def _srv(
        self, name: str, ports: Iterable[tuple[str, str, int, str]], rotate: bool = False
    ) -> Iterator[Record]:
        """(port name, protocol, port, target) as SRV sets; unnamed ports have none (2.3.2, 2.4.2).

        The weight shares 100 among the addresses, as CoreDNS does: a target with two counts twice.
        """
        sets: dict[str, list[tuple[int, str]]] = {}
        for port_name, protocol, port, target in ports:
            if port_name and len(port_name) <= MAX_PORT_NAME:
                sets.setdefault(f"_{port_name}._{protocol}".lower(), []).append((port, target))
        for service, targets in sets.items():
            weight = max(1, 100 // len(targets))
            data = (f"0 {weight} {port} {target}.{self.domain}" for port, target in sorted(set(targets)))
            yield self._record(f"{service}.{name}", "SRV", data, rotate)

    def _reverse(self, owner: str, targets: Iterable[Target]) -> Iterator[Record]:
        """PTR records, one fact per address of the service "namespace/name" (2.3.3, 2.4.3)."""
        names: dict[str, dict[str, None]] = {}
        for target in targets:
            names.setdefault(target.address, {})[f"{target.name}.{self.domain}"] = None
        for address, found in names.items():
            pointer = ip_address(address).reverse_pointer
            yield Record(pointer, "PTR", tuple(sorted(found)), self.ttl, owner=owner)


class ReplaceableRoom:
    """The Room "dns" whose settings a new configuration replaces: set ``current``, then render all."""

    name: ClassVar[str] = "dns"
    kinds: ClassVar[frozenset[str]] = DnsRoom.kinds

    def __init__(self, current: DnsRoom) -> None:
        self.current = current

    def scopes(self, event: Any, snapshot: Snapshot) -> Iterable[Scope]:
        return self.current.scopes(event, snapshot)

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        return self.current.render(scope, snapshot)


def cluster_ips(service: Service) -> tuple[str, ...]:
    """The virtual IPs; none for a headless service, before they are allocated, or when they were refused:
    an address that it only asks for is somebody else's."""
    if service.refused:
        return ()
    spec = service.spec
    return tuple(ip for ip in spec.cluster_ips or (spec.cluster_ip,) if ip not in ("", "None"))


def _external(service: Service) -> str:
    """The target of an ExternalName; the API lets labels of more than 63 pass."""
    target = service.spec.external_name.rstrip(".").lower()
    try:
        wire.name(target)
    except Invalid as exc:
        raise Invalid(f"{service.key}: spec.externalName: {exc}") from None
    return target


def _by_endpoint(service: Service) -> bool:
    return service.spec.type != "ExternalName" and (service.headless or service.dnsrr)


def ready_targets(part: EndpointSlice, service: str) -> Iterator[Target]:
    """The ready endpoints' addresses, named by hostname or else by the address with dashes (2.1)."""
    if part.address_type == "FQDN":
        return
    for endpoint in part.endpoints:
        for address in endpoint.addresses if endpoint.ready else ():
            host = endpoint.hostname or address.replace(".", "-").replace(":", "-")
            host += "0" * host.endswith("-")  # fd01::, as CoreDNS does: no host's name ends so (RFC 1123 2.1)
            yield Target(f"{host}.{service}", address)

"""Service (v1) and EndpointSlice (discovery.k8s.io/v1): what clients ask for, and who answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from msgspec import field

from . import checks
from .base import Fault, Object, Struct
from .own import ALLOCATED

SERVICE_NAME = "kubernetes.io/service-name"  # label: the Service of an EndpointSlice
PROXY_NAME = "service.kubernetes.io/service-proxy-name"  # label: another proxy serves it
HEADLESS = "service.kubernetes.io/headless"  # label: no proxy serves it
ENDPOINT_MODE = "netplane.io/endpoint-mode"  # annotation: vip (default) or dnsrr
PUBLISH_MODE = "netplane.io/publish-mode"  # annotation: ingress or host (Swarm's words)
LOAD_BALANCING = "netplane.io/load-balancing"  # annotation: random (default) or maglev
MAGLEV_SLOTS = "netplane.io/maglev-slots"  # annotation: a prime number
PASSIVE_EJECTION = "netplane.io/passive-ejection"  # annotation: off (default) or on
EJECTION_FAILURES = "netplane.io/ejection-failures"  # annotation: connections in a row, default 5
EJECTION_SECONDS = "netplane.io/ejection-seconds"  # annotation: the first time out, default 30
COUNT_PACKETS = "netplane.io/count-packets"  # annotation: off (default) or on


class ServicePort(Struct, frozen=True, kw_only=True):
    name: str = ""
    protocol: str = "TCP"
    app_protocol: str = ""
    port: int
    target_port: int | str = 0  # 0: the same as port
    node_port: int = 0

    def check(self, path: str) -> Iterator[Fault]:
        yield from checks.port(f"{path}.port", self.port)
        yield from checks.one_of(f"{path}.protocol", self.protocol, checks.PROTOCOLS)
        if self.name:
            yield from checks.dns_label(f"{path}.name", self.name)
        if self.target_port != 0:
            yield from checks.port_or_name(f"{path}.targetPort", self.target_port)
        if self.node_port:
            yield from checks.port(f"{path}.nodePort", self.node_port)


class ClientIPConfig(Struct, frozen=True, kw_only=True):
    timeout_seconds: int = 10800


class SessionAffinityConfig(Struct, frozen=True, kw_only=True):
    client_ip: ClientIPConfig | None = field(default=None, name="clientIP")


class ServiceSpec(Struct, frozen=True, kw_only=True):
    type: str = "ClusterIP"
    selector: dict[str, str] = {}
    ports: tuple[ServicePort, ...] = ()
    cluster_ip: str = field(default="", name="clusterIP")  # "None": headless
    cluster_ips: tuple[str, ...] = field(default=(), name="clusterIPs")
    ip_families: tuple[str, ...] = ()
    ip_family_policy: str = ""
    external_ips: tuple[str, ...] = field(default=(), name="externalIPs")
    external_name: str = ""
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    internal_traffic_policy: str = "Cluster"
    external_traffic_policy: str = "Cluster"
    health_check_node_port: int = 0
    publish_not_ready_addresses: bool = False
    allocate_load_balancer_node_ports: bool = True
    load_balancer_class: str = ""
    load_balancer_ip: str = field(default="", name="loadBalancerIP")
    load_balancer_source_ranges: tuple[str, ...] = ()
    traffic_distribution: str = ""


class LoadBalancerIngress(Struct, frozen=True, kw_only=True):
    ip: str = ""
    hostname: str = ""
    ip_mode: str = ""  # VIP (default) or Proxy
    ports: Any = None


class LoadBalancerStatus(Struct, frozen=True, kw_only=True):
    ingress: tuple[LoadBalancerIngress, ...] = ()


class ServiceStatus(Struct, frozen=True, kw_only=True):
    load_balancer: LoadBalancerStatus = field(default_factory=LoadBalancerStatus)
    conditions: Any = None


class Service(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Service"

    spec: ServiceSpec = field(default_factory=ServiceSpec)
    status: ServiceStatus = field(default_factory=ServiceStatus)

    @property
    def headless(self) -> bool:
        return self.spec.cluster_ip == "None"

    @property
    def dnsrr(self) -> bool:
        """Asks for DNS round robin instead of a virtual IP (annotation netplane.io/endpoint-mode)."""
        return self.metadata.annotations.get(ENDPOINT_MODE) == "dnsrr"

    @property
    def ejects(self) -> bool:
        """Asks that endpoints which fail are left out for a while."""
        return self.metadata.annotations.get(PASSIVE_EJECTION) == "on"

    @property
    def refused(self) -> str:
        """Why an address or port it asks for cannot be given to it (see ALLOCATED); "": all is well."""
        for condition in self.status.conditions or ():
            if condition.get("type") == ALLOCATED and condition.get("status") == "False":
                return condition.get("message") or "refused"
        return ""

    def check(self) -> Iterator[Fault]:
        spec = self.spec
        yield from checks.dns_label("metadata.name", self.name)
        types = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
        yield from checks.one_of("spec.type", spec.type, types)
        if spec.type == "ExternalName":
            yield from checks.dns_subdomain("spec.externalName", spec.external_name.rstrip("."))
            if spec.cluster_ip not in ("", "None"):
                yield "spec.clusterIP", "must be empty when spec.type is ExternalName"
        elif not spec.ports and not self.headless:
            yield "spec.ports", "at least one port is required"
        yield from self._check_ports()
        yield from self._check_addresses()
        yield from self._check_policies()

    def _check_ports(self) -> Iterator[Fault]:
        ports = self.spec.ports
        for i, port in enumerate(ports):
            yield from port.check(f"spec.ports[{i}]")
            if len(ports) > 1 and not port.name:
                yield f"spec.ports[{i}].name", "required when a service has more than one port"
            if port.node_port and self.spec.type not in ("NodePort", "LoadBalancer"):
                yield f"spec.ports[{i}].nodePort", f"not allowed when spec.type is {self.spec.type}"
        yield from checks.unique("spec.ports[{}].name", (p.name for p in ports))
        yield from checks.unique("spec.ports[{}]", ((p.protocol, p.port) for p in ports))
        taken = [(p.protocol, p.node_port or -i) for i, p in enumerate(ports, 1)]
        yield from checks.unique("spec.ports[{}].nodePort", taken)

    def _check_addresses(self) -> Iterator[Fault]:
        spec = self.spec
        if spec.cluster_ip not in ("", "None"):
            yield from checks.ip("spec.clusterIP", spec.cluster_ip)
        for i, address in enumerate(spec.cluster_ips):
            if address != "None":
                yield from checks.ip(f"spec.clusterIPs[{i}]", address)
        if "None" in (spec.cluster_ip, *spec.cluster_ips):
            if spec.type in ("NodePort", "LoadBalancer"):
                yield "spec.clusterIP", f"'None' is not allowed when spec.type is {spec.type}"
            elif not self.headless:
                yield "spec.clusterIP", "must be 'None' as well when spec.clusterIPs is"
        if spec.cluster_ips and spec.cluster_ip and spec.cluster_ips[0] != spec.cluster_ip:
            yield "spec.clusterIPs[0]", f"must equal spec.clusterIP {spec.cluster_ip!r}"
        for i, address in enumerate(spec.external_ips):
            yield from checks.routed_ip(f"spec.externalIPs[{i}]", address)
        for i, family in enumerate(spec.ip_families):
            yield from checks.one_of(f"spec.ipFamilies[{i}]", family, checks.FAMILIES)
        yield from checks.unique("spec.ipFamilies[{}]", spec.ip_families)
        for i, text in enumerate(spec.load_balancer_source_ranges):
            yield from checks.cidr(f"spec.loadBalancerSourceRanges[{i}]", text.strip())

    def _check_policies(self) -> Iterator[Fault]:
        spec = self.spec
        yield from checks.one_of("spec.sessionAffinity", spec.session_affinity, ("None", "ClientIP"))
        both = ("Cluster", "Local")
        yield from checks.one_of("spec.internalTrafficPolicy", spec.internal_traffic_policy, both)
        yield from checks.one_of("spec.externalTrafficPolicy", spec.external_traffic_policy, both)
        if spec.ip_family_policy:
            allowed = ("SingleStack", "PreferDualStack", "RequireDualStack")
            yield from checks.one_of("spec.ipFamilyPolicy", spec.ip_family_policy, allowed)
        if spec.traffic_distribution:
            yield from checks.one_of("spec.trafficDistribution", spec.traffic_distribution, NEAR)
        config = spec.session_affinity_config
        if config and config.client_ip and not 0 < config.client_ip.timeout_seconds <= 86400:
            yield "spec.sessionAffinityConfig.clientIP.timeoutSeconds", "must be 1 to 86400 seconds"
        for name, words in _MODES.items():
            mode = self.metadata.annotations.get(name)
            if mode is not None:
                yield from checks.one_of(f"metadata.annotations[{name}]", mode, words)
        for name, most in EJECTION_LIMITS.items():
            text = self.metadata.annotations.get(name, "1")
            if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= most):
                yield f"metadata.annotations[{name}]", f"{text!r} is not a whole number from 1 to {most}"


NEAR = ("PreferSameNode", "PreferSameZone", "PreferClose")  # values of spec.trafficDistribution
EJECTION_LIMITS = {EJECTION_FAILURES: 1000, EJECTION_SECONDS: 3600}
_MODES = {
    PASSIVE_EJECTION: ("off", "on"),
    COUNT_PACKETS: ("off", "on"),
    ENDPOINT_MODE: ("vip", "dnsrr"),
    PUBLISH_MODE: ("ingress", "host"),
    LOAD_BALANCING: ("random", "maglev"),
}


class EndpointConditions(Struct, frozen=True, kw_only=True):
    """None means unknown: ready and serving count as true, terminating as false (KEP-1672)."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class ObjectReference(Struct, frozen=True, kw_only=True):
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    api_version: str = ""
    resource_version: str = ""
    field_path: str = ""


class HintName(Struct, frozen=True, kw_only=True):
    name: str


class EndpointHints(Struct, frozen=True, kw_only=True):
    for_zones: tuple[HintName, ...] = ()
    for_nodes: tuple[HintName, ...] = ()


class Endpoint(Struct, frozen=True, kw_only=True):
    addresses: tuple[str, ...]
    conditions: EndpointConditions = field(default_factory=EndpointConditions)
    hostname: str = ""
    node_name: str = ""
    zone: str = ""
    target_ref: ObjectReference | None = None
    hints: EndpointHints | None = None
    deprecated_topology: dict[str, str] = {}

    @property
    def ready(self) -> bool:
        return self.conditions.ready is not False

    @property
    def serving(self) -> bool:
        return self.conditions.serving is not False

    @property
    def terminating(self) -> bool:
        return self.conditions.terminating is True


class EndpointPort(Struct, frozen=True, kw_only=True):
    name: str = ""
    protocol: str = "TCP"
    port: int | None = None  # None: all ports
    app_protocol: str = ""


class EndpointSlice(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "EndpointSlice"
    API_VERSION: ClassVar[str] = "discovery.k8s.io/v1"

    address_type: str
    endpoints: tuple[Endpoint, ...] = ()
    ports: tuple[EndpointPort, ...] = ()

    @property
    def service(self) -> str:
        """The name of the Service (same namespace) that this slice belongs to, or ""."""
        return self.labels.get(SERVICE_NAME, "")

    def check(self) -> Iterator[Fault]:
        yield from checks.dns_subdomain("metadata.name", self.name)
        yield from checks.one_of("addressType", self.address_type, ("IPv4", "IPv6", "FQDN"))
        for i, port in enumerate(self.ports):
            if port.port is not None:
                yield from checks.port(f"ports[{i}].port", port.port)
            yield from checks.one_of(f"ports[{i}].protocol", port.protocol, checks.PROTOCOLS)
        yield from checks.unique("ports[{}].name", (p.name for p in self.ports))
        for i, endpoint in enumerate(self.endpoints):
            if endpoint.hostname:
                yield from checks.dns_label(f"endpoints[{i}].hostname", endpoint.hostname)
        if self.address_type == "FQDN":
            return
        want_v6 = self.address_type == "IPv6"
        for i, endpoint in enumerate(self.endpoints):
            for j, address in enumerate(endpoint.addresses):
                path = f"endpoints[{i}].addresses[{j}]"
                yield from checks.routed_ip(path, address)
                if (":" in address) != want_v6:
                    yield path, f"{address!r} is not of addressType {self.address_type}"

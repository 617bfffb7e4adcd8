"""Node, Namespace, Lease and Event: the machines, their pulse, and what happened."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from msgspec import field

from . import checks
from .base import Fault, Object, Struct
from .own import ALLOCATED
from .services import ObjectReference


class NodeAddress(Struct, frozen=True, kw_only=True):
    type: str  # InternalIP, ExternalIP, Hostname, …
    address: str


class Taint(Struct, frozen=True, kw_only=True):
    key: str
    value: str = ""
    effect: str
    time_added: str = ""


class NodeSpec(Struct, frozen=True, kw_only=True):
    pod_cidr: str = field(default="", name="podCIDR")
    pod_cidrs: tuple[str, ...] = field(default=(), name="podCIDRs")
    provider_id: str = field(default="", name="providerID")
    unschedulable: bool = False
    taints: tuple[Taint, ...] = ()
    config_source: Any = None
    external_id: str = field(default="", name="externalID")


class Condition(Struct, frozen=True, kw_only=True):
    type: str
    status: str
    reason: str = ""
    message: str = ""
    last_heartbeat_time: str = ""
    last_probe_time: str = ""
    last_transition_time: str = ""
    observed_generation: int | None = None


class NodeStatus(Struct, frozen=True, kw_only=True):
    addresses: tuple[NodeAddress, ...] = ()
    conditions: tuple[Condition, ...] = ()
    capacity: dict[str, str | int] = {}
    allocatable: dict[str, str | int] = {}
    node_info: Any = None
    daemon_endpoints: Any = None
    images: Any = None
    volumes_attached: Any = None
    volumes_in_use: Any = None
    phase: str = ""
    config: Any = None
    runtime_handlers: Any = None
    features: Any = None


class Node(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Node"
    NAMESPACED: ClassVar[bool] = False

    spec: NodeSpec = field(default_factory=NodeSpec)
    status: NodeStatus = field(default_factory=NodeStatus)

    @property
    def pod_cidrs(self) -> tuple[str, ...]:
        return self.spec.pod_cidrs or ((self.spec.pod_cidr,) if self.spec.pod_cidr else ())

    @property
    def internal_ips(self) -> tuple[str, ...]:
        return tuple(a.address for a in self.status.addresses if a.type == "InternalIP")

    @property
    def refused(self) -> str:
        """Why its pod CIDRs cannot be used (see ALLOCATED); "": all is well."""
        for condition in self.status.conditions:
            if condition.type == ALLOCATED and condition.status == "False":
                return condition.message or "refused"
        return ""

    def check(self) -> Iterator[Fault]:
        yield from checks.dns_subdomain("metadata.name", self.name)
        if self.spec.pod_cidr:
            yield from checks.cidr("spec.podCIDR", self.spec.pod_cidr)
        for i, text in enumerate(self.spec.pod_cidrs):
            yield from checks.cidr(f"spec.podCIDRs[{i}]", text)
        if self.spec.pod_cidr and self.spec.pod_cidrs and self.spec.pod_cidrs[0] != self.spec.pod_cidr:
            yield "spec.podCIDRs[0]", f"must equal spec.podCIDR {self.spec.pod_cidr!r}"
        for i, address in enumerate(self.status.addresses):
            if address.type in ("InternalIP", "ExternalIP"):
                yield from checks.ip(f"status.addresses[{i}].address", address.address)


class NamespaceSpec(Struct, frozen=True, kw_only=True):
    finalizers: tuple[str, ...] = ()


class NamespaceStatus(Struct, frozen=True, kw_only=True):
    phase: str = ""
    conditions: tuple[Condition, ...] = ()


class Namespace(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Namespace"
    NAMESPACED: ClassVar[bool] = False

    spec: NamespaceSpec = field(default_factory=NamespaceSpec)
    status: NamespaceStatus = field(default_factory=NamespaceStatus)

    def check(self) -> Iterator[Fault]:
        yield from checks.dns_label("metadata.name", self.name)


class LeaseSpec(Struct, frozen=True, kw_only=True):
    holder_identity: str = ""
    lease_duration_seconds: int = 0
    acquire_time: str = ""
    renew_time: str = ""  # RFC 3339, microseconds
    lease_transitions: int = 0
    strategy: str = ""
    preferred_holder: str = ""


class Lease(Object, frozen=True, kw_only=True):
    """coordination.k8s.io/v1: a node's pulse, kept out of the Node so that a beat wakes nobody."""

    KIND: ClassVar[str] = "Lease"
    API_VERSION: ClassVar[str] = "coordination.k8s.io/v1"

    spec: LeaseSpec = field(default_factory=LeaseSpec)


class EventSource(Struct, frozen=True, kw_only=True):
    component: str = ""
    host: str = ""


class Event(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Event"

    involved_object: ObjectReference = field(default_factory=ObjectReference)
    reason: str = ""
    message: str = ""
    type: str = "Normal"
    count: int = 0
    source: EventSource = field(default_factory=EventSource)
    first_timestamp: str = ""
    last_timestamp: str = ""
    event_time: str = ""
    action: str = ""
    related: ObjectReference | None = None
    reporting_component: str = ""
    reporting_instance: str = ""
    series: Any = None

"""Objects of our own (netplane.io/v1): choices that need memory, made once and written down.

An Allocation's name is unique in the store, so creating it with expect=0 *is* the claim: two
agents can never both hold it. An Attachment records one CNI ADD, whole, for DEL and restart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from msgspec import field

from . import checks
from .base import Fault, Object, Struct

ALLOCATED = "netplane.io/Allocated"  # condition; status "False": what was asked for was refused


class AllocationSpec(Struct, frozen=True, kw_only=True):
    """Who holds the thing that the object's name stands for.

    Names: ``clusterip.10.96.0.10`` (an IPv6 address with '-' for ':'), ``nodeport.tcp.30080``,
    ``podcidr.10.244.1.0-24``.
    """

    value: str  # the address, port or CIDR itself
    holder_kind: str
    holder_namespace: str = ""
    holder_name: str
    holder_uid: str = ""
    for_revision: int = 0  # the holder's that the claim was made for
    purpose: str = ""  # which of the holder's wants it meets: "tcp/80"


class Allocation(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Allocation"
    API_VERSION: ClassVar[str] = "netplane.io/v1"
    NAMESPACED: ClassVar[bool] = False

    spec: AllocationSpec

    def check(self) -> Iterator[Fault]:
        yield from checks.dns_subdomain("metadata.name", self.name)


class AttachmentIP(Struct, frozen=True, kw_only=True):
    address: str  # with prefix length: 10.244.1.5/24; a host's length when everything goes by the gateway
    gateway: str = ""
    subnet: str = ""  # that the address is from, where its length does not say so


class AttachmentRoute(Struct, frozen=True, kw_only=True):
    """A route in CNI's words; "" and 0 are the kernel's choice, without gw the address's gateway."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int = 0
    scope: int | None = None


class PortMapping(Struct, frozen=True, kw_only=True):
    """A port of the node that leads to one of the container."""

    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = field(default="", name="hostIP")


class Bandwidth(Struct, frozen=True, kw_only=True):
    """CNI's words and units: bits per second, bits; 0 is unlimited. Ingress is into the container."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


class AttachmentSpec(Struct, frozen=True, kw_only=True):
    """One interface of one container, as CNI ADD made it (or is about to make it)."""

    node: str
    container_id: str = field(name="containerID")
    ifname: str
    netns: str  # CNI_NETNS, a path; may be gone by DEL, or lead to another namespace
    netns_cookie: int = 0  # the kernel's name of the namespace that it was at ADD; 0: it has none
    network: str  # the name in the network configuration
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = field(default="", name="podUID")
    host_ifname: str  # the veth end in the node's namespace
    mac: str = ""
    mtu: int = 0
    ips: tuple[AttachmentIP, ...] = ()
    kind: str = "bridge"  # bridge, ptp, macvlan; chained: on an interface made by another; ipam: no interface
    bridge: str = ""  # host_ifname's master; a macvlan's; chained, with ports: the link that leads there
    ipam: str = ""  # "" the node's pod CIDRs, netplane: the network's ranges, none, or another plugin's name
    routes: tuple[AttachmentRoute, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth | None = None
    sysctls: dict[str, str] = {}
    aliases: tuple[str, ...] = ()  # further names of the container in this network
    config: dict[str, Any] = {}  # what DEL and CHECK need of the network configuration
    boot_id: str = field(default="", name="bootID")


class Attachment(Object, frozen=True, kw_only=True):
    """Named ``<12 hex of sha256(containerID/ifname/network)>.<node>``; phase Pending until ADD is whole.

    Pending, too, is what stays of one whose address another plugin has yet to take back (cni.plan.owed).
    """

    KIND: ClassVar[str] = "Attachment"
    API_VERSION: ClassVar[str] = "netplane.io/v1"
    NAMESPACED: ClassVar[bool] = False

    spec: AttachmentSpec
    phase: str = "Pending"  # Pending, Ready

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other names of the container in this network (CNI's runtimeConfig.aliases), lower case."""
        given = getattr(self.spec, "aliases", None) or self.spec.config.get("aliases", ())
        return tuple(str(alias).lower() for alias in given)

    def check(self) -> Iterator[Fault]:
        for i, entry in enumerate(self.spec.ips):
            yield from checks.ip(f"spec.ips[{i}].address", entry.address.partition("/")[0])

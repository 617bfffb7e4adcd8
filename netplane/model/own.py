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


class Allocation(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Allocation"
    API_VERSION: ClassVar[str] = "netplane.io/v1"
    NAMESPACED: ClassVar[bool] = False

    spec: AllocationSpec

    def check(self) -> Iterator[Fault]:
        yield from checks.dns_subdomain("metadata.name", self.name)


class AttachmentIP(Struct, frozen=True, kw_only=True):
    address: str  # with prefix length: 10.244.1.5/24
    gateway: str = ""


class AttachmentSpec(Struct, frozen=True, kw_only=True):
    """One interface of one container, as CNI ADD made it (or is about to make it)."""

    node: str
    container_id: str = field(name="containerID")
    ifname: str
    netns: str  # CNI_NETNS, a path; may be gone by DEL
    network: str  # the name in the network configuration
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = field(default="", name="podUID")
    host_ifname: str  # the veth end in the node's namespace
    mac: str = ""
    mtu: int = 0
    ips: tuple[AttachmentIP, ...] = ()
    config: dict[str, Any] = {}  # what DEL and CHECK need of the network configuration
    boot_id: str = field(default="", name="bootID")


class Attachment(Object, frozen=True, kw_only=True):
    """Named ``<12 hex of sha256(containerID/ifname/network)>.<node>``; phase Pending until ADD is whole."""

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

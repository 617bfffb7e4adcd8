"""The ranges that the controllers allocate from, held to their rules once, at start."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from ..model.errors import Invalid

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
BITS = {"IPv4": 32, "IPv6": 128}


def family_of(text: str) -> str:
    """The family of an address or CIDR in text: "IPv4" or "IPv6"."""
    return "IPv6" if ":" in text else "IPv4"


@lru_cache(maxsize=65536)
def network(text: str) -> Network:
    """A CIDR, parsed once. Raises Invalid."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as exc:
        raise Invalid(f"{text!r} is not a CIDR such as 10.244.0.0/16 or fd00::/64: {exc}") from None


def overlap(one: str, other: str) -> bool:
    a, b = network(one), network(other)
    if a.version != b.version:
        return False
    first, last = int(a.network_address), int(a.broadcast_address)
    return first <= int(b.broadcast_address) and int(b.network_address) <= last


def first_overlap(cidr: str, others: Iterable[str]) -> str:
    """The first of ``others`` that shares an address with ``cidr``, or ""."""
    return next((other for other in others if overlap(cidr, other)), "")


@dataclass(frozen=True)
class ClusterConfig:
    """At most one CIDR per family; the first service CIDR's family is the services' default.

    ``node_port_range`` is inclusive; ``node_mask_v4`` and ``node_mask_v6`` are the prefix lengths of
    one node's pod CIDR. Raises Invalid for what is malformed, doubled, overlapping or too small.
    """

    cluster_cidrs: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()
    node_port_range: tuple[int, int] = (30000, 32767)
    node_mask_v4: int = 24
    node_mask_v6: int = 64

    def __post_init__(self) -> None:
        for what, cidrs in (("cluster", self.cluster_cidrs), ("service", self.service_cidrs)):
            seen: dict[str, str] = {}
            for text in cidrs:
                network(text)
                first = seen.setdefault(family_of(text), text)
                if first != text or cidrs.count(text) > 1:
                    raise Invalid(f"{what} CIDRs {first} and {text}: at most one per family")
        for text in self.cluster_cidrs:
            self._check_cluster(text)
        for text in self.service_cidrs:
            if network(text).num_addresses < 4:
                raise Invalid(f"service CIDR {text} is too small: it needs 4 addresses or more")
        low, high = self.node_port_range
        if not 1 <= low <= high <= 65535:
            raise Invalid(f"node port range {low}-{high}: it must lie within 1-65535, low end first")

    def _check_cluster(self, text: str) -> None:
        clash = first_overlap(text, self.service_cidrs)
        if clash:
            raise Invalid(f"cluster CIDR {text} overlaps service CIDR {clash}: use two disjoint ranges")
        mask, longest = self.node_mask(family_of(text)), BITS[family_of(text)] - 2
        if not network(text).prefixlen <= mask <= longest:
            raise Invalid(
                f"node mask /{mask} does not fit cluster CIDR {text}: "
                f"use /{network(text).prefixlen} to /{longest}"
            )

    @property
    def families(self) -> tuple[str, ...]:
        """The families of services, the default first."""
        return tuple(family_of(text) for text in self.service_cidrs)

    def service_cidr(self, family: str) -> str:
        return next((text for text in self.service_cidrs if family_of(text) == family), "")

    def node_mask(self, family: str) -> int:
        return self.node_mask_v6 if family == "IPv6" else self.node_mask_v4

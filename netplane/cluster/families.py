"""The address families of a Service, by Kubernetes' rules of defaulting (KEP-563, dual stack)."""

from __future__ import annotations

from typing import NamedTuple

from ..model.errors import Invalid
from ..model.services import Service, ServiceSpec
from .config import family_of

BOTH = ("IPv4", "IPv6")


class Families(NamedTuple):
    names: tuple[str, ...]  # the primary first
    policy: str  # SingleStack, PreferDualStack, RequireDualStack


def requested_ips(spec: ServiceSpec) -> tuple[str, ...]:
    """The addresses that the spec names, the primary first; () when none or headless."""
    named = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
    return tuple(ip for ip in named if ip != "None")


def families(service: Service, cluster: tuple[str, ...]) -> Families:
    """What ipFamilies and ipFamilyPolicy mean in a cluster of these families, defaults filled in.

    SingleStack keeps the primary family alone. Raises Invalid naming the field and what would do.
    """
    spec = service.spec
    free = service.headless and not spec.selector  # its endpoints are the user's: any family goes
    named = _named(spec)
    policy = spec.ip_family_policy or ("RequireDualStack" if len(named) == 2 or free else "SingleStack")
    names = named or cluster[:1] or (BOTH[:1] if free else ())
    if not names:
        raise Invalid("spec.ipFamilies: no service CIDR is configured; start the agent with --service-cidr")
    if policy == "SingleStack":
        names = names[:1]
    elif len(names) == 1:
        other = BOTH[1 - BOTH.index(names[0])]
        if other in cluster or free:
            names = (*names, other)
        elif policy == "RequireDualStack":
            raise Invalid(
                f"spec.ipFamilyPolicy: RequireDualStack needs a service CIDR of {other} as well; "
                "use PreferDualStack or SingleStack"
            )
    for name in names:
        if name not in cluster and not free:
            have = ", ".join(cluster) or "none"
            raise Invalid(f"spec.ipFamilies: no service CIDR of {name} is configured, only of {have}")
    return Families(names, policy)


def _named(spec: ServiceSpec) -> tuple[str, ...]:
    """The families that the spec names, by ipFamilies or by its addresses, which must agree."""
    ips = requested_ips(spec)
    by_address = tuple(family_of(ip) for ip in ips)
    if len(set(by_address)) < len(by_address):
        raise Invalid(f"spec.clusterIPs: {' and '.join(ips)} are of one family; use one address of each")
    if not spec.ip_families:
        return by_address
    for ip, have, want in zip(ips, by_address, spec.ip_families, strict=False):
        if have != want:
            raise Invalid(f"spec.clusterIPs: {ip} stands where spec.ipFamilies says {want}")
    return spec.ip_families if len(spec.ip_families) >= len(by_address) else by_address

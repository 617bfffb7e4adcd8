"""loadBalancerSourceRanges: who may use a load balancer's address, as elements of one interval set.

Rule 1: they guard the load balancer's own addresses only, never node ports or external IPs; who is
        outside is dropped before any DNAT.
Rule 2: ranges are merged, because the set refuses elements that overlap in part.
Rule 3: if this node's own address is inside, so is the load balancer's: a node that holds it as a
        local address uses it as its source when it talks to the service (as kube-proxy has it).
Rule 4: a service whose ranges are all of the other family lets nobody in, as it asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network

from ..model.facts import Element, Set
from .frontends import Frontend, family
from .words import WORDS

Network = IPv4Network | IPv6Network


def sets(digit: str, ip: str) -> Iterator[Set]:
    spec = f"typeof {ip} daddr . meta l4proto . th dport . {ip} saddr"
    yield Set(f"svc-sources{digit}", (spec, "flags interval"))


def allowed(frontend: Frontend, ranges: Iterable[str], node_ips: Iterable[str]) -> Iterator[Element]:
    """The elements that let these ranges in."""
    version = int(WORDS[family(frontend.address)][0])
    found: list[Network] = []
    for text in ranges:
        network = ip_network(text.strip(), strict=False)
        if network.version == version:
            found.append(network)
    nodes = [ip_address(text) for text in node_ips]
    if any(node in network for node in nodes for network in found if node.version == version):
        found.append(ip_network(frontend.address))
    for network in collapse_addresses(found):  # type: ignore[type-var]
        alone = network.prefixlen == network.max_prefixlen
        text = str(network.network_address) if alone else str(network)
        yield Element(f"svc-sources{WORDS[family(frontend.address)][0]}", (*frontend.key, text))

"""The ruleset that all services share: constant chains, maps by family, one chain for each count.

    prerouting, output (nat) ─> svc-dispatch:
        address . protocol . port ─ svc-services4/6 ─> class ─ svc-chains4/6 ─> one of
        svc-lb4-tcp-N   draw one of N slots; (address . port . slot) → svc-endpoints4-tcp
        svc-ext4-tcp-N  from outside: mark for masquerade, then svc-lb4-tcp-N
        svc-reject      no endpoint: TCP reset, or ICMP port unreachable
    postrouting (nat): what is marked, and a pod that reached itself, leaves with the node's address

Rule 1: services and endpoints are elements; a rule exists once for each number of endpoints.
Rule 2: all of it hangs in nat hooks, which see a flow's first packet only, so established flows
        pay nothing. Rejecting there needs Linux 5.9 (reject in prerouting).
Rule 3: no map with an element for each service holds verdicts: whenever such a map changes, the kernel
        validates all of its verdicts. So a service names a class, and few classes name chains.
        The class passes from one map to the other in the first packet's priority, which the kernel
        sets anew when it forwards.
Rule 4: endpoints have a map for each protocol, because nft 1.0.6 reads a stored `typeof … : ip daddr
        . th dport` back as "conflicting protocols" and then refuses every later rule that uses it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from ..model.facts import Chain, Element, Fact, Set

LB, EXT = 1, 2  # a class's major number; its minor is the number of endpoints
REFUSED, DROPPED = "3:1", "3:2"
MASQUERADE = 0x4000  # the mark's bit that kube-proxy uses, so other tools leave it alone
DSTNAT, SRCNAT = "dstnat", "srcnat"
PROTOCOLS = ("tcp", "udp", "sctp")
WORDS = {"IPv4": ("4", "ip", "ipv4_addr"), "IPv6": ("6", "ip6", "ipv6_addr")}
REJECT = ("meta l4proto tcp reject with tcp reset", "reject with icmpx port-unreachable")
MARK = f"meta mark set meta mark | {MASQUERADE:#x}"


def base(cluster_cidrs: tuple[str, ...], service_cidrs: tuple[str, ...]) -> Iterator[Fact]:
    """Everything that is there without any service. CIDRs of both families, in any order."""
    for family in WORDS:
        yield from _sets(family)
        yield from _constant_classes(family)
    yield Chain(
        "svc-reject", ("meta l4proto tcp reject with tcp reset", "reject with icmpx port-unreachable")
    )
    yield Chain("svc-dispatch", tuple(_dispatch(cluster_cidrs, service_cidrs)))
    yield Chain("svc-nat-prerouting", ("jump svc-dispatch",), "nat", "prerouting", DSTNAT)
    yield Chain("svc-nat-output", ("jump svc-dispatch",), "nat", "output", DSTNAT)
    yield Chain("svc-nat-postrouting", tuple(_postrouting()), "nat", "postrouting", SRCNAT)


def ways(family: str, protocol: str, count: int, outside: bool) -> Iterator[Fact]:
    """What a frontend of so many endpoints needs: its chains, and the element that leads there.

    Services with equal counts want equal facts, so the last one takes them away.
    """
    kinds = ((LB, balance), (EXT, external)) if outside else ((LB, balance),)
    for kind, make in kinds:
        chain = make(family, protocol, count)
        yield chain
        item = (protocol, klass(kind, count))
        yield Element(f"svc-chains{WORDS[family][0]}", item, (f"goto {chain.name}",))


def klass(kind: int, count: int) -> str:
    """A class as nft writes a packet's priority: major:minor, in hexadecimal digits."""
    return f"{kind:x}:{count:x}"


def endpoints(family: str, protocol: str) -> str:
    """The name of the map (address . port . slot) → (address . port)."""
    return f"svc-endpoints{WORDS[family][0]}-{protocol}"


def balance(family: str, protocol: str, count: int) -> Chain:
    """The chain that spreads new flows over ``count`` slots."""
    digit, ip, _ = WORDS[family]
    slot = f"{ip} daddr . {protocol} dport . numgen random mod {count}"
    rule = f"dnat {ip} to {slot} map @{endpoints(family, protocol)}"
    return Chain(f"svc-lb{digit}-{protocol}-{count}", (rule,))


def external(family: str, protocol: str, count: int) -> Chain:
    """The same for a frontend that is reached from outside: replies must come back by this node."""
    digit = WORDS[family][0]
    rules = (MARK, f"goto svc-lb{digit}-{protocol}-{count}")
    return Chain(f"svc-ext{digit}-{protocol}-{count}", rules)


def _sets(family: str) -> Iterator[Set]:
    digit, ip, kind = WORDS[family]
    key = f"{ip} daddr . meta l4proto . th dport"
    yield Set(f"svc-services{digit}", (f"typeof {key} : meta priority",), map=True)
    yield Set(f"svc-chains{digit}", ("typeof meta l4proto . meta priority : verdict",), map=True)
    for protocol in PROTOCOLS:
        # numgen in a key needs typeof (nft 0.9.4); its modulus there is of no consequence
        slot = f"{ip} daddr . {protocol} dport . numgen random mod 2"
        spec = f"typeof {slot} : {ip} daddr . {protocol} dport"
        yield Set(endpoints(family, protocol), (spec,), map=True)
    yield Set(f"svc-cluster-ips{digit}", (f"type {kind}",))
    yield Set(f"svc-hairpin{digit}", (f"typeof {ip} saddr . {ip} daddr",))


def _constant_classes(family: str) -> Iterator[Element]:
    for protocol in PROTOCOLS:
        for name, verdict in ((REFUSED, "goto svc-reject"), (DROPPED, "drop")):
            yield Element(f"svc-chains{WORDS[family][0]}", (protocol, name), (verdict,))


def _dispatch(cluster_cidrs: tuple[str, ...], service_cidrs: tuple[str, ...]) -> Iterator[str]:
    for family, (digit, ip, _) in WORDS.items():
        pods = _of(family, cluster_cidrs)
        if pods:  # a ClusterIP reached from outside the pod network: replies must pass here
            yield f"{ip} saddr != {pods} {ip} daddr @svc-cluster-ips{digit} {MARK}"
        chosen = f"{ip} daddr . meta l4proto . th dport map @svc-services{digit}"
        yield f"meta priority set {chosen} meta l4proto . meta priority vmap @svc-chains{digit}"
    yield "fib daddr type local accept"  # the node's own, even if it holds a service address
    for family, (digit, ip, _) in WORDS.items():
        yield f"{ip} daddr @svc-cluster-ips{digit} goto svc-reject"
        services = _of(family, service_cidrs)
        if services:
            yield f"{ip} daddr {services} drop"


def _postrouting() -> Iterator[str]:
    bit = f"{MASQUERADE:#x}"
    yield f"meta mark & {bit} == {bit} meta mark set meta mark ^ {bit} masquerade fully-random"
    for digit, ip, _ in WORDS.values():
        yield f"ct status dnat {ip} saddr . {ip} daddr @svc-hairpin{digit} masquerade fully-random"


def _of(family: str, cidrs: tuple[str, ...]) -> str:
    """The CIDRs of a family as nft's right-hand side; "" without any."""
    version = int(WORDS[family][0])
    found = [c for c in cidrs if ipaddress.ip_network(c).version == version]
    return found[0] if len(found) == 1 else f"{{ {', '.join(found)} }}" if found else ""

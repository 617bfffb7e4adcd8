"""The ruleset that all services share: constant chains, maps by family, one chain for each count.

    prerouting, output (nat) ─> svc-dispatch ─> svc-enter4/6:
        address . protocol . port ─ svc-services4/6 ─> class ─ svc-chains4/6 ─> one of
        svc-lb4-tcp-N   draw one of N slots; (address . port . slot) → svc-endpoints4-tcp
        svc-ext4-tcp-N  from outside: mark for masquerade, then svc-lb4-tcp-N
        svc-in4-tcp-N   as svc-lb, but from the slots at INSIDE_SLOTS: pods and node under policy Local
        svc-hash4-tcp-M the client's hash names the slot (see maglev); svc-inhash the same as svc-in
        svc-sticky4-…   the endpoint that the client had before (see affinity)
        svc-guard4, …   a step on the way to one of these (see steps)
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

from collections.abc import Iterator
from functools import lru_cache

from ..model.errors import Invalid
from ..model.facts import Chain, Element, Fact, Set
from . import affinity, sources, steps
from .words import MARK, MASQUERADE, MESH, PROTOCOLS, WORDS, of_family

# a class's major number; its minor is the number of endpoints, or of slots
LB, EXT, IN, HASH, IN_HASH = 1, 2, 5, 6, 7
REFUSED, DROPPED = "3:1", "3:2"
INSIDE_SLOTS = 1 << 16  # the slots of a frontend's second list begin here
MOST = INSIDE_SLOTS - 1
SEED = 0x6E70  # of the clients' hash; any number, but the same on all nodes
DSTNAT, SRCNAT = "dstnat", "srcnat"
_DRAWN = {LB: "numgen random", IN: "numgen random", HASH: "jhash {ip} saddr", IN_HASH: "jhash {ip} saddr"}
_NAMES = {LB: "lb", EXT: "ext", IN: "in", HASH: "hash", IN_HASH: "inhash"}


def base(cluster_cidrs: tuple[str, ...], service_cidrs: tuple[str, ...]) -> Iterator[Fact]:
    """Everything that is there without any service. CIDRs of both families, in any order."""
    for family, (digit, ip, _) in WORDS.items():
        yield from _sets(family)
        yield from steps.sets(digit, ip)
        yield from sources.sets(digit, ip)
        yield from affinity.sets(digit, ip)
        yield from _constant_classes(family)
    yield from steps.base(cluster_cidrs)
    yield from affinity.base()
    yield Chain(
        "svc-reject", ("meta l4proto tcp reject with tcp reset", "reject with icmpx port-unreachable")
    )
    yield Chain("svc-dispatch", tuple(_dispatch(cluster_cidrs, service_cidrs)))
    yield Chain("svc-nat-prerouting", ("jump svc-dispatch",), "nat", "prerouting", DSTNAT)
    yield Chain("svc-nat-output", ("jump svc-dispatch",), "nat", "output", DSTNAT)
    yield Chain("svc-mesh-leave", tuple(_mesh()))
    yield Chain("svc-nat-postrouting", tuple(_postrouting()), "nat", "postrouting", SRCNAT)


@lru_cache(maxsize=4096)
def way(family: str, protocol: str, kind: int, count: int) -> tuple[Fact, ...]:
    """The chain of one class, and the element that leads there. Raises Invalid for too many endpoints.

    Services with equal counts want equal facts, so the last one takes them away.
    """
    if count > MOST:
        raise Invalid(f"{count} endpoints of one service port; it can be {MOST} at most")
    chain = external(family, protocol, count) if kind == EXT else spread(family, protocol, kind, count)
    item = (protocol, klass(kind, count))
    return chain, Element(f"svc-chains{WORDS[family][0]}", item, (f"goto {chain.name}",))


def klass(kind: int, count: int) -> str:
    """A class as nft writes a packet's priority: major:minor, in hexadecimal digits."""
    return f"{kind:x}:{count:x}"


def endpoints(family: str, protocol: str) -> str:
    """The name of the map (address . port . slot) → (address . port)."""
    return f"svc-endpoints{WORDS[family][0]}-{protocol}"


def spread(family: str, protocol: str, kind: int, count: int) -> Chain:
    """The chain of a kind that chooses one of ``count`` slots."""
    digit, ip, _ = WORDS[family]
    chosen = f"{_DRAWN[kind].format(ip=ip)} mod {count}"
    if kind in (HASH, IN_HASH):
        chosen += f" seed {SEED:#x}"
    if kind in (IN, IN_HASH):
        chosen += f" offset {INSIDE_SLOTS}"
    rule = f"dnat {ip} to {ip} daddr . {protocol} dport . {chosen} map @{endpoints(family, protocol)}"
    return Chain(f"svc-{_NAMES[kind]}{digit}-{protocol}-{count}", (rule,))


def external(family: str, protocol: str, count: int) -> Chain:
    """The same for a frontend that is reached from outside: replies must come back by this node."""
    digit = WORDS[family][0]
    rules = (MARK, f"goto svc-lb{digit}-{protocol}-{count}")
    return Chain(f"svc-ext{digit}-{protocol}-{count}", rules)


def _sets(family: str) -> Iterator[Set]:
    digit, ip, kind = WORDS[family]
    key = f"{ip} daddr . meta l4proto . th dport"
    yield Set(f"svc-services{digit}", (f"typeof {key} : meta priority", "counter"), map=True)
    yield Set(f"svc-chains{digit}", ("typeof meta l4proto . meta priority : verdict",), map=True)
    for protocol in PROTOCOLS:
        # numgen in a key needs typeof (nft 0.9.4); its modulus there is of no consequence
        slot = f"{ip} daddr . {protocol} dport . numgen random mod 2"
        spec = f"typeof {slot} : {ip} daddr . {protocol} dport"
        yield Set(endpoints(family, protocol), (spec,), map=True)
    yield Set(f"svc-cluster-ips{digit}", (f"type {kind}",))
    yield Set(f"svc-here{digit}", (f"type {kind}",))
    yield Set(f"svc-hairpin{digit}", (f"typeof {ip} saddr . {ip} daddr",))


def _constant_classes(family: str) -> Iterator[Element]:
    for protocol in PROTOCOLS:
        for name, verdict in ((REFUSED, "goto svc-reject"), (DROPPED, "drop")):
            yield Element(f"svc-chains{WORDS[family][0]}", (protocol, name), (verdict,))


def _dispatch(cluster_cidrs: tuple[str, ...], service_cidrs: tuple[str, ...]) -> Iterator[str]:
    for family, (digit, ip, _) in WORDS.items():
        pods = of_family(family, cluster_cidrs)
        if pods:  # a ClusterIP reached from outside the pod network: replies must pass here
            yield f"{ip} saddr != {pods} {ip} daddr @svc-cluster-ips{digit} {MARK}"
        chosen = f"{ip} daddr . meta l4proto . th dport map @svc-services{digit}"
        yield f"meta priority set {chosen} goto svc-enter{digit}"
    yield "fib daddr type local accept"  # the node's own, even if it holds a service address
    for family, (digit, ip, _) in WORDS.items():
        yield f"{ip} daddr @svc-cluster-ips{digit} goto svc-reject"
        services = of_family(family, service_cidrs)
        if services:
            yield f"{ip} daddr {services} drop"


def _mesh() -> Iterator[str]:
    """The endpoint is drawn by now: if it is here, so is the way back, and the client's address stays."""
    yield f"meta mark set meta mark ^ {MESH:#x}"
    for digit, ip, _ in WORDS.values():
        yield f"{ip} daddr @svc-here{digit} return"
    yield "masquerade fully-random"


def _postrouting() -> Iterator[str]:
    bit = f"{MASQUERADE:#x}"
    yield f"meta mark & {bit} == {bit} meta mark set meta mark ^ {bit} masquerade fully-random"
    yield f"meta mark & {MESH:#x} == {MESH:#x} jump svc-mesh-leave"
    for digit, ip, _ in WORDS.values():
        yield f"ct status dnat {ip} saddr . {ip} daddr @svc-hairpin{digit} masquerade fully-random"

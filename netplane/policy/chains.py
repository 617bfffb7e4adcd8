"""Policies as nftables: constant hooks, a chain for each distinct set of rules, sets of peers.

    forward ─> established? → done        pol-in4: pod address ─> pol-in4-<hash>   return: allowed
               itself?      → done                                goto pol-drop-in: counted, logged, dropped
               pol-out4 (source), then pol-in4 (destination)

Rule 1: a pod is an element in a map; what it points at is named by its content, so pods of one set of
        policies share it, and a change makes a new chain and moves the pod in one transaction.
Rule 2: peers are elements of sets named by the selector alone; a pod that comes or goes changes
        elements, never a rule.
Rule 3: more than MOST rules in a row become one set of (address . protocol . port), so the first packet of
        a flow meets a bounded number of rules, and every other packet meets one.
Rule 4: what has no conntrack entry and is no SYN may not open a flow from an isolated side backwards:
        a flow that was cut stays cut (nf_conntrack_tcp_loose would pick it up from its reply).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..model.facts import Chain, Element, Fact, Set, digest
from .flat import Flat, Resolve, key_of, merged, texts, written
from .rules import ACCEPT, DENY, EGRESS, INGRESS, PROTOCOLS, Network, Port, Rule, group_of, named, numbered

GROUP = 78  # nflog group, as our route protocol number
LOGGED = "limit rate 10/second burst 50 packets"
DIRECTIONS = (EGRESS, INGRESS)
WORDS = {4: ("4", "ip", "ipv4_addr"), 6: ("6", "ip6", "ipv6_addr")}
SIDE = {INGRESS: ("saddr", "daddr"), EGRESS: ("daddr", "saddr")}  # (the peer's, the pod's own)
NEIGHBOUR = "ip6 daddr ff02::1:ff00:0/104 icmpv6 type nd-neighbor-solicit"  # RFC 4861 7.2.2: never routed
STRAY = "tcp flags & (fin | syn | rst | ack) != syn"
MOST = 12


class Tiers(NamedTuple):
    """The rules for one pod in one direction; ``namespaced`` None: no NetworkPolicy isolates it."""

    admin: tuple[Rule, ...] = ()
    namespaced: tuple[Rule, ...] | None = None
    baseline: tuple[Rule, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.admin or self.baseline or self.namespaced is not None)


def version(address: str) -> int:
    return 6 if ":" in address else 4


def base() -> Iterator[Fact]:
    """Everything that is there without any policy."""
    rules = ["ct state established,related accept"]
    for digit, ip, kind in WORDS.values():
        yield Set(f"pol-self{digit}", (f"type {kind} . {kind}",))
        rules.append(f"{ip} saddr . {ip} daddr @pol-self{digit} accept")
        for direction in DIRECTIONS:
            yield Set(f"pol-{direction}{digit}", (f"type {kind} : verdict",), map=True)
            yield Set(f"pol-isolated-{direction}{digit}", (f"type {kind}",))
            yield Set(drops(direction, digit), (f"type {kind}", "size 65535", "flags dynamic"))
    rules.append(f"{NEIGHBOUR} accept")  # of the link, as ARP is; only br_netfilter brings it here
    for digit, ip, _ in WORDS.values():
        rules.append(f"{STRAY} {ip} saddr @pol-isolated-in{digit} drop")
        rules.append(f"{STRAY} {ip} daddr @pol-isolated-out{digit} drop")
    for direction in DIRECTIONS:
        own = SIDE[direction][1]
        rules += [f"{ip} {own} vmap @pol-{direction}{digit}" for digit, ip, _ in WORDS.values()]
        yield Chain(f"pol-drop-{direction}", tuple(_drop(direction)))
    yield Chain("pol-forward", tuple(rules), "filter", "forward", "filter")


def drops(direction: str, digit: str) -> str:
    """The set in which packets count what was dropped, by the pod's address."""
    return f"pol-drops-{direction}{digit}"


def _drop(direction: str) -> Iterator[str]:
    own = SIDE[direction][1]
    for digit, ip, _ in WORDS.values():
        yield f"update @{drops(direction, digit)} {{ {ip} {own} counter }}"
    word = "ingress" if direction == INGRESS else "egress"
    yield f'{LOGGED} log prefix "netplane policy {word} " group {GROUP}'
    yield "drop"


def held(address: str, tiers: dict[str, Tiers | None], resolve: Resolve) -> Iterator[Fact]:
    """One pod address. ``tiers`` by direction; None: nothing is known of the pod yet, nothing passes.

    ``resolve`` gives the items of a group, for rules that are too many to stand one after another.
    """
    digit = WORDS[version(address)][0]
    if any(rules is None or rules for rules in tiers.values()):
        yield Element(f"pol-self{digit}", (address, address))
    for direction, rules in tiers.items():
        if rules is None:
            target = f"pol-drop-{direction}"
        elif rules:
            facts = tuple(chain(direction, version(address), rules, resolve))
            yield from facts
            target = str(facts[-1].key[1])
        else:
            continue
        yield Element(f"pol-{direction}{digit}", (address,), (f"jump {target}",))
        yield Element(f"pol-isolated-{direction}{digit}", (address,))


def chain(direction: str, family: int, tiers: Tiers, resolve: Resolve) -> Iterator[Fact]:
    """The facts that a set of rules needs; the chain where a packet enters comes last."""
    if tiers.namespaced is not None:
        *facts, last = _isolation(direction, family, tiers.namespaced, resolve)
        yield from facts
    else:
        yield from _sets(family, tiers.baseline)
        last = _named(direction, family, tuple(_texts(direction, family, tiers.baseline, "return")))
    if tiers.admin:
        yield last
        yield from _sets(family, tiers.admin)
        onward = f"goto {last.key[1]}"
        last = _named(direction, family, (*_texts(direction, family, tiers.admin, onward), onward))
    yield last


def _isolation(direction: str, family: int, rules: tuple[Rule, ...], resolve: Resolve) -> Iterator[Fact]:
    """What NetworkPolicies allow, and the end of everything else (rule 3)."""
    allowing = tuple(_texts(direction, family, rules, ""))
    if len(allowing) <= MOST:
        yield from _sets(family, rules)
    else:
        _, ip, kind = WORDS[family]
        flat, key = Flat(family, kind, rules, resolve), key_of(allowing)
        yield from flat.facts(key)
        matches = list(texts(key, family, f"{ip} {SIDE[direction][0]}"))
        if flat.everybody:
            matches.insert(0, f"meta l4proto . th dport {{ {', '.join(ranges(flat.everybody))} }}")
        allowing = ("return",) if flat.open else tuple(f"{match} return" for match in matches)
    yield _named(direction, family, (*allowing, f"goto pol-drop-{direction}"))


def _named(direction: str, family: int, rules: tuple[str, ...]) -> Chain:
    return Chain(f"pol-{direction}{family}-{digest(*rules)}", rules or ("return",))


def _texts(direction: str, family: int, rules: Iterable[Rule], passing: str) -> Iterator[str]:
    """The rules in order; equal ones once. ``passing``: what Pass does."""
    verdicts = {ACCEPT: "return", DENY: f"goto pol-drop-{direction}"}
    seen: dict[str, None] = {}
    for rule in rules:
        verdict = verdicts.get(rule.action, passing)
        for match in _matches(direction, family, rule):
            seen[f"{match} {verdict}".strip()] = None
    yield from seen


def _matches(direction: str, family: int, rule: Rule) -> Iterator[str]:
    """What a rule asks of a packet: one match for each set that its peers need."""
    ip = WORDS[family][1]
    peer = f"{ip} {SIDE[direction][0]}"
    numbers, names = numbered(rule.ports), named(rule.ports)
    if rule.ports is None or numbers:
        port = "" if rule.ports is None else f"meta l4proto . th dport {{ {', '.join(ranges(numbers))} }}"
        if rule.peers is None:
            yield port
        else:
            if rule.peers.members:
                yield f"{peer} @{group_set(rule.peers.key, family)} {port}".rstrip()
            if _of(family, rule.peers.blocks):
                yield f"{peer} @{block_set(rule.peers.blocks, family)} {port}".rstrip()
    if names:
        group = group_of(rule.peers, names)
        yield f"{peer} . meta l4proto . th dport @{group_set(group.key, family, True)}"


def _sets(family: int, rules: Iterable[Rule]) -> Iterator[Fact]:
    """The sets that these rules name, and the elements that come from the policy itself."""
    for rule in rules:
        numbers, names = numbered(rule.ports), named(rule.ports)
        if names:
            yield declared(group_of(rule.peers, names).key, family, True)
        if rule.peers is None or not (rule.ports is None or numbers):
            continue
        if rule.peers.members:
            yield declared(rule.peers.key, family)
        blocks = _of(family, rule.peers.blocks)
        if blocks:
            name = block_set(rule.peers.blocks, family)
            yield Set(name, (f"type {WORDS[family][2]}", "flags interval"))
            yield from (Element(name, (text,)) for block in blocks for text in written(block))


def declared(key: str, family: int, ports: bool = False) -> Set:
    """The set of a group, without its elements."""
    kind = WORDS[family][2]
    spec = f"type {kind} . inet_proto . inet_service" if ports else f"type {kind}"
    return Set(group_set(key, family, ports), (spec,))


def group_set(key: str, family: int, ports: bool = False) -> str:
    return f"pol-{'ports' if ports else 'peers'}{family}-{key}"


def block_set(blocks: tuple[Network, ...], family: int) -> str:
    return f"pol-blocks{family}-{digest(*map(str, _of(family, blocks)))}"


def _of(family: int, blocks: Iterable[Network]) -> list[Network]:
    return [b for b in blocks if b.version == family]


def ranges(ports: Iterable[Port]) -> Iterator[str]:
    """Disjoint ranges as nft writes them: "tcp . 80", "udp . 0-65535"."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for port in ports:
        for protocol in (port.protocol,) if port.protocol else PROTOCOLS:
            spans.setdefault(protocol, []).append((port.low, port.high))
    for protocol in sorted(spans):
        for low, high in merged(spans[protocol]):
            yield f"{protocol} . {low}" if low == high else f"{protocol} . {low}-{high}"

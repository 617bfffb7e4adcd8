"""Many rules that allow, as four sets: the first packet of a flow then costs the same for any number.

    any port:   pol-flat-peers   address                          pol-flat-blocks  network
    by port:    pol-flat-doors   address . protocol . ports       pol-flat-nets    network . protocol . ports

Rule 1: only rules that allow, whose order says nothing: NetworkPolicy's. Sets are named by the rules.
Rule 2: elements of a set with intervals may not overlap, so ranges of ports are joined for each address,
        and networks are cut where another one begins or ends.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from ..model.facts import Element, Fact, Set, digest
from .rules import PROTOCOLS, Group, Network, Port, Rule, group_of, named, numbered

Item = tuple[str | int, ...]
Spans = dict[str, list[tuple[int, int]]]  # by protocol
Resolve = Callable[[Group], Iterable[Item]]  # (address,) of members, (address, protocol, port) of names


class Flat:
    """What the rules of one direction allow in one family, gathered."""

    def __init__(self, family: int, kind: str, rules: Iterable[Rule], resolve: Resolve) -> None:
        self.family, self.kind = family, kind
        self.everybody: list[Port] = []
        self.open = False  # everything from everybody
        self._peers: set[str] = set()
        self._blocks: list[Network] = []
        self._doors: dict[str, Spans] = defaultdict(lambda: defaultdict(list))
        self._nets: list[tuple[Network, tuple[Port, ...]]] = []
        for rule in rules:
            self._take(rule, resolve)

    def _take(self, rule: Rule, resolve: Resolve) -> None:
        numbers, names = numbered(rule.ports), named(rule.ports)
        if names:
            for address, protocol, port in self._mine(resolve(group_of(rule.peers, names))):
                self._doors[str(address)][str(protocol)].append((int(port), int(port)))
        if rule.peers is None:
            self.open = self.open or rule.ports is None
            self.everybody += numbers
            return
        addresses = self._mine(resolve(group_of(rule.peers))) if rule.peers.members else []
        blocks = [b for b in rule.peers.blocks if b.version == self.family]
        if rule.ports is None:
            self._peers.update(str(item[0]) for item in addresses)
            self._blocks += blocks
        elif numbers:
            for item in addresses:
                _add(self._doors[str(item[0])], numbers)
            self._nets += [(block, numbers) for block in blocks]

    def _mine(self, items: Iterable[Item]) -> list[Item]:
        return [item for item in items if (":" in str(item[0])) == (self.family == 6)]

    def facts(self, key: str) -> Iterator[Fact]:
        kind, names = self.kind, sets(key, self.family)
        keys = f"{kind} . inet_proto . inet_service"
        yield Set(names[0], (f"type {kind}",))
        yield Set(names[1], (f"type {kind}", "flags interval"))
        yield Set(names[2], (f"type {keys}", "flags interval"))
        yield Set(names[3], (f"type {keys}", "flags interval"))
        yield from (Element(names[0], (address,)) for address in sorted(self._peers))
        for block in _collapsed(self._blocks):
            yield from (Element(names[1], (text,)) for text in written(block))
        for address, spans in sorted(self._doors.items()):
            yield from (Element(names[2], (address, *item)) for item in _items(spans))
        for net, spans in _cut(self._nets):
            for text in written(net):
                yield from (Element(names[3], (text, *item)) for item in _items(spans))


def sets(key: str, family: int) -> tuple[str, ...]:
    return tuple(f"pol-flat-{word}{family}-{key}" for word in ("peers", "blocks", "doors", "nets"))


def texts(key: str, family: int, peer: str) -> Iterator[str]:
    """The rules over the sets, without their verdict. ``peer``: "ip saddr" or the like."""
    peers, blocks, doors, nets = sets(key, family)
    yield from (f"{peer} @{name}" for name in (peers, blocks))
    yield from (f"{peer} . meta l4proto . th dport @{name}" for name in (doors, nets))


def key_of(rules: Iterable[str]) -> str:
    return digest("flat", *sorted(rules))


def written(block: Network) -> Iterator[str]:
    """As nft lists it: a host without length. Everything is two halves, which read back as they are."""
    if block.prefixlen == 0:
        yield from map(str, block.subnets())
    else:
        yield str(block.network_address) if block.prefixlen == block.max_prefixlen else str(block)


def merged(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Overlapping and adjacent ranges as one, in order."""
    done: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if done and low <= done[-1][1] + 1:
            done[-1] = (done[-1][0], max(done[-1][1], high))
        else:
            done.append((low, high))
    return done


def _add(spans: Spans, ports: Iterable[Port]) -> None:
    for port in ports:
        for protocol in (port.protocol,) if port.protocol else PROTOCOLS:
            spans[protocol].append((port.low, port.high))


def _items(spans: Spans) -> Iterator[Item]:
    for protocol in sorted(spans):
        for low, high in merged(spans[protocol]):
            yield protocol, low if low == high else f"{low}-{high}"


def _collapsed(blocks: Iterable[Network]) -> Iterator[Network]:
    yield from ipaddress.collapse_addresses(blocks)  # type: ignore[type-var]


def _cut(nets: list[tuple[Network, tuple[Port, ...]]]) -> Iterator[tuple[Network, Spans]]:
    """Disjoint networks, each with the ports of all that cover it."""
    edges = sorted({int(n[0]) for n, _ in nets} | {int(n[-1]) + 1 for n, _ in nets})
    for low, after in pairwise(edges):
        spans: Spans = defaultdict(list)
        for net, ports in nets:
            if int(net[0]) <= low and after - 1 <= int(net[-1]):
                _add(spans, ports)
        if spans:
            make = type(nets[0][0][0])
            for piece in ipaddress.summarize_address_range(make(low), make(after - 1)):
                yield piece, spans

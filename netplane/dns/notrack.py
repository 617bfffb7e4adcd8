"""Queries to the node's own server pass conntrack by: no entry, no lock, no table to fill. Pure.

A race of two queries from one port (A and AAAA) for a new entry loses one of them, and the resolver waits
five seconds; without entries there is no race. Nothing translates what is not tracked: a Service must not
have the server's own address as its endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..model.facts import Chain

Address = tuple[str, int]


def chains(listen: Iterable[Address]) -> Iterator[Chain]:
    """For the UDP addresses that are listened on; those of all interfaces (0.0.0.0, ::) stay tracked."""
    to, back = [], []
    for ip, port in listen:
        if ip in ("0.0.0.0", "::"):
            continue
        family = "ip6" if ":" in ip else "ip"
        to.append(f"{family} daddr {ip} udp dport {port} notrack")
        back.append(f"{family} saddr {ip} udp sport {port} notrack")
    if to:
        yield _chain("dns-notrack-prerouting", "prerouting", to)
        yield _chain("dns-notrack-output", "output", [*to, *back])


def _chain(name: str, hook: str, rules: list[str]) -> Chain:
    return Chain(name=name, type="filter", hook=hook, priority="raw", rules=tuple(rules))

"""Counting how endpoints answer: facts that are there only while a service asks for passive ejection.

    postrouting (nat, before srcnat)  a flow's first packet, towards its endpoint   svc-tried4
    prerouting (after conntrack)      SYN-ACK, from an endpoint                     svc-answered4
                                      RST to a flow that was never established      svc-refused4

Rule 1: elements count by themselves, as those of svc-services4 do; nothing is put there by packets.
Rule 2: TCP alone: there silence and refusal mean the same everywhere.
Rule 3: translated flows alone: who asks a pod directly says nothing about its service.
Rule 4: the second hook sees every packet, and lets all go at once that carry neither SYN nor RST.
        Linux 5.8 forgets a flow at the reset that answers its SYN, so this cannot be asked of conntrack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from ..model.facts import Chain, Element, Fact, Set
from .ejection import Count
from .endpoints import Backend
from .words import WORDS

TRIED, ANSWERED, REFUSED = "svc-tried", "svc-answered", "svc-refused"
Counts = Callable[[str], Mapping[tuple[Any, ...], tuple[int, Any]]]


@lru_cache(maxsize=1)
def _base() -> tuple[Fact, ...]:
    return tuple(_sets_and_chains())


def _sets_and_chains() -> Iterator[Fact]:
    for digit, ip, _ in WORDS.values():
        yield Set(f"{TRIED}{digit}", (f"typeof {ip} daddr . tcp dport", "counter"))
        for name in (ANSWERED, REFUSED):
            yield Set(f"{name}{digit}", (f"typeof {ip} saddr . tcp sport", "counter"))
    words = [(digit, ip) for digit, ip, _ in WORDS.values()]
    tried = (f"ct status dnat {ip} daddr . tcp dport @{TRIED}{digit}" for digit, ip in words)
    yield Chain("svc-watch-leave", tuple(tried), "nat", "postrouting", "srcnat - 5")
    answered = (f"tcp flags & syn == syn {ip} saddr . tcp sport @{ANSWERED}{digit}" for digit, ip in words)
    begun = "tcp flags & rst == rst ct status & assured == 0"
    refused = (f"{begun} {ip} saddr . tcp sport @{REFUSED}{digit}" for digit, ip in words)
    yield Chain("svc-watch-reply", (*answered, *refused))
    first = "tcp flags & (syn | rst) != 0 ct direction reply ct status dnat jump svc-watch-reply"
    yield Chain("svc-watch-replies", (first,), "filter", "prerouting", "mangle")


def facts(family: str, backends: Iterable[Backend]) -> Iterator[Fact]:
    """All that counts for these endpoints of a family."""
    yield from _base()
    digit = WORDS[family][0]
    for backend in backends:
        for name in (TRIED, ANSWERED, REFUSED):
            yield Element(f"{name}{digit}", backend)


def read(counts: Counts) -> dict[Backend, Count]:
    """Every endpoint that is watched, as the kernel counts now; ``counts``: {item: (packets, …)} of a set."""
    found: dict[Backend, Count] = {}
    for digit, _, _ in WORDS.values():
        tried, answered, refused = (counts(f"{name}{digit}") for name in (TRIED, ANSWERED, REFUSED))
        for item, (packets, _) in tried.items():
            others = (held.get(item, (0, None))[0] for held in (answered, refused))
            found[item] = Count(packets, *others)
    return found

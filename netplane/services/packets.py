"""Counting the packets that clients send to a service: facts that are there only while one asks for it.

    prerouting, output (filter, before dstnat)   svc-packets4/6   address . protocol . port, counting

Rule 1: it is asked for (annotation netplane.io/count-packets), because these hooks see every packet of
        every flow, where all others of ours see a flow's first packet only.
Rule 2: a packet that is counted is marked, so that the fast path does not remember its flow: all come here.
Rule 3: a flow's first packet has no translation yet and is counted by svc-services4/6; the sum is all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from ..model.facts import Chain, Element, Fact, Set
from .frontends import Frontend, family
from .words import KERNEL_PATH, WORDS

SETS = tuple(f"svc-packets{digit}" for digit, _, _ in WORDS.values())
KEEP = f"meta mark set meta mark | {KERNEL_PATH:#x}"
BEFORE_NAT = "-101"  # one before dstnat: the packet still has the address that the client asked


@lru_cache(maxsize=1)
def _base() -> tuple[Fact, ...]:
    return tuple(_sets_and_chains())


def _sets_and_chains() -> Iterator[Fact]:
    for digit, ip, _ in WORDS.values():
        yield Set(f"svc-packets{digit}", (f"typeof {ip} daddr . meta l4proto . th dport", "counter"))
    words = [(digit, ip) for digit, ip, _ in WORDS.values()]
    look = (f"{ip} daddr . meta l4proto . th dport @svc-packets{digit} {KEEP}" for digit, ip in words)
    yield Chain("svc-count", tuple(look))
    go = ("ct direction original ct status dnat jump svc-count",)
    for hook in ("prerouting", "output"):
        yield Chain(f"svc-count-{hook}", go, "filter", hook, BEFORE_NAT)


def facts(reached: Iterable[Frontend]) -> Iterator[Fact]:
    """All that counts for these frontends."""
    yield from _base()
    for frontend in reached:
        yield Element(f"svc-packets{WORDS[family(frontend.address)][0]}", frontend.key)

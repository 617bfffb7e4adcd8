"""What some frontends go through before an endpoint is drawn: a step is a class that leads to another.

    svc-services4 ─> GUARD ─> SPLIT, MARKED or MESHED ─> HOME ─> final class
                           each arrow but the first: svc-next4, frontend . step → class

Rule 1: only frontends that need a step pay for it: all others name their final class at once.
Rule 2: the chains of the steps are constant; what is of one service are elements of svc-next4/6.
Rule 3: steps come in this order, each at most once, and a chain for each stage knows the later ones
        only: the kernel refuses rules that could go round in circles.
Rule 4: a flow whose next class has just gone is dropped, not let through: its client tries again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ..model.facts import Chain, Element, Fact, Set
from .frontends import Frontend, family
from .words import MARK, MESH, WORDS, of_family

GUARD = "4:1"  # drop who is not in the frontend's source ranges
SPLIT = "4:2"  # pods and this node go one way, everybody else another:
INSIDE, OUTSIDE = "4:3", "4:4"
MARKED = "4:5"  # mark for masquerade
MESHED = "4:6"  # mark for masquerade unless the endpoint turns out to be on this node
HOME, HOME_LOCAL = "4:7", "4:8"  # go on as the service port's first frontend (see affinity)


def sets(digit: str, ip: str) -> Iterator[Set]:
    key = f"{ip} daddr . meta l4proto . th dport"
    yield Set(f"svc-next{digit}", (f"typeof {key} . meta priority : meta priority",), map=True)


def base(cluster_cidrs: tuple[str, ...]) -> Iterator[Fact]:
    """The constant chains of all steps but the affinity's, and the ones that look up what follows."""
    for name, (digit, ip, _) in WORDS.items():
        home = {HOME: f"svc-home{digit}", HOME_LOCAL: f"svc-home{digit}-local"}
        ways = {SPLIT: f"svc-split{digit}", MARKED: f"svc-mark{digit}", MESHED: f"svc-mesh{digit}"}
        guard = {GUARD: f"svc-guard{digit}"}
        yield Chain(f"svc-enter{digit}", _follow(digit, {**guard, **ways, **home}))
        key = f"{ip} daddr . meta l4proto . th dport"
        look = f"meta priority set {key} . meta priority map @svc-next{digit}"
        for stage, following in (("guard", {**ways, **home}), ("way", home), ("home", {})):
            yield Chain(f"svc-after-{stage}{digit}", (look, *_follow(digit, following)))
        go = f"goto svc-after-way{digit}"
        allowed = f"{key} . {ip} saddr"
        stop = f"{allowed} != @svc-sources{digit} drop"
        yield Chain(f"svc-guard{digit}", (stop, f"goto svc-after-guard{digit}"))
        yield Chain(f"svc-split{digit}", tuple(_split(ip, of_family(name, cluster_cidrs), go)))
        yield Chain(f"svc-mark{digit}", (MARK, go))
        yield Chain(f"svc-mesh{digit}", (f"meta mark set meta mark | {MESH:#x}", go))


def _follow(digit: str, following: dict[str, str]) -> tuple[str, ...]:
    """To the final class, or to one of these steps."""
    inline = ", ".join(f"{step} : goto {chain}" for step, chain in following.items())
    steps = (f"meta priority vmap {{ {inline} }}",) if inline else ()
    return (f"meta l4proto . meta priority vmap @svc-chains{digit}", *steps, "drop")


def _split(ip: str, pods: str, go: str) -> Iterator[str]:
    """Pods as if they were let in by a load balancer and came back; the node with its own address."""
    if pods:
        yield f"{ip} saddr {pods} meta priority set {INSIDE} {go}"
    yield f"fib saddr type local {MARK} meta priority set {INSIDE} {go}"
    yield f"meta priority set {OUTSIDE} {go}"


def route(frontend: Frontend, *classes: str) -> Iterator[Element]:
    """From the frontend through all of these classes in turn; the last one is final, or SPLIT."""
    key = frontend.key
    digit = WORDS[family(frontend.address)][0]
    yield Element(f"svc-services{digit}", key, (classes[0],))
    for step, following in pairwise(classes):
        yield after(frontend, step, following)


def after(frontend: Frontend, step: str, following: str) -> Element:
    digit = WORDS[family(frontend.address)][0]
    return Element(f"svc-next{digit}", (*frontend.key, step), (following,))

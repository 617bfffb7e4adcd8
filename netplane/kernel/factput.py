"""Put addresses, routes, neighbours and forwarding entries on links: one batch per namespace.

Rule 1: the kernel works a batch off in order, so routes may rest on addresses of the same batch, and
        both on a link that goes up at its beginning.
Rule 2: what is there already is fine when it is what was asked for, whoever put it there.
Rule 3: a pod whose namespace was born with IPv6 off has its addresses all the same: IPv6 is switched on for
        the link and for lo, as the reference plugins do it (containernetworking, ConfigureIface).
"""

from __future__ import annotations

from collections.abc import Iterable
from errno import EEXIST
from typing import Any

import msgspec

from ..model.errors import KernelError
from ..model.facts import ROUTE_PROTOCOL, Address, Fact, FactKey, Fdb, Neighbour, Route, Shaper
from . import qdiscmsg, routemsg, sysctl
from .linkread import View
from .nlmsg import Request
from .session import Session

ORDER: dict[type[Fact], int] = {Address: 0, Route: 1, Neighbour: 2, Fdb: 3, Shaper: 4}


def put_facts(session: Session, netns: str, facts: Iterable[Any], known: frozenset[FactKey]) -> None:
    """``known`` are keys that are there (a plan's changes): replaced, and kept when the plan fails."""
    before, ordered = session.later.pop(netns, []), sorted(facts, key=lambda f: ORDER[type(f)])
    if not before and not ordered:
        return
    _allow_ipv6(session, netns, ordered)
    index = session.indexes(netns, (f.link for f in ordered))
    sock = session.socket(netns)
    requests = [_request(f, index.get(f.link, 0), f.key in known) for f in ordered]
    answers, failure = sock.send([*before, *requests]), None
    for request, answer in zip(before, answers, strict=False):
        if answer.errno:
            raise KernelError(answer.errno, request.what + _where(netns), answer.text)
    for fact, request, answer in zip(ordered, requests, answers[len(before) :], strict=True):
        if not answer.errno:
            if fact.key not in known:
                session.made(fact, index.get(fact.link, 0))
        elif answer.errno != EEXIST:
            failure = failure or KernelError(answer.errno, request.what + _where(netns), answer.text)
        elif fact.key not in known or not isinstance(fact, Address):
            _accept(session, netns, fact, request, index.get(fact.link, 0))
    if failure:
        raise failure


def _allow_ipv6(session: Session, netns: str, facts: Iterable[Any]) -> None:
    links = {f.link: None for f in facts if isinstance(f, Address) and ":" in f.address}
    if netns and links:
        path, names = session.path(netns), [f"net/ipv6/conf/{link}/disable_ipv6" for link in ("lo", *links)]
        sysctl.write([(name, "0") for name in names if sysctl.read(name, path) == "1"], path)


def _where(netns: str) -> str:
    return f" in {netns}" if netns else ""


def _request(fact: Any, index: int, known: bool) -> Request:
    match fact:
        case Address():
            return routemsg.address(fact, index)
        case Route():
            return routemsg.route(fact, index, routemsg.PUT if known else routemsg.ADD)
        case Neighbour():
            return routemsg.neighbour(fact, index)
        case Fdb():
            return routemsg.fdb(fact, index)
        case Shaper():
            return qdiscmsg.shape(fact, index)
    raise TypeError(f"{fact!r} is not for this driver")


def _accept(session: Session, netns: str, fact: Any, request: Request, index: int) -> None:
    """Something of that identity is there: fine if equal, replaced if ours, else refused. Dumps."""
    view = View(session.socket(netns))
    there: list[tuple[Any, int]] = list(view.addresses() if isinstance(fact, Address) else view.routes())
    key, mark = _local(fact)
    same = [(found, proto) for found, proto in there if found.key == key]
    if any(found.mark == mark for found, _ in same):
        return
    if isinstance(fact, Route) and any(proto == ROUTE_PROTOCOL for _, proto in same):
        session.socket(netns).must([routemsg.route(fact, index, routemsg.PUT)])
        return
    who = ", ".join(f"protocol {p} on {found.link}" for found, p in same) or "another prefix length"
    raise KernelError(EEXIST, request.what, f"it is there with other properties, not by us: {who}")


def _local(fact: Any) -> tuple[FactKey, Any]:
    """Key and mark as a reader inside the fact's namespace sees them."""
    inside = msgspec.structs.replace(fact, netns="")
    return inside.key, inside.mark

"""Make links as their facts say: create, adopt, change, or make again.

Rule 1: a link that is not ours is never changed: its name being taken is an error that says by whom.
Rule 2: creation and configuration are two requests, because an alias cannot be set while creating
        (kernel 6.18) and must never be set on a link that turned out to be somebody else's.
Rule 3: what hangs on a link that must be made again (addresses, routes, entries of ours) comes back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from errno import EEXIST, EINVAL, ENODEV, EOPNOTSUPP
from itertools import groupby
from typing import Any

from ..model.errors import KernelError
from ..model.facts import FactKey, Link
from . import linkmsg, ours, qdiscmsg, routemsg, sysctl
from .factput import put_facts
from .linkmsg import State
from .linkread import View
from .nlmsg import Answer
from .session import GONE, Session

_RANK = {
    "bridge": 0,
    "vxlan": 1,
    "veth": 2,
    "macvlan": 3,
    "": 4,
}  # masters before ports, what is made before what is configured


_ONLY_UP = {"up": "1"}
_CARRIED = 1.5  # seconds that a pair may take


def put(session: Session, facts: Iterable[Link], known: frozenset[FactKey] = frozenset()) -> None:
    """``known`` are keys that are there already (a plan's changes). Raises KernelError."""
    ordered = sorted(facts, key=_order)
    for (_, netns), group in groupby(ordered, key=_order):
        members = list(group)
        fresh = [f for f in members if f.kind and f.key not in known]
        plain = [f for f in members if not f.kind and linkmsg.wish(f) == _ONLY_UP]
        there = _create(session, netns, fresh)
        for fact in (*there, *(f for f in members if f not in fresh and f not in plain)):
            _adopt(session, fact)
        if plain:
            session.socket(netns)  # says clearly what is wrong with a path that holds no namespace
            session.after(netns, [linkmsg.up(f.name) for f in plain])


def _order(fact: Link) -> tuple[int, str]:
    return _RANK[fact.kind], fact.netns


def _create(session: Session, netns: str, facts: list[Link]) -> list[Link]:
    """Make these links; returns those whose name is taken."""
    if not facts:
        return []
    sock, taken, made, failure = session.socket(netns), [], [], None
    # what lies on a link of ours is made beside it and born in its own namespace
    maker = session.socket("") if facts[0].kind == "macvlan" else sock
    requests = [_creation(session, fact) for fact in facts]
    questions = [linkmsg.get(fact.name) for fact in facts if fact.kind == "veth"]
    answers = maker.send([*requests, *questions])
    for fact, request, answer in zip(facts, requests, answers, strict=False):
        if answer.errno == EEXIST:
            taken.append(fact)
        elif answer.errno:
            failure = KernelError(answer.errno, request.what, answer.text)
        else:
            session.made(fact)
            made.append(fact)
    if failure:
        raise failure
    _quiet(session, netns, [f.name for f in made if f.kind in ("bridge", "macvlan")])
    session.joining += [fact for fact in made if fact.kind == "macvlan" and fact.mac]
    sock.must([request for fact in made if fact.kind != "veth" for request in linkmsg.finish(fact)])
    told = zip(facts, answers[len(requests) :], strict=False)
    _know_both_ends(session, [(fact, answer) for fact, answer in told if answer.body and fact not in taken])
    _raise_pairs(session, [f for f in made if f.kind == "veth"])
    return taken


def _creation(session: Session, fact: Link) -> Any:
    options = dict(fact.options)
    below = str(options.get("link", ""))
    if fact.kind == "macvlan":
        peer_fd = session.netns_fd(session.path(fact.netns))
        return linkmsg.create(fact, 0, session.master("", below), peer_fd)
    master, link = session.master(fact.netns, fact.master), session.master(fact.netns, below)
    target = str(options.get("peer_netns", ""))
    peer_fd = -1
    if fact.kind == "veth" and target != fact.netns:
        session.socket(target)  # says clearly what is wrong with a path that holds no namespace
        peer_fd = session.netns_fd(session.path(target))
    return linkmsg.create(fact, master, link, peer_fd)


def _quiet(session: Session, netns: str, names: list[str]) -> None:
    """No router advertisements and no duplicate detection on these links, which are still down.

    Addresses and routes here are assigned: an advertisement from some pod must not change them.
    Duplicate detection would leave the link-local address unusable for a second or two, and a
    gateway without one cannot even ask for its pods (a forwarded packet's solicitation needs it).
    """
    writes = [(f"net/ipv6/conf/{n}/{key}", "0") for n in names for key in ("accept_ra", "accept_dad")]
    sysctl.write(writes, session.path(netns), missing_ok=True)


def _know_both_ends(session: Session, told: list[tuple[Link, Answer]]) -> None:
    """A veth's answer names its peer by index, too: nobody has to ask in the pod's namespace."""
    for fact, answer in told:
        options, (index, peer) = dict(fact.options), linkmsg.ends(answer.body or b"")
        session.know(fact.netns, fact.name, index)
        session.know(str(options.get("peer_netns", "")), str(options["peer"]), peer)


def _raise_pairs(session: Session, facts: list[Link]) -> None:
    """Both ends go up, at the beginning of the batch that brings what lies on them."""
    for fact in facts:
        options = dict(fact.options)
        inside, peer = str(options.get("peer_netns", "")), str(options["peer"])
        _quiet(session, inside, [peer])
        if session.hooked and options.get("clsact"):
            index = session.indexes(fact.netns, (fact.name,))[fact.name]  # known: no question
            session.after(fact.netns, [qdiscmsg.clsact(fact.name, index)])
        session.after(fact.netns, linkmsg.finish(fact))
        session.after(inside, [linkmsg.up(peer)])
        if fact.up:
            session.rising.append((fact.netns, fact))


def announce(session: Session) -> None:
    """Once they have their addresses: other hosts of the segment forget the MAC that had them before.

    Not all do when asked again: a router may keep it for hours. A segment that does not hear it is no fault.
    """
    for fact in session.joining:
        notify = (f"net/ipv4/conf/{fact.name}/arp_notify", f"net/ipv6/conf/{fact.name}/ndisc_notify")
        sysctl.write([(name, "1") for name in notify], session.path(fact.netns), missing_ok=True)
        session.socket(fact.netns).send([linkmsg.say_mac(fact)])


def wait_carried(session: Session) -> None:
    """Return when our ends of the new pairs carry packets.

    The end that goes up first has its carrier from the other, and its queue and its bridge are told by a
    worker of the kernel (linkwatch), now or, when much happens, within a second: until then it drops.
    Since 6.8 asking for the link has that done at once; and then for the bridge, which has its carrier, and
    by it the gateway's IPv6 address, from its first port.
    """
    give_up = time.monotonic() + _CARRIED
    rising: dict[str, list[Link]] = {}
    for netns, fact in session.rising:
        rising.setdefault(netns, []).append(fact)
    for netns, facts in rising.items():
        names = [fact.name for fact in facts]
        while names:
            found = session.look_up(netns, names)
            names = [name for name, body in found.items() if not linkmsg.carries(body)]
            if time.monotonic() > give_up:
                return
            if names:
                time.sleep(0.001)
        ports = session.indexes(netns, [fact.name for fact in facts if fact.master])
        if ports:
            looks = (linkmsg.get(name) for name in {fact.master: None for fact in facts if fact.master})
            quiet = (routemsg.no_multicast(name, index) for name, index in ports.items())
            session.socket(netns).send([*quiet, *looks])


def _adopt(session: Session, fact: Link) -> None:
    """Bring a link that is there (or ought to be) to what the fact says."""
    state = session.states(fact.netns, [fact.name]).get(fact.name)
    if state is None:
        _absent(session, fact)
        return
    if fact.kind and not state.ours:
        who = f"it is a {state.kind or 'device'} with alias {state.alias!r}"
        raise KernelError(EEXIST, f"create {fact.kind} {fact.name}", f"the name is taken, not by us: {who}")
    if fact.kind and (state.kind != fact.kind or _parted(session, fact, state)):
        _again(session, fact)
        return
    below = "" if fact.kind == "macvlan" else str(dict(fact.options).get("link", ""))
    index = session.indexes(fact.netns, (fact.master, below))
    names = session.name_of(fact.netns)
    differing = set(linkmsg.differences(linkmsg.wish(fact), state.words(lambda i: names.get(i, f"#{i}"))))
    if differing or (fact.kind and state.alias != ours.alias_of(fact, linkmsg.wish(fact))):
        requests = linkmsg.modify(fact, differing, index.get(fact.master, 0), index.get(below, 0))
        try:
            session.socket(fact.netns).must(requests)
        except KernelError as exc:
            if fact.kind and exc.errno in (EOPNOTSUPP, EINVAL):  # an option that is fixed at creation
                _again(session, fact)
                return
            raise
    if fact.kind == "veth":
        _change_peer(session, fact)


def _absent(session: Session, fact: Link) -> None:
    if not fact.kind:
        where = f" in {fact.netns}" if fact.netns else ""
        raise KernelError(ENODEV, f"configure link {fact.name}{where}")
    if _create(session, fact.netns, [fact]):
        # The link's own name is free, so it is its peer's that is taken.
        options = dict(fact.options)
        where = str(options.get("peer_netns") or "this namespace")
        what = f"create {fact.kind} {fact.name}"
        raise KernelError(EEXIST, what, f"{options.get('peer', fact.name)} is there already in {where}")


def _peer_of(fact: Link) -> Link:
    options = dict(fact.options)
    return Link(
        name=str(options["peer"]),
        netns=str(options.get("peer_netns", "")),
        mac=str(options.get("peer_mac", "")),
        mtu=int(options.get("peer_mtu") or fact.mtu),
    )


def _parted(session: Session, fact: Link, state: State) -> bool:
    """Whether a veth's other end is not where the fact wants it, which no request can mend."""
    if fact.kind != "veth":
        return False
    peer = _peer_of(fact)
    found = session.states(peer.netns, [peer.name]).get(peer.name)
    return (
        found is None
        or found.kind != "veth"
        or (state.iflink, found.iflink) != (found.ifindex, state.ifindex)
    )


def _change_peer(session: Session, fact: Link) -> None:
    peer = _peer_of(fact)
    state = session.states(peer.netns, [peer.name])[peer.name]
    differing = set(linkmsg.differences(linkmsg.wish(peer), state.words(str)))
    if differing:
        session.socket(peer.netns).must(linkmsg.modify(peer, differing, 0, 0))


def _again(session: Session, fact: Link) -> None:
    """Delete the link and make it, with what hung on it."""
    sock = session.socket(fact.netns)
    kept = [f for f in View(sock).ours() if getattr(f, "link", "") == fact.name]
    sock.must([linkmsg.delete(fact.name)], fine=GONE)
    session.forget(fact.netns, fact.name)
    _absent(session, fact)
    put_facts(session, fact.netns, kept, frozenset(f.key for f in kept))

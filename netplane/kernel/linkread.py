"""What a namespace holds, as facts: for `observe` (only what is ours) and `verify` (everything).

Rule 1: this dumps, so it is for starts, errors and CHECK; never for the path of an ADD.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..model.facts import ROUTE_PROTOCOL, Address, Fdb, Link, Neighbour, Route, Shaper
from . import linkmsg, ours, qdiscmsg, routemsg
from . import nlmsg as nl
from .linkmsg import State
from .nlsocket import Socket


class View:
    """The links of a namespace at one moment; facts on them are dumped when asked for."""

    def __init__(self, sock: Socket) -> None:
        self._sock = sock
        body = nl.IFINFOMSG.pack(0, 0, 0, 0, 0) + nl.attr32(nl.IFLA_EXT_MASK, nl.RTEXT_FILTER_SKIP_STATS)
        states = [linkmsg.parse(b) for _, b in sock.dump(nl.RTM_GETLINK, body)]
        self.by_index = {s.ifindex: s for s in states}
        self.by_name = {s.name: s for s in states}

    def name_of(self, index: int) -> str:
        return self.by_index[index].name if index in self.by_index else ""

    def addresses(self) -> Iterator[tuple[Address, int]]:
        yield from addresses(self._sock, {index: state.name for index, state in self.by_index.items()})

    def routes(self) -> Iterator[tuple[Route, int]]:
        for family in (2, 10):
            head = nl.RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            for _, body in self._sock.dump(nl.RTM_GETROUTE, head):
                yield routemsg.read_route(body, self.name_of)

    def neighbours(self) -> Iterator[tuple[Neighbour | Fdb, int]]:
        for family in (0, routemsg.AF_BRIDGE):
            for _, body in self._sock.dump(nl.RTM_GETNEIGH, nl.NDMSG.pack(family, 0, 0, 0, 0)):
                fact, proto = routemsg.read_neighbour(body, self.name_of)
                if fact is not None:
                    yield fact, proto

    def shapers(self) -> Iterator[Shaper]:
        for _, body in self._sock.dump(qdiscmsg.RTM_GETQDISC, qdiscmsg.TCMSG.pack(0, 0, 0, 0, 0)):
            fact = qdiscmsg.read(body, self.name_of)
            if fact is not None:
                yield fact

    def ours(self) -> Iterator[Any]:
        """All facts of ours but the links, by the marks that `ours` documents."""
        yield from (f for f, proto in self.addresses() if proto == ROUTE_PROTOCOL)
        yield from (f for f, proto in self.routes() if proto == ROUTE_PROTOCOL)
        for fact, proto in self.neighbours():
            if self._is_ours(fact.link) and (isinstance(fact, Fdb) or proto == ROUTE_PROTOCOL):
                yield fact
        yield from (shaper for shaper in self.shapers() if self._is_ours(shaper.link))

    def _is_ours(self, name: str) -> bool:
        link = self.by_name.get(name)
        return link is not None and link.ours

    def link_mark(self, state: State) -> str:
        """The mark of a link of ours; another word when it is not as its alias says it should be."""
        kept = ours.wish_of(state.alias)
        if kept is None or state.group == ours.GROUP_NEW:
            return "incomplete"
        mark, wish = kept
        differing = linkmsg.differences(wish, state.words(self.name_of))
        return f"differs: {' '.join(differing)}" if differing else str(mark)


def addresses(sock: Socket, names: Mapping[int, str]) -> Iterator[tuple[Address, int]]:
    """All addresses with their protocols; ``link`` is "" for a link that is not among ``names``."""
    for _, body in sock.dump(nl.RTM_GETADDR, nl.IFADDRMSG.pack(0, 0, 0, 0, 0)):
        yield routemsg.read_address(body, lambda index: names.get(index, ""))


def link_faults(fact: Link, view: View, where: str = "") -> Iterator[str]:
    """In words, how a link is not as the fact says; its peer is not looked at."""
    state = view.by_name.get(fact.name)
    if state is None:
        yield f"link {fact.name}{where} is not there"
        return
    words, want = state.words(view.name_of), linkmsg.wish(fact)
    for word in linkmsg.differences(want, words):
        have = words.get(word) or "none"
        yield f"link {fact.name}{where}: {word} is {have}, not {want[word] or 'none'}"


def peer_faults(fact: Link, host: State | None, view: View) -> Iterator[str]:
    """The same for the other end of a veth; ``view`` is of the peer's namespace."""
    options = dict(fact.options)
    name, netns = str(options["peer"]), str(options.get("peer_netns", ""))
    peer = Link(name=name, mac=str(options.get("peer_mac", "")), mtu=int(options.get("peer_mtu") or fact.mtu))
    where = f" in {netns}" if netns else ""
    yield from link_faults(peer, view, where)
    state = view.by_name.get(name)
    if (
        state
        and host
        and (state.kind != "veth" or state.iflink != host.ifindex or host.iflink != state.ifindex)
    ):
        yield f"link {name}{where} is not the other end of {fact.name}"

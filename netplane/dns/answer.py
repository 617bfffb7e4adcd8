"""What to say to a packet: bytes in; bytes, silence, or "ask somebody else" out. Pure.

Rule 1: any bytes get an outcome and none raises. Responses and packets without a header get silence,
        so that two servers never talk to each other for ever.
Rule 2: the cluster's zone and the addresses that we have names for are answered here, with authority;
        everything else of class IN is forwarded when there is somebody to ask, and else REFUSED.
Rule 3: a name that exists without such data is NODATA, never NXDOMAIN: resolvers stop at NXDOMAIN.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from ..model.errors import Invalid
from . import wire
from .loop import Divert
from .table import RRset, View, pick
from .wire import Query

MAX_CHAIN = 8  # CNAMEs followed inside the zone; more is a loop
SEARCH_TTL = 5  # seconds of the CNAME by which a search list is answered at once
_ARPA = (wire.name("in-addr.arpa"), wire.name("ip6.arpa"))
_QUESTION = wire.pointer(wire.HEADER.size)


class Client(NamedTuple):
    """Who asks: its address, and whether over UDP (TCP takes 65535 bytes)."""

    address: str = ""
    udp: bool = True


class Forward(NamedTuple):
    """A question for an upstream: ``name`` with the type of ``query``; `relay` makes bytes of it.

    ``chain`` are the CNAMEs of the zone that led from the query's name to this one. ``otherwise`` is
    what to do when the name does not exist: the next of a search list, or the response.
    """

    query: Query
    name: bytes
    limit: int
    chain: tuple[bytes, ...] = ()
    otherwise: Forward | bytes | None = None


class Names(Protocol):
    """Names that are computed when they are asked for, and may depend on who asks. Pure."""

    @property
    def computes(self) -> Divert:
        """Which denials of the table are not the last word."""
        ...

    def find(self, name: bytes, view: View, client: Client) -> tuple[RRset, ...] | None:
        """The RRsets of a name that the table does not have; None: there is no such name here."""
        ...

    def search(self, name: bytes, client: Client) -> Iterable[bytes]:
        """What the client would ask next, after a denial of ``name`` (autopath)."""
        ...


class NoNames:
    """Nothing but the table."""

    computes = Divert.NOTHING

    def find(self, name: bytes, view: View, client: Client) -> None:  # noqa: ARG002
        return None

    def search(self, name: bytes, client: Client) -> tuple[bytes, ...]:  # noqa: ARG002
        return ()


NO_NAMES = NoNames()


class Reply(NamedTuple):
    """The sections of a response, each of records as `wire` prepares them."""

    rcode: int = wire.NOERROR
    answers: tuple[bytes, ...] = ()
    authority: tuple[bytes, ...] = ()
    additional: Iterable[bytes] = ()
    flags: int = 0  # AA; RA is added when there is recursion


def answer(
    packet: bytes, view: View, client: Client, recursion: bool, names: Names = NO_NAMES
) -> bytes | Forward | None:
    """The response, or the Forward that stands for it, or None where silence is right."""
    if len(packet) < wire.HEADER.size or packet[2] & 0x80:
        return None
    if packet[2] & 0x78:  # an opcode other than QUERY
        return _header_only(packet, wire.NOTIMP)
    try:
        query = wire.parse_query(packet)
    except Invalid:
        return _header_only(packet, wire.FORMERR)
    ask = _Ask(query, view, client, recursion, names)
    outcome = _decide(ask)
    return outcome if isinstance(outcome, Forward) else ask.pack(outcome)


def limit(query: Query, udp: bool) -> int:
    """How many bytes the client takes in one response."""
    if not udp:
        return wire.TCP_LIMIT
    if query.edns is None:
        return wire.UDP_PLAIN
    return max(wire.UDP_PLAIN, min(query.edns.size, wire.UDP_EDNS))


def failure(forward: Forward, rcode: int = wire.SERVFAIL) -> bytes:
    """The response to a Forward that came to nothing."""
    return pack(forward.query, Reply(rcode, flags=wire.RA), forward.limit)


def _header_only(packet: bytes, rcode: int) -> bytes:
    ident, flags, *_ = wire.HEADER.unpack_from(packet)
    kept = flags & (wire.OPCODE | wire.RD)
    return wire.HEADER.pack(ident, wire.QR | kept | rcode, 0, 0, 0, 0)


# --- the decision -------------------------------------------------------------------------------


class _Ask(NamedTuple):
    """A query, what it is answered from, and for whom."""

    query: Query
    view: View
    client: Client
    recursion: bool
    names: Names

    def find(self, name: bytes) -> tuple[RRset, ...] | None:
        found = self.view.find(name)
        return found if found is not None else self.names.find(name, self.view, self.client)

    def has(self, name: bytes) -> bool:
        """Whether a name outside the zone is answered here: a reverse name, one of the client's own."""
        return name in self.view.names or self.names.find(name, self.view, self.client) is not None

    def forward(self, name: bytes, chain: tuple[bytes, ...] = ()) -> Forward:
        return Forward(self.query, name, limit(self.query, self.client.udp), chain)

    def pack(self, reply: Reply) -> bytes:
        if self.recursion:
            reply = reply._replace(flags=reply.flags | wire.RA)
        return pack(self.query, reply, limit(self.query, self.client.udp))


def _decide(ask: _Ask) -> Reply | Forward:
    query, view = ask.query, ask.view
    if query.edns is not None and query.edns.version:
        return Reply(wire.BADVERS)
    if query.klass != wire.IN or query.type in (wire.AXFR, wire.IXFR):
        return Reply(wire.REFUSED)
    inside = _ends_with(query, view.apex)
    if not view.synced and (inside or any(_ends_with(query, arpa) for arpa in _ARPA)):
        return Reply(wire.SERVFAIL)
    if inside:
        outcome = _local(ask, query.name)
        denied = isinstance(outcome, Reply) and outcome.rcode == wire.NXDOMAIN
        return _searched(ask, outcome) if denied and isinstance(outcome, Reply) else outcome
    if ask.has(query.name):
        return _local(ask, query.name)
    return ask.forward(query.name) if ask.recursion else Reply(wire.REFUSED)


def _ends_with(query: Query, apex: bytes) -> bool:
    return query.name.endswith(apex) and len(query.name) - len(apex) in query.labels


def _searched(ask: _Ask, denial: Reply) -> Reply | Forward:
    """The first name of the client's search list that exists, behind a CNAME; ``denial`` when none does."""
    if not (ask.recursion and ask.query.flags & wire.RD):
        return denial
    forwards: list[Forward] = []
    for name in ask.names.search(ask.query.name, ask.client):
        chain = (wire.alias(name, SEARCH_TTL),)
        if not wire.within(name, ask.view.apex) and not ask.has(name):
            forwards.append(ask.forward(name, chain))
            continue
        found = _local(ask, name, chain)
        if isinstance(found, Forward) or found.rcode != wire.NXDOMAIN:
            if not forwards:
                return found
            return _linked(forwards, found if isinstance(found, Forward) else ask.pack(found))
    return _linked(forwards, ask.pack(denial)) if forwards else denial


def _linked(forwards: list[Forward], last: Forward | bytes) -> Forward:
    """One after the other, each for when the one before it does not exist."""
    rest = last
    for forward in reversed(forwards):
        rest = forward._replace(otherwise=rest)
    assert isinstance(rest, Forward)
    return rest


def _local(ask: _Ask, name: bytes, chain: tuple[bytes, ...] = ()) -> Reply | Forward:
    """From what is known here, along its CNAMEs (RFC 1034 4.3.2); the last name sets the rcode."""
    query, view, owner = ask.query, ask.view, name if chain else _QUESTION
    for _ in range(MAX_CHAIN):
        rrsets = ask.find(name)
        if rrsets is None:
            return Reply(wire.NXDOMAIN, chain, _soa(query, view), flags=wire.AA)
        alias = pick(rrsets, wire.CNAME)
        if alias is None or query.type in (wire.CNAME, wire.ANY):
            return _found(query, view, _pick(rrsets, query.type), owner, chain)
        link = alias.records[0]
        chain += (wire.owned(link, owner),)
        name = owner = wire.host_of(link)
        if not wire.within(name, view.apex) and not ask.has(name):
            if ask.recursion and query.flags & wire.RD:
                return ask.forward(name, chain)
            return Reply(wire.NOERROR, chain, flags=wire.AA)
    return Reply(wire.SERVFAIL)


def _pick(rrsets: tuple[RRset, ...], kind: int) -> RRset | None:
    """For ANY one set is enough (RFC 8482 4.1): it is nobody's way to learn all, and amplifies nothing."""
    if kind == wire.ANY:
        return min(rrsets, key=lambda rrset: rrset.type, default=None)
    return pick(rrsets, kind)


def _found(query: Query, view: View, rrset: RRset | None, owner: bytes, chain: tuple[bytes, ...]) -> Reply:
    if rrset is None:
        return Reply(wire.NOERROR, chain, _soa(query, view), flags=wire.AA)
    records = rrset.next()
    if owner != _QUESTION:
        records = tuple(wire.owned(rr, owner) for rr in records)
    more = _addresses(records, view) if query.type in (wire.SRV, wire.NS) else ()
    return Reply(wire.NOERROR, chain + records, (), more, wire.AA)


def _addresses(records: tuple[bytes, ...], view: View) -> Iterator[bytes]:
    """The addresses of the hosts that SRV and NS records name (RFC 2782, RFC 1034 4.3.2 step 6)."""
    for rr in records:
        host = wire.host_of(rr)
        for kind in (wire.A, wire.AAAA):
            found = view.rrset(host, kind)
            for address in found.records if found is not None else ():
                yield wire.owned(address, host)


def _soa(query: Query, view: View) -> tuple[bytes, ...]:
    """The zone's SOA, which says how long a denial may be kept (RFC 2308 3)."""
    soa = view.rrset(view.apex, wire.SOA)
    if soa is None:
        return ()
    offset = len(query.name) - len(view.apex) if _ends_with(query, view.apex) else 0
    return (wire.owned(soa.records[0], wire.pointer(wire.HEADER.size + offset)),)


# --- the bytes ----------------------------------------------------------------------------------


def pack(query: Query, reply: Reply, limit: int) -> bytes:
    """The response in at most ``limit`` bytes.

    Additional records are left out silently. When answers must be left out, TC says so, and those
    that fit are sent all the same: some clients never come back over TCP.
    """
    edns = wire.opt(wire.Edns(wire.UDP_EDNS, 0, query.edns.dnssec), reply.rcode) if query.edns else b""
    room = limit - wire.HEADER.size - len(query.question) - len(edns)
    answers, authority, truncated = list(reply.answers), list(reply.authority), 0
    used = sum(map(len, answers)) + sum(map(len, authority))
    if used > room:
        answers, truncated = _that_fit(answers, room), wire.TC
        authority, more = [], []
    else:
        more = _that_fit(reply.additional, room - used)
    kept = query.flags & (wire.OPCODE | wire.RD | wire.CD)
    flags = wire.QR | kept | reply.flags | truncated | reply.rcode & 15
    counts = (1, len(answers), len(authority), len(more) + bool(edns))
    header = wire.HEADER.pack(query.id, flags, *counts)
    return b"".join((header, query.question, *answers, *authority, *more, edns))


def _that_fit(records: Iterable[bytes], room: int) -> list[bytes]:
    fit: list[bytes] = []
    for rr in records:
        room -= len(rr)
        if room < 0:
            break
        fit.append(rr)
    return fit

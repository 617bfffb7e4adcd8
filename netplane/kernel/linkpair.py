"""A plan that is one fresh veth pair and what hangs on it, as records for one call of csrc/rtnl/pair.c. Pure.

Rule 1: an ADD is such a plan. Whatever else is in it, or is not as it should be, is for the general way
        (linkput, factput), which does everything and has the words for what is refused.
Rule 2: the layouts are those of csrc/rtnl/pair.h; how the kernel is told stands in message.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any, NamedTuple

from ..model.errors import Invalid
from ..model.facts import Address, Link, Neighbour, Route, Shaper
from . import linkmsg, ours
from . import nlmsg as nl

MOST = 48  # facts beside the links: NP_PAIR_ITEMS
_HEAD = struct.Struct("=16s16s6s6sBB16s2xIII256s")  # struct np_pair, but its number
_NUMBER = struct.Struct("=I")
_ITEM = struct.Struct("=BBBBBBBxIIIIIIQ6s2x16s16s16s")  # struct np_pair_item
_MAC, _PEER_MAC, _CLSACT, _LOOPBACK = 1, 2, 4, 8
_ADDRESS, _ROUTE, _NEIGHBOUR, _SHAPER = range(4)
_VIA, _SRC, _ONLINK = 1, 2, 4
_U32 = 0xFFFFFFFF


class _Ends(NamedTuple):
    """Where the pair's ends lie, and the indexes of links that facts of our namespace may name."""

    name: str
    peer: str
    netns: str  # of the peer
    others: Mapping[str, int]


def pack(
    facts: tuple[Any, ...], masters: Mapping[str, int], hooked: bool, number: Callable[[], int] = lambda: 0
) -> tuple[bytes, bytes] | None:
    """The path of the pod's namespace, and the records; None when it is for the general way.

    ``masters``: indexes of links of our namespace; ``hooked``: our end may be born with a place for programs;
    ``number``: what our namespace is to know the pod's by (nsnumbers.py), asked once, for a pair.
    """
    links = [fact for fact in facts if type(fact) is Link]
    pairs = [fact for fact in links if fact.kind]
    if len(pairs) != 1 or len(facts) - len(links) > MOST:
        return None
    (pair,) = pairs
    options = dict(pair.options)
    netns, peer = str(options.get("peer_netns", "")), str(options.get("peer", ""))
    if pair.kind != "veth" or pair.netns or not netns or not pair.up:
        return None
    if len(links) > 1 and any(fact is not pair and fact != Link(name="lo", netns=netns) for fact in links):
        return None
    flags = (_CLSACT if hooked and options.get("clsact") else 0) | (_LOOPBACK if len(links) > 1 else 0)
    ends = _Ends(pair.name, peer, netns, masters)
    try:
        path, head = netns.encode(), _head(pair, options, masters, flags) + _NUMBER.pack(number())
        # in factput's order: a route may rest on an address
        items = [_item(fact, ends) for kind in _PACKERS for fact in facts if type(fact) is kind]
    except (KeyError, ValueError, OSError, struct.error, Invalid):
        return None
    if b"\0" in path or len(items) + len(links) != len(facts):
        return None
    return path, b"".join((head, *items))


def _head(pair: Link, options: Mapping[str, str | int], masters: Mapping[str, int], flags: int) -> bytes:
    name, peer = pair.name.encode(), str(options["peer"]).encode()
    alias = ours.alias_of(pair, linkmsg.wish(pair)).encode()
    if len(peer) > 15 or len(alias) > 255 or b"\0" in name + peer + alias:
        raise ValueError("it would be cut off")
    mac, peer_mac = pair.mac, str(options.get("peer_mac", ""))
    flags |= (_MAC if mac else 0) | (_PEER_MAC if peer_mac else 0)
    port = [(linkmsg.PORT[word][0], value) for word, value in linkmsg.port_options(pair).items()]
    return _HEAD.pack(
        name, peer, nl.mac_bytes(mac) if mac else b"", nl.mac_bytes(peer_mac) if peer_mac else b"",
        flags, len(port), bytes(part for both in port for part in both), pair.mtu,
        int(options.get("peer_mtu") or pair.mtu), masters[pair.master] if pair.master else 0, alias,
    )  # fmt: skip


def _item(fact: Any, ends: _Ends) -> bytes:
    """Raises KeyError for what lies elsewhere, but for routes and neighbours on a known link of ours."""
    inside, link = bool(fact.netns), 0
    if inside:
        if fact.netns != ends.netns or fact.link != ends.peer:
            raise KeyError(fact.link)
    elif fact.link != ends.name:
        if type(fact) not in (Route, Neighbour):
            raise KeyError(fact.link)
        link = ends.others[fact.link]
    return _PACKERS[type(fact)](fact, inside, link)


def _cidr(text: str) -> tuple[int, bytes, int]:
    """Family, address and prefix length. Raises ValueError, OSError."""
    plain, _, length = text.partition("/")
    family, most = (AF_INET6, 128) if ":" in plain else (AF_INET, 32)
    bits = int(length) if length else most
    if bits > most:
        raise ValueError(text)
    return family, inet_pton(family, plain), bits


def _address(fact: Address, inside: bool, link: int) -> bytes:
    family, packed, bits = _cidr(fact.address)
    return _ITEM.pack(_ADDRESS, inside, family, bits, 0, 0, 0, link, 0, 0, 0, 0, 0, 0, b"", packed, b"", b"")


def _route(fact: Route, inside: bool, link: int) -> bytes:
    family, dst, bits = _cidr(fact.dst)
    via = inet_pton(family, fact.via) if fact.via else b""
    src = inet_pton(family, fact.src) if fact.src else b""
    flags = (_VIA if via else 0) | (_SRC if src else 0) | (_ONLINK if fact.onlink else 0)
    kind = {"unicast": 1, "local": 2}[fact.kind]
    scope = nl.RT_SCOPES[fact.effective_scope]
    return _ITEM.pack(
        _ROUTE, inside, family, bits, scope, kind, flags, link,
        fact.table, fact.metric, fact.mtu, fact.advmss, 0, 0, b"", dst, via, src,
    )  # fmt: skip


def _neighbour(fact: Neighbour, inside: bool, link: int) -> bytes:
    family, packed, bits = _cidr(fact.address)
    mac = nl.mac_bytes(fact.mac)
    return _ITEM.pack(
        _NEIGHBOUR, inside, family, bits, 0, 0, 0, link, 0, 0, 0, 0, 0, 0, mac, packed, b"", b""
    )


def _shaper(fact: Shaper, inside: bool, link: int) -> bytes:
    burst = min(fact.burst, _U32)
    return _ITEM.pack(_SHAPER, inside, 0, 0, 0, 0, 0, link, 0, 0, 0, 0, burst, fact.rate, b"", b"", b"", b"")


_PACKERS: dict[type, Callable[[Any, bool, int], bytes]] = {
    Address: _address,
    Route: _route,
    Neighbour: _neighbour,
    Shaper: _shaper,
}

"""nft's JSON listing of our table as {fact key: mark}. Pure: bytes in, marks out.

Rule 1: a fact reads back exactly as it was wanted when it is written in canonical form: protocols
        by name (tcp, udp, sctp, icmp, ipv6-icmp), ports as numbers, addresses as RFC 5952 has
        them, a prefix as "10.0.0.0/24", a host without length, a range as "a-b".
Rule 2: what lies in our table without a mark of ours has the mark "": it is ours to change or remove.
Rule 3: elements of a dynamic set come from packets; they are no facts and are left out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ..model.facts import FactKey, Mark

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
Part = str | int


def marks(listing: bytes) -> dict[FactKey, Mark]:
    """All chains, sets and elements of `nft -j -p list table inet netplane`."""
    found: dict[FactKey, Mark] = {}
    for item in msgspec.json.decode(listing)["nftables"]:
        (kind, body), *_ = item.items()
        if kind == "chain":
            found[("chain", body["name"])] = ""
        elif kind in ("set", "map"):
            mark, _, flag = body.get("comment", "").partition(" ")
            found[("set", body["name"])] = mark
            if not flag:
                found.update(_elements(body))
    found.update(_chain_marks(listing))
    return found


def elements(listing: bytes) -> dict[FactKey, Mark]:
    """The elements alone of `nft -j list set`."""
    return {key: mark for key, mark in marks(listing).items() if key[0] == "element"}


def counters(listing: bytes) -> dict[str, int]:
    """{element: packets} of one set whose elements are addresses with a counter each."""
    bodies = (item["set"] for item in msgspec.json.decode(listing)["nftables"] if "set" in item)
    elements = (
        e["elem"] for body in bodies for e in body.get("elem", ()) if isinstance(e, dict) and "elem" in e
    )
    return {str(e["val"]): e["counter"]["packets"] for e in elements if "counter" in e}


def _chain_marks(listing: bytes) -> dict[FactKey, Mark]:
    """The comment of each chain's first rule (rules are listed in order, after all chains)."""
    first: dict[FactKey, Mark] = {}
    for item in msgspec.json.decode(listing, type=_Listing).nftables:
        if item.rule is not None:
            first.setdefault(("chain", item.rule.chain), item.rule.comment)
    return first


class _Rule(msgspec.Struct):
    chain: str
    comment: str = ""


class _Item(msgspec.Struct):
    rule: _Rule | None = None


class _Listing(msgspec.Struct):
    nftables: list[_Item]


def _elements(body: dict[str, Any]) -> Iterator[tuple[FactKey, Mark]]:
    name, elements = body["name"], body.get("elem", ())
    key_of = _reader(body["type"])
    value_of = _reader(body["map"].split(" . ")) if "map" in body else None
    for element in elements:
        if value_of is None:
            yield ("element", name, key_of(element)), None
        else:
            yield ("element", name, key_of(element[0])), value_of(element[1])


def _reader(types: str | list[str]) -> Callable[[Any], tuple[Part, ...]]:
    """A function from one JSON expression of these nft types to a fact's parts."""
    names = [types] if isinstance(types, str) else types
    protocols = [i for i, name in enumerate(names) if name == "inet_proto"]

    def read(value: Any) -> tuple[Part, ...]:
        if type(value) is dict:
            if "elem" in value:  # with a timeout, counter or comment of its own
                value = value["elem"]["val"]
            if type(value) is dict and "concat" in value:
                value = value["concat"]
        parts = value if type(value) is list else [value]
        if any(type(p) is not int for p in parts):
            parts = [p if type(p) is int else _part(p) for p in parts]
        for i in protocols:
            parts[i] = PROTOCOLS.get(parts[i], parts[i])
        return tuple(parts)

    return read


def _part(value: Any) -> Part:
    """One part in the words of a fact: an address, a name, a prefix, a range or a verdict."""
    if type(value) is str:
        return str(ipaddress.ip_address(value)) if ":" in value and "." in value else value
    if type(value) is not dict:
        return int(value)
    (word, body), *_ = value.items()
    if word == "prefix":
        return f"{_part(body['addr'])}/{body['len']}"
    if word == "range":
        return f"{_part(body[0])}-{_part(body[1])}"
    return f"{word} {body['target']}" if body else str(word)  # goto, jump; accept, drop, return

"""DNS messages as bytes: names, record data, questions, EDNS (RFC 1035, 2782, 3596, 6891). Pure.

Rule 1: a name is its wire form. ``Query.name`` is lower-cased (RFC 4343) and is what tables are keyed
        by; ``Query.question`` is what was asked, bit for bit, and is what goes back.
Rule 2: a resource record here begins with a pointer to offset 12, the name in the question, so that
        it can be prepared long before anybody asks; `owned` gives it another owner.
Rule 3: whatever the bytes, a parser returns or raises Invalid, and reads nothing twice: it cannot loop.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ..model.errors import Invalid

HEADER = struct.Struct("!6H")  # id, flags, and the counts of questions, answers, authority, additional
_RR = struct.Struct("!HHIH")  # type, class, ttl, length of the data
_PAIR = struct.Struct("!HH")

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
OPCODE = 0x7800
DO = 0x8000  # in the OPT record's flags
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16

TYPES = {
    "A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "PTR": 12, "HINFO": 13, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33,
    "NAPTR": 35, "OPT": 41, "DS": 43, "DNSKEY": 48, "SVCB": 64, "HTTPS": 65, "IXFR": 251, "AXFR": 252,
    "ANY": 255, "CAA": 257,
}  # fmt: skip
A, NS, CNAME, SOA, PTR, TXT, AAAA, SRV = (
    TYPES[t] for t in ("A", "NS", "CNAME", "SOA", "PTR", "TXT", "AAAA", "SRV")
)
OPT, IXFR, AXFR, ANY = TYPES["OPT"], TYPES["IXFR"], TYPES["AXFR"], TYPES["ANY"]
IN = 1

UDP_PLAIN = 512  # what a client without EDNS takes (RFC 1035 4.2.1)
UDP_EDNS = 1232  # what we send and take at most: never a fragment, on any path of 1280 (flag day 2020)
TCP_LIMIT = 65535
A_IN = struct.pack("!2H", A, IN)  # what ends a question for an IPv4 address
_SRV = struct.pack("!H", SRV)
_TO_QUESTION = b"\xc0\x0c"  # a pointer to offset 12


class Edns(NamedTuple):
    size: int  # the UDP payload that the sender can take
    version: int = 0
    dnssec: bool = False  # the DO bit


class Query(NamedTuple):
    """A query with exactly one question."""

    id: int
    flags: int
    question: bytes  # name, type and class as asked
    name: bytes  # the name in lower case
    labels: tuple[int, ...]  # where each label of ``name`` begins, the root's too
    type: int
    klass: int
    edns: Edns | None = None


# --- names --------------------------------------------------------------------------------------


def name(text: str) -> bytes:
    """The wire form of "web.default" (with or without the final dot), lower case. Raises Invalid."""
    text = text.removesuffix(".")
    labels = text.encode("utf-8", "replace").lower().split(b".") if text else []
    wire = b"".join([b"%c%b" % (min(len(label), 64), label) for label in labels]) + b"\0"
    if len(wire) > 255 or not text.isascii() or not all(0 < len(label) < 64 for label in labels):
        raise Invalid(f"{text!r} is no DNS name: it takes ASCII labels of 1 to 63, at most 253 together")
    return wire


def to_text(wire: bytes) -> str:
    """A wire name for people; "." for the root, other bytes than letters escaped as RFC 1035 5.1 says."""
    parts, at = [], 0
    while wire[at]:
        label = wire[at + 1 : at + 1 + wire[at]]
        parts.append("".join(chr(b) if 33 <= b < 127 and b not in b'.\\"' else f"\\{b:03d}" for b in label))
        at += 1 + wire[at]
    return ".".join(parts) or "."


def parents(wire: bytes) -> Iterator[bytes]:
    """The names above, nearest first, without the root."""
    rest = wire[1 + wire[0] :]
    while len(rest) > 1:
        yield rest
        rest = rest[1 + rest[0] :]


def within(wire: bytes, apex: bytes) -> bool:
    return wire == apex or (wire.endswith(apex) and apex in parents(wire))


def skip_name(packet: bytes, at: int) -> int:
    """Where the name at ``at`` ends; a pointer ends it and is not followed. Raises Invalid."""
    while at < len(packet):
        length = packet[at]
        if length == 0:
            return at + 1
        if length >= 0xC0 and at + 2 <= len(packet):
            return at + 2
        if length > 63:
            break
        at += 1 + length
    raise Invalid(f"broken name at offset {at}")


# --- records ------------------------------------------------------------------------------------


def rdata(kind: str, data: str) -> bytes:
    """The wire form of one record's data in presentation format. Raises Invalid."""
    try:
        if kind == "A":
            return socket.inet_pton(socket.AF_INET, data)
        if kind == "AAAA":
            return socket.inet_pton(socket.AF_INET6, data)
        if kind in ("CNAME", "NS", "PTR"):
            return name(data)
        if kind == "SRV":
            priority, weight, port, target = data.split()
            return struct.pack("!3H", int(priority), int(weight), int(port)) + name(target)
        if kind == "TXT":
            raw = data.encode()
            chunks = [raw[i : i + 255] for i in range(0, len(raw), 255)] or [b""]
            return b"".join(bytes((len(c),)) + c for c in chunks)
        if kind == "SOA":
            mname, rname, *numbers = data.split()
            return name(mname) + name(rname) + struct.pack("!5I", *map(int, numbers))
    except (OSError, ValueError, struct.error):
        raise Invalid(f"{data!r} is not the data of a record of type {kind}") from None
    raise Invalid(f"records of type {kind!r} are not served; use A, AAAA, CNAME, NS, PTR, SRV, SOA or TXT")


def record(kind: str, ttl: int, data: str) -> bytes:
    """A record whose owner is the name in the question. Raises Invalid."""
    body = rdata(kind, data)
    return _TO_QUESTION + _RR.pack(TYPES[kind], IN, ttl, len(body)) + body


def alias(target: bytes, ttl: int) -> bytes:
    """A CNAME to a wire name, whose owner is the name in the question."""
    return _TO_QUESTION + _RR.pack(CNAME, IN, ttl, len(target)) + target


def owned(rr: bytes, owner: bytes) -> bytes:
    """The same record under another owner: a name, or a pointer."""
    return owner + rr[2:]


def pointer(offset: int) -> bytes:
    return struct.pack("!H", 0xC000 | offset)


def host_of(rr: bytes) -> bytes:
    """The name that a prepared CNAME, NS, PTR or SRV record points to."""
    return rr[18:] if rr[2:4] == _SRV else rr[12:]


def opt(edns: Edns, rcode: int = NOERROR) -> bytes:
    """The OPT record; ``rcode`` is the whole one, of which it carries the upper eight bits."""
    flags = (rcode >> 4) << 24 | edns.version << 16 | (DO if edns.dnssec else 0)
    return b"\0" + _RR.pack(OPT, edns.size, flags, 0)


class Place(NamedTuple):
    """Where a record lies in a packet, and what its fixed fields say."""

    start: int
    end: int
    type: int
    klass: int
    ttl: int


def places(packet: bytes, at: int, count: int) -> list[Place]:
    """The ``count`` records from offset ``at`` on. Raises Invalid."""
    found = []
    for _ in range(count):
        fixed = skip_name(packet, at)
        if fixed + _RR.size > len(packet):
            raise Invalid(f"the record at offset {at} is cut off")
        kind, klass, ttl, length = _RR.unpack_from(packet, fixed)
        end = fixed + _RR.size + length
        if end > len(packet):
            raise Invalid(f"the record at offset {at} is cut off")
        found.append(Place(at, end, kind, klass, ttl))
        at = end
    return found


def ttl_at(packet: bytes, place: Place) -> int:
    """The offset of a record's TTL."""
    return skip_name(packet, place.start) + 4


def kind_asked(packet: bytes) -> int:
    """The type in the question. Raises Invalid for a broken name."""
    end = skip_name(packet, HEADER.size)
    return int.from_bytes(packet[end : end + 2], "big")


def labels_of(wire: bytes) -> tuple[str, ...]:
    """The labels of a wire name, without the root; a byte is a character."""
    found, at = [], 0
    while wire[at]:
        found.append(wire[at + 1 : at + 1 + wire[at]].decode("latin-1"))
        at += 1 + wire[at]
    return tuple(found)


# --- queries ------------------------------------------------------------------------------------


def parse_query(packet: bytes) -> Query:
    """The query in a packet of at least 12 bytes. Raises Invalid where RFC 1035 or 6891 want FORMERR."""
    ident, flags, questions, answers, authority, additional = HEADER.unpack_from(packet)
    if questions != 1 or answers:
        raise Invalid(f"a query has one question and no answer, not {questions} and {answers}")
    labels, end = _labels(packet, HEADER.size)
    if end + 4 > len(packet):
        raise Invalid("the question is cut off")
    kind, klass = _PAIR.unpack_from(packet, end)
    edns = None
    if authority or additional:
        edns = _edns(packet, places(packet, end + 4, authority + additional)[authority:])
    asked = packet[HEADER.size : end + 4]
    return Query(ident, flags, asked, asked[:-4].lower(), labels, kind, klass, edns)


def _labels(packet: bytes, start: int) -> tuple[tuple[int, ...], int]:
    """The offsets of an uncompressed name's labels, relative to its start, and where it ends."""
    labels, at = [], start
    while at < len(packet):
        length = packet[at]
        labels.append(at - start)
        at += 1 + length
        if at - start > 255 or length > 63:
            break
        if length == 0:
            return tuple(labels), at
    raise Invalid("the name in the question is broken, compressed or longer than 255")


def _edns(packet: bytes, additional: list[Place]) -> Edns | None:
    found = [place for place in additional if place.type == OPT]
    if not found:
        return None
    if len(found) > 1 or packet[found[0].start]:
        raise Invalid("more than one OPT record, or one that is not at the root")
    size, flags = found[0].klass, found[0].ttl
    return Edns(size, flags >> 16 & 0xFF, bool(flags & DO))

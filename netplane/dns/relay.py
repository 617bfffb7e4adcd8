"""Questions for an upstream and what comes back, as bytes. Pure; `forward` moves them.

Rule 1: EDNS is hop by hop (RFC 6891 6.1.1): the client's OPT stays here, and it gets ours, not theirs.
Rule 2: a reply counts only with our id, our question and whole records; anything else was not sent to us.
Rule 3: the client gets its own id and its question as it asked it, and never more bytes than it takes.
"""

from __future__ import annotations

from ..model.errors import Invalid
from . import answer, wire
from .answer import Forward, Reply

_WITHOUT_QUESTION = (wire.FORMERR, wire.SERVFAIL, wire.NOTIMP, wire.REFUSED)

_HEADER, _FIXED = wire.HEADER.size, 10  # bytes of a header, and of a record between its name and its data
# Types whose data may have compressed names (RFC 3597 4): the bytes before them, and how many there are.
_NAMES = {
    wire.NS: (0, 1), wire.CNAME: (0, 1), wire.SOA: (0, 2), 7: (0, 1), 8: (0, 1), 9: (0, 1), wire.PTR: (0, 1),
    14: (0, 2), 15: (2, 1), 17: (0, 2), 18: (2, 1), 21: (2, 1), wire.SRV: (6, 1), 39: (0, 1),
}  # fmt: skip


def request(forward: Forward, ident: int) -> bytes:
    """The query to send upstream under this id."""
    query = forward.query
    flags = query.flags & (wire.RD | wire.CD | wire.AD)
    edns = wire.opt(wire.Edns(wire.UDP_EDNS, 0, query.edns.dnssec)) if query.edns else b""
    question = forward.name + query.question[-4:] if forward.chain else query.question
    return wire.HEADER.pack(ident, flags, 1, 0, 0, bool(edns)) + question + edns


def failed(forward: Forward) -> bytes:
    """The reply that stands for none: SERVFAIL, for the cache."""
    sent = request(forward, 0)
    end = wire.skip_name(sent, wire.HEADER.size) + 4
    return wire.HEADER.pack(0, wire.QR | wire.SERVFAIL, 1, 0, 0, 0) + sent[wire.HEADER.size : end]


def is_reply(sent: bytes, reply: bytes) -> bool:
    """Whether these bytes answer the request that was sent."""
    if len(reply) < wire.HEADER.size or reply[:2] != sent[:2] or reply[2] & 0xF8 != 0x80:
        return False
    _, flags, questions, *counts = wire.HEADER.unpack_from(reply)
    if questions == 0:
        return flags & 15 in _WITHOUT_QUESTION
    end = wire.skip_name(sent, wire.HEADER.size)
    asked, echoed = sent[12:end].lower(), reply[12:end].lower()
    if questions != 1 or asked != echoed or sent[end : end + 4] != reply[end : end + 4]:
        return False
    try:
        return bool(flags & wire.TC) or wire.places(reply, end + 4, sum(counts)) is not None
    except Invalid:
        return False


def is_truncated(reply: bytes) -> bool:
    return bool(reply[2] & wire.TC >> 8)


def is_refusal(reply: bytes) -> bool:
    """An rcode after which another upstream is worth asking."""
    return reply[3] & 15 in (wire.SERVFAIL, wire.NOTIMP, wire.REFUSED)


def finish(forward: Forward, reply: bytes) -> bytes:
    """The client's response, from a reply that `is_reply` accepted."""
    questions, rcode = int.from_bytes(reply[4:6], "big"), reply[3] & 15
    if questions == 0:
        return answer.failure(forward, rcode)
    if is_truncated(reply):  # and TCP did not help: the client may have more luck
        return answer.pack(forward.query, Reply(rcode, flags=wire.RA | wire.TC), forward.limit)
    if forward.chain:
        try:
            reply = _joined(forward, reply)
        except Invalid:
            return answer.failure(forward)
    return _respond(forward, reply)


def _joined(forward: Forward, reply: bytes) -> bytes:
    """The chain of CNAMEs, then the reply's records, whose pointers move along. Raises Invalid."""
    _, flags, _, answers, *others = wire.HEADER.unpack_from(reply)
    head, start = forward.query.question + b"".join(forward.chain), _HEADER + len(forward.name) + 4
    shift = _HEADER + len(head) - start
    asked = len(head) - len(forward.name)  # what pointed to the question points to the last CNAME's data

    def moved(at: int) -> int:
        """Where the name at ``at`` ends, and its pointer leads where it should."""
        while at < len(body) and body[at]:
            if body[at] >= 0xC0:
                to = int.from_bytes(body[at : at + 2], "big") & 0x3FFF
                to += shift if to >= start else asked
                if to > 0x3FFF:
                    raise Invalid("no pointer leads that far")
                body[at : at + 2] = wire.pointer(to)
                return at + 2
            at += 1 + body[at]
        return at + 1

    body = bytearray(reply)
    for place in wire.places(reply, start, answers + sum(others)):
        before, names = _NAMES.get(place.type, (0, 0))
        at = moved(place.start) + _FIXED + before
        for _ in range(names):
            at = moved(at)
        if names and at > place.end:
            raise Invalid("a name that its record does not hold")
    counts = (1, len(forward.chain) + answers, *others)
    return wire.HEADER.pack(0, wire.QR | flags & 15, *counts) + head + body[start:]


def _respond(forward: Forward, reply: bytes) -> bytes:
    query = forward.query
    _, flags, _, answers, authority, additional = wire.HEADER.unpack_from(reply)
    start = wire.HEADER.size + len(query.question)
    places = wire.places(reply, start, answers + authority + additional)
    needed, rcode = answers + authority, flags & 15
    end = next((i for i in range(needed, len(places)) if places[i].type == wire.OPT), len(places))
    if end < len(places):  # what follows the OPT only helps, and is left out
        rcode |= places[end].ttl >> 24 << 4
    edns = wire.opt(wire.Edns(wire.UDP_EDNS, 0, query.edns.dnssec), rcode) if query.edns else b""
    room = forward.limit - start - len(edns)
    fit = [p for p in places[:end] if p.end - start <= room]
    if len(fit) < needed:  # for want of an additional record there is no TC (RFC 2181 9)
        fit, authority, flags = fit[:answers], 0, flags | wire.TC
    answers = min(answers, len(fit))
    theirs = flags & (wire.AA | wire.TC | wire.AD)
    ours = wire.QR | wire.RA | query.flags & (wire.RD | wire.CD)
    counts = (1, answers, authority, len(fit) - answers - authority + bool(edns))
    header = wire.HEADER.pack(query.id, ours | theirs | rcode & 15, *counts)
    return header + query.question + reply[start : fit[-1].end if fit else start] + edns

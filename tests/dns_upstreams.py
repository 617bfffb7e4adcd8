"""Upstreams that answer right, lie, or say nothing."""

from __future__ import annotations

from collections.abc import Iterator

from dnslib import QTYPE, RR, A, DNSRecord


def right(query: DNSRecord) -> DNSRecord:
    reply = query.reply()
    reply.add_answer(RR(query.q.qname, QTYPE.A, rdata=A("192.0.2.1"), ttl=60))
    return reply


def lies(query: DNSRecord) -> Iterator[bytes]:
    reply = right(query)
    reply.rr[0].rdata = A("6.6.6.6")
    true, bad = bytes(reply.pack()), reply.pack()
    yield bytes(bad[:2]) + b"garbage"
    yield bytes((bad[0] ^ 1,)) + true[1:]  # another id
    yield true[:2] + bytes((true[2] & 0x7F,)) + true[3:]  # not a response
    yield true[:-2]  # cut off
    other = right(DNSRecord.question("evil.com"))
    other.header.id = query.header.id
    yield bytes(other.pack())


def honest(query: DNSRecord) -> Iterator[bytes]:
    yield bytes(right(query).pack())


def silent(_: DNSRecord) -> Iterator[bytes]:
    return iter(())

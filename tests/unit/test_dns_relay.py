"""What goes to an upstream, which replies count, and what the client gets of them."""

from __future__ import annotations

import struct

import pytest
from dnslib import EDNS0, QTYPE, RCODE, RR, TXT, A, DNSBuffer, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from netplane.dns import relay, wire
from netplane.dns.answer import Client, Forward, answer
from netplane.dns.table import NameTable
from netplane.dns.upstreams import nameservers
from netplane.model.facts import Plan, Record

TABLE = NameTable()
TABLE.apply(Plan(add=(Record("out.default.svc.cluster.local", "CNAME", ("www.example.com",)),)))
TABLE.mark_synced()


def forward(name: str = "wWw.example.com", udp: bool = True, size: int = 0, dnssec: bool = False) -> Forward:
    query = DNSRecord.question(name)
    query.header.id = 4711
    if size:
        query.add_ar(EDNS0(udp_len=size, flags="do" if dnssec else ""))
    found = answer(bytes(query.pack()), TABLE.view, Client("10.1.0.9", udp), recursion=True)
    assert isinstance(found, Forward)
    return found


def reply_to(sent: bytes, answers: int = 1, edns: bool = False) -> DNSRecord:
    reply = DNSRecord.parse(sent).reply()
    for i in range(answers):
        reply.add_answer(RR(reply.q.qname, QTYPE.A, rdata=A(f"192.0.2.{i % 250}"), ttl=60))
    if edns:
        reply.add_ar(EDNS0(udp_len=4096, ext_rcode=0))
    return reply


def names_at(packet: bytes, at: int, count: int) -> list[str]:
    buffer = DNSBuffer(packet)
    buffer.offset = at
    return [str(buffer.decode_name()) for _ in range(count)]


def test_the_question_goes_as_asked_under_another_id_with_edns_of_our_own() -> None:
    sent = DNSRecord.parse(relay.request(forward(size=4096, dnssec=True), 99))
    assert (sent.header.id, str(sent.q.qname), sent.header.rd) == (99, "wWw.example.com.", 1)
    assert [(rr.edns_len, rr.edns_do) for rr in sent.ar] == [(1232, 1)]
    assert DNSRecord.parse(relay.request(forward(), 99)).ar == []


def test_the_client_gets_its_id_its_spelling_and_our_edns() -> None:
    mine = forward(size=4096)
    sent = relay.request(mine, 99)
    raw = bytes(reply_to(sent, edns=True).pack())
    raw = raw[:12] + raw[12:29].lower() + raw[29:]  # an upstream that does not keep the case
    assert relay.is_reply(sent, raw)
    got = DNSRecord.parse(relay.finish(mine, raw))
    assert (got.header.id, str(got.q.qname), got.header.ra, got.header.aa) == (4711, "wWw.example.com.", 1, 1)
    assert [str(rr.rdata) for rr in got.rr] == ["192.0.2.0"]
    assert [rr.edns_len for rr in got.ar] == [1232]
    plain = forward()
    sent = relay.request(plain, 99)
    assert DNSRecord.parse(relay.finish(plain, bytes(reply_to(sent, edns=True).pack()))).ar == []


def test_too_much_for_the_client_is_cut_between_records() -> None:
    for mine, top in ((forward(), 512), (forward(size=4096), 1232), (forward(udp=False), 65535)):
        sent = relay.request(mine, 99)
        raw = relay.finish(mine, bytes(reply_to(sent, answers=200).pack()))
        got = DNSRecord.parse(raw)
        assert len(raw) <= top and bool(got.header.tc) == (top < 65535)
        assert len(got.rr) == (
            200 if top == 65535 else (top - 12 - 21 - (11 if mine.query.edns else 0)) // 16
        )


def test_the_upstreams_opt_stays_here_wherever_it_stands() -> None:
    """RFC 6891 6.1.1: anywhere among the additional records, and one at most."""
    for mine, ours in ((forward(size=4096), [1232]), (forward(), [])):
        reply = reply_to(relay.request(mine, 99), edns=True)
        reply.add_ar(RR("glue.example.com", QTYPE.A, rdata=A("192.0.2.9"), ttl=60))
        got = DNSRecord.parse(relay.finish(mine, bytes(reply.pack())))
        assert [rr.edns_len for rr in got.ar if rr.rtype == QTYPE.OPT] == ours
        assert [str(rr.rdata) for rr in got.rr] == ["192.0.2.0"]


def test_what_only_helps_is_left_out_without_tc() -> None:
    """RFC 2181 9: TC says that answers are missing, not that there was no room for more."""
    mine = forward()
    reply = reply_to(relay.request(mine, 99), answers=20)
    for i in range(20):
        reply.add_ar(RR(f"glue{i}.example.com", QTYPE.A, rdata=A("192.0.2.9"), ttl=60))
    raw = relay.finish(mine, bytes(reply.pack()))
    got = DNSRecord.parse(raw)
    assert (got.header.tc, len(got.rr)) == (0, 20) and 0 < len(got.ar) < 20 and len(raw) <= 512


def test_an_external_name_brings_its_chain_and_the_upstreams_rcode() -> None:
    mine = forward("OUT.default.svc.cluster.local")
    sent = relay.request(mine, 99)
    assert str(DNSRecord.parse(sent).q.qname) == "www.example.com."
    reply = reply_to(sent, answers=0)
    reply.header.rcode = RCODE.NXDOMAIN
    got = DNSRecord.parse(relay.finish(mine, bytes(reply.pack())))
    assert (got.header.rcode, str(got.q.qname)) == (RCODE.NXDOMAIN, "OUT.default.svc.cluster.local.")
    assert [(str(rr.rname).lower(), str(rr.rdata)) for rr in got.rr] == [
        ("out.default.svc.cluster.local.", "www.example.com.")
    ]


def test_the_records_behind_a_chain_are_as_they_came_and_their_names_lead_where_they_did() -> None:
    mine = forward("OUT.default.svc.cluster.local", size=4096)
    sent = relay.request(mine, 99)
    start = len(sent) - 11  # the OPT's length
    data = {
        15: b"\0\1\1m\xc0\x0c",  # m.www.example.com
        6: wire.pointer(start + 14) + b"\1a\xc0\x10" + bytes(20),  # m.www.example.com a.example.com
        16: b"\2\xff\xc0", 65: b"\0\1\0\0\1\0\3\2h2", 65280: b"\xc0\x0c",  # no names
        35: b"\0\1\0\2\1U\7E2U+sip\x14!^.*$!sip:a@b.com!e\0", 12: b"\2\xff\xc0\0",
    }  # fmt: skip
    rrs = [b"\xc0\x0c" + struct.pack("!HHIH", t, 1, 60, len(body)) + body for t, body in data.items()]
    reply = wire.HEADER.pack(99, wire.QR, 1, len(rrs), 0, 0) + sent[12:start] + b"".join(rrs)
    assert relay.is_reply(sent, reply)
    raw = relay.finish(mine, reply)
    places = wire.places(raw, 12 + len(mine.query.question), len(rrs) + 1)[1:]
    got = {p.type: (wire.skip_name(raw, p.start) + 10, p.end) for p in places}
    for plain in (16, 65, 65280, 35, 12):
        assert raw[slice(*got[plain])] == data[plain]
    assert names_at(raw, got[15][0] + 2, 1) == ["m.www.example.com."]
    assert names_at(raw, got[6][0], 2) == ["m.www.example.com.", "a.example.com."]
    assert {names_at(raw, p.start, 1)[0] for p in places} == {"www.example.com."}


def test_a_refusal_without_its_question_is_one() -> None:
    mine = forward()
    sent = relay.request(mine, 99)
    bare = wire.HEADER.pack(99, wire.QR | wire.REFUSED, 0, 0, 0, 0)
    assert relay.is_reply(sent, bare) and relay.is_refusal(bare)
    got = DNSRecord.parse(relay.finish(mine, bare))
    assert (got.header.id, got.header.rcode, str(got.q.qname)) == (4711, RCODE.REFUSED, "wWw.example.com.")
    assert not relay.is_reply(sent, wire.HEADER.pack(99, wire.QR, 0, 0, 0, 0))


@pytest.mark.parametrize("change", ["id", "response", "name", "type", "cut", "empty"])
def test_what_was_not_asked_is_no_reply(change: str) -> None:
    sent = relay.request(forward(), 99)
    reply = bytearray(reply_to(sent).pack())
    assert relay.is_reply(sent, bytes(reply))
    if change in ("id", "response", "name", "type"):
        reply[{"id": 1, "response": 2, "name": 14, "type": 30}[change]] ^= 0x80 if change == "response" else 3
    assert not relay.is_reply(sent, bytes(reply[: {"cut": -1, "empty": 0}.get(change)]))


EDITS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255), st.sampled_from("sid")), max_size=5)


@given(EDITS, st.booleans(), st.sampled_from([0, 512, 4096]), st.booleans(), st.sampled_from([0, 1, 60]))
def test_whatever_an_upstream_sends_the_client_gets_a_whole_message(
    edits: list[tuple[int, int, str]], chained: bool, size: int, udp: bool, answers: int
) -> None:
    mine = forward("out.default.svc.cluster.local" if chained else "www.example.com", udp, size)
    sent = relay.request(mine, 99)
    whole = reply_to(sent, answers, edns=True)
    whole.add_auth(RR(whole.q.qname, QTYPE.TXT, rdata=TXT("x" * 40)))
    reply = bytearray(whole.pack())
    for at, byte, how in edits:
        at %= len(reply) + 1
        reply[at : at + (how != "i")] = bytes((byte,)) if how != "d" else b""
    if not relay.is_reply(sent, bytes(reply)):
        return
    got = relay.finish(mine, bytes(reply))
    assert len(got) <= mine.limit and got[:2] == (4711).to_bytes(2, "big") and got[2] & 0x80
    end = 12 + len(mine.query.question)
    assert got[12:end] == mine.query.question
    wire.places(got, end, sum(wire.HEADER.unpack_from(got)[3:]))


@given(st.binary(max_size=300))
def test_random_bytes_are_no_reply(noise: bytes) -> None:
    sent = relay.request(forward(), 99)
    assert not relay.is_reply(sent, sent[:2] + noise) or noise[0] & 0x80


def test_nameservers_of_a_resolv_conf() -> None:
    text = (
        "# c\nsearch a b\nnameserver 10.0.0.1\n nameserver fe80::1%eth0\nnameserver\nnameserver x\noptions x"
    )
    assert nameservers(text) == [("10.0.0.1", 53), ("fe80::1%eth0", 53)]

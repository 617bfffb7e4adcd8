"""Records applied, packets in, packets out: read with dnslib, which knows nothing of our codec."""

from __future__ import annotations

from collections import Counter

import pytest
from dnslib import EDNS0, OPCODE, QTYPE, RCODE, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from netplane.dns import wire
from netplane.dns.answer import Client, Forward, answer
from netplane.dns.table import NameTable
from netplane.model.errors import Invalid
from netplane.model.facts import Plan, Record

UDP, TCP = Client("10.1.0.9"), Client("10.1.0.9", udp=False)
D = "default.svc.cluster.local"
ENDPOINTS = ("10.1.0.1", "10.1.0.2", "10.1.0.3")
SOA = Record("cluster.local", "SOA", ("ns.dns.cluster.local hostmaster.cluster.local 1 7200 1800 86400 5",))
RECORDS = (
    SOA,
    Record("cluster.local", "NS", ("ns.dns.cluster.local",)),
    Record("ns.dns.cluster.local", "A", ("10.244.1.1",)),
    Record("dns-version.cluster.local", "TXT", ("1.1.0",)),
    Record("svc.cluster.local", "A", ()),
    Record(f"web.{D}", "A", ("10.96.0.10",)),
    Record(f"_http._tcp.web.{D}", "SRV", (f"0 100 80 web.{D}",)),
    Record(f"rr.{D}", "A", ENDPOINTS, rotate=True),
    Record(f"big.{D}", "A", tuple(f"10.2.{i // 250}.{i % 250}" for i in range(400)), rotate=True),
    Record(f"out.{D}", "CNAME", ("www.example.com",)),
    Record(f"in.{D}", "CNAME", (f"web.{D}",)),
    Record(f"gone.{D}", "CNAME", (f"nope.{D}",)),
    Record(f"loop.{D}", "CNAME", (f"loop.{D}",)),
    Record("1.0.1.10.in-addr.arpa", "PTR", (f"a.one.{D}",), owner="default/one"),
    Record("1.0.1.10.in-addr.arpa", "PTR", (f"a.two.{D}",), owner="default/two"),
)


def make(*records: Record, synced: bool = True) -> NameTable:
    table = NameTable()
    table.apply(Plan(add=records or RECORDS))
    if synced:
        table.mark_synced()
    return table


TABLE = make()


def packet(name: str, kind: str = "A", size: int = 0) -> bytes:
    query = DNSRecord.question(name, kind)
    if size:
        query.add_ar(EDNS0(udp_len=size))
    return bytes(query.pack())


def ask(
    name: str, kind: str = "A", size: int = 0, client: Client = UDP, table: NameTable = TABLE
) -> DNSRecord:
    reply = answer(packet(name, kind, size), table.view, client, recursion=True)
    assert isinstance(reply, bytes), reply
    return DNSRecord.parse(reply)


def data(record: DNSRecord) -> list[str]:
    return [str(rr.rdata) for rr in record.rr]


@pytest.mark.parametrize(
    ("name", "kind", "rcode", "expected"),
    [
        (f"web.{D}", "A", "NOERROR", ["10.96.0.10"]),
        (f"WeB.{D.upper()}", "A", "NOERROR", ["10.96.0.10"]),
        (f"web.{D}", "AAAA", "NOERROR", []),
        (f"web.{D}", "ANY", "NOERROR", ["10.96.0.10"]),
        (f"_http._tcp.web.{D}", "SRV", "NOERROR", [f"0 100 80 web.{D}."]),
        (f"_tcp.web.{D}", "SRV", "NOERROR", []),  # an empty name between
        (f"_x._tcp.web.{D}", "SRV", "NXDOMAIN", []),
        (D, "A", "NOERROR", []),
        ("svc.cluster.local", "A", "NOERROR", []),
        ("cluster.local", "A", "NOERROR", []),
        ("cluster.local", "NS", "NOERROR", ["ns.dns.cluster.local."]),
        ("dns-version.cluster.local", "TXT", "NOERROR", ['"1.1.0"']),
        (f"nope.{D}", "A", "NXDOMAIN", []),
        ("x.nope.svc.cluster.local", "A", "NXDOMAIN", []),
        (f"in.{D}", "A", "NOERROR", [f"web.{D}.", "10.96.0.10"]),
        (f"in.{D}", "AAAA", "NOERROR", [f"web.{D}."]),
        (f"in.{D}", "CNAME", "NOERROR", [f"web.{D}."]),
        (f"gone.{D}", "A", "NXDOMAIN", [f"nope.{D}."]),
        (f"loop.{D}", "A", "SERVFAIL", []),
        ("1.0.1.10.in-addr.arpa", "PTR", "NOERROR", [f"a.one.{D}.", f"a.two.{D}."]),
        ("1.0.1.10.in-addr.arpa", "A", "NOERROR", []),
        (f"web.{D}", "AXFR", "REFUSED", []),
        ("example.com", "AXFR", "REFUSED", []),
    ],
)
def test_what_a_name_answers(name: str, kind: str, rcode: str, expected: list[str]) -> None:
    reply = ask(name, kind)
    assert (RCODE[reply.header.rcode], data(reply)) == (rcode, expected)
    assert str(reply.q.qname) == name + "."  # the question goes back as it came
    assert reply.header.qr and reply.header.ra and reply.header.rd
    assert reply.header.aa == (rcode in ("NOERROR", "NXDOMAIN"))
    denied = rcode == "NXDOMAIN" or (rcode == "NOERROR" and QTYPE[reply.q.qtype] not in owned_types(reply))
    soa = [(str(rr.rname), rr.rdata.times[4]) for rr in reply.auth]
    zone = "1.0.1.10.in-addr.arpa." if "arpa" in name else "cluster.local."
    assert [(z.lower(), minimum) for z, minimum in soa] == ([(zone, 5)] if denied else [])


def owned_types(reply: DNSRecord) -> set[str]:
    found = {QTYPE[rr.rtype] for rr in reply.rr}
    return found | {"ANY"} if found else found


def test_srv_brings_the_addresses_of_its_target() -> None:
    reply = ask(f"_http._tcp.web.{D}", "SRV")
    assert [(str(rr.rname), str(rr.rdata)) for rr in reply.ar] == [(f"web.{D}.", "10.96.0.10")]


def test_rotation_gives_every_endpoint_the_first_place_equally_often_across_updates() -> None:
    table = make()
    first: Counter[str] = Counter()
    for i in range(30):
        found = data(ask(f"rr.{D}", table=table))
        assert sorted(found) == sorted(ENDPOINTS)
        first[found[0]] += 1
        data(ask(f"rr.{D}", "AAAA", table=table))  # asked beside it by every resolver
        table.apply(Plan(change=(Record(f"rr.{D}", "A", ENDPOINTS, ttl=5 + i % 2, rotate=True),)))
    assert set(first.values()) == {10}


def test_what_does_not_fit_is_cut_between_records_and_says_so() -> None:
    query = packet(f"big.{D}")
    for size, top in ((0, 512), (100, 512), (800, 800), (4096, 1232)):
        raw = answer(packet(f"big.{D}", size=size), TABLE.view, UDP, recursion=True)
        assert isinstance(raw, bytes) and top - 30 < len(raw) <= top
        reply = DNSRecord.parse(raw)
        assert reply.header.tc and 20 < len(reply.rr) < 400
        assert bool(reply.ar) == bool(size)  # EDNS for those who speak it
    whole = DNSRecord.parse(bytes(answer(query, TABLE.view, TCP, recursion=True) or b""))  # type: ignore[arg-type]
    assert not whole.header.tc and len(whole.rr) == 400


def test_before_the_first_sync_nothing_is_denied() -> None:
    table = make(SOA, synced=False)
    assert ask(f"web.{D}", table=table).header.rcode == RCODE.SERVFAIL
    assert ask("1.0.1.10.in-addr.arpa", "PTR", table=table).header.rcode == RCODE.SERVFAIL
    assert isinstance(answer(packet("example.com"), table.view, UDP, recursion=True), Forward)
    table.mark_synced()
    assert ask(f"web.{D}", table=table).header.rcode == RCODE.NXDOMAIN


def test_other_names_are_forwarded_or_refused() -> None:
    for name in ("example.com", "xcluster.local", "local", "9.9.9.9.in-addr.arpa"):
        found = answer(packet(name), TABLE.view, UDP, recursion=True)
        assert isinstance(found, Forward) and wire.to_text(found.name) == name
        refused = answer(packet(name), TABLE.view, UDP, recursion=False)
        assert isinstance(refused, bytes)
        header = DNSRecord.parse(refused).header
        assert header.rcode == RCODE.REFUSED and not header.ra


def test_a_label_with_the_zones_bytes_inside_is_not_the_zone() -> None:
    tricky = b"\x0fx\x07cluster\x05local\0"  # one label of 15 octets
    query = wire.HEADER.pack(7, wire.RD, 1, 0, 0, 0) + tricky + b"\0\x01\0\x01"
    assert isinstance(answer(query, TABLE.view, UDP, recursion=True), Forward)


def test_an_external_name_is_followed_for_those_who_want_recursion() -> None:
    found = answer(packet(f"out.{D}"), TABLE.view, UDP, recursion=True)
    assert isinstance(found, Forward) and wire.to_text(found.name) == "www.example.com"
    plain = answer(packet(f"out.{D}"), TABLE.view, UDP, recursion=False)
    assert isinstance(plain, bytes) and data(DNSRecord.parse(plain)) == ["www.example.com."]


def header(flags: int = 0, *counts: int) -> bytes:
    return wire.HEADER.pack(7, flags, *(counts or (1, 0, 0, 0)))


WEB = wire.name(f"web.{D}") + b"\0\x01\0\x01"
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"
BAD = {
    "a pointer in the question": (header() + b"\xc0\x0c\0\x01\0\x01", "FORMERR"),
    "a question cut off": (header() + WEB[:-1], "FORMERR"),
    "no question": (header(0, 0, 0, 0, 0), "FORMERR"),
    "two questions": (header(0, 2, 0, 0, 0) + WEB + WEB, "FORMERR"),
    "a name of 256": (
        header() + b"\x3f" + b"a" * 63 + (b"\x3f" + b"a" * 63) * 3 + b"\0\0\x01\0\x01",
        "FORMERR",
    ),
    "a label of 64": (header() + b"\x40" + b"a" * 64 + b"\0\0\x01\0\x01", "FORMERR"),
    "an OPT that is missing": (header(0, 1, 0, 0, 1) + WEB, "FORMERR"),
    "two OPTs": (header(0, 1, 0, 0, 2) + WEB + OPT * 2, "FORMERR"),
    "an OPT below the root": (header(0, 1, 0, 0, 1) + WEB + b"\x01a" + OPT, "FORMERR"),
    "an update": (header(5 << 11) + WEB, "NOTIMP"),
    "a status request": (header(2 << 11) + WEB, "NOTIMP"),
    "class CH": (header() + WEB[:-1] + b"\x03", "REFUSED"),
    "class ANY": (header() + WEB[:-2] + b"\0\xff", "REFUSED"),
}


@pytest.mark.parametrize(("query", "rcode"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_said(query: bytes, rcode: str) -> None:
    reply = answer(query, TABLE.view, UDP, recursion=True)
    assert isinstance(reply, bytes) and reply[:2] == query[:2]
    parsed = DNSRecord.parse(reply)
    assert RCODE[parsed.header.rcode] == rcode and parsed.header.qr
    assert OPCODE[parsed.header.opcode] == OPCODE[query[2] >> 3 & 15]


def test_an_unknown_edns_version_is_badvers() -> None:
    query = header(0, 1, 0, 0, 1) + WEB + b"\0\0\x29\x04\xd0\0\x01\0\0\0\0"
    reply = answer(query, TABLE.view, UDP, recursion=True)
    assert isinstance(reply, bytes)
    places = wire.places(reply, 12 + len(WEB), 1)
    assert (places[0].ttl >> 24 << 4 | reply[3] & 15, places[0].ttl >> 16 & 0xFF) == (16, 0)


@pytest.mark.parametrize("query", [b"", b"\0" * 11, header(wire.QR) + WEB, header(wire.QR | 5)])
def test_responses_and_scraps_get_silence(query: bytes) -> None:
    assert answer(query, TABLE.view, UDP, recursion=True) is None


def hold_the_law(query: bytes) -> None:
    """Any bytes: no exception; a reply has the id, QR, parses, and fits."""
    for client, recursion in ((UDP, True), (TCP, False)):
        reply = answer(query, TABLE.view, client, recursion)
        if isinstance(reply, bytes):
            assert reply[:2] == query[:2] and reply[2] & 0x80
            assert len(reply) <= (1232 if client.udp else 65535)
            assert not query[2] & 0x80
            if len(reply) > 12:
                end = wire.skip_name(reply, 12) + 4
                assert reply[12:end] == query[12:end]
                places = wire.places(reply, end, sum(wire.HEADER.unpack_from(reply)[3:]))
                assert not places or places[-1].end == len(reply)


@given(st.binary(max_size=600))
def test_any_bytes_have_an_outcome(query: bytes) -> None:
    hold_the_law(query)


NAMES = [r.name for r in RECORDS] + ["example.com", f"nope.{D}"]
EDITS = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255), st.sampled_from("sid")), max_size=4)


@given(
    st.sampled_from(NAMES), st.sampled_from(sorted(wire.TYPES)), st.sampled_from([0, 0, 600, 65535]), EDITS
)
def test_a_query_with_some_bytes_changed_has_an_outcome(
    name: str, kind: str, size: int, edits: list[tuple[int, int, str]]
) -> None:
    query = bytearray(wire.HEADER.pack(7, wire.RD, 1, 0, 0, bool(size)) + wire.name(name))
    query += wire.TYPES[kind].to_bytes(2, "big") + b"\0\x01"
    query += wire.opt(wire.Edns(size)) if size else b""
    for at, byte, how in edits:
        at %= len(query) + 1
        query[at : at + (how != "i")] = bytes((byte,)) if how != "d" else b""
    hold_the_law(bytes(query))


# --- the table as a driver ----------------------------------------------------------------------


def test_the_table_holds_what_was_applied_and_forgets_what_was_removed() -> None:
    table = make()
    assert table.observe() == {r.key: r for r in RECORDS}
    assert data(ask("1.0.1.10.in-addr.arpa", "PTR", table=table)) == [f"a.one.{D}.", f"a.two.{D}."]
    table.apply(Plan(remove=(("record", "1.0.1.10.in-addr.arpa", "PTR", "default/one"),)))
    assert data(ask("1.0.1.10.in-addr.arpa", "PTR", table=table)) == [f"a.two.{D}."]
    table.apply(Plan(remove=tuple(r.key for r in RECORDS)))  # some of it is gone already: fine
    assert table.observe() == {} and not table.view.below


LABELS = st.sampled_from(["a", "b.a", "c.b.a", "d.c.b.a", "x", "y.x", "c.a"])


@given(st.lists(st.tuples(LABELS, st.booleans())))
def test_a_name_exists_exactly_while_it_or_a_name_beneath_has_records(steps: list[tuple[str, bool]]) -> None:
    table, held = NameTable(), set[str]()
    for label, there in steps:
        record = Record(f"{label}.cluster.local", "A", ("10.0.0.1",))
        table.apply(Plan(add=(record,)) if there else Plan(remove=(record.key,)))
        held = held | {label} if there else held - {label}
        for name in ("a", "b.a", "c.b.a", "d.c.b.a", "x", "y.x", "c.a", "z"):
            exists = any(h == name or h.endswith(f".{name}") for h in held)
            assert (table.view.find(wire.name(f"{name}.cluster.local")) is not None) == exists


def test_a_plan_with_an_impossible_record_changes_nothing() -> None:
    table = make()
    before = table.view
    good, bad = Record(f"new.{D}", "A", ("10.0.0.1",)), Record(f"bad.{D}", "A", ("10.0.0.256",))
    with pytest.raises(Invalid, match=r"bad\.default.*10\.0\.0\.256"):
        table.apply(Plan(add=(good, bad)))
    assert table.view == before


def test_readers_see_a_plan_whole() -> None:
    table = make()
    before = table.view
    table.apply(Plan(add=(Record(f"x.{D}", "A", ("10.0.0.1",)), Record(f"y.{D}", "A", ("10.0.0.2",)))))
    assert before.find(wire.name(f"x.{D}")) is None and before.find(wire.name(f"y.{D}")) is None
    assert table.view.find(wire.name(f"x.{D}")) and table.view.find(wire.name(f"y.{D}"))

"""The C table and the Python path: the same bytes for the same question, over random zones and queries."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netplane.dns import loop, wire
from netplane.dns.answer import Client, Forward, answer
from netplane.dns.loop import Divert, Twin
from netplane.dns.table import NameTable
from netplane.model.facts import Plan, Record

pytestmark = pytest.mark.skipif(not loop.available, reason="the extension is not built: make build")

ZONE = "cluster.local"
SOA = Record(ZONE, "SOA", (f"ns.dns.{ZONE} hostmaster.{ZONE} 1 7200 1800 86400 5",))
NS = Record(ZONE, "NS", (f"ns.dns.{ZONE}",))
LABELS = ("web", "api", "default", "svc", "_http", "_tcp", "10-1-0-2", "x" * 63)
TYPES = (wire.A, wire.AAAA, wire.SRV, wire.PTR, wire.TXT, wire.CNAME, wire.SOA, wire.NS, wire.ANY, 65, 999)


def both(table: NameTable, twin: Twin, packet: bytes) -> tuple[object, bytes | None]:
    return answer(packet, table.view, Client("10.9.9.9"), True), twin.answer(packet)


def made(*records: Record, synced: bool = True) -> tuple[NameTable, Twin]:
    table = NameTable(ZONE)
    twin = Twin(table.view.apex)
    table.attach(twin)
    table.apply(Plan(add=(SOA, NS, *records)))
    if synced:
        table.mark_synced()
    return table, twin


def question(name: str, kind: int = wire.A, edns: bytes = b"", flags: int = wire.RD) -> bytes:
    head = wire.HEADER.pack(4711, flags, 1, 0, 0, bool(edns))
    raw = b"".join(bytes((len(p),)) + p for p in name.encode().split(b".")) if name else b""
    return head + raw + b"\0" + struct.pack("!2H", kind, wire.IN) + edns


def same(table: NameTable, twin: Twin, packet: bytes) -> bytes | None:
    """C says what Python says, or leaves it, which it may do with aliases and what is not ours."""
    wanted, got = both(table, twin, packet)
    if got is None:
        query = wire.parse_query(packet)
        found = table.view.find(query.name)
        assert isinstance(wanted, Forward) or (found and found[0].type == wire.CNAME)
    else:
        assert got == (wanted or b"")
    return got


names = (
    st.lists(st.sampled_from(LABELS), min_size=0, max_size=4)
    .map(lambda parts: ".".join((*parts, ZONE)))
    .filter(lambda name: len(name) <= 253)
)
targets = st.sampled_from([f"web.default.svc.{ZONE}", f"api.{ZONE}", "www.example.com"])


@st.composite
def records(draw: st.DrawFn) -> Record:
    kind = draw(st.sampled_from(["A", "AAAA", "SRV", "TXT", "PTR", "NODATA", "CNAME"]))
    name = draw(names)
    count = draw(st.integers(1, 5) | st.sampled_from([30, 31, 80, 100]))
    rotate = draw(st.booleans())
    if kind == "A":
        return Record(name, "A", tuple(f"10.0.{i // 250}.{i % 250}" for i in range(count)), 5, rotate)
    if kind == "AAAA":
        return Record(name, "AAAA", tuple(f"fd00::{i:x}" for i in range(count)), 30, rotate)
    if kind == "SRV":
        target = draw(targets)
        return Record(name, "SRV", tuple(f"0 10 {i} {target}" for i in range(count)), 5, rotate)
    if kind == "PTR":
        return Record(
            f"{count}.0.0.10.in-addr.arpa", "PTR", (draw(targets),), owner=draw(st.sampled_from("ab"))
        )
    if kind == "CNAME":
        return Record(f"alias.{ZONE}", "CNAME", ("www.example.com",))
    return Record(name, "TXT" if kind == "TXT" else "A", ("word " * count,) if kind == "TXT" else ())


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    outside = st.sampled_from(
        ["", "example.com", "5.0.0.10.in-addr.arpa", "notcluster.local", "local", f"alias.{ZONE}"]
    )
    name = draw(names | outside)
    name = (
        "".join(draw(st.sampled_from([c.lower(), c.upper()])) for c in name) if draw(st.booleans()) else name
    )
    size, flags = draw(st.sampled_from([0, 511, 512, 700, 1231, 1232, 1233, 4096, 65535])), 0
    flags |= draw(st.sampled_from([0, 0x8000])) | draw(st.sampled_from([0, 0, 0, 1])) << 16
    opt = b"\0" + struct.pack("!HHIH", wire.OPT, size, flags, 0)
    edns = draw(st.sampled_from([b"", b"", opt, opt, opt[:-2] + b"\0\4\0\x0a\0\0", b"\1x" + opt]))
    packet = bytearray(
        question(name, draw(st.sampled_from(TYPES)), edns, draw(st.integers(0, 0xFFFF) | st.just(wire.RD)))
    )
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 3]))):
        packet[draw(st.integers(0, len(packet) - 1))] = draw(st.integers(0, 255))
    return bytes(
        packet[: draw(st.sampled_from([len(packet), len(packet), draw(st.integers(0, len(packet)))]))]
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(records(), max_size=8), st.lists(packets(), min_size=1, max_size=40), st.booleans())
def test_c_and_python_answer_alike(zone: list[Record], asked: list[bytes], synced: bool) -> None:
    unique = {record.key: record for record in zone}
    table, twin = made(*unique.values(), synced=synced)
    for packet in asked:
        same(table, twin, packet)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(records(), st.booleans()), max_size=30), st.lists(packets(), min_size=5, max_size=20)
)
def test_after_any_sequence_of_changes_they_still_do(
    changes: list[tuple[Record, bool]], asked: list[bytes]
) -> None:
    table, twin = made()
    for record, stays in changes:
        there = record.key in table.observe()
        table.apply(Plan(**{"change" if there else "add": (record,)}))
        if not stays:
            table.apply(Plan(remove=(record.key,)))
    for packet in asked:
        same(table, twin, packet)
    existing = {*table.view.names, *(n for n in table.view.below if wire.within(n, table.view.apex))}
    assert twin.names == len(existing)


def test_ten_thousand_random_packets_agree() -> None:
    rng = random.Random(1035)
    table, twin = made(Record(f"web.default.svc.{ZONE}", "A", ("10.96.0.10",)))
    base = question(f"web.default.svc.{ZONE}", edns=wire.opt(wire.Edns(1232)))
    for _ in range(10_000):
        packet = bytearray(rng.choice([base, rng.randbytes(rng.randrange(80))]))
        for _ in range(rng.randrange(4)):
            if packet:
                packet[rng.randrange(len(packet))] = rng.randrange(256)
        same(table, twin, bytes(packet[: rng.randrange(len(packet) + 1)] if rng.random() < 0.3 else packet))


def test_a_question_in_any_case_goes_back_as_it_was_asked() -> None:
    table, twin = made(Record(f"web.{ZONE}", "A", ("10.96.0.10",)))
    packet = question(f"wEb.{ZONE.upper()}")
    got = same(table, twin, packet)
    assert got is not None and got[12 : len(packet)] == packet[12:] and got[-4:] == bytes((10, 96, 0, 10))


def test_endpoints_take_turns_and_a_change_goes_on_with_the_turn() -> None:
    def ends(count: int) -> Record:
        return Record(f"rr.{ZONE}", "A", tuple(f"10.1.0.{i}" for i in range(count)), rotate=True)

    table, twin = made(ends(3))
    firsts = [same(table, twin, question(f"rr.{ZONE}")) for _ in range(4)]
    assert len({*firsts}) == 3 and firsts[0] == firsts[3]
    table.apply(Plan(change=(ends(4),)))
    for _ in range(8):
        same(table, twin, question(f"rr.{ZONE}"))


def test_what_is_too_long_is_cut_between_records_with_tc() -> None:
    table, twin = made(Record(f"big.{ZONE}", "A", tuple(f"10.2.{i // 250}.{i % 250}" for i in range(400))))
    for edns, most in ((b"", 512), (wire.opt(wire.Edns(4096)), 1232), (wire.opt(wire.Edns(600)), 600)):
        got = same(table, twin, question(f"big.{ZONE}", edns=edns))
        assert got is not None and len(got) <= most < len(got) + 16 + 11 and got[2] & wire.TC >> 8


def test_an_alias_and_other_peoples_names_are_left_to_python() -> None:
    _, twin = made(Record(f"ext.{ZONE}", "CNAME", ("www.example.com",)))
    assert twin.answer(question(f"ext.{ZONE}")) is None
    assert twin.answer(question("www.example.com")) is None
    assert twin.answer(b"\0" * 11) == b""


@pytest.mark.parametrize(
    ("name", "what", "left"),
    [
        ("10-1-0-2.default.pod", Divert.PODS, True),
        ("nope.default.svc", Divert.PODS | Divert.ENDPOINTS, False),
        ("tasks.web.default.svc", Divert.ENDPOINTS, True),
        ("example.com.default.svc", Divert.PODS | Divert.ENDPOINTS, False),  # what search lists make
        ("nope", Divert.DENIALS, True),
        ("web.default.svc", Divert.DENIALS, False),
        ("web.default.svc", Divert.EVERYTHING, True),
    ],
)
def test_names_that_python_computes_are_left_to_it(name: str, what: Divert, left: bool) -> None:
    _, twin = made(Record(f"web.default.svc.{ZONE}", "A", ("10.96.0.10",)))
    twin.divert(what)
    assert (twin.answer(question(f"{name}.{ZONE}")) is None) == left


def test_a_change_of_one_service_costs_its_names_alone() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.told: list[bytes] = []

        def change(self, names: Iterable[tuple[bytes, object]]) -> None:
            self.told = [name for name, _ in names]

        def sync(self, synced: bool) -> None: ...

    table, twin = NameTable(ZONE), Recorder()
    table.apply(Plan(add=tuple(Record(f"s{i}.default.svc.{ZONE}", "A", ("10.0.0.1",)) for i in range(500))))
    table.attach(twin)
    assert len(twin.told) == 500 + 3  # default.svc, svc, and the zone
    table.apply(Plan(change=(Record(f"s7.default.svc.{ZONE}", "A", ("10.0.0.2",)),)))
    assert twin.told == [wire.name(f"s7.default.svc.{ZONE}")]
    table.apply(Plan(add=(Record(f"_http._tcp.s7.default.svc.{ZONE}", "SRV", ("0 1 80 s7",)),)))
    assert len(twin.told) == 2  # and _tcp.s7, which exists now


def test_the_table_gives_back_what_it_took() -> None:
    table, twin = made()
    empty = twin.bytes
    many = tuple(Record(f"s{i}.default.svc.{ZONE}", "A", ("10.0.0.1",)) for i in range(5000))
    table.apply(Plan(add=many))
    full = twin.bytes
    table.apply(Plan(remove=tuple(r.key for r in many)))
    assert twin.names == 1  # the apex
    assert twin.bytes < full / 4 and empty < full


def test_a_rate_is_kept_for_each_network_whatever_the_clock_says() -> None:
    lib, ffi = loop.lib, loop.ffi
    limit = ffi.gc(lib.np_limit_new(10, 5, 0), lib.np_limit_free)

    def answered(address: bytes, at: float, count: int = 20) -> int:
        family = socket.AF_INET6 if len(address) == 16 else socket.AF_INET
        return sum(lib.np_limit_take(limit, address, family, int(at * 1e9)) == 0 for _ in range(count))

    for one, same, other in (
        (b"\x0a\1\2\3", b"\x0a\1\2\4", b"\x0a\1\3\3"),
        (
            bytes.fromhex("fd00" + "0" * 28),
            bytes.fromhex("fd00" + "0" * 24 + "beef"),
            bytes([0xFD, 1] + [0] * 14),
        ),
    ):
        assert answered(one, 100) == 5  # the burst
        assert answered(same, 100) == 0 and answered(other, 100) == 5
        assert answered(one, 100.31) == 3  # ten a second
        assert answered(one, 200) == 5
        began_anew = (1 << 44) / 1e6  # microseconds: the clock's bits are used up
        assert answered(one, began_anew - 0.001) == 5
        assert answered(one, began_anew + 10) == 5

"""What the cache keeps, for how long, and what it gives: replies made by dnslib, a clock by hand."""

from __future__ import annotations

import pytest
from dnslib import CNAME, QTYPE, RCODE, RR, SOA, A, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from netplane.dns.answer import Client, Forward, answer
from netplane.dns.cache import Cache, CacheOptions, key_of, lifetime_of
from netplane.dns.table import NameTable

TABLE = NameTable()
TABLE.mark_synced()


def forward(name: str = "www.example.com", kind: str = "A", ad: int = 0) -> Forward:
    query = DNSRecord.question(name, kind)
    query.header.ad = ad
    packet = bytes(query.pack())
    found = answer(packet, TABLE.view, Client("10.1.0.9"), recursion=True)
    assert isinstance(found, Forward)
    return found


def positive(*ttls: int, name: str = "www.example.com") -> bytes:
    reply = DNSRecord.question(name).reply()
    for i, ttl in enumerate(ttls):
        reply.add_answer(RR(name, QTYPE.A, rdata=A(f"192.0.2.{i + 1}"), ttl=ttl))
    return bytes(reply.pack())


def negative(ttl: int, minimum: int, rcode: int = RCODE.NXDOMAIN) -> bytes:
    reply = DNSRecord.question("www.example.com").reply()
    reply.header.rcode = rcode
    times = (1, 7200, 1800, 86400, minimum)
    reply.add_auth(RR("example.com", QTYPE.SOA, rdata=SOA("ns.example.com", "h.example.com", times), ttl=ttl))
    return bytes(reply.pack())


def failing() -> bytes:
    reply = DNSRecord.question("www.example.com").reply()
    reply.header.rcode = RCODE.SERVFAIL
    return bytes(reply.pack())


def ttls_of(reply: bytes) -> list[int]:
    return [rr.ttl for rr in DNSRecord.parse(reply).rr]


def test_a_reply_is_given_with_what_is_left_of_its_ttls() -> None:
    cache, key = Cache(), key_of(forward())
    assert cache.get(key, 0) is None
    cache.put(key, positive(60, 300), 100)
    hit = cache.get(key, 110.9)
    assert hit is not None and not hit.stale and ttls_of(hit.reply) == [50, 50]  # one RRset, one TTL
    assert (cache.hits, cache.misses, len(cache)) == (1, 1, 1)
    assert key_of(forward("WWW.example.COM")) == key
    assert key_of(forward("www.example.com", "AAAA")) != key
    assert key_of(forward(ad=1)) != key  # who does not ask for AD is not told (RFC 6840 5.8)


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (positive(60), 60), (positive(1_000_000), 3600), (positive(0), None), (positive(), None),
        (negative(600, 30), 30), (negative(20, 900), 20), (negative(90000, 90000), 1800),
        (negative(600, 30, RCODE.NOERROR), 30), (failing(), 5), (positive(60)[:-1], None),
    ],
)  # fmt: skip
def test_how_long_a_reply_is_kept(reply: bytes, seconds: int | None) -> None:
    found = lifetime_of(reply, CacheOptions())
    assert (found[0] if found else None) == seconds


def test_a_chain_that_ends_in_nothing_is_a_denial() -> None:
    reply = DNSRecord.question("www.example.com").reply()
    reply.add_answer(RR("www.example.com", QTYPE.CNAME, rdata=CNAME("gone.example.com"), ttl=7))
    assert lifetime_of(bytes(reply.pack()), CacheOptions()) is None  # no SOA: RFC 2308 5


def test_truncated_and_refused_replies_are_not_kept() -> None:
    cut, refused = DNSRecord.parse(positive(60)), DNSRecord.parse(positive(60))
    cut.header.tc, refused.header.rcode = 1, RCODE.REFUSED
    for reply in (cut, refused):
        assert lifetime_of(bytes(reply.pack()), CacheOptions()) is None


def test_what_expired_is_stale_for_half_a_minute_and_later_gone() -> None:
    cache, key = Cache(CacheOptions(serve_stale=100)), key_of(forward())
    cache.put(key, positive(60), 0)
    hit = cache.get(key, 60)
    assert hit is not None and hit.stale and ttls_of(hit.reply) == [30]
    cache.put(key, failing(), 61)  # nobody answers: the stale answer stays, and is good for 5 s
    hit = cache.get(key, 65)
    assert hit is not None and not hit.stale and ttls_of(hit.reply) == [30]
    hit = cache.get(key, 67)
    assert hit is not None and hit.stale
    assert cache.get(key, 160) is None and len(cache) == 0
    cache = Cache(CacheOptions(serve_stale=0))
    cache.put(key, positive(60), 0)
    assert cache.get(key, 60) is None


def test_a_popular_entry_is_fetched_again_once_before_it_expires() -> None:
    cache, key = Cache(CacheOptions(prefetch=3, prefetch_share=0.1)), key_of(forward())
    cache.put(key, positive(100), 0)
    asked = [cache.get(key, at) for at in (1, 50, 80, 91, 92)]
    assert [hit is not None and hit.refresh for hit in asked] == [False, False, False, True, False]
    cache.put(key, positive(100), 93)
    hit = cache.get(key, 184)
    assert hit is not None and not hit.refresh  # asked once only, in this life
    assert cache.prefetched == 1


def test_a_flood_of_names_costs_the_least_used_entries_and_no_more_memory() -> None:
    cache, key = Cache(CacheOptions(size=100)), key_of(forward())
    cache.put(key, positive(60), 0)
    for i in range(5000):
        name = f"x{i}.example.com"
        cache.put(key_of(forward(name)), positive(60, name=name), 0)
        if i % 50 == 0:
            cache.get(key, 1)
    assert len(cache) == 100 and cache.get(key, 1) is not None and cache.evicted == 4901


@given(st.binary(max_size=200), st.integers(0, 1 << 16))
def test_whatever_is_put_is_aged_within_its_bytes(tail: bytes, counts: int) -> None:
    reply = positive(60)[:6] + counts.to_bytes(4, "big") + b"\0\0" + positive(60)[12:] + tail
    cache, key = Cache(), key_of(forward())
    cache.put(key, reply, 0)
    hit = cache.get(key, 1)
    assert hit is None or len(hit.reply) == len(reply)

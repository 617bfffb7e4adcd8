"""What the server keeps of other names, on real sockets (see `tests/dns_served.py`)."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest
from dnslib import RCODE, DNSRecord

from netplane.kernel import netns
from netplane.model.facts import Plan, Record

from ..dns_served import D, Scripted, Served, denying, honest, silent, until

pytestmark = pytest.mark.root


def test_a_reply_is_asked_for_once_and_its_ttl_runs_down(
    served: Served, upstream: Callable[..., Scripted]
) -> None:
    far = upstream(1, lambda q: honest(q, ttl=5))
    served.start("forward: {upstreams: [127.0.1.1]}")
    assert served.dig("wWw.example.com") == served.dig("www.EXAMPLE.com") == "NOERROR 192.0.2.1"
    until(lambda: served.ttl("www.example.com") < 5)
    assert len(far.names()) == 1
    text = served.metrics()
    assert "netplane_dns_cache_misses_total 1.0" in text and "netplane_dns_cache_entries 1.0" in text
    assert 'netplane_dns_upstream_total{outcome="answer",to="127.0.1.1:53"} 1.0' in text
    assert 'netplane_dns_upstream_up{to="127.0.1.1:53"} 1.0' in text


def test_denials_and_failures_are_kept_too(served: Served, upstream: Callable[..., Scripted]) -> None:
    far = upstream(1, denying)
    served.start("forward: {upstreams: [127.0.1.1], timeout: 0.2, attempts: 1}")
    assert served.dig("a.example.com") == served.dig("a.example.com") == "NXDOMAIN"
    assert len(far.names()) == 1
    far.script = silent
    assert served.dig("b.example.com") == "SERVFAIL"
    far.script = honest
    assert served.dig("b.example.com") == "SERVFAIL"  # for 5 seconds: a broken zone is left in peace
    assert served.dig("c.example.com") == "NOERROR 192.0.2.1"


def test_names_of_the_cluster_are_never_cached(served: Served) -> None:
    served.start("ttl: 30")
    for i in range(20):
        served.table.apply(Plan(change=(Record(f"web.{D}", "A", (f"10.96.0.{i}",)),)))
        assert served.dig(f"web.{D}") == f"NOERROR 10.96.0.{i}"
    assert len(served.server.resolver.cache or ()) == 0


def test_when_nobody_answers_what_has_expired_is_better(
    served: Served, upstream: Callable[..., Scripted]
) -> None:
    far = upstream(1, lambda q: honest(q, ttl=1))
    served.start("forward: {upstreams: [127.0.1.1], timeout: 0.2, attempts: 2}")
    assert served.dig("www.example.com") == "NOERROR 192.0.2.1"
    far.script = silent
    until(lambda: served.ttl("www.example.com") == 30)
    began = time.monotonic()
    assert served.ttl("www.example.com") == 30 and time.monotonic() - began < 1
    far.script = lambda q: honest(q, address="192.0.2.9")
    until(lambda: served.dig("www.example.com") == "NOERROR 192.0.2.9", 8)
    assert "netplane_dns_cache_stale_total" in served.metrics()


def test_a_flood_of_names_is_bounded(served: Served, upstream: Callable[..., Scripted]) -> None:
    upstream(1)
    served.start("forward: {upstreams: [127.0.1.1]}\ncache: {size: 50}\n")
    with netns.call(served.ns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", 53))
        for i in range(300):
            sock.send(bytes(DNSRecord.question(f"x{i}.example.com").pack()))
            assert DNSRecord.parse(sock.recv(512)).header.rcode == RCODE.NOERROR
    assert served.server.resolver.cache is not None and len(served.server.resolver.cache) == 50


def test_many_who_ask_the_same_wait_for_one_question(
    served: Served, upstream: Callable[..., Scripted]
) -> None:
    gate = threading.Event()

    def slow(query: DNSRecord) -> DNSRecord:
        if "slow" in str(query.q.qname):
            gate.wait(5)
        return honest(query)

    far = upstream(1, slow)
    served.start("forward: {upstreams: [127.0.1.1], timeout: 5}")
    with netns.call(served.ns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", 53))
        for i in range(50):
            query = DNSRecord.question("slow.example.com")
            query.header.id = i
            sock.send(bytes(query.pack()))
        until(lambda: far.names() == ["slow.example.com."])
        gate.set()
        assert {DNSRecord.parse(sock.recv(512)).header.id for _ in range(50)} == set(range(50))
    assert far.names() == ["slow.example.com."]

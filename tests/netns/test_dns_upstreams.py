"""Upstreams that fail, flap and lie, and what clients notice of it (see `tests/dns_served.py`)."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable

import pytest
from dnslib import DNSRecord

from netplane.kernel import netns

from ..dns_served import D, Scripted, Served, denying, honest, silent, until

pytestmark = pytest.mark.root


def test_stub_domains_go_to_their_own_upstreams_and_no_further(
    served: Served, upstream: Callable[..., Scripted]
) -> None:
    common, corp = upstream(1), upstream(2, lambda q: honest(q, address="192.0.2.2"))
    served.start(
        "forward: {upstreams: [127.0.1.1]}\n"
        "stubs: [{zone: corp.example, upstreams: [127.0.1.2], timeout: 0.2, attempts: 1}]\n"
    )
    assert served.dig("host.Corp.example") == "NOERROR 192.0.2.2"
    assert served.dig("corp.example") == "NOERROR 192.0.2.2"
    assert served.dig("xcorp.example") == "NOERROR 192.0.2.1"
    corp.script = silent
    assert served.dig("other.corp.example") == "SERVFAIL"
    assert common.names() == ["xcorp.example."]
    assert served.dig(f"web.{D}") == "NOERROR 10.96.0.10"
    assert served.dig("-x", "10.96.0.10").split()[0] == "NOERROR"
    text = served.metrics()
    for zone, source, rcode in (
        ("corp.example.", "forward", "NOERROR"),
        ("corp.example.", "forward", "SERVFAIL"),
        (".", "forward", "NOERROR"),
        ("cluster.local.", "cluster", "NOERROR"),
        ("in-addr.arpa.", "forward", "NOERROR"),
    ):
        assert f'netplane_dns_responses_total{{rcode="{rcode}",source="{source}",zone="{zone}"}}' in text
    zones = {line.partition('zone="')[2].partition('"')[0] for line in text.splitlines() if "zone=" in line}
    assert zones == {"corp.example.", ".", "cluster.local.", "in-addr.arpa."}


def test_one_that_failed_is_asked_last_until_it_answers_a_probe(
    served: Served, upstream: Callable[..., Scripted]
) -> None:
    first, second = upstream(1, silent), upstream(2, lambda q: honest(q, address="192.0.2.2"))
    served.start(
        "forward: {upstreams: [127.0.1.1, 127.0.1.2], timeout: 0.3, probeInterval: 0.1}\ncache: {size: 0}\n"
    )
    until(lambda: len(first.asked) == len(second.asked) == 1)  # each is probed at the start
    assert served.dig("a.example.com") == "NOERROR 192.0.2.2"
    asked = len(first.names())
    for i in range(5):
        assert served.dig(f"b{i}.example.com") == "NOERROR 192.0.2.2"
    assert len(first.names()) == asked == 1
    first.script = honest
    until(lambda: served.dig("c.example.com") == "NOERROR 192.0.2.1")


def test_one_that_flaps_costs_tries_and_no_answer(served: Served, upstream: Callable[..., Scripted]) -> None:
    up = threading.Event()

    def flapping(query: DNSRecord) -> DNSRecord | None:
        (up.clear if up.is_set() else up.set)()
        return honest(query) if up.is_set() else None

    upstream(1, flapping)
    served.start(
        "forward: {upstreams: [127.0.1.1], timeout: 0.1, attempts: 3, probeInterval: 0.1}\ncache: {size: 0}\n"
    )
    for i in range(20):
        assert served.dig(f"x{i}.example.com") == "NOERROR 192.0.2.1"
    assert served.server.counters.upstream["127.0.1.1:53", "answer"] == 20


def test_questions_in_flight_are_bounded(served: Served, upstream: Callable[..., Scripted]) -> None:
    far = upstream(1, silent)
    forward = "forward: {upstreams: [127.0.1.1], timeout: 3, attempts: 1, inFlight: 3}"
    served.start(f"{forward}\ncache: {{servfailTTL: 60}}")
    with netns.call(served.ns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 53))
        for i in range(3):
            sock.send(bytes(DNSRecord.question(f"x{i}.example.com").pack()))
        until(lambda: len(far.names()) == 3)
        began = time.monotonic()
        assert served.dig("one.more.example.com") == "SERVFAIL" and time.monotonic() - began < 1
    assert served.server.counters.dropped["busy"] == 1 and len(far.names()) == 3
    far.script = honest
    until(lambda: not served.server.resolver.waiting)
    assert served.dig("one.more.example.com") == "NOERROR 192.0.2.1"  # it had not failed: nobody was asked


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_what_is_not_the_reply_is_passed_over(
    served: Served, upstream: Callable[..., Scripted], transport: str
) -> None:
    """Another id, another question: the upstream lies for as long as it is asked."""

    def lie(query: DNSRecord) -> DNSRecord:
        if "id" in str(query.q.qname):
            reply = honest(query)
            reply.header.id ^= 1
            return reply
        reply = honest(DNSRecord.question("other.example.com"))
        reply.header.id = query.header.id
        return reply

    upstream(1, lie)
    served.start(f'forward: {{upstreams: ["{transport}://127.0.1.1"], timeout: 0.2, attempts: 2}}')
    assert served.dig("id.example.com") == served.dig("question.example.com") == "SERVFAIL"
    assert len(served.server.resolver.cache or ()) == 2  # the failures, for their five seconds


def test_the_zone_is_not_transferred(served: Served) -> None:
    served.start("")
    for kind in ("AXFR", "IXFR=1"):
        out = netns.run(
            served.ns, "dig", "@127.0.0.1", "+tries=1", "+tcp", "cluster.local", kind, check=False
        )
        assert "10.96.0.10" not in out and ("Transfer failed" in out or "REFUSED" in out)


def test_noise_gets_an_error_or_silence_and_the_server_goes_on(served: Served) -> None:
    served.start("")
    noise = random.Random(7)
    good = bytes(DNSRecord.question(f"web.{D}").pack())
    looping = good[:12] + b"\xc0\x0c" + good[-4:]
    with netns.call(served.ns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", 53))
        for i in range(2000):
            packet = bytearray(good if i % 3 else looping)
            for _ in range(noise.randrange(4)):
                packet[noise.randrange(len(packet))] = noise.randrange(256)
            packet = packet[: noise.randrange(len(packet) + 1)] if i % 5 == 0 else packet
            with contextlib.suppress(BlockingIOError):
                sock.send(bytes(packet) + noise.randbytes(noise.choice((0, 0, 3, 4000))))
                assert sock.recv(65535)[2] & 0x80
    assert served.dig(f"web.{D}") == "NOERROR 10.96.0.10"
    assert not served.server.counters.dropped["error"]


def test_an_upstream_over_tcp_gets_all_questions_on_one_connection(
    served: Served, upstream: Callable[..., Scripted]
) -> None:
    far = upstream(1)
    served.start('forward: {upstreams: ["tcp://127.0.1.1"]}\ncache: {size: 0}\n')
    until(lambda: "netplane.invalid" in "".join(far.asked))
    before = far.connections
    for i in range(5):
        assert served.dig(f"x{i}.example.com") == "NOERROR 192.0.2.1"
    assert far.connections <= before + 1 and len(far.names()) == 5


def test_a_server_that_asks_us_is_found_out(served: Served, upstream: Callable[..., Scripted]) -> None:
    """The upstream is a forwarder whose own upstream is this server."""
    with netns.call(served.ns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as way_back:
        way_back.settimeout(2)
        way_back.connect(("127.0.0.1", 53))

        def back(query: DNSRecord) -> DNSRecord:
            way_back.send(bytes(query.pack()))
            return DNSRecord.parse(way_back.recv(512))

        upstream(1, back)
        served.start("forward: {upstreams: [127.0.1.1]}")
        until(lambda: served.server.counters.loops > 0)
        assert served.dig("example.com") == "REFUSED"
        assert served.dig(f"web.{D}") == "NOERROR 10.96.0.10"


def test_autopath_through_an_upstream(served: Served, upstream: Callable[..., Scripted]) -> None:
    far = upstream(1, lambda q: honest(q) if str(q.q.qname) == "www.example.com." else denying(q))
    served.start("autopath: true\nforward: {upstreams: [127.0.1.1]}\n")
    assert served.dig("-b", "10.244.0.5", f"www.example.com.{D}") == "NOERROR www.example.com. 192.0.2.1"
    assert served.dig("-b", "10.244.0.5", f"nope.example.com.{D}") == "NXDOMAIN"
    assert far.names() == ["www.example.com.", "nope.example.com."]
    assert served.dig("-b", "10.244.0.6", f"www.example.com.{D}") == "NXDOMAIN"  # nobody's pod
    assert served.dig("-b", "10.244.0.5", "web") == "NOERROR 10.96.0.10"

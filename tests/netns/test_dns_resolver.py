"""The resolver behind the server, on real sockets, asked by dig: upstreams that misbehave, cache, TLS, files.

One namespace, all on lo:

  dig ──> 127.0.0.1:53 (UDP, TCP), 127.0.0.1:853 (TLS) ──> 127.0.1.N upstreams, each scripted by a test
  10.244.0.5 and 10.244.0.6 are pods' addresses
"""

from __future__ import annotations

import contextlib
import logging
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dnslib import QTYPE, RCODE, RR, SOA, A, DNSRecord
from prometheus_client import CollectorRegistry, generate_latest

from netplane.dns.metrics import DnsMetrics
from netplane.dns.names import LocalNames
from netplane.dns.server import DnsServer
from netplane.dns.setup import Setup
from netplane.dns.table import NameTable
from netplane.kernel import netns
from netplane.model.codec import parse_all
from netplane.model.errors import Invalid
from netplane.model.facts import Plan, Record
from netplane.model.snapshot import Snapshot

pytestmark = pytest.mark.root
D = "default.svc.cluster.local"
RECORDS = (
    Record("cluster.local", "SOA", ("ns.dns.cluster.local hostmaster.cluster.local 1 7200 1800 86400 5",)),
    Record(f"web.{D}", "A", ("10.96.0.10",)),
    Record(f"out.{D}", "CNAME", ("www.example.com",)),
)
POD = """
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: default}
spec: {containers: [{name: c, image: i}]}
status: {podIP: 10.244.0.5, podIPs: [{ip: 10.244.0.5}]}
"""


class Scripted:
    """Says what ``script(query)`` does, over UDP and TCP, or TLS with ``context``; None: silence."""

    def __init__(self, ns: str, ip: str, script: Callable[[DNSRecord], DNSRecord | None], **how: Any) -> None:
        self.address = (ip, how.get("port", 53))
        self.script = script
        self.asked: list[str] = []
        self.connections = 0
        self._context: ssl.SSLContext | None = how.get("context")
        self._socks = [netns.call(ns, socket.socket, socket.AF_INET, kind) for kind in self._kinds()]
        for sock in self._socks:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(self.address)
            udp = sock.type == socket.SOCK_DGRAM
            if not udp:
                sock.listen(16)
            threading.Thread(
                target=self._datagrams if udp else self._accept, args=(sock,), daemon=True
            ).start()

    def _kinds(self) -> list[socket.SocketKind]:
        both = [socket.SOCK_DGRAM, socket.SOCK_STREAM]
        return both[1:] if self._context else both

    def close(self) -> None:
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def names(self) -> list[str]:
        """What was asked, without probes."""
        return [name for name in self.asked if not name.endswith("loop.netplane.invalid.")]

    def _reply(self, packet: bytes) -> bytes | None:
        query = DNSRecord.parse(packet)
        self.asked.append(str(query.q.qname))
        reply = self.script(query)
        return bytes(reply.pack()) if reply is not None else None

    def _datagrams(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                packet, peer = sock.recvfrom(4096)
                if not packet:
                    return
                reply = self._reply(packet)
                if reply is not None:
                    sock.sendto(reply, peer)

    def _accept(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                stream, _ = sock.accept()
                self.connections += 1
                threading.Thread(target=self._stream, args=(stream,), daemon=True).start()

    def _stream(self, stream: socket.socket) -> None:
        with contextlib.suppress(OSError), stream:
            if self._context:
                stream = self._context.wrap_socket(stream, server_side=True)
            with stream, stream.makefile("rb") as file:
                while size := int.from_bytes(file.read(2), "big"):
                    reply = self._reply(file.read(size))
                    if reply is not None:
                        stream.sendall(len(reply).to_bytes(2, "big") + reply)


def honest(query: DNSRecord, ttl: int = 60, address: str = "192.0.2.1") -> DNSRecord:
    reply = query.reply()
    if query.q.qtype == QTYPE.A and "invalid" not in str(query.q.qname):
        reply.add_answer(RR(query.q.qname, QTYPE.A, rdata=A(address), ttl=ttl))
    return reply


def denying(query: DNSRecord) -> DNSRecord:
    reply = query.reply()
    reply.header.rcode = RCODE.NXDOMAIN
    reply.add_auth(RR("example.com", QTYPE.SOA, rdata=SOA("n.x", "h.x", (1, 1, 1, 1, 60)), ttl=60))
    return reply


def silent(_: DNSRecord) -> None:
    return None


@pytest.fixture
def ns(make_netns: Callable[[str], str]) -> str:
    path = make_netns("dns")
    for address in ("10.244.0.5/32", "10.244.0.6/32"):
        netns.run(path, "ip", "address", "add", address, "dev", "lo")
    return path


@pytest.fixture
def upstream(ns: str) -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(number: int, script: Callable[[DNSRecord], DNSRecord | None] = honest, **how: Any) -> Scripted:
        made.append(Scripted(ns, f"127.0.1.{number}", script, **how))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Served:
    def __init__(self, ns: str, tmp_path: Path) -> None:
        self.ns, self.path = ns, tmp_path / "dns.yaml"
        self.table = NameTable()
        self.table.apply(Plan(add=RECORDS))
        self.table.mark_synced()
        self.server = DnsServer(self.table, [("127.0.0.1", 53)], idle=0.5)
        snapshot = Snapshot.of(parse_all(POD))
        names = LocalNames(lambda: snapshot, "cluster.local")
        resolv_conf = tmp_path / "resolv.conf"
        resolv_conf.write_text("")
        self.setup = Setup(self.server, names, str(self.path), str(resolv_conf))

    def start(self, text: str) -> Served:
        self.path.write_text(text)
        netns.call(self.ns, self.server.start)
        netns.call(self.ns, self.setup.start)
        return self

    def dig(self, *words: str) -> str:
        """The rcode and the answers' data."""
        out = netns.run(self.ns, "dig", "@127.0.0.1", "+tries=1", "+time=8", "+noall", "+comments", "+answer",
                        *words)  # fmt: skip
        rcode = out.partition("status: ")[2].partition(",")[0]
        data = [line.split()[-1] for line in out.splitlines() if line and line[0] != ";"]
        return " ".join((rcode, *data))

    def ttl(self, name: str) -> int:
        out = netns.run(self.ns, "dig", "@127.0.0.1", "+noall", "+answer", name)
        return int(out.split()[1])

    def write(self, text: str) -> None:
        self.path.with_suffix(".new").write_text(text)
        self.path.with_suffix(".new").rename(self.path)

    def metrics(self) -> str:
        registry = CollectorRegistry()
        registry.register(self.server.counters)
        registry.register(DnsMetrics(self.setup))
        return generate_latest(registry).decode()


@pytest.fixture
def served(ns: str, tmp_path: Path) -> Iterator[Served]:
    one = Served(ns, tmp_path)
    yield one
    one.setup.stop()
    one.server.stop()


def until(true: Callable[[], Any], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


# --- cache --------------------------------------------------------------------------------------


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
    until(lambda: served.ttl("www.example.com") == 0)
    began = time.monotonic()
    assert served.ttl("www.example.com") == 0 and time.monotonic() - began < 1
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


# --- upstreams ----------------------------------------------------------------------------------


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
    served.start("forward: {upstreams: [127.0.1.1], timeout: 5, attempts: 1, inFlight: 3}")
    with netns.call(served.ns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 53))
        for i in range(3):
            sock.send(bytes(DNSRecord.question(f"x{i}.example.com").pack()))
        until(lambda: len(far.names()) == 3)
        began = time.monotonic()
        assert served.dig("one.more.example.com") == "SERVFAIL" and time.monotonic() - began < 1
    assert served.server.counters.dropped["busy"] == 1 and len(far.names()) == 3


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
    until(lambda: far.connections == 1 and "netplane.invalid" in "".join(far.asked))
    for i in range(5):
        assert served.dig(f"x{i}.example.com") == "NOERROR 192.0.2.1"
    assert far.connections <= 2 and len(far.names()) == 5


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


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    if shutil.which("openssl") is None:
        pytest.skip("needs a certificate: apt install openssl")

    def make(name: str) -> tuple[str, str]:
        cert, key = str(tmp_path / f"{name}.pem"), str(tmp_path / f"{name}.key")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-keyout", key, "-out", cert, "-days", "2", "-subj", f"/CN={name}",
             "-addext", f"subjectAltName=DNS:{name},IP:127.0.1.1"],
            check=True, capture_output=True,
        )  # fmt: skip
        return cert, key

    return make


def test_an_upstream_over_tls_is_verified(
    served: Served, upstream: Callable[..., Scripted], certificate: Callable[[str], tuple[str, str]]
) -> None:
    cert, key = certificate("far")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    far = upstream(1, context=context, port=853)
    served.start(f'forward: {{upstreams: ["tls://127.0.1.1@far"], ca: {cert}}}')
    assert served.dig("a.example.com") == served.dig("+tcp", "a.example.com") == "NOERROR 192.0.2.1"
    for wrong in (f'["tls://127.0.1.1@near"], ca: {cert}', '["tls://127.0.1.1@far"]'):
        reloads = served.setup.reloads
        served.write(f"forward: {{upstreams: {wrong}}}")
        until(lambda: served.setup.reloads > reloads)  # noqa: B023
        assert served.dig("b.example.com") == "SERVFAIL"
    assert far.names() == ["a.example.com."]


def over_tls(served: Served, name: str) -> tuple[str, str]:
    """(the certificate's name, the answer) of one question over TLS."""
    sock = netns.call(served.ns, socket.create_connection, ("127.0.0.1", 853), 5)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(sock) as stream, stream.makefile("rb") as file:
        shown = ssl.DER_cert_to_PEM_cert(stream.getpeercert(binary_form=True) or b"")
        query = bytes(DNSRecord.question(name).pack())
        for _ in range(2):  # a connection serves more than one
            stream.sendall(len(query).to_bytes(2, "big") + query)
            reply = DNSRecord.parse(file.read(int.from_bytes(file.read(2), "big")))
    subject = subprocess.run(
        ["openssl", "x509", "-noout", "-subject"], input=shown, text=True, capture_output=True, check=True
    )
    return subject.stdout.split()[-1].removeprefix("CN="), str(reply.rr[0].rdata)


def refuses_tls(served: Served) -> bool:
    try:
        netns.call(served.ns, socket.create_connection, ("127.0.0.1", 853), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_dns_over_tls_and_its_certificate_changes_under_it(
    served: Served, certificate: Callable[[str], tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    one, other = certificate("one"), certificate("other")
    served.start(f"tls: {{listen: [127.0.0.1], cert: {one[0]}, key: {one[1]}}}")
    assert over_tls(served, f"web.{D}") == ("one", "10.96.0.10")
    if shutil.which("kdig"):
        out = netns.run(served.ns, "kdig", "+tls", "+short", "@127.0.0.1", f"web.{D}")
        assert out.split() == ["10.96.0.10"]
    shutil.copyfile(other[0], one[0])  # does not fit its key yet: the old one goes on
    until(lambda: "the old certificate stays" in caplog.text)
    assert over_tls(served, f"web.{D}") == ("one", "10.96.0.10")
    shutil.copyfile(other[1], one[1])
    until(lambda: over_tls(served, f"web.{D}")[0] == "other")
    three = certificate("three")
    served.write(f"tls: {{listen: [127.0.0.1, 127.0.0.2], cert: {three[0]}, key: {three[1]}}}")
    until(lambda: over_tls(served, f"web.{D}")[0] == "three")
    text = served.metrics()
    assert 'proto="tls",source="cluster",type="A"' in text
    served.write("ttl: 5")
    until(lambda: refuses_tls(served))


def test_clients_that_stall_on_tls_are_cut_off(
    served: Served, certificate: Callable[[str], tuple[str, str]]
) -> None:
    cert, key = certificate("one")
    served.start(f"tls: {{listen: [127.0.0.1], cert: {cert}, key: {key}}}")
    stalled = [netns.call(served.ns, socket.create_connection, ("127.0.0.1", 853), 5) for _ in range(20)]
    for sock in stalled:
        assert sock.recv(1) == b""  # no handshake within half a second
        sock.close()
    assert over_tls(served, f"web.{D}") == ("one", "10.96.0.10")


# --- the files ----------------------------------------------------------------------------------


def test_the_configuration_is_reloaded_and_a_wrong_one_changes_nothing(
    served: Served, upstream: Callable[..., Scripted], tmp_path: Path
) -> None:
    upstream(1)
    upstream(2, lambda q: honest(q, address="192.0.2.2"))
    served.start("forward: {upstreams: [127.0.1.1]}")
    assert served.dig("example.com") == "NOERROR 192.0.2.1"
    served.write("forward: {upstreams: [127.0.1.2]}")  # and what was cached of the first is gone
    until(lambda: served.dig("example.com") == "NOERROR 192.0.2.2")
    for wrong, said in (
        (
            "forward: {upstreams: [127.0.1.1]}\npods: maybe\n",
            f"{served.path}:2: pods: 'maybe' is not supported",
        ),
        ("forward: {upstreams: [127.0.0.1]}", "127.0.0.1 port 53 is this server itself"),
        (f"hosts: {{file: {tmp_path}/none}}", "none: No such file or directory"),
        (f"tls: {{listen: [127.0.0.1], cert: {tmp_path}/c, key: {tmp_path}/k}}", "No such file"),
    ):
        served.write(wrong)
        until(lambda: said in served.setup.problem)  # noqa: B023
        assert served.dig("example.com") == "NOERROR 192.0.2.2"
        assert "netplane_dns_config_refused 1.0" in served.metrics()
    served.write("forward: {upstreams: [127.0.1.1]}")
    until(lambda: served.dig("example.com") == "NOERROR 192.0.2.1")
    assert served.setup.problem == ""


def test_a_wrong_file_at_the_start_is_refused(served: Served) -> None:
    with pytest.raises(Invalid, match=r"dns\.yaml:1: ttl: expected"):
        served.start("ttl: x")


def test_the_hosts_file_is_followed(served: Served, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.7 box\n")
    served.start(f"hosts: {{file: {hosts}}}")
    assert served.dig("box") == "NOERROR 192.0.2.7"
    hosts.write_text("192.0.2.8 box\n")
    until(lambda: served.dig("box") == "NOERROR 192.0.2.8")
    assert served.dig("-x", "192.0.2.8") == "NOERROR box."


def test_the_query_log_is_switched_and_sampled(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.start("ttl: 5")
    caplog.set_level(logging.INFO, "netplane.dns.query")
    served.dig(f"web.{D}")
    assert not caplog.records
    served.write("log: {queries: true, sample: 2}")
    until(lambda: served.server.log.every == 2)
    for _ in range(4):
        served.dig("+tcp", f"nope.{D}", "AAAA")
    assert len([r for r in caplog.records if r.name == "netplane.dns.query"]) == 2
    assert f"127.0.0.1 tcp nope.{D}. AAAA NXDOMAIN" in caplog.text

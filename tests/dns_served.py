"""A DNS server with a configuration file, on real sockets, asked by dig; and upstreams that misbehave.

One namespace, all on lo:

  dig ──> 127.0.0.1:53 (UDP, TCP), 127.0.0.1:853 (TLS) ──> 127.0.1.N upstreams, each scripted by a test
  10.244.0.5 and 10.244.0.6 are pods' addresses
"""

from __future__ import annotations

import contextlib
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
from netplane.model.facts import Plan, Record
from netplane.model.snapshot import Snapshot

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
    """A server and its file; `start` writes the file and begins."""

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

    def stop(self) -> None:
        self.setup.stop()
        self.server.stop()

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
    one.stop()


@pytest.fixture
def again(ns: str, tmp_path: Path) -> Iterator[Callable[[], Served]]:
    """Another server with the same file, to come after `served`."""
    made: list[Served] = []

    def make() -> Served:
        made.append(Served(ns, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def until(true: Callable[[], Any], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


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

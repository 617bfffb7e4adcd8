"""Clients over TCP and TLS: many questions on one connection, and a restart under them.

One namespace, all on lo:

  client ──> 127.0.0.1:53 (TCP), 127.0.0.1:853 (TLS) ──> 127.0.1.1 an upstream that a test scripts
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dnslib import RCODE, DNSRecord

from netplane.dns.handover import Inherited
from netplane.kernel import netns
from netplane.lab import Lab, Settings
from netplane.model.facts import Plan, Record

from ..dns_served import D, Scripted, Served, honest, until

pytestmark = pytest.mark.root
ENDS = ("tcp", "tls")


@pytest.fixture
def streams(certificate: Callable[[str], tuple[str, str]]) -> str:
    """The configuration of a server that listens for both."""
    cert, key = certificate("one")
    return f"tls: {{listen: [127.0.0.1], cert: {cert}, key: {key}}}\n"


def connect(served: Served, protocol: str) -> socket.socket:
    if protocol == "tls":
        return secured(netns.call(served.ns, to_tls))
    sock: socket.socket = netns.call(served.ns, socket.create_connection, ("127.0.0.1", 53), 5)
    return sock


def to_tls() -> socket.socket:
    return socket.create_connection(("127.0.0.1", 853), 10)


def secured(sock: socket.socket) -> socket.socket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(sock)


def framed(name: str, ident: int) -> bytes:
    query = DNSRecord.question(name)
    query.header.id = ident
    packet = bytes(query.pack())
    return len(packet).to_bytes(2, "big") + packet


def replies(sock: socket.socket) -> Iterator[DNSRecord]:
    with sock.makefile("rb") as file:
        while size := int.from_bytes(file.read(2), "big"):
            yield DNSRecord.parse(file.read(size))


@pytest.mark.parametrize("protocol", ENDS)
def test_what_is_known_overtakes_what_must_be_asked_for(
    served: Served, upstream: Callable[..., Scripted], streams: str, protocol: str
) -> None:
    gate = threading.Event()

    def slow(query: DNSRecord) -> DNSRecord:
        gate.wait(5 if "slow" in str(query.q.qname) else 0)
        return honest(query)

    far = upstream(1, slow)
    served.start(f"{streams}forward: {{upstreams: [127.0.1.1], timeout: 5, attempts: 1}}\n")
    with connect(served, protocol) as sock:
        sock.sendall(framed("slow.example.com", 1) + framed(f"web.{D}", 2) + framed(f"nope.{D}", 3))
        come = replies(sock)
        assert [(r.header.id, r.header.rcode) for r in (next(come), next(come))] == [
            (2, RCODE.NOERROR),
            (3, RCODE.NXDOMAIN),
        ]
        until(lambda: far.names() == ["slow.example.com."])
        time.sleep(0.7)  # longer than a silent client is suffered: it is owed an answer
        sock.sendall(framed(f"web.{D}", 4))
        assert next(come).header.id == 4
        gate.set()
        assert next(come).header.id == 1


def test_questions_of_one_connection_are_bounded_and_all_are_answered(
    served: Served, upstream: Callable[..., Scripted]
) -> None:
    far = upstream(1)
    served.start("forward: {upstreams: [127.0.1.1]}")
    asked = b"".join(framed(f"x{i}.example.com", i) for i in range(300))
    with connect(served, "tcp") as sock:
        sock.sendall(asked)
        sock.shutdown(socket.SHUT_WR)  # it says no more, and still wants to hear
        assert {reply.header.id for reply in replies(sock)} == set(range(300))
    assert len(far.names()) == 300


@pytest.mark.parametrize("protocol", ENDS)
@pytest.mark.parametrize(
    "said", [b"", b"\0", b"\0\x30\0"], ids=["nothing", "half a length", "half a message"]
)
def test_a_client_that_stalls_is_cut_off(served: Served, streams: str, protocol: str, said: bytes) -> None:
    served.start(streams)
    with connect(served, protocol) as stalled:
        stalled.settimeout(10)
        stalled.sendall(framed(f"web.{D}", 1) + said)
        come = replies(stalled)
        assert next(come).header.id == 1
        with contextlib.suppress(ConnectionError):
            assert list(come) == []
    assert served.dig("+tcp", f"web.{D}") == "NOERROR 10.96.0.10"


def test_a_client_that_takes_no_answers_is_cut_off(served: Served) -> None:
    many = tuple(f"10.2.{i // 250}.{i % 250}" for i in range(2000))
    served.table.apply(Plan(add=(Record(f"big.{D}", "A", many),)))
    served.start("")
    with connect(served, "tcp") as sock:
        sock.settimeout(30)
        with pytest.raises(ConnectionError):
            sock.sendall(framed(f"big.{D}", 1) * 500_000)  # 16 GB of answers
    assert served.dig("+tcp", f"web.{D}") == "NOERROR 10.96.0.10"


@pytest.mark.parametrize("protocol", ENDS)
def test_a_restart_loses_no_question_over_streams(
    served: Served, streams: str, protocol: str, again: Callable[[], Served]
) -> None:
    """The second server takes the sockets of the first; clients come all the time."""
    served.start(streams)
    with asking(lambda: connect(served, protocol)) as clients:
        clients.wait(20)
        held = [sock.dup() for sock in served.server.sockets]
        served.setup.stop()
        served.server.stop(2)
        second = again()
        netns.call(served.ns, second.server.start, inherited := Inherited(held))
        netns.call(served.ns, second.setup.start, inherited)
        inherited.close()
        clients.wait(20)


def test_an_agent_that_starts_anew_loses_no_question_over_tls(
    make_lab: Callable[..., Lab], certificate: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    cert, key = certificate("one")
    (tmp_path / "dns.yaml").write_text(f"tls: {{listen: [127.0.0.1], cert: {cert}, key: {key}}}\n")
    lab = make_lab(nodes=1, settings=Settings(agent_args=("--dns-config", str(tmp_path / "dns.yaml"))))
    lab.start_agents()
    node = lab.nodes[0]
    assert node.agent.process is not None
    process = node.agent.process.pid
    with asking(lambda: secured(netns.call(node.netns, to_tls)), "dns-version.cluster.local") as clients:
        clients.wait(20)
        os.kill(process, signal.SIGUSR2)
        until(lambda: b"LISTEN_FDS=" in Path(f"/proc/{process}/environ").read_bytes())
        clients.wait(20)
    node.agent.wait()
    assert node.agent.running


class Clients:
    """Each asks on a connection of its own, and again."""

    def __init__(self, connected: Callable[[], socket.socket], name: str) -> None:
        self.answered, self.failures = 0, []
        self.end = threading.Event()
        self._connected, self._name = connected, name

    def run(self) -> None:
        while not self.end.is_set():
            try:
                with self._connected() as sock:
                    sock.sendall(framed(self._name, 7))
                    assert next(replies(sock)).header.id == 7
                self.answered += 1
            except Exception as exc:
                self.failures.append(repr(exc))

    def wait(self, more: int) -> None:
        enough = self.answered + more
        until(lambda: self.answered >= enough or self.failures, 20)


@contextlib.contextmanager
def asking(connected: Callable[[], socket.socket], name: str = f"web.{D}") -> Iterator[Clients]:
    """Four clients, none of whom may fail."""
    clients = Clients(connected, name)
    threads = [threading.Thread(target=clients.run) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        clients.end.set()
        for thread in threads:
            thread.join()
    assert not clients.failures, clients.failures[:3]

"""Clients over TCP and TLS: many questions on one connection, and a restart under them.

One namespace, all on lo:

  client ──> 127.0.0.1:53 (TCP), 127.0.0.1:853 (TLS) ──> 127.0.1.1 an upstream that a test scripts
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from dnslib import RCODE, DNSRecord

from netplane.dns.handover import Inherited
from netplane.kernel import netns

from ..dns_served import D, Scripted, Served, honest, until

pytestmark = pytest.mark.root
ENDS = ("tcp", "tls")


@pytest.fixture
def streams(certificate: Callable[[str], tuple[str, str]]) -> str:
    """The configuration of a server that listens for both."""
    cert, key = certificate("one")
    return f"tls: {{listen: [127.0.0.1], cert: {cert}, key: {key}}}\n"


def connect(served: Served, protocol: str) -> socket.socket:
    port = 53 if protocol == "tcp" else 853
    sock: socket.socket = netns.call(served.ns, socket.create_connection, ("127.0.0.1", port), 5)
    if protocol == "tcp":
        return sock
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


def test_a_client_that_takes_no_answers_is_cut_off(served: Served) -> None:
    served.start("")
    with connect(served, "tcp") as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(10)
        with pytest.raises(ConnectionError):
            sock.sendall(framed(f"web.{D}", 1) * 500_000)
    assert served.dig("+tcp", f"web.{D}") == "NOERROR 10.96.0.10"


@pytest.mark.parametrize("protocol", ENDS)
def test_a_restart_loses_no_question_over_streams(
    served: Served, streams: str, protocol: str, again: Callable[[], Served]
) -> None:
    """The second server takes the sockets of the first; clients come all the time."""
    served.start(streams)
    end, failures, answered = threading.Event(), [], [0]

    def ask() -> None:
        while not end.is_set():
            try:
                with connect(served, protocol) as sock:
                    sock.sendall(framed(f"web.{D}", 7))
                    assert next(replies(sock)).header.id == 7
                answered[0] += 1
            except Exception as exc:
                failures.append(repr(exc))

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    until(lambda: answered[0] > 20)
    held = [sock.dup() for sock in served.server.sockets]
    served.setup.stop()
    served.server.stop(2)
    before = answered[0]
    second = again()
    netns.call(served.ns, second.server.start, inherited := Inherited(held))
    netns.call(served.ns, second.setup.start, inherited)
    inherited.close()
    until(lambda: answered[0] > before + 20)
    end.set()
    for client in clients:
        client.join()
    assert not failures, failures[:3]
    assert os.path.exists(second.path)

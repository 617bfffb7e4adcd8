"""DNS over TLS: to upstreams and to clients (see `tests/dns_served.py`)."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable

import pytest
from dnslib import DNSRecord

from netplane.kernel import netns

from ..dns_served import D, Scripted, Served, until

pytestmark = pytest.mark.root


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

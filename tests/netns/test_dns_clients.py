"""dnspython, dig and kdig, none of them ours, ask the same and understand the same.

One namespace, all on lo:

  client ──> 127.0.0.1:53 (UDP, TCP), 127.0.0.1:853 (TLS), each answered by C or by Python
"""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Callable
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.zone
import pytest

from netplane.kernel import netns
from netplane.model.facts import Plan, Record

from ..dns_served import D, Served

pytestmark = pytest.mark.root
MORE = (
    Record("cluster.local", "NS", ("ns.dns.cluster.local",)),
    Record("ns.dns.cluster.local", "A", ("127.0.0.1",)),
    Record(f"six.{D}", "AAAA", ("fd00::a",)),
    Record(f"_http._tcp.web.{D}", "SRV", (f"0 100 80 web.{D}",)),
    Record("10.0.96.10.in-addr.arpa", "PTR", (f"web.{D}",)),
    Record("dns-version.cluster.local", "TXT", ("1.1.0",)),
    Record(f"big.{D}", "A", tuple(f"10.2.{i // 250}.{i % 250}" for i in range(400))),
)
QUESTIONS = [
    (f"web.{D}", "A"), (f"WEB.{D}", "A"), (f"web.{D}", "AAAA"), (f"six.{D}", "AAAA"), (f"nope.{D}", "A"),
    (f"_http._tcp.web.{D}", "SRV"), ("10.0.96.10.in-addr.arpa", "PTR"), ("dns-version.cluster.local", "TXT"),
    ("cluster.local", "SOA"), ("cluster.local", "NS"), (f"web.{D}", "ANY"), (f"web.{D}", "HTTPS"),
    (f"web.{D}", "SVCB"), (f"web.{D}", "TYPE65280"), (f"big.{D}", "A"),
]  # fmt: skip


@pytest.fixture
def running(served: Served, certificate: Callable[[str], tuple[str, str]]) -> Served:
    cert, key = certificate("one")
    served.table.apply(Plan(add=MORE))
    return served.start(f"tls: {{listen: [127.0.0.1], cert: {cert}, key: {key}}}\n")


def asked(served: Served, message: dns.message.Message, protocol: str = "udp", **how: Any) -> Any:
    """dnspython's view of the response; it raises for what is not well-formed, or not to what was asked."""

    def run() -> dns.message.Message:
        if protocol == "tls":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            return dns.query.tls(message, "127.0.0.1", timeout=5, ssl_context=context)
        ask = dns.query.udp if protocol == "udp" else dns.query.tcp
        return ask(message, "127.0.0.1", timeout=5, **how)

    return netns.call(served.ns, run)


def lines(response: dns.message.Message) -> list[str]:
    """The answer section as dig prints it, in any order."""
    return sorted(
        " ".join((str(r.name), str(r.ttl), "IN", dns.rdatatype.to_text(r.rdtype), item.to_text()))
        for r in response.answer
        for item in r
    )


@pytest.mark.parametrize("protocol", ["udp", "tcp", "tls"])
@pytest.mark.parametrize(("name", "kind"), QUESTIONS)
def test_all_understand_the_same(running: Served, name: str, kind: str, protocol: str) -> None:
    query = dns.message.make_query(name, kind, use_edns=0, payload=1232)
    response = asked(running, query, protocol)
    if response.flags & dns.flags.TC:
        assert protocol == "udp"
        response = asked(running, query, "tcp")
    assert response.edns == 0 and response.flags & dns.flags.AA
    words = {"udp": (), "tcp": ("+tcp",), "tls": ("+tls",)}[protocol]
    for tool, header in (("dig", "+comments"), ("kdig", "+header")):
        if shutil.which(tool) is None:
            continue
        out = netns.run(running.ns, tool, "@127.0.0.1", *words, "+noall", header, "+answer", name, kind)
        found = sorted(" ".join(line.split()) for line in out.splitlines() if line and line[0] != ";")
        assert [line.lower() for line in found] == [line.lower() for line in lines(response)], tool
        assert f"status: {dns.rcode.to_text(response.rcode())}" in out


def test_a_truncated_answer_is_whole_over_tcp(running: Served) -> None:
    query = dns.message.make_query(f"big.{D}", "A")
    whole, over_tcp = netns.call(running.ns, dns.query.udp_with_fallback, query, "127.0.0.1", 5)
    assert over_tcp and len(whole.answer[0]) == 400


def test_edns_is_spoken_in_version_0_and_no_other(running: Served) -> None:
    query = dns.message.make_query(f"web.{D}", "A", use_edns=1)
    response = asked(running, query)
    assert response.rcode() == dns.rcode.BADVERS and response.edns == 0 and not response.answer
    cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"\1" * 8)
    with_cookie = asked(running, dns.message.make_query(f"web.{D}", "A", use_edns=0, options=[cookie]))
    assert with_cookie.rcode() == dns.rcode.NOERROR and not with_cookie.options  # none is required or given
    wants_dnssec = asked(running, dns.message.make_query(f"web.{D}", "A", want_dnssec=True))
    assert wants_dnssec.ednsflags & dns.flags.DO and lines(wants_dnssec) == [f"web.{D}. 5 IN A 10.96.0.10"]


def test_other_classes_and_transfers_are_refused(running: Served) -> None:
    for name in ("version.bind", "hostname.bind", "id.server"):
        chaos = dns.message.make_query(name, "TXT", rdclass=dns.rdataclass.CH)
        assert asked(running, chaos).rcode() == dns.rcode.REFUSED
    for kind in ("AXFR", "IXFR"):
        refused = asked(running, dns.message.make_query("cluster.local", kind), "tcp")
        assert refused.rcode() == dns.rcode.REFUSED and not refused.answer


def test_any_gets_one_record_set_and_types_without_records_get_none(running: Served) -> None:
    any_ = asked(running, dns.message.make_query(f"web.{D}", "ANY"))
    assert len(any_.answer) == 1  # RFC 8482 4.1
    for kind in ("HTTPS", "SVCB", "MX", "CAA", "DS", "NAPTR"):
        response = asked(running, dns.message.make_query(f"web.{D}", kind))
        soa = response.authority[0]
        assert response.rcode() == dns.rcode.NOERROR and not response.answer
        assert soa.rdtype == dns.rdatatype.SOA and soa[0].minimum == 5

"""The DNS server on real sockets, asked by dig, forwarding to real servers.

client ──────────────── node ──────────────── world
10.9.0.9   eth0 ─ c     10.9.0.1   w ─ eth0   10.9.1.2   upstreams: NSD, or one that misbehaves
fd09::9                 fd09::1               10.9.1.3 does not exist
                        10.9.0.2
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from dnslib import RCODE, DNSRecord

from netplane.commands import dns as commands
from netplane.dns.server import DnsServer
from netplane.dns.table import NameTable
from netplane.kernel import netns
from netplane.model.errors import Invalid, KernelError
from netplane.model.facts import Plan, Record

from ..dns_upstreams import honest, lies, silent

pytestmark = pytest.mark.root

D = "default.svc.cluster.local"
NODE = [("10.9.0.1", 53), ("fd09::1", 53)]
RECORDS = (
    Record("cluster.local", "SOA", ("ns.dns.cluster.local hostmaster.cluster.local 1 7200 1800 86400 5",)),
    Record(f"web.{D}", "A", ("10.96.0.10",)),
    Record(f"web.{D}", "AAAA", ("fd00::a",)),
    Record(f"rr.{D}", "A", ("10.1.0.1", "10.1.0.2", "10.1.0.3"), rotate=True),
    Record(f"big.{D}", "A", tuple(f"10.2.{i // 250}.{i % 250}" for i in range(400))),
    Record(f"out.{D}", "CNAME", ("www.example.com",)),
)


@pytest.fixture
def net(make_netns: Callable[[str], str]) -> dict[str, str]:
    paths = {name: make_netns(name) for name in ("client", "node", "world")}
    for peer, link in (("client", "c"), ("world", "w")):
        netns.run(paths["node"], "ip", "link", "add", link, "type", "veth", "peer", "name", "eth0",
                  "netns", paths[peer])  # fmt: skip
        netns.run(paths[peer], "ip", "link", "set", "eth0", "up")
        netns.run(paths["node"], "ip", "link", "set", link, "up")
    for where, link, address in (
        ("client", "eth0", "10.9.0.9/24"), ("client", "eth0", "fd09::9/64"),
        ("node", "c", "10.9.0.1/24"), ("node", "c", "10.9.0.2/24"), ("node", "c", "fd09::1/64"),
        ("node", "w", "10.9.1.1/24"), ("world", "eth0", "10.9.1.2/24"),
    ):  # fmt: skip
        nodad = ["nodad"] if ":" in address else []
        netns.run(paths[where], "ip", "address", "add", address, "dev", link, *nodad)
    return paths


@pytest.fixture
def serve(net: dict[str, str]) -> Iterator[Callable[..., DnsServer]]:
    """``serve(upstreams=…)`` starts a server in the node's namespace over RECORDS."""
    running: list[DnsServer] = []

    def start(table: NameTable | None = None, listen: Any = NODE, **options: Any) -> DnsServer:
        if table is None:
            table = table_of(*RECORDS)
        server = DnsServer(table, listen, options.pop("upstreams", ()), **options)
        running.append(server)
        netns.call(net["node"], server.start)
        return server

    yield start
    for server in running:
        server.stop()


def table_of(*records: Record) -> NameTable:
    table = NameTable()
    table.apply(Plan(add=records))
    table.mark_synced()
    return table


def dig(net: dict[str, str], *args: str, server: str = "10.9.0.1") -> list[str]:
    words = ["dig", f"@{server}", "+short", "+tries=1", "+time=6", *args]
    return netns.run(net["client"], *words).split()


def status(net: dict[str, str], *args: str, server: str = "10.9.0.1") -> str:
    out = netns.run(net["client"], "dig", f"@{server}", "+tries=1", "+time=6", *args)
    return out.partition("status: ")[2].partition(",")[0]


# --- names of the cluster -----------------------------------------------------------------------


@pytest.mark.parametrize("server", ["10.9.0.1", "fd09::1"])
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_dig_gets_answers_over_both_families_and_transports(
    net: dict[str, str], serve: Callable[..., DnsServer], server: str, transport: str
) -> None:
    serve()
    assert dig(net, transport, f"web.{D}", server=server) == ["10.96.0.10"]
    assert dig(net, transport, f"WEB.{D}", "AAAA", server=server) == ["fd00::a"]
    assert status(net, transport, f"rr.{D}", "AAAA", server=server) == "NOERROR"
    assert status(net, transport, f"nope.{D}", server=server) == "NXDOMAIN"
    assert status(net, transport, "example.com", server=server) == "REFUSED"  # nobody to ask


def test_endpoints_take_turns_at_being_first(net: dict[str, str], serve: Callable[..., DnsServer]) -> None:
    serve()
    answers = [dig(net, f"rr.{D}") for _ in range(3)]
    assert {a[0] for a in answers} == {"10.1.0.1", "10.1.0.2", "10.1.0.3"}
    assert all(len(a) == 3 for a in answers)


def test_an_answer_too_big_for_udp_comes_whole_over_tcp(
    net: dict[str, str], serve: Callable[..., DnsServer]
) -> None:
    serve()
    assert len(dig(net, f"big.{D}")) == 400
    out = netns.run(net["client"], "dig", "@10.9.0.1", "+ignore", f"big.{D}")
    assert " tc " in out and "10.2.0.0" in out


def test_a_change_is_in_the_next_answer_and_no_query_is_lost_meanwhile(
    net: dict[str, str], serve: Callable[..., DnsServer]
) -> None:
    table = table_of(*RECORDS)
    serve(table)
    query = bytes(DNSRecord.question(f"web.{D}").pack())
    with netns.call(net["client"], socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(NODE[0])
        for i in range(300):
            address = f"10.96.1.{i % 250}"
            table.apply(Plan(change=(Record(f"web.{D}", "A", (address,)),)))
            sock.send(query)
            assert str(DNSRecord.parse(sock.recv(512)).rr[0].rdata) == address


@pytest.mark.usefixtures("quick_turns")
def test_queries_are_answered_while_the_table_changes_under_them(
    net: dict[str, str], serve: Callable[..., DnsServer]
) -> None:
    """web and its alias change together; a reader never sees one without the other."""
    table = table_of(
        *RECORDS, Record(f"alias.{D}", "CNAME", (f"v0.{D}",)), Record(f"v0.{D}", "A", ("10.0.0.0",))
    )
    serve(table)
    stop = threading.Event()

    def churn() -> None:
        for i in range(1, 1 << 30):
            if stop.is_set():
                return
            alias, old = Record(f"alias.{D}", "CNAME", (f"v{i}.{D}",)), ("record", f"v{i - 1}.{D}", "A", "")
            table.apply(
                Plan(add=(Record(f"v{i}.{D}", "A", (f"10.0.0.{i % 250}",)),), change=(alias,), remove=(old,))
            )

    thread = threading.Thread(target=churn)
    thread.start()
    query = bytes(DNSRecord.question(f"alias.{D}").pack())
    try:
        with netns.call(net["client"], socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect(NODE[0])
            for _ in range(500):
                sock.send(query)
                reply = DNSRecord.parse(sock.recv(512))
                assert (reply.header.rcode, len(reply.rr)) == (RCODE.NOERROR, 2)
    finally:
        stop.set()
        thread.join()


# --- where it listens ---------------------------------------------------------------------------


def test_it_listens_on_an_address_that_comes_later(
    net: dict[str, str], serve: Callable[..., DnsServer]
) -> None:
    serve(listen=[("10.9.0.77", 53), ("fd09::77", 53)])
    netns.run(net["node"], "ip", "address", "add", "10.9.0.77/24", "dev", "c")
    netns.run(net["node"], "ip", "address", "add", "fd09::77/64", "dev", "c", "nodad")
    assert dig(net, f"web.{D}", server="10.9.0.77") == ["10.96.0.10"]
    assert dig(net, f"web.{D}", server="fd09::77") == ["10.96.0.10"]


@pytest.mark.parametrize(
    ("server", "wild"), [("10.9.0.1", "0.0.0.0"), ("10.9.0.2", "0.0.0.0"), ("fd09::1", "::")]
)
def test_on_all_addresses_the_one_that_was_asked_answers(
    net: dict[str, str], serve: Callable[..., DnsServer], server: str, wild: str
) -> None:
    serve(listen=[(wild, 53)])
    assert dig(net, "+notcp", f"web.{D}", server=server) == ["10.96.0.10"]  # dig checks the source


def test_an_address_in_use_is_named_and_nothing_is_left_open(serve: Callable[..., DnsServer]) -> None:
    serve()
    with pytest.raises(KernelError, match=r"listen for DNS on fd09::1 port 53/udp: Address already in use"):
        serve(listen=[("10.9.0.2", 53), ("fd09::1", 53)])
    serve(listen=[("10.9.0.2", 53)])
    with pytest.raises(Invalid, match="not an IPv4 or IPv6 address"):
        serve(listen=[("localhost", 53)])


def test_one_client_cannot_take_all_connections(net: dict[str, str], serve: Callable[..., DnsServer]) -> None:
    serve(idle=60)
    held = [netns.call(net["client"], socket.create_connection, NODE[0], 5) for _ in range(300)]
    assert dig(net, "+tcp", f"web.{D}") == ["10.96.0.10"]
    for sock in held:
        sock.close()


# --- names of others ----------------------------------------------------------------------------


@pytest.fixture
def quick_turns() -> Iterator[None]:
    """Threads of Python that always have work change places often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def nsd(net: dict[str, str], tmp_path: Path) -> Iterator[None]:
    """NSD with example.com at 10.9.1.2: an upstream that is not ours."""
    if shutil.which("nsd") is None:
        pytest.skip("needs a real upstream: apt install nsd")
    big = "\n".join(f'big TXT "{i:03d} {"x" * 200}"' for i in range(20))
    (tmp_path / "zone").write_text(
        f"$ORIGIN example.com.\n$TTL 60\n@ SOA ns h 1 1 1 1 7\n NS ns\nns A 10.9.1.2\n"
        f"www A 192.0.2.80\nwww AAAA 2001:db8::80\nalias CNAME www\n{big}\n"
    )
    (tmp_path / "nsd.conf").write_text(
        f'server:\n ip-address: 10.9.1.2\n username: ""\n chroot: ""\n'
        f' pidfile: ""\n xfrdfile: ""\n database: ""\n'
        f' zonelistfile: "{tmp_path}/list"\n xfrdir: "{tmp_path}"\n'
        f'remote-control:\n control-enable: no\nzone:\n name: example.com\n zonefile: "{tmp_path}/zone"\n'
    )
    process = netns.popen(
        net["world"],
        ["nsd", "-d", "-c", f"{tmp_path}/nsd.conf"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    ready = ("dig", "@10.9.1.2", "+time=1", "+tries=1", "+short", "www.example.com")
    deadline = time.monotonic() + 10
    try:
        while "192.0.2.80" not in netns.run(net["world"], *ready, check=False):
            assert process.poll() is None and time.monotonic() < deadline, "NSD does not answer"
        yield
    finally:
        process.terminate()
        process.communicate(timeout=10)


@pytest.mark.peer
@pytest.mark.usefixtures("nsd")
def test_other_names_come_from_a_real_upstream(net: dict[str, str], serve: Callable[..., DnsServer]) -> None:
    serve(upstreams=[("10.9.1.2", 53)])
    for transport in ("+notcp", "+tcp"):
        assert dig(net, transport, "wWw.example.com") == ["192.0.2.80"]
        assert dig(net, transport, "alias.example.com", "AAAA") == ["www.example.com.", "2001:db8::80"]
        assert status(net, transport, "nope.example.com") == "NXDOMAIN"
    assert dig(net, "+noedns", "www.example.com") == ["192.0.2.80"]
    out = netns.run(net["client"], "dig", "@10.9.0.1", "+notcp", "+ignore", "big.example.com", "TXT")
    assert " tc " in out  # 4 kB do not fit into 1232
    assert len(dig(net, "+tcp", "big.example.com", "TXT")) == 40  # the upstream was asked over TCP too


@pytest.mark.peer
@pytest.mark.usefixtures("nsd")
def test_an_external_name_is_followed_to_its_address(
    net: dict[str, str], serve: Callable[..., DnsServer]
) -> None:
    serve(upstreams=[("10.9.1.2", 53)])
    assert dig(net, f"out.{D}") == ["www.example.com.", "192.0.2.80"]
    assert dig(net, f"out.{D}", "AAAA") == ["www.example.com.", "2001:db8::80"]
    out = netns.run(net["client"], "dig", "@10.9.0.1", f"OUT.{D}", "MX")
    assert "status: NOERROR" in out and "SOA" in out and f"OUT.{D}" in out


@pytest.fixture
def respond(net: dict[str, str]) -> Iterator[Callable[..., tuple[str, int]]]:
    """``respond(function, port)``: an upstream that sends every packet function(query) yields."""
    sockets: list[socket.socket] = []

    def start(function: Callable[[DNSRecord], Any], port: int = 53) -> tuple[str, int]:
        sock = netns.call(net["world"], socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("10.9.1.2", port))
        sockets.append(sock)

        def run() -> None:
            while True:
                try:
                    packet, peer = sock.recvfrom(4096)
                except OSError:
                    return
                if not packet:
                    return
                for reply in function(DNSRecord.parse(packet)):
                    sock.sendto(reply, peer)

        threading.Thread(target=run, daemon=True).start()
        return "10.9.1.2", port

    yield start
    for sock in sockets:
        with contextlib.suppress(OSError):  # ENOTCONN, but it wakes the thread that waits
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()


def test_lies_are_passed_over_and_the_true_reply_counts(
    net: dict[str, str], serve: Callable[..., DnsServer], respond: Callable[..., tuple[str, int]]
) -> None:
    serve(upstreams=[respond(lambda q: (*lies(q), *honest(q)))])
    assert dig(net, "example.com") == ["192.0.2.1"]


def test_nothing_but_lies_or_silence_is_servfail(
    net: dict[str, str], serve: Callable[..., DnsServer], respond: Callable[..., tuple[str, int]]
) -> None:
    serve(upstreams=[respond(lies), respond(silent, 5353), ("10.9.1.3", 53)], timeout=0.2)
    began = time.monotonic()
    assert status(net, "example.com") == "SERVFAIL"
    assert status(net, "+tcp", "example.com") == "SERVFAIL"
    assert time.monotonic() - began < 3
    assert dig(net, f"web.{D}") == ["10.96.0.10"]


def test_the_next_upstream_answers_for_one_that_is_dead_or_refuses(
    net: dict[str, str], serve: Callable[..., DnsServer], respond: Callable[..., tuple[str, int]]
) -> None:
    def refuse(query: DNSRecord) -> Iterator[bytes]:
        reply = query.reply()
        reply.header.rcode = RCODE.REFUSED
        yield bytes(reply.pack())

    dead = ("10.9.1.2", 9)  # nobody listens: ICMP says so at once
    server = serve(upstreams=[dead, respond(refuse, 5300), respond(honest)])
    began = time.monotonic()
    assert [dig(net, "example.com") for _ in range(3)] == [["192.0.2.1"]] * 3
    assert time.monotonic() - began < 2
    assert server.counters.upstream["10.9.1.2:53", "answer"] == 3
    assert server.counters.upstream["10.9.1.2:9", "error"] <= 1  # then it is asked last


def test_a_waiting_question_holds_nobody_up(
    net: dict[str, str], serve: Callable[..., DnsServer], respond: Callable[..., tuple[str, int]]
) -> None:
    serve(upstreams=[respond(silent)])
    with netns.call(net["client"], socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for i in range(200):
            sock.sendto(bytes(DNSRecord.question(f"x{i}.example.com").pack()), NODE[0])
        began = time.monotonic()
        assert dig(net, f"web.{D}") == ["10.96.0.10"]
        assert time.monotonic() - began < 1


def test_a_resolv_conf_is_followed_as_it_changes(
    net: dict[str, str],
    serve: Callable[..., DnsServer],
    respond: Callable[..., tuple[str, int]],
    tmp_path: Path,
) -> None:
    respond(honest)
    conf = tmp_path / "resolv.conf"
    conf.write_text("search example.org\nnameserver 10.9.0.1\n")  # only ourselves: nobody to ask
    serve(upstreams=str(conf))
    assert status(net, "example.com") == "REFUSED"
    conf.write_text("# new\nnameserver nonsense\nnameserver 10.9.1.2\n")
    deadline = time.monotonic() + 5
    while dig(net, "example.com") != ["192.0.2.1"]:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("listen", [NODE, [("0.0.0.0", 53)]])
def test_an_upstream_that_is_the_server_itself_is_refused(
    serve: Callable[..., DnsServer], listen: Any
) -> None:
    with pytest.raises(Invalid, match=r"10\.9\.0\.1 port 53 is this server itself"):
        serve(listen=listen, upstreams=[("10.9.0.1", 53)])
    serve(listen=listen)  # and nothing was left open


def test_a_question_that_comes_round_through_nat_ends_at_once(
    net: dict[str, str], serve: Callable[..., DnsServer]
) -> None:
    rules = (
        "table ip t { chain o { type nat hook output priority -100; ip daddr 10.9.1.9 dnat to 10.9.0.1; }; }"
    )
    netns.run(net["node"], "nft", rules)
    server = serve(upstreams=[("10.9.1.9", 53)])
    began = time.monotonic()
    assert status(net, "example.com") == "REFUSED"
    assert time.monotonic() - began < 1 and server.counters.loops > 0


def test_it_stops_at_once_with_questions_waiting_and_starts_again(
    net: dict[str, str], serve: Callable[..., DnsServer], respond: Callable[..., tuple[str, int]]
) -> None:
    server = serve(upstreams=[respond(silent)], timeout=30)
    with netns.call(net["client"], socket.create_connection, NODE[0], 5) as held:
        query = bytes(DNSRecord.question("example.com").pack())
        held.sendall(len(query).to_bytes(2, "big") + query)
        deadline = time.monotonic() + 5
        while not server.resolver.waiting:
            assert time.monotonic() < deadline
        assert server.ready
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 1 and not server.ready
        assert held.recv(1) == b""
    netns.call(net["node"], server.start)
    server.stop(0.1)  # when connections are ended that are silent for a moment
    netns.call(net["node"], server.start)
    with netns.call(net["client"], socket.create_connection, NODE[0], 5) as quiet:
        quiet.settimeout(0.3)
        with pytest.raises(TimeoutError):
            quiet.recv(1)
    assert dig(net, f"web.{D}") == ["10.96.0.10"]


# --- what it says about itself ------------------------------------------------------------------


def test_counters_tell_what_was_asked_and_answered(
    net: dict[str, str], serve: Callable[..., DnsServer]
) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    server = serve()
    dig(net, f"web.{D}")
    dig(net, "+tcp", f"nope.{D}", "AAAA")
    registry = CollectorRegistry()
    registry.register(server.counters)
    text = generate_latest(registry).decode()
    assert (
        'netplane_dns_requests_total{proto="udp",source="cluster",type="A",zone="cluster.local."} 1.0' in text
    )
    assert (
        'netplane_dns_requests_total{proto="tcp",source="cluster",type="AAAA",zone="cluster.local."} 1.0'
        in text
    )
    assert 'netplane_dns_responses_total{rcode="NXDOMAIN",source="cluster",zone="cluster.local."} 1.0' in text
    assert 'netplane_dns_duration_seconds_count{source="cluster",zone="cluster.local."} 2.0' in text


def test_the_command_prints_answers_and_the_rcode(
    net: dict[str, str], serve: Callable[..., DnsServer]
) -> None:
    serve()
    group = click.Group()
    commands.register(group)

    def run(*args: str) -> Any:
        return netns.call(net["client"], CliRunner().invoke, group, ["dns", "query", *args])

    found = run(f"web.{D}", "aaaa", "--server", "[fd09::1]:53")
    assert found.exit_code == 0 and f"web.{D}.\t5\tAAAA\tfd00::a\n" in found.output
    assert len(run(f"big.{D}", "--server", "10.9.0.1").stdout.splitlines()) == 400
    denied = run(f"nope.{D}", "--server", "10.9.0.1")
    assert denied.exit_code == 1 and "NXDOMAIN from 10.9.0.1 port 53, with authority" in denied.output
    assert "without such data" in run(f"rr.{D}", "AAAA", "--server", "10.9.0.1").output
    dead = run(f"web.{D}", "--server", "10.9.0.1:54")
    assert dead.exit_code == 1 and "10.9.0.1 port 54: Connection refused" in dead.output
    for wrong in ((f"web.{D}", "AA"), (f"web.{D}", "--server", "localhost"), ("x" * 64,)):
        assert run(*wrong).exit_code == 2

"""The C answering loop on real sockets: who answers, at what cost, and across restarts.

client ──────────────── node
10.9.0.9   eth0 ─ c     10.9.0.1
fd09::9                 fd09::1
10.9.1.9 (another /24)
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.dns import config, loop
from netplane.dns.handover import Inherited
from netplane.dns.loop import Fast, RateLimit
from netplane.dns.server import DnsServer
from netplane.dns.table import NameTable
from netplane.kernel import netns
from netplane.lab import Lab
from netplane.model.errors import Invalid
from netplane.model.facts import Plan, Record

from ..datapath_world import hooks

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not loop.available, reason="the extension is not built: make build"),
]
needs_dnsperf = pytest.mark.skipif(not shutil.which("dnsperf"), reason="apt-get install dnsperf")

D = "default.svc.cluster.local"
NODE = [("10.9.0.1", 53), ("fd09::1", 53)]
RECORDS = (
    Record("cluster.local", "SOA", ("ns.dns.cluster.local hostmaster.cluster.local 1 7200 1800 86400 5",)),
    Record(f"web.{D}", "A", ("10.96.0.10",)),
    Record(f"web.{D}", "AAAA", ("fd00::a",)),
    Record(f"_http._tcp.web.{D}", "SRV", (f"0 100 80 web.{D}",)),
    Record(f"big.{D}", "A", tuple(f"10.2.{i // 250}.{i % 250}" for i in range(400))),
    Record(f"out.{D}", "CNAME", ("www.example.com",)),
)


@pytest.fixture
def net(make_netns: Callable[[str], str]) -> dict[str, str]:
    paths = {name: make_netns(name) for name in ("client", "node")}
    netns.run(
        paths["node"],
        "ip",
        "link",
        "add",
        "c",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        paths["client"],
    )
    for where, link, addresses in (
        ("client", "eth0", ("10.9.0.9/24", "fd09::9/64", "10.9.1.9/24")),
        ("node", "c", ("10.9.0.1/24", "fd09::1/64")),
    ):
        netns.run(paths[where], "ip", "link", "set", link, "up")
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            netns.run(paths[where], "ip", "address", "add", address, "dev", link, *nodad)
    netns.run(paths["node"], "ip", "route", "add", "10.9.1.0/24", "dev", "c")
    return paths


@pytest.fixture
def serve(net: dict[str, str]) -> Iterator[Callable[..., DnsServer]]:
    running: list[DnsServer] = []

    def start(
        table: NameTable | None = None, inherited: Inherited | None = None, **options: Any
    ) -> DnsServer:
        server = DnsServer(table or table_of(), NODE, options.pop("upstreams", ()), **options)
        running.append(server)
        netns.call(net["node"], server.start, inherited)
        return server

    yield start
    for server in running:
        server.stop()


def table_of(*more: Record) -> NameTable:
    table = NameTable()
    table.apply(Plan(add=(*RECORDS, *more)))
    table.mark_synced()
    return table


def dig(net: dict[str, str], *args: str, server: str = "10.9.0.1") -> str:
    """The whole response but what differs from run to run."""
    words = ["dig", f"@{server}", "+tries=1", "+time=3", "+nocmd", "+nostats", "+norec", "+qid=7", *args]
    return netns.run(net["client"], *words, check=False)


def ask(
    net: dict[str, str], packets: list[bytes], source: str = "10.9.0.9", wait: float = 0.5
) -> list[bytes]:
    """What comes back from one socket within ``wait`` seconds after the last."""

    def run() -> list[bytes]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.connect(("10.9.0.1", 53))
            sock.settimeout(wait)
            for packet in packets:
                sock.send(packet)
            got = []
            while len(got) < len(packets):
                try:
                    got.append(sock.recv(4096))
                except TimeoutError:
                    break
            return got

    return netns.call(net["client"], run)


def query(name: str, ident: int = 7) -> bytes:
    labels = b"".join(bytes((len(p),)) + p.encode() for p in name.split("."))
    return ident.to_bytes(2, "big") + b"\0\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"


def eventually(holds: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- who answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [f"web.{D}"], [f"wEb.{D}", "AAAA"], [f"_http._tcp.web.{D}", "SRV"], [f"nope.{D}"],
        [f"web.{D}", "TXT"], [f"big.{D}", "+ignore"], [f"big.{D}", "+ignore", "+noedns"], [f"out.{D}"],
        ["example.com"],
        [f"web.{D}", "+edns=1", "+noednsneg"], [f"web.{D}", "CH", "A"], ["svc.cluster.local"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_with_c_and_without_the_same_packets_leave(
    net: dict[str, str], serve: Callable[..., DnsServer], words: list[str]
) -> None:
    with_c = serve()
    said = [dig(net, *words, server=server) for server in ("10.9.0.1", "fd09::1")]
    with_c.stop()
    serve(fast=Fast(wanted=False))
    assert said == [dig(net, *words, server=server) for server in ("10.9.0.1", "fd09::1")]
    assert all("status:" in text for text in said)


@needs_dnsperf
def test_answers_go_on_while_python_does_something_else(
    net: dict[str, str], serve: Callable[..., DnsServer], tmp_path: Path
) -> None:
    serve()
    (tmp_path / "asked").write_text(f"web.{D} A\n")
    argv = ["dnsperf", "-s", "10.9.0.1", "-d", str(tmp_path / "asked"), "-l", "2", "-Q", "500"]
    load = netns.popen(net["client"], argv, stdout=subprocess.PIPE, text=True)
    time.sleep(0.3)  # it has begun
    began = time.monotonic()
    sum(range(60_000_000))  # one call, which keeps the GIL
    held = time.monotonic() - began
    out = load.communicate(timeout=20)[0]
    slowest = float(re.findall(r"max ([\d.]+)\)", out)[-1])
    assert re.search(r"Queries lost: +0 ", out) and slowest < held / 2, (held, out)


def test_all_threads_count_and_all_is_exported(net: dict[str, str], serve: Callable[..., DnsServer]) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    server = serve(fast=Fast(threads=3))
    for _ in range(12):  # a port each: the kernel spreads them over the sockets
        assert len(ask(net, [query(f"web.{D}"), query(f"nope.{D}")])) == 2
    ask(net, [b"\0" * 5, b"\0\0\x80" + b"\0" * 20], wait=0.05)
    registry = CollectorRegistry()
    registry.register(server.counters)

    def metrics() -> str:
        return generate_latest(registry).decode()

    eventually(lambda: 'netplane_dns_dropped_total{reason="silence"} 2.0' in metrics())
    server.stop()  # and they outlive the threads
    text = metrics()
    assert (
        'netplane_dns_requests_total{proto="udp",source="cluster",type="A",zone="cluster.local."} 24.0'
        in text
    )
    assert (
        'netplane_dns_responses_total{rcode="NXDOMAIN",source="cluster",zone="cluster.local."} 12.0' in text
    )
    assert 'netplane_dns_duration_seconds_count{source="cluster",zone="cluster.local."} 24.0' in text


def test_a_name_is_in_the_answers_when_apply_returns(
    net: dict[str, str], serve: Callable[..., DnsServer]
) -> None:
    table = table_of()
    serve(table)
    for i in range(1, 50):
        table.apply(Plan(**{"change" if i > 1 else "add": (Record(f"new.{D}", "A", (f"10.3.0.{i}",)),)}))
        assert ask(net, [query(f"new.{D}")], wait=5)[0][-4:] == bytes((10, 3, 0, i))
    table.apply(Plan(remove=(Record(f"new.{D}", "A", ()).key,)))
    assert ask(net, [query(f"new.{D}")], wait=5)[0][3] & 15 == 3


# --- floods -------------------------------------------------------------------------------------


def test_a_flood_of_random_names_takes_no_memory(
    net: dict[str, str], serve: Callable[..., DnsServer]
) -> None:
    server = serve()
    flood = [query(f"n{i}.{D}") for i in range(20_000)]
    ask(net, flood[:500])
    before = resident()
    for at in range(0, len(flood), 500):
        ask(net, flood[at : at + 500], wait=0.05)
    assert resident() - before < 4096
    assert sum(server.counters.total().responses.values()) > 10_000


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


def test_a_network_over_its_rate_gets_tc_or_nothing_and_others_notice_nothing(
    net: dict[str, str], serve: Callable[..., DnsServer]
) -> None:
    server = serve()
    server.limit(RateLimit(per_second=5, burst=10, slip=2))
    got = ask(net, [query(f"web.{D}", ident) for ident in range(60)])
    whole = [g for g in got if not g[2] & 2]
    cut = [g for g in got if g[2] & 2]
    assert 10 <= len(whole) <= 13 and 20 <= len(cut) <= 28
    assert all(
        len(g) == len(query(f"web.{D}")) and g[6:12] == bytes(6) for g in cut
    )  # never longer than asked
    assert len(ask(net, [query(f"web.{D}")] * 5, source="10.9.1.9")) == 5
    assert "10.96.0.10" in dig(net, "+tcp", f"web.{D}")  # where TC sends an honest client
    assert server.counters.total().dropped["limited"] >= 20
    server.limit(None)
    assert len(ask(net, [query(f"web.{D}")] * 50)) == 50


def test_a_limit_that_cannot_be_is_refused(serve: Callable[..., DnsServer]) -> None:
    server = serve()
    with pytest.raises(Invalid, match="DNS rate limit 0/s, burst 10, slip 2: the rate must be above 0"):
        server.limit(RateLimit(0, 10))
    with pytest.raises(Invalid, match=r"dns.yaml:2: rateLimit.perSecond: 0.0 is out of bounds"):
        config.parse("ttl: 5\nrateLimit: {perSecond: 0}", "dns.yaml")


# --- restarts -----------------------------------------------------------------------------------


def supervised(work: Path) -> tuple[socket.socket, Callable[..., subprocess.Popen[str]]]:
    """What systemd does: keeps the descriptors that it is sent, and starts a program with them."""
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(work / "notify"))
    notify.settimeout(10)
    program = work / "server.py"
    program.write_text(
        textwrap.dedent(f"""
        import os, signal, threading
        from netplane.dns.handover import Inherited, keep
        from netplane.dns.server import DnsServer
        from netplane.dns.table import NameTable
        from netplane.model.facts import Plan, Record
        from netplane.reconcile.signals import on_signals
        table = NameTable()
        table.apply(Plan(add=(Record("web.{D}", "A", ("10.96.0.10",)),)))
        table.mark_synced()
        server, end = DnsServer(table, {NODE}), threading.Event()
        on_signals(lambda _: end.set(), signal.SIGTERM)
        server.start(Inherited.of(os.environ))
        keep(server.sockets, os.environ)
        print("ready", flush=True)
        end.wait()
        server.stop(2)
        """)
    )

    def start(path: str, numbers: list[int]) -> subprocess.Popen[str]:
        copies = [fcntl.fcntl(number, fcntl.F_DUPFD, 103) for number in numbers]  # above where they go
        moves = " ".join(f"{to}<&{at}" for to, at in enumerate(copies, 3))
        shell = f'exec env LISTEN_PID=$$ LISTEN_FDS={len(numbers)} "$0" "$@" {moves}'
        try:
            return netns.popen(
                path, ["bash", "-c", shell, sys.executable, str(program)], text=True, stdout=subprocess.PIPE,
                env={**os.environ, "NOTIFY_SOCKET": str(work / "notify")},
                pass_fds=copies,
            )  # fmt: skip
        finally:
            for at in copies:
                os.close(at)

    return notify, start


@needs_dnsperf
@pytest.mark.parametrize(("sig", "may_lose"), [(signal.SIGTERM, 0), (signal.SIGKILL, 64)])
def test_a_supervisor_keeps_the_sockets_and_no_query_is_lost(
    net: dict[str, str], tmp_path: Path, sig: int, may_lose: int
) -> None:
    notify, start = supervised(tmp_path)
    first = start(net["node"], [])
    assert first.stdout is not None and first.stdout.readline() == "ready\n"
    assert notify.recv(4096).startswith(b"FDSTOREREMOVE=1\n")
    text, kept, _, _ = socket.recv_fds(notify, 4096, 253)
    assert b"FDSTORE=1" in text and len(kept) >= 4
    (tmp_path / "asked").write_text(f"web.{D} A\n")
    argv = ["dnsperf", "-s", "10.9.0.1", "-d", str(tmp_path / "asked"), "-l", "2"]
    argv += ["-Q", "1000", "-q", "5000", "-c", "20"]  # clients enough that none drops what then comes at once
    load = netns.popen(net["client"], argv, stdout=subprocess.PIPE, text=True)
    time.sleep(0.7)  # in the middle of it
    first.send_signal(sig)
    first.wait(10)
    second = start(net["node"], kept)
    assert second.stdout is not None and second.stdout.readline() == "ready\n"
    out = load.communicate(timeout=30)[0]
    second.kill()
    second.wait()
    for number in kept:
        os.close(number)
    notify.close()
    lost = int(re.findall(r"Queries lost: +(\d+)", out)[0])
    assert lost <= may_lose and re.search(r"NOERROR \d{4}", out), out


def test_a_question_that_waits_for_an_upstream_ends_before_the_server_does(
    net: dict[str, str], serve: Callable[..., DnsServer]
) -> None:
    upstream = netns.call(net["client"], socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    upstream.bind(("10.9.0.9", 5353))
    upstream.settimeout(10)
    server = serve(upstreams=[("10.9.0.9", 5353)], timeout=5)
    got: list[bytes] = []
    client = threading.Thread(target=lambda: got.extend(ask(net, [query("www.example.com")], wait=5)))
    client.start()
    asked, peer = b"", None
    while b"example" not in asked:  # past the probe for loops
        asked, peer = upstream.recvfrom(512)
    stopping = threading.Thread(target=server.stop, args=(5,))
    stopping.start()
    upstream.sendto(asked[:2] + b"\x81\x83" + asked[4:], peer)
    client.join()
    stopping.join()
    upstream.close()
    assert got and got[0][3] & 15 == 3


@pytest.fixture
def one(make_lab: Callable[..., Lab]) -> Lab:
    lab = make_lab(nodes=1, dual_stack=True)
    lab.start_agents()
    lab.netplane(
        "apply", "-f", "-",
        input=json.dumps(
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
             "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}}
        ),
    )  # fmt: skip
    return lab


@needs_dnsperf
def test_an_agent_that_starts_anew_loses_no_query_of_its_pods(one: Lab, tmp_path: Path) -> None:
    node = one.nodes[0]
    before = hooks(node)
    pod = node.add_pod("client")
    eventually(lambda: "10.96.0.10" in pod.run("dig", "+short", f"@{pod.resolvers[0]}", f"web.{D}"))
    if before:  # the fast path is on: its programs' coming may lose a packet of the pod's (docs/datapath.md)
        eventually(lambda: hooks(node) > before)
    assert node.agent.process is not None
    (tmp_path / "asked").write_text(f"web.{D} A\n")
    load = threading.Thread(target=lambda: said.append(pod.run(*argv, timeout=40)))
    said: list[str] = []
    argv = ["dnsperf", "-s", pod.resolvers[0], "-d", tmp_path / "asked", "-l", "3"]
    argv += ["-Q", "500", "-q", "5000", "-c", "20"]
    load.start()
    time.sleep(0.5)  # in the middle of it
    process = node.agent.process.pid
    os.kill(process, signal.SIGUSR2)
    eventually(lambda: b"LISTEN_FDS=" in Path(f"/proc/{process}/environ").read_bytes())  # the new one
    node.agent.wait()
    load.join()
    assert re.search(r"Queries lost: +0 ", said[0]) and "NOERROR" in said[0], said[0]
    assert node.agent.running


def test_queries_of_pods_leave_no_entry_in_conntrack(one: Lab) -> None:
    node = one.nodes[0]
    pod = node.add_pod("client")
    servers = pod.resolvers
    assert {":" in server for server in servers} == {False, True}
    for server in servers:
        eventually(lambda s=server: "10.96.0.10" in pod.run("dig", "+short", f"@{s}", f"web.{D}"))
        pod.run("dig", "+tcp", "+short", f"@{server}", f"web.{D}")
    flows = "".join(node.run("conntrack", "-L", "-f", family, check=False) for family in ("ipv4", "ipv6"))
    found = [line.split()[0] for line in flows.splitlines() if any(f"dst={s} " in line for s in servers)]
    assert "tcp" in found and "udp" not in found  # what TCP leaves shows that there is something to see
    assert "notrack" in node.run("nft", "list", "chain", "inet", "netplane", "dns-notrack-output")

"""DNS: 1,000 service names asked by dnsperf; ours beside CoreDNS, NSD, and a bare echo of packets.

    client ──── veth ──── server          each server in a namespace of its own, pinned to one CPU,
    10.9.0.2   (CPU 1)    10.9.0.1 (CPU 0)   one worker; dnsperf on the other CPU

All have the same names; CoreDNS and NSD from one zone file. The servers take turns, and a ratio is the
median of the rounds' ratios. Answers per second are bounded by dnsperf, too, when the server is faster
than it: the server's CPU time per query is not. Latency: every server gets the same load, a part of what
CoreDNS can do. Peers: `tools/dns-peers` (CoreDNS by Go), Debian's nsd and dnsperf.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.dns_memory import agent_memory
from benchmarks.dns_server import ADDRESS, address, names
from netplane.agentconfig import ROOMS
from netplane.kernel import netns

HERE = Path(__file__).parent
COREDNS = HERE.parent / ".venv/peers/bin/coredns"
INSIDE = "NETPLANE_BENCH_INSIDE"
NAMES, FEW, MANY, SERVICES = 1000, 100, 100_000, 10_000
TURNS = 11  # of a second each
LOAD = 0.5  # of CoreDNS' own throughput, for latency
MEMORY = 100  # MB at SERVICES
FEW_SERVICES, REST = 1000, 80  # and MB of an agent with all rooms at rest


class Program(NamedTuple):
    """A server under test: how to start it in a directory."""

    name: str
    argv: Callable[[Path], list[str]]


def main() -> int:
    """Print the ratios; 0 when all that was promised holds. Starts itself again in private namespaces."""
    if os.geteuid() != 0 or not shutil.which("dnsperf"):
        print("dns: needs root and dnsperf (apt-get install dnsperf): skipped")
        return 0
    if os.environ.get(INSIDE) != "1":
        command = [sys.executable, "-m", "benchmarks.bench_dns"]
        return subprocess.run(
            command, env={**os.environ, INSIDE: "1"}, cwd=HERE.parent, check=False
        ).returncode
    netns.make_private(mounts=True, network=True)
    with tempfile.TemporaryDirectory(prefix="npbench") as work:
        return _run(Path(work))


def _run(work: Path) -> int:
    echo = work / "echo"
    subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", "-o", str(echo), str(HERE / "echo.c")], check=True)
    (work / "zone").write_text(_zone(NAMES))
    programs = [Program("echo", lambda _: [str(echo), ADDRESS]), _ours(NAMES)]
    if COREDNS.exists():
        programs.append(Program("CoreDNS", _coredns))
    else:
        print("dns: no CoreDNS to compare with: run tools/dns-peers")
    if shutil.which("nsd"):
        programs.append(Program("NSD", _nsd))
    else:
        print("dns: no NSD to compare with: apt-get install nsd")
    rates = _throughput(programs, work)
    peer = rates.get("CoreDNS", rates["echo"])
    held = [
        "CoreDNS" not in rates or _ratio(rates["ours"], peer) >= 2,
        _latency(programs, work, int(LOAD * statistics.median(peer))),
        _cost(work),
        _memory(work),
    ]
    return 0 if all(held) else 1


# --- the claims ---------------------------------------------------------------------------------


def _throughput(programs: list[Program], work: Path) -> dict[str, list[float]]:
    """Answers per second of each program, a figure a turn."""
    rates: dict[str, list[float]] = {p.name: [] for p in programs}
    costs: dict[str, list[float]] = {p.name: [] for p in programs}
    asked = _questions(work, NAMES)
    with ExitStack() as stack:
        places = {p.name: stack.enter_context(_serving(p, work, p.name)) for p in programs}
        for turn in range(TURNS):  # so that all see the same machine
            for name, place in list(places.items())[:: 1 if turn % 2 else -1]:
                rate, cost = _turn(place, asked)
                rates[name].append(rate)
                costs[name].append(cost)
    print(f"{NAMES:,} names, one CPU for the server, median of {TURNS} turns")
    for name, found in rates.items():
        rate, cost = statistics.median(found), statistics.median(costs[name])
        more, less = _ratio(rates["ours"], found), _ratio(costs[name], costs["ours"])
        ratios = f"   ours/{name}: {more:.2f} answers a second, {less:.2f} a CPU second"
        print(f"  {name:8} {rate:9,.0f}/s {cost * 1e6:6.2f} us CPU{ratios if name != 'ours' else ''}")
    return rates


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _turn(place: _Place, asked: Path) -> tuple[float, float]:
    """Answers per second; seconds of the server's CPU for one."""
    before = place.cpu()
    said = _output(place, asked)
    used = place.cpu() - before
    rate, completed = (
        float(re.findall(rf"Queries {what}: +([\d.]+)", said)[0]) for what in ("per second", "completed")
    )
    return rate, used / completed


def _latency(programs: list[Program], work: Path, load: int) -> bool:
    asked = _questions(work, NAMES)
    p50: dict[str, list[float]] = {p.name: [] for p in programs}
    p99: dict[str, list[float]] = {p.name: [] for p in programs}
    with ExitStack() as stack:
        places = {p.name: stack.enter_context(_serving(p, work, p.name)) for p in programs}
        for turn in range(TURNS):
            for name, place in list(places.items())[:: 1 if turn % 2 else -1]:
                times = _times(place, asked, load)
                p50[name].append(times[len(times) // 2])
                p99[name].append(times[len(times) * 99 // 100])
    print(f"latency at {load:,} queries per second, median of {TURNS} turns")
    for name, mine in p50.items():
        a, b = statistics.median(mine) * 1e6, statistics.median(p99[name]) * 1e6
        print(f"  {name:8} p50 {a:6.0f} us   p99 {b:6.0f} us")
    if "CoreDNS" not in p99:
        return True
    ratio = _ratio(p99["ours"], p99["CoreDNS"])
    print(f"  p99, ours/CoreDNS {ratio:.2f}  (must be below 1)")
    return ratio < 1


def _cost(work: Path) -> bool:
    """Both servers are there all the time, the client asks in turn, and as many lines in either case: what
    more names cost the client must not count."""
    costs: dict[int, list[float]] = {FEW: [], MANY: []}
    with (
        _serving(_ours(FEW, "names"), work, "few") as few,
        _serving(_ours(MANY, "names"), work, "many") as many,
    ):
        for turn in range(TURNS):
            pair = [(FEW, few), (MANY, many)]
            for count, place in pair if turn % 2 else reversed(pair):
                costs[count].append(_turn(place, _questions(work, count, MANY))[1])
    ratio = _ratio(costs[MANY], costs[FEW])
    few_us, many_us = (statistics.median(found) * 1e6 for found in costs.values())
    print(f"CPU per query, median of {TURNS} turns: {FEW} names {few_us:.2f} us, ", end="")
    print(f"{MANY:,} names {many_us:.2f} us, ratio {ratio:.2f}  (must 1.05)")
    return ratio <= 1.05


def _memory(work: Path) -> bool:
    with _serving(_ours(SERVICES), work) as place:
        server = float(place.said)
    print(f"memory with {SERVICES:,} services: objects, table and server {server:.0f} MB  (must {MEMORY})")
    empty, full = agent_memory(0, work), agent_memory(SERVICES, work)
    print(f"  the whole agent, --rooms dns, which allocates too: {full:.0f} MB  (must {MEMORY}),", end="")
    print(f" {empty:.0f} MB without any")
    every = agent_memory(FEW_SERVICES, work, ",".join(ROOMS))
    print(f"  the whole agent, all rooms, {FEW_SERVICES:,} services: {every:.0f} MB  (must {REST})")
    return max(server, full) <= MEMORY and every <= REST


# --- the servers --------------------------------------------------------------------------------


def _ours(count: int, *words: str) -> Program:
    return Program("ours", lambda _: [sys.executable, "-m", "benchmarks.dns_server", str(count), *words])


def _coredns(work: Path) -> list[str]:
    config = work / "Corefile"
    config.write_text(f"cluster.local:53 {{\n bind {ADDRESS}\n file {work / 'zone'}\n}}\n")
    return [str(COREDNS), "-conf", str(config), "-quiet"]


def _nsd(work: Path) -> list[str]:
    config = work / "nsd.conf"
    config.write_text(
        f'server:\n ip-address: {ADDRESS}\n server-count: 1\n username: ""\n chroot: ""\n hide-version: yes\n'
        f' zonesdir: "{work}"\n database: ""\n pidfile: "{work}/nsd.pid"\n xfrdfile: "{work}/xfrd"\n'
        f' zonelistfile: "{work}/zones"\n cookie-secret-file: ""\n logfile: "{work}/nsd.log"\n'
        f"remote-control:\n control-enable: no\n"
        f'zone:\n name: cluster.local\n zonefile: "{work}/zone"\n'
    )
    return ["nsd", "-d", "-c", str(config)]


def _zone(count: int) -> str:
    head = "$ORIGIN cluster.local.\n$TTL 5\n@ IN SOA ns.dns hostmaster 1 7200 1800 86400 5\n@ IN NS ns.dns\n"
    lines = [f"{name}. IN A {address(n)}" for n, name in enumerate(names(count))]
    return f"{head}ns.dns IN A {ADDRESS}\n" + "\n".join(lines) + "\n"


class _Place(NamedTuple):
    client: str
    process: subprocess.Popen[str]
    said: str  # what the server said when it was ready

    def cpu(self) -> float:
        """Seconds of CPU that the server and its children have used."""
        group, nanoseconds = os.getpgid(self.process.pid), 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(stat.read_text().rpartition(")")[2].split()[2]) != group:
                    continue
                for thread in stat.parent.glob("task/*/schedstat"):
                    nanoseconds += int(thread.read_text().split()[0])
            except OSError:
                continue
        return nanoseconds / 1e9


@contextmanager
def _serving(program: Program, work: Path, name: str = "") -> Iterator[_Place]:
    client, server = str(work / f"client{name}"), str(work / f"server{name}")
    for path in (client, server):
        netns.create(path)
        netns.run(path, "ip", "link", "set", "lo", "up")
    netns.run(server, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", client)
    for path, ip in ((server, ADDRESS), (client, "10.9.0.2")):
        netns.run(path, "ip", "address", "add", f"{ip}/24", "dev", "eth0")
        netns.run(path, "ip", "link", "set", "eth0", "up")
    argv = ["taskset", "-c", "0", *program.argv(work)]
    process = netns.popen(
        server, argv, cwd=HERE.parent, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline().split()[-1] if program.name == "ours" else ""
        _wait(client)
        yield _Place(client, process, said)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in (client, server):
            netns.delete(path)


def _wait(client: str) -> None:
    """Until it answers."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        ask = ["dig", "+tries=1", "+time=1", f"@{ADDRESS}", names(1)[0]]
        if "flags: qr" in netns.run(client, *ask, check=False):
            return
        time.sleep(0.02)
    raise TimeoutError("the server does not answer")


# --- the client ---------------------------------------------------------------------------------


def _questions(work: Path, count: int, lines: int = 0) -> Path:
    """Each name once, or as many lines, in random order."""
    path = work / f"asked-{count}-{lines}"
    if not path.exists():
        every = names(count) * max(1, lines // count)
        random.Random(1).shuffle(every)
        path.write_text("".join(f"{name} A\n" for name in every))
    return path


def _times(place: _Place, asked: Path, load: int) -> list[float]:
    """How long each answer took, in seconds, sorted."""
    out = _output(place, asked, "-v", "-Q", str(load))
    return sorted(float(t) for t in re.findall(r"^> \w+ \S+ A ([\d.]+)$", out, re.MULTILINE))


def _output(place: _Place, asked: Path, *more: str) -> str:
    argv = ["taskset", "-c", "1", "dnsperf", "-s", ADDRESS, "-d", str(asked), "-l", "1"]
    return netns.run(place.client, *argv, "-c", "20", "-q", "200", *more, timeout=60)


if __name__ == "__main__":
    sys.exit(main())

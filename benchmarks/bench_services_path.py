"""Services on the wire: connections and bulk through a virtual IP, beside the same pod directly.

client ── node (routes; the rules under test) ── pod: answers on 8080, iperf3 on 5201

With 10 and with 30,000 services in the node's maps: both must cost the same. Every figure is the median
of the ratios of pairs, one direct and one through the VIP, made right after each other in changing
order: a shared machine's noise is slower than a pair. Bulk is bytes for each second of processor time
that both ends took for a gigabyte: the veth path runs in their system calls, and others' load does not
count. Where the processors are idle that is the throughput.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import bench_services as bench
from netplane.kernel import netns
from netplane.kernel.nftables import NftDriver
from netplane.model.base import amend
from netplane.model.services import EndpointSlice, Service, ServicePort
from netplane.model.snapshot import Snapshot

TRIES = 5
PROBE = str(Path(netns.__file__).parents[1] / "lab/probe.py")
POD, VIP = "10.1.0.2", bench.vip(1)
FEW, MANY, ROUNDS, CONNECTIONS, BYTES = 10, 30_000, 15, 200, "512M"


@contextmanager
def wire() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory() as place:
        paths = {name: f"{place}/{name}" for name in ("client", "node", "pod")}
        for path in paths.values():
            netns.create(path)
        try:
            for name, net in (("client", "10.0.0"), ("pod", "10.1.0")):
                ip(paths["node"], f"link add {name} type veth peer name eth0 netns {paths[name]}")
                ip(paths["node"], f"addr add {net}.1/24 dev {name}", f"link set {name} up")
                ip(paths[name], f"addr add {net}.2/24 dev eth0", "link set eth0 up", "link set lo up")
                ip(paths[name], f"route add default via {net}.1")
            netns.run(paths["node"], "sysctl", "-qw", "net.ipv4.ip_forward=1")
            yield paths
        finally:
            for path in paths.values():
                netns.delete(path)


def ip(path: str, *lines: str) -> None:
    for line in lines:
        netns.run(path, "ip", *line.split())


def snapshot_of(services: int) -> Snapshot:
    """The first service leads to the pod, on the probe's port and iperf3's."""
    snapshot = bench.snapshot_of(services)
    first = snapshot.get(Service, "default", "svc-1")
    piece = snapshot.get(EndpointSlice, "default", "svc-1")
    assert first and piece
    ports = (ServicePort(name="web", port=8080), ServicePort(name="bulk", port=5201))
    offered = tuple(amend(piece.ports[0], name=p.name, port=p.port) for p in ports)
    endpoint = amend(piece.endpoints[0], addresses=(POD,))
    snapshot = snapshot.with_put(amend(first, spec=amend(first.spec, ports=ports)))
    return snapshot.with_put(amend(piece, endpoints=(endpoint,), ports=offered))


def connect(path: str, host: str) -> float:
    """p50 microseconds of a connection."""
    words = [sys.executable, "-I", "-S", PROBE, "connect", host, "8080", str(CONNECTIONS)]
    found: dict[str, Any] = json.loads(netns.run(path, *words))
    assert not found["errors"], found
    return float(found["p50_us"])


def bulk(path: str, host: str) -> float:
    """Gigabits for each second of processor time."""
    for _ in range(TRIES):  # a server that is late to leave its last client refuses the next
        found = json.loads(netns.run(path, "sh", "-c", f"iperf3 -c {host} -n {BYTES} -J || true"))
        if "error" not in found:
            break
    end = found["end"]
    used = end["cpu_utilization_percent"]
    busy = (used["host_total"] + used["remote_total"]) / 100 * end["sum_sent"]["seconds"]
    return float(end["sum_received"]["bytes"]) * 8 / 1e9 / float(busy)


def measure(services: int) -> tuple[float, float]:
    """(VIP/direct of connecting, VIP/direct of bulk) as medians over rounds in turn."""
    with wire() as paths:
        netns.call(paths["node"], NftDriver).apply(bench.plan_of(snapshot_of(services)))
        programs: list[subprocess.Popen[Any]] = [
            netns.popen(paths["pod"], words, stdout=subprocess.DEVNULL)
            for words in (
                [sys.executable, "-I", "-S", PROBE, "serve", "pod", "--tcp", "8080"],
                ["iperf3", "-s", "-J"],
            )
        ]
        try:
            ready(paths["client"])
            pairs = list(paired(connect, paths["client"]))
            flows = list(paired(bulk, paths["client"]))
        finally:
            for program in programs:
                program.kill()
                program.wait()
    direct, through = (statistics.median(found) for found in zip(*pairs, strict=True))
    plain, nat = (statistics.median(found) for found in zip(*flows, strict=True))
    print(
        f"{services:>6,} services: connect p50 direct {direct:.1f} µs, VIP {through:.1f} µs; "
        f"bulk direct {plain:.1f} Gbit/CPU s, VIP {nat:.1f}"
    )
    return ratio(pairs), ratio(flows)


def paired(measured: Callable[[str, str], float], path: str) -> Iterator[tuple[float, float]]:
    """(direct, through the VIP) of each round, in changing order."""
    for number in range(ROUNDS):
        hosts = (POD, VIP) if number % 2 else (VIP, POD)
        found = {host: measured(path, host) for host in hosts}
        yield found[POD], found[VIP]


def ratio(pairs: list[tuple[float, float]]) -> float:
    return statistics.median(through / direct for direct, through in pairs)


def ready(path: str) -> None:
    """Until both servers listen."""
    script = "import socket; socket.create_connection(('{}', {}), 1)"
    for port in ("8080", "5201"):
        again = f'until python3 -c "{script.format(POD, port)}" 2>/dev/null; do :; done'
        netns.run(path, "sh", "-c", again, timeout=20)


def main() -> int:
    """Print both sizes and their ratio; 0 when size costs nothing that can be measured."""
    if shutil.which("iperf3") is None:
        print("services_path: skipped, iperf3 is missing: apt-get install iperf3")
        return 0
    few, many = measure(FEW), measure(MANY)
    first, stream = many[0] / few[0], many[1] / few[1]
    print(f"VIP/direct at {FEW} and {MANY:,} services")
    print(f"  first packet   {few[0]:.2f}  {many[0]:.2f}   growth {first:.2f} (must 1.25)")
    print(f"  established    {few[1]:.2f}  {many[1]:.2f}   ratio {stream:.2f} (each must 0.95)")
    return 0 if first <= 1.25 and min(few[1], many[1], stream) >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())

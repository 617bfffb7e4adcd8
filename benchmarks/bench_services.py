"""Services: load 5,000 × 5 and 30,000 × 10 endpoints into an empty kernel, change one, weigh the process.

From objects in a store (in memory: the store itself is not measured) through the real loop. Beside it,
in the same run: `nft -f` of the same shared maps (the floor), and of a chain for each service and
endpoint (kube-proxy's nftables layout, the peer). Every load gets a new namespace.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from netplane.kernel import netns
from netplane.kernel.nft_text import transaction
from netplane.kernel.nftables import NftDriver
from netplane.model.base import ObjectMeta, amend
from netplane.model.facts import Fact, FactKey, Plan, Scope, Sysctl
from netplane.model.services import (
    SERVICE_NAME,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Service,
    ServicePort,
    ServiceSpec,
)
from netplane.model.snapshot import Snapshot
from netplane.reconcile.core import Core
from netplane.services import ServicesRoom
from tests.unit.memory_store import MemoryStore

ENDPOINTS, SMALL, CHANGES = 5, 100, 101
ROOM = ServicesRoom("node-1", ("192.0.2.1",), ("10.244.0.0/16",), ("10.96.0.0/12",))


def vip(number: int) -> str:
    return f"10.{96 + number // 65536}.{number // 256 % 256}.{number % 256}"


def pod(number: int, index: int) -> str:
    place = number * ENDPOINTS + index
    return f"10.{200 + place // 65536}.{place // 256 % 256}.{place % 256}"


def slice_of(number: int, addresses: list[str]) -> EndpointSlice:
    name = f"svc-{number}"
    meta = ObjectMeta(name=name, namespace="default", labels={SERVICE_NAME: name})
    found = tuple(Endpoint(addresses=(a,), node_name=f"node-{i % 10}") for i, a in enumerate(addresses))
    return EndpointSlice(
        metadata=meta, address_type="IPv4", endpoints=found, ports=(EndpointPort(port=8080),)
    )


def snapshot_of(services: int) -> Snapshot:
    objects: list[Service | EndpointSlice] = []
    for n in range(1, services + 1):
        spec = ServiceSpec(cluster_ip=vip(n), ports=(ServicePort(port=80, target_port=8080),))
        objects.append(Service(metadata=ObjectMeta(name=f"svc-{n}", namespace="default"), spec=spec))
        objects.append(slice_of(n, [pod(n, i) for i in range(ENDPOINTS)]))
    return Snapshot.of(objects)


def facts_of(scopes: list[Scope], snapshot: Snapshot) -> dict[FactKey, Fact]:
    found = {f.key: f for scope in scopes for f in ROOM.render(scope, snapshot)}
    return {key: fact for key, fact in found.items() if not isinstance(fact, Sysctl)}


def plan_of(snapshot: Snapshot) -> Plan:
    return Plan(add=tuple(facts_of(list(ROOM.scopes(None, snapshot)), snapshot).values()))


def peer_text(services: int) -> str:
    """A chain for each service and each endpoint, one anonymous map a service."""
    lines = [
        "add table ip peer",
        "add map ip peer service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }",
        "add chain ip peer nat { type nat hook prerouting priority dstnat; }",
        "add rule ip peer nat ip daddr . meta l4proto . th dport vmap @service-ips",
    ]
    rules: list[str] = []
    elements: list[str] = []
    for n in range(1, services + 1):
        lines.append(f"add chain ip peer service-{n}")
        lines += (f"add chain ip peer endpoint-{n}-{i}" for i in range(ENDPOINTS))
        rules += (
            f"add rule ip peer endpoint-{n}-{i} meta l4proto tcp dnat to {pod(n, i)}:8080"
            for i in range(ENDPOINTS)
        )
        slots = ", ".join(f"{i} : goto endpoint-{n}-{i}" for i in range(ENDPOINTS))
        rules.append(f"add rule ip peer service-{n} numgen random mod {ENDPOINTS} vmap {{ {slots} }}")
        elements.append(f"{vip(n)} . tcp . 80 : goto service-{n}")
    return "\n".join([*lines, *rules, f"add element ip peer service-ips {{ {', '.join(elements)} }}", ""])


@contextmanager
def namespace() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as place:
        path = f"{place}/ns"
        netns.create(path)
        try:
            yield path
        finally:
            netns.delete(path)


def clocked(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def nft_file(text: str) -> float:
    """Seconds of `nft -f` of this text in an empty namespace."""
    with namespace() as path, tempfile.NamedTemporaryFile("w", suffix=".nft") as file:
        Path(file.name).write_text(text)
        return clocked(lambda: netns.run(path, "nft", "-f", file.name, timeout=600))


class Clocked:
    """The driver, and when it last committed something."""

    def __init__(self, driver: NftDriver) -> None:
        self._driver = driver
        self.name, self.accepts, self.parallel = driver.name, driver.accepts, driver.parallel
        self.observe, self.observe_beside = driver.observe, driver.observe_beside
        self.committed = threading.Event()
        self.at = 0.0

    def apply(self, plan: Plan) -> None:
        self._driver.apply(plan)
        self.at = time.perf_counter()
        self.committed.set()


@contextmanager
def running(snapshot: Snapshot) -> Iterator[tuple[MemoryStore, Clocked, float]]:
    """A loop over these objects, in sync; the seconds that it took from the store to the kernel."""
    store = MemoryStore()
    objects = (*snapshot.list(Service), *snapshot.list(EndpointSlice))
    store.objects = {obj.key: obj for obj in objects}
    with namespace() as path:
        driver = Clocked(netns.call(path, NftDriver))
        core = Core(store, [(ROOM, [driver])])
        begin = time.perf_counter()
        core.start()
        assert core.wait_synced(300)
        try:
            yield store, driver, driver.at - begin
        finally:
            core.stop()


def ours(snapshot: Snapshot) -> float:
    """Seconds from objects in the store to the committed ruleset in an empty namespace."""
    with running(snapshot) as (_, _, seconds):
        return seconds


def one_change(snapshot: Snapshot) -> tuple[float, float]:
    """p50 seconds from a write to the store to committed: an endpoint moves; one leaves or comes."""
    with running(snapshot) as (store, driver, _):
        steady = snapshot.get(EndpointSlice, "default", f"svc-{SMALL}")
        assert steady is not None
        follow(
            store, driver, amend(steady, endpoints=steady.endpoints[:-1])
        )  # its chain is there from now on
        moves: list[float] = []
        counts: list[float] = []
        for turn in range(1, CHANGES + 1):
            whole = snapshot.get(EndpointSlice, "default", f"svc-{turn % (SMALL - 1) + 1}")
            assert whole is not None
            other = amend(whole.endpoints[-1], addresses=(f"10.255.1.{turn}",))
            moves.append(follow(store, driver, amend(whole, endpoints=(*whole.endpoints[:-1], other))))
            counts.append(follow(store, driver, amend(whole, endpoints=whole.endpoints[:-1])))
            counts.append(follow(store, driver, whole))
        return statistics.median(moves), statistics.median(counts)


def follow(store: MemoryStore, driver: Clocked, piece: EndpointSlice) -> float:
    """One event, through the mirror, the room, the ledger and the driver."""
    driver.committed.clear()
    begin = time.perf_counter()
    store.put(piece)
    assert driver.committed.wait(30)
    return driver.at - begin


def memory(services: int, endpoints: int) -> int:
    """Megabytes that a process holds with all of the agent's modules and so many services in sync."""
    words = [sys.executable, "-m", "benchmarks.services_memory", str(services), str(endpoints)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def load(services: int, endpoints: int, rounds: int) -> bool:
    global ENDPOINTS
    ENDPOINTS = endpoints
    big = snapshot_of(services)
    text = transaction(plan_of(big))
    pairs = [(nft_file(text), ours(big)) for _ in range(rounds)]  # in turn: both see the same machine
    floor, mine = (statistics.median(times) for times in zip(*pairs, strict=True))
    size = f"{services:,} services x {endpoints} endpoints"
    print(f"load {size}, from objects in the store to committed: {mine:.2f} s")
    ratio = f"ours/floor {mine / floor:.2f}  (must 2)"
    print(f"  floor, nft -f of the same maps:              {floor:.2f} s   {ratio}")
    if services <= 5000:
        peer = nft_file(peer_text(services))
        print(f"  peer, a chain per service and endpoint:     {peer:.2f} s   peer/ours {peer / mine:.0f}")
    return bool(mine <= 2 * floor)


def change(services: int, endpoints: int) -> bool:
    global ENDPOINTS
    ENDPOINTS = endpoints
    few, many = one_change(snapshot_of(SMALL)), one_change(snapshot_of(services))
    print(f"one endpoint, event to committed, p50, at {SMALL} and {services:,} services x {endpoints}")
    for what, at_few, at_many in zip(("moves", "leaves or comes"), few, many, strict=True):
        times = f"{at_few * 1e3:.2f} ms  {at_many * 1e3:.2f} ms  (must 10 ms)"
        print(f"  {what:16} {times}   ratio {at_many / at_few:.2f}  (must 1.5)")
    return max(many) <= 0.010 and all(m <= 1.5 * f for f, m in zip(few, many, strict=True))


def rest(services: int, endpoints: int, bar: int) -> bool:
    held = memory(services, endpoints)
    print(f"memory at {services:,} services x {endpoints} endpoints: {held} MB  (must {bar})")
    return held <= bar


def main() -> int:
    """Print the figures, each beside its bar; 0 when all hold."""
    good = [
        load(5000, 5, 3),
        load(30_000, 10, 1),
        change(30_000, 10),
        rest(1000, 5, 80),
        rest(30_000, 10, 600),
    ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())

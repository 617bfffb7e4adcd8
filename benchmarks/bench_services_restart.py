"""Services at 30,000 × 10: a restart with rules in place, a flushed map, and changes meanwhile.

What a restart costs is listing, rendering and comparing everything; the floor is the same listing by
`nft list table`. What is compared later goes on beside the changes: their p50 and worst are shown.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import bench_services as bench
from netplane.kernel import netns
from netplane.kernel.nftables import NftDriver
from netplane.model.base import amend
from netplane.model.services import EndpointSlice, Service
from netplane.model.snapshot import Snapshot
from netplane.reconcile.core import Core
from tests.unit.memory_store import MemoryStore

SERVICES, ENDPOINTS = 30_000, 10
WAIT = 0.05  # seconds between two changes


@contextmanager
def agent(path: str, store: MemoryStore) -> Iterator[tuple[Core, bench.Clocked]]:
    """A new process's loop over this namespace and store, in sync."""
    driver = bench.Clocked(netns.call(path, NftDriver))
    core = Core(store, [(bench.ROOM, [driver])])
    core.start()
    assert core.wait_synced(600)
    try:
        yield core, driver
    finally:
        core.stop()


def behind(core: Core) -> bool:
    return bool(core.status()["pending"])


def meanwhile(core: Core, driver: bench.Clocked, store: MemoryStore, snapshot: Snapshot) -> list[float]:
    """Seconds from event to commit of changes that come until everything has been compared."""
    whole = snapshot.get(EndpointSlice, "default", f"svc-{SERVICES // 2}")
    assert whole is not None
    found: list[float] = []
    while behind(core) or not found:
        turn = len(found) % 250
        other = amend(whole.endpoints[-1], addresses=(f"10.255.1.{turn}",))
        piece = amend(whole, endpoints=(*whole.endpoints[:-1], other))
        found.append(bench.follow(store, driver, piece))
        time.sleep(WAIT)
    return found


def compared(path: str, core: Core, driver: bench.Clocked, store: MemoryStore, snapshot: Snapshot) -> float:
    """Print what a full comparison costs the changes; their p50 in seconds."""
    for what, damage in (("nothing is wrong", ""), ("a map was flushed", "svc-services4")):
        if damage:
            netns.run(path, "nft", "flush", "map", "inet", "netplane", damage)
        begin = time.perf_counter()
        core.resync()
        times = meanwhile(core, driver, store, snapshot)
        seconds = time.perf_counter() - begin
        p50 = statistics.median(times)
        print(
            f"  everything compared, {what}: {seconds:.1f} s; meanwhile {len(times)} changes,"
            f" p50 {p50 * 1e3:.1f} ms, worst {max(times) * 1e3:.0f} ms"
        )
    return p50


def main() -> int:
    """Print the figures; 0 when a change waits for 50 ms at most (p50) while all is compared."""
    bench.ENDPOINTS = ENDPOINTS
    snapshot = bench.snapshot_of(SERVICES)
    store = MemoryStore()
    objects = (*snapshot.list(Service), *snapshot.list(EndpointSlice))
    store.objects = {obj.key: obj for obj in objects}
    with bench.namespace() as path:
        with agent(path, store):
            pass
        floor = bench.clocked(
            lambda: netns.run(path, "sh", "-c", "nft list table inet netplane >/dev/null", timeout=600)
        )
        begin = time.perf_counter()
        with agent(path, store) as (core, driver):
            seconds = time.perf_counter() - begin
            print(
                f"{SERVICES:,} services x {ENDPOINTS} endpoints, restart with rules in place: {seconds:.1f} s"
            )
            print(f"  `nft list table` alone: {floor:.1f} s   ratio {seconds / floor:.2f}")
            assert not driver.committed.is_set(), "a restart changes nothing"
            p50 = compared(path, core, driver, store, snapshot)
            assert len(driver.observe()) > SERVICES * (ENDPOINTS + 2)
    return 0 if p50 <= 0.050 else 1


if __name__ == "__main__":
    sys.exit(main())

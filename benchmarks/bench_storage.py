"""Binding: N claims to N volumes, end to end from objects in a store (SQLite) to all of them Bound.

Floor: the four writes of each bind, in the store alone, in transactions of the same size and with nobody
deciding or watching. Linear: the CPU time per claim at 1,000, 5,000 and 10,000, as a ratio of the first.
Three kinds of worlds, since an index may be fast on one and slow on another: all volumes alike, every
volume of a size of its own, and claims that were waiting before the first volume came.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from netplane.model.base import Object, ObjectMeta, amend
from netplane.model.changes import Event
from netplane.model.storage import (
    ClaimResources,
    ClaimSpec,
    ClaimStatus,
    PersistentVolume,
    PersistentVolumeClaim,
    PersistentVolumeSpec,
)
from netplane.model.volumes import HostPathSource
from netplane.reconcile.base import Settled
from netplane.store import open_store
from netplane.store.base import Store
from storageplane import agent
from storageplane.claims import steps

COUNTS = (1_000, 5_000, 10_000)
BUDGET = 10.0  # seconds for the last of them
SLOPE = 1.5  # how much more a claim may cost at 10,000 than at 1,000
PATIENCE = 60.0  # seconds
MIB = 1 << 20
Size = Callable[[int], int]


def volume(i: int, size: Size) -> PersistentVolume:
    spec = PersistentVolumeSpec(
        capacity={"storage": size(i)},
        access_modes=("ReadWriteOnce",),
        host_path=HostPathSource(path=f"/data/{i}"),
    )
    return PersistentVolume(metadata=ObjectMeta(name=f"v{i:05}"), spec=spec)


def claim(i: int, size: Size) -> PersistentVolumeClaim:
    spec = ClaimSpec(access_modes=("ReadWriteOnce",), resources=ClaimResources(requests={"storage": size(i)}))
    return PersistentVolumeClaim(metadata=ObjectMeta(name=f"c{i:05}", namespace="default"), spec=spec)


class Bound:
    """Waits until so many claims are Bound; the loop's observer."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.done = threading.Event()

    def noticed(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event.new, PersistentVolumeClaim) and event.new.status.phase == "Bound":
                self.count -= 1  # the last of the four writes, and the only one that leaves it Bound
        if self.count <= 0:
            self.done.set()

    def settled(self, work: Settled) -> None:
        del work


def bind(count: int, home: Path, size: Size, late: bool = False) -> tuple[float, float]:
    """(seconds, seconds of CPU) from the agent's start (or, ``late``, from the first volume) to all Bound."""
    store, user = open_store(f"sqlite://{home}/{count}.db"), open_store(f"sqlite://{home}/{count}.db")
    volumes = [volume(i, size) for i in range(count)]
    for some in chunks([*(claim(i, size) for i in range(count)), *([] if late else volumes)]):
        user.put_all(some)  # type: ignore[attr-defined]
    watcher = Bound(count)
    core = agent.build(store, agent.Config("n1", home / "root"), watcher)
    began, worked = time.perf_counter(), time.process_time()
    core.start()
    if late:
        while core.status()["pending"] or not core.wait_synced(0.1):
            time.sleep(0.05)
        time.sleep(0.2)
        began, worked = time.perf_counter(), time.process_time()
        for some in chunks(volumes):
            user.put_all(some)  # type: ignore[attr-defined]
    if not watcher.done.wait(PATIENCE):
        raise SystemExit(f"binding: {watcher.count} of {count} claims are not bound after {PATIENCE:.0f} s")
    took = time.perf_counter() - began, time.process_time() - worked
    core.stop()
    user.close()
    store.close()
    return took


def floor(count: int, home: Path) -> float:
    """Seconds of the same four writes for each pair, in the store alone."""
    store: Store = open_store(f"sqlite://{home}/floor.db")
    size: Size = lambda _: MIB  # noqa: E731
    put_all = store.put_all  # type: ignore[attr-defined]
    volumes = [v for some in chunks([volume(i, size) for i in range(count)]) for v in put_all(some)]
    claims = [c for some in chunks([claim(i, size) for i in range(count)]) for c in put_all(some)]
    began = time.perf_counter()
    for start in range(0, count, 100):
        vs, cs = volumes[start : start + 100], claims[start : start + 100]
        pairs = list(zip(vs, cs, strict=True))
        refs = put_all([amend(v, spec=amend(v.spec, claim_ref=steps.reference(c))) for v, c in pairs])
        put_all([steps.phased(v, "Bound") for v in refs])
        named = put_all([amend(c, spec=amend(c.spec, volume_name=v.name)) for v, c in pairs])
        put_all([amend(c, status=ClaimStatus(phase="Bound")) for c in named])
    took = time.perf_counter() - began
    store.close()
    return took


def chunks(objects: Sequence[Object]) -> Iterable[Sequence[Object]]:
    return (objects[i : i + 1000] for i in range(0, len(objects), 1000))


def main() -> int:
    worlds: list[tuple[str, Size, bool]] = [
        ("all alike", lambda _: MIB, False),
        ("sizes of their own", lambda i: MIB + i * 4096, False),
        ("claims waiting before", lambda _: MIB, True),
    ]
    good = True
    with tempfile.TemporaryDirectory() as home:
        base = floor(COUNTS[-1], Path(home))
        print(f"binding: floor, the four writes of {COUNTS[-1]:,} pairs alone {base:6.2f} s")
        for name, size, late in worlds:
            times = {}
            for count in COUNTS:
                with tempfile.TemporaryDirectory(dir=home) as place:
                    times[count] = bind(count, Path(place), size, late)
            first, last = (times[count][1] / count for count in (COUNTS[0], COUNTS[-1]))
            took, cpu = times[COUNTS[-1]]
            good = good and took < BUDGET and last < first * SLOPE
            each = ", ".join(
                f"{n:,} {times[n][0]:.2f} s ({times[n][1] / n * 1e6:.0f} µs each)" for n in COUNTS
            )
            print(f"binding: {name}: {each}; µs are of CPU")
            print(
                f"binding: {name}: {took / base:.1f} × the floor, {cpu:.1f} s of CPU; a claim at "
                f"{COUNTS[-1]:,} costs {last / first:.2f} × one at {COUNTS[0]:,}"
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

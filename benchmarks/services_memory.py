"""What a process holds with the agent's modules and N services × E endpoints in sync, in megabytes."""

from __future__ import annotations

import sys
from pathlib import Path

import netplane.agent
from benchmarks import bench_services as bench
from netplane.kernel import netns


def main(services: int, endpoints: int) -> None:
    """In namespaces of its own. The store, which an agent does not hold, is emptied after the list."""
    assert netplane.agent
    netns.make_private(mounts=True, network=True)
    bench.ENDPOINTS = endpoints
    with bench.running(bench.snapshot_of(services)) as (store, _, _):
        store.objects.clear()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    print(pages * 4096 // 1_000_000)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

"""Resident memory of a whole agent, by default with `--rooms dns`.

The agent runs on an embedded store, so that it also is what allocates: a service costs its object, the
claim of its address, and three names. Measured when every address is claimed, every name is answered,
and the process has not grown for SETTLED seconds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.dns_server import ADDRESS, address, snapshot_of
from netplane.kernel import netns
from netplane.model.nodes import Namespace
from netplane.model.own import Allocation
from netplane.model.services import Service
from netplane.store import open_store

SETTLED, PATIENCE = 3.0, 120.0  # seconds


def agent_memory(services: int, work: Path, rooms: str = "dns") -> float:
    """MB, of an agent in a network namespace of its own that has ``services``."""
    home = work / f"agent-{services}-{rooms}"
    home.mkdir()
    url = f"sqlite://{home}/state.db"
    store = open_store(url)
    every = [o for kind in (Namespace, Service) for o in snapshot_of(services).list(kind)]
    store.put_all(every)  # type: ignore[attr-defined]
    store.close()
    place = str(home / "ns")
    netns.create(place)
    netns.run(place, "ip", "link", "set", "lo", "up")
    netns.run(place, "ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    argv = [sys.executable, "-m", "netplane.cli", "agent", "--node", "one", "--store", url]
    argv += ["--run-dir", f"{home}/run", "--state-dir", f"{home}/state", "--node-ip", ADDRESS]
    argv += ["--cluster-cidr", "10.244.0.0/16", "--service-cidr", "10.96.0.0/12"]
    argv += ["--rooms", rooms, "--dns-listen", f"{ADDRESS}:53"]
    agent = netns.popen(place, argv, stderr=subprocess.DEVNULL)
    try:
        if services:
            _answers(place, services - 1)
            _claimed(url, services)
        return _settled(agent.pid)
    finally:
        agent.terminate()
        agent.wait()
        netns.delete(place)


def _answers(place: str, last: int) -> None:
    deadline = time.monotonic() + PATIENCE
    name = f"svc-{last:06}.default.svc.cluster.local"
    while time.monotonic() < deadline:
        if address(last + 1) in netns.run(
            place, "dig", "+short", "+tries=1", "+time=1", f"@{ADDRESS}", name, check=False
        ):
            return
        time.sleep(0.1)
    raise TimeoutError("the agent does not answer")


def _claimed(url: str, services: int) -> None:
    """Until each service's address is."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        store = open_store(url)
        found = len(store.list((Allocation.KIND,))[0])
        store.close()
        if found >= services:
            return
        time.sleep(0.5)
    raise TimeoutError("the agent does not allocate")


def _settled(process: int) -> float:
    """MB once it grows no more."""
    found, since = 0.0, time.monotonic()
    while time.monotonic() - since < SETTLED:
        status = Path(f"/proc/{process}/status").read_text()
        now = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
        if now > found + 0.5:
            found, since = now, time.monotonic()
        time.sleep(0.2)
    return found

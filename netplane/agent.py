"""The wiring: the one place that knows every room.

An agent is a store, drivers, rooms and controllers around one Core, and the edges that face outside:
the CNI socket, the DNS server, the health server. It works in the network namespace it is started in.

Rule 1: what is wrong with the configuration is refused before anything is touched.
Rule 2: the CNI socket opens when everything is in the kernel once; until then runtimes try again.
Rule 3: stopping stops the work, not the data plane: nothing is taken down.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from .cluster.config import ClusterConfig
from .health import HealthServer
from .model import checks
from .model.errors import Invalid, NetplaneError, Unavailable
from .store import Store, open_store

log = logging.getLogger(__name__)

ROOMS = ("cni", "overlay", "services", "policy", "dns")
DATAPATHS = ("auto", "kernel", "fast")


@dataclass(frozen=True)
class AgentConfig:
    """Everything an agent is told; raises Invalid for what cannot be."""

    node: str
    store: str
    run_dir: Path
    state_dir: Path
    node_ips: tuple[str, ...]
    cluster: ClusterConfig
    datapath: str = "auto"
    rooms: tuple[str, ...] = ROOMS
    domain: str = "cluster.local"
    dns_listen: tuple[str, ...] = ()
    resolv_conf: str = "/etc/resolv.conf"
    http_listen: str = ""

    def __post_init__(self) -> None:
        faults = list(checks.dns_subdomain("--node", self.node))
        for room in self.rooms:
            faults += checks.one_of("--rooms", room, ROOMS)
        faults += checks.one_of("--datapath", self.datapath, DATAPATHS)
        for address in self.node_ips:
            faults += checks.ip("--node-ip", address)
        if faults:
            raise Invalid("; ".join(f"{path}: {reason}" for path, reason in faults))


class RunDir:
    """RUN_DIR, held by one agent at a time, and the state directory with this agent's identity."""

    def __init__(self, run_dir: Path, state_dir: Path) -> None:
        for path in (run_dir, state_dir):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = open(run_dir / "agent.lock", "a+")  # noqa: SIM115 - held as long as we live
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._lock.seek(0)
            raise Invalid(f"--run-dir {run_dir}: agent {self._lock.read().strip()} holds it") from exc
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        self.instance = self._identity(state_dir / "instance")

    def _identity(self, path: Path) -> str:
        """Random, made once: how a restarted agent knows its own Lease."""
        if not path.exists() or not path.read_text().strip():
            fresh = path.with_suffix(".new")
            fresh.write_text(f"{uuid.uuid4()}\n")
            fresh.replace(path)
        return path.read_text().strip()

    def release(self) -> None:
        self._lock.close()


def open_patiently(url: str, stopping: threading.Event) -> Store:
    """The store, waited for as long as it takes. Raises Invalid when it never can be."""
    while True:
        try:
            return open_store(url)
        except Unavailable as exc:
            log.warning("%s (trying again)", exc)
            if stopping.wait(1.0):
                raise


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def now() -> float:
    return time.time()


Status = dict[str, Any]
__all__ = ["AgentConfig", "CollectorRegistry", "HealthServer", "NetplaneError", "RunDir", "boot_id"]

"""Two agents' controllers over one SQLite file: they race, and agree.

core a (rank 0) ──┐
                  ├── state.db      both act at once: conflicts are met, not avoided
core b (rank 0) ──┘
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from netplane.cluster import ClusterConfig, Machine, Registrar, controllers
from netplane.model.codec import parse
from netplane.model.nodes import Node
from netplane.model.own import Allocation
from netplane.model.services import EndpointSlice, Service
from netplane.model.snapshot import Snapshot
from netplane.reconcile.core import Core
from netplane.store import open_store

CONFIG = ClusterConfig(("10.244.0.0/16", "fd00:244::/56"), ("10.96.0.0/24", "fd00:96::/112"))
SERVICES = 40


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def settled(snapshot: Snapshot) -> bool:
    services, nodes = list(snapshot.list(Service)), list(snapshot.list(Node))
    addressed = all(len(s.spec.cluster_ips) == 2 and s.spec.ports[0].node_port for s in services)
    ranged = all(len(n.pod_cidrs) == 2 for n in nodes)
    slices = snapshot.count(EndpointSlice) == 2 * SERVICES
    return len(services) == SERVICES and len(nodes) == 2 and addressed and ranged and slices


def test_two_agents_on_one_file(tmp_path: Path) -> None:
    stores = [open_store(f"sqlite://{tmp_path}/state.db") for _ in range(2)]
    cores = [Core(store, controllers=controllers(CONFIG)) for store in stores]
    try:
        for core in cores:
            core.start()
        for i, store in enumerate(stores):
            machine = Machine(f"n{i}", (f"192.0.2.{i + 1}",), 1500, f"host-{i}", "boot", f"instance-{i}")
            Registrar(store, machine).register()
        meta = {"name": "p", "labels": {"app": "web"}}
        status = {"podIPs": [{"ip": "10.244.0.9"}, {"ip": "fd00:244::9"}], "phase": "Running"}
        stores[0].put(parse({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": status}))
        spec = {
            "type": "NodePort",
            "selector": {"app": "web"},
            "ports": [{"port": 80}],
            "ipFamilyPolicy": "RequireDualStack",
        }
        for i in range(SERVICES):
            doc = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"s{i}"}, "spec": spec}
            stores[i % 2].put(parse(doc))
        eventually(lambda: all(settled(core.snapshot()) for core in cores))
        services = list(cores[0].snapshot().list(Service))
        assert len({ip for s in services for ip in s.spec.cluster_ips}) == 2 * SERVICES
        assert len({s.spec.ports[0].node_port for s in services}) == SERVICES
        for one in services:
            stores[0].delete(one.key)
        eventually(lambda: all(core.snapshot().count(Allocation) == 4 for core in cores))  # pod CIDRs
        eventually(lambda: all(core.snapshot().count(EndpointSlice) == 0 for core in cores))
    finally:
        for core in cores:
            core.stop()
        for store in stores:
            store.close()

"""`bench_dns`'s own server: the objects of N services, rendered, tabled and served as the agent does.

Prints "ready" and its resident memory in MB, then serves until it is killed.
"""

from __future__ import annotations

import gc
import sys
import threading

from netplane.dns.server import DnsServer
from netplane.dns.table import NameTable
from netplane.dns.zone import DnsRoom
from netplane.model.base import ObjectMeta
from netplane.model.facts import Plan
from netplane.model.nodes import Namespace
from netplane.model.services import Service, ServicePort, ServiceSpec
from netplane.model.snapshot import Snapshot

ADDRESS = "10.9.0.1"


def names(count: int) -> list[str]:
    return [f"svc-{n}.default.svc.cluster.local" for n in range(count)]


def address(n: int) -> str:
    return f"10.{96 + n // 65536}.{n // 256 % 256}.{n % 256}"


def snapshot_of(count: int) -> Snapshot:
    ports = (ServicePort(name="http", port=80),)
    return Snapshot.of(
        [
            Namespace(metadata=ObjectMeta(name="default")),
            *(
                Service(
                    metadata=ObjectMeta(name=f"svc-{n}", namespace="default"),
                    spec=ServiceSpec(cluster_ip=address(n), ports=ports),
                )
                for n in range(count)
            ),
        ]
    )


def resident() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def main(count: int) -> None:
    room, snapshot, table = DnsRoom("node-1", addresses=(ADDRESS,)), snapshot_of(count), NameTable()
    for scope in room.scopes(None, snapshot):
        table.apply(Plan(add=tuple(room.render(scope, snapshot))))
    table.mark_synced()
    gc.collect()
    gc.freeze()
    server = DnsServer(table, [(ADDRESS, 53)])
    server.start()
    print(f"ready {resident():.0f}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""`bench_dns`'s own server: the objects of N services, rendered, tabled and served as the agent does.

With "names" after N only their addresses, without objects: it is there sooner. Prints "ready" and its
resident memory in MB, then serves until it is killed.
"""

from __future__ import annotations

import gc
import sys
import threading

from netplane.dns.server import DnsServer
from netplane.dns.table import NameTable
from netplane.dns.zone import DnsRoom
from netplane.model.base import ObjectMeta
from netplane.model.facts import Plan, Record
from netplane.model.nodes import Namespace
from netplane.model.services import Service, ServicePort, ServiceSpec
from netplane.model.snapshot import Snapshot

ADDRESS = "10.9.0.1"


def names(count: int) -> list[str]:
    return [f"svc-{n:06}.default.svc.cluster.local" for n in range(count)]


def address(n: int) -> str:
    return f"10.{96 + n // 65536}.{n // 256 % 256}.{n % 256}"


def snapshot_of(count: int) -> Snapshot:
    ports = (ServicePort(name="http", port=80),)
    return Snapshot.of(
        [
            Namespace(metadata=ObjectMeta(name="default")),
            *(
                Service(
                    metadata=ObjectMeta(name=f"svc-{n:06}", namespace="default"),
                    spec=ServiceSpec(cluster_ip=address(n + 1), ports=ports),
                )
                for n in range(count)
            ),
        ]
    )


def resident() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def main(count: int, objects: bool) -> None:
    room, table = DnsRoom("node-1", addresses=(ADDRESS,)), NameTable()
    snapshot = snapshot_of(count if objects else 0)
    if not objects:
        table.apply(Plan(add=tuple(Record(name, "A", (address(n),)) for n, name in enumerate(names(count)))))
    scopes = list(room.scopes(None, snapshot))
    for at in range(0, len(scopes), 1000):
        table.apply(
            Plan(add=tuple(f for scope in scopes[at : at + 1000] for f in room.render(scope, snapshot)))
        )
    table.mark_synced()
    gc.collect()
    gc.freeze()
    server = DnsServer(table, [(ADDRESS, 53)])
    server.start()
    print(f"ready {resident():.0f}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), "names" not in sys.argv[2:])

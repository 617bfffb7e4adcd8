"""Services: load 5,000 × 5 endpoints into an empty kernel, then change one endpoint.

Beside it, in the same run: `nft -f` of the same shared maps (the floor), and of a chain for each
service and endpoint (kube-proxy's nftables layout, the peer). Every load gets a new namespace.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
from netplane.services import ServicesRoom, chains

SERVICES, ENDPOINTS, SMALL, CHANGES = 5000, 5, 100, 101
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


def ours(snapshot: Snapshot) -> float:
    """Seconds from objects to the committed ruleset in an empty namespace."""
    with namespace() as path:
        driver = netns.call(path, NftDriver)
        return clocked(lambda: driver.apply(plan_of(snapshot)))


def one_change(snapshot: Snapshot) -> tuple[float, float]:
    """p50 seconds from event to committed: an endpoint's address changes; an endpoint leaves or comes."""
    with namespace() as path:
        driver = netns.call(path, NftDriver)
        driver.apply(plan_of(snapshot))
        driver.apply(Plan(add=tuple(chains.ways("IPv4", "tcp", ENDPOINTS - 1, False))))
        moves: list[float] = []
        counts: list[float] = []
        for turn in range(1, CHANGES + 1):
            whole = snapshot.get(EndpointSlice, "default", f"svc-{turn % SMALL + 1}")
            assert whole is not None
            other = amend(whole.endpoints[-1], addresses=(f"10.255.1.{turn}",))
            moved = amend(whole, endpoints=(*whole.endpoints[:-1], other))
            fewer = amend(whole, endpoints=whole.endpoints[:-1])
            moves.append(clocked(partial(follow, driver, snapshot, whole, moved)))
            counts.append(clocked(partial(follow, driver, snapshot, moved, fewer)))
            counts.append(clocked(partial(follow, driver, snapshot, fewer, whole)))
        return statistics.median(moves), statistics.median(counts)


def follow(driver: NftDriver, snapshot: Snapshot, old: EndpointSlice, new: EndpointSlice) -> None:
    """One event as the agent follows it. Some other service has each count, so its chain is there."""
    before, after = snapshot.with_put(old), snapshot.with_put(new)
    scopes = list(ROOM.scopes((old, new), after))
    held, wanted = facts_of(scopes, before), facts_of(scopes, after)
    driver.apply(
        Plan(
            add=tuple(f for key, f in wanted.items() if key not in held and not shared(key)),
            change=tuple(f for key, f in wanted.items() if key in held and held[key].mark != f.mark),
            remove=tuple(key for key in held if key not in wanted and not shared(key)),
        )
    )


def shared(key: FactKey) -> bool:
    return key[0] == "chain" or key[1] == "svc-chains4"


def main() -> int:
    """Print the ratios; 0 when the load is at most twice its floor and a change at most 10 ms."""
    big, small = snapshot_of(SERVICES), snapshot_of(SMALL)
    same = transaction(plan_of(big))
    pairs = [(nft_file(same), ours(big)) for _ in range(5)]  # in turn, so that both see the same machine
    floor, load = (statistics.median(times) for times in zip(*pairs, strict=True))
    (few, few_counts), (many, many_counts) = one_change(small), one_change(big)
    peer = nft_file(peer_text(SERVICES))
    print(f"load {SERVICES:,} services x {ENDPOINTS} endpoints, from objects to committed: {load:.2f} s")
    print(f"  floor, nft -f of the same maps:              {floor:.2f} s   ours/floor {load / floor:.2f}")
    print(f"  peer, a chain per service and endpoint:     {peer:.2f} s   peer/ours {peer / load:.0f}")
    print(f"one endpoint, event to committed, p50, at {SMALL} and {SERVICES:,} services")
    for what, at_few, at_many in (("moves", few, many), ("leaves or comes", few_counts, many_counts)):
        times = f"{at_few * 1e3:.2f} ms  {at_many * 1e3:.2f} ms"
        print(f"  {what:16} {times}   ratio {at_many / at_few:.2f}")
    return 0 if load <= 2 * floor and max(many, many_counts) <= 0.010 else 1


if __name__ == "__main__":
    sys.exit(main())

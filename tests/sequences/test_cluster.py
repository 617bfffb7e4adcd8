"""Controllers under shuffled, replayed and interrupted histories, and two agents at once.

Whatever happens, what was granted is lost to nobody, and once it is quiet,
no two objects share an address, a port or a CIDR and no agent has anything left to write.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from netplane.cluster import ClusterConfig, controllers
from netplane.model.base import Object, ObjectMeta, amend
from netplane.model.codec import parse
from netplane.model.nodes import Node, NodeSpec
from netplane.model.own import Allocation
from netplane.model.pods import Pod
from netplane.model.services import EndpointSlice, Service
from netplane.model.snapshot import Snapshot
from tests.cluster_world import Crash, Loop, World

# Tight ranges, so that wishes collide and ranges run out.
CONFIG = ClusterConfig(
    cluster_cidrs=("10.244.0.0/22", "fd00:244::/62"),
    service_cidrs=("10.96.0.0/28", "fd00:96::/124"),
    node_port_range=(30000, 30011),
)
SEEDS = range(25)


def service(rng: random.Random, name: str) -> Service:
    spec: dict[str, Any] = {
        "selector": {"app": rng.choice("ab")},
        "ports": [{"port": 80, "targetPort": "http"}],
    }
    shape = rng.randrange(6)
    if shape == 0:
        spec["clusterIP"] = f"10.96.0.{rng.randrange(1, 15)}"
    elif shape == 1:
        spec.update(ipFamilyPolicy="RequireDualStack")
    elif shape == 2:
        spec.update(clusterIP="None")
    elif shape == 3:
        spec.update(type="NodePort")
    elif shape == 4:
        spec.update(type="NodePort", ports=[{"port": 80, "nodePort": rng.randrange(30000, 30012)}])
    made = parse({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
    assert isinstance(made, Service)
    return made


def pod(rng: random.Random, name: str) -> Pod:
    number = 8080 + rng.randrange(2)
    doc: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": rng.choice("ab")}},
        "spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": number}]}]},
        "status": {"podIPs": [{"ip": f"10.244.0.{rng.randrange(2, 250)}"}, {"ip": f"fd00:244::{name[1:]}"}]},
    }
    doc["status"]["phase"] = rng.choice(("Running", "Running", "Succeeded", "Pending"))
    made = parse(doc)
    assert isinstance(made, Pod)
    return made


def node(rng: random.Random, name: str) -> Node:
    cidr = rng.choice(("", "", "10.244.0.0/23", "10.244.1.0/24", "10.244.3.0/25"))
    return Node(metadata=ObjectMeta(name=name), spec=NodeSpec(pod_cidrs=(cidr,) if cidr else ()))


MAKERS: dict[str, Callable[[random.Random, str], Object]] = {"s": service, "p": pod, "n": node}


def meddle(world: World, rng: random.Random) -> None:
    """What a user does next: apply, apply anew, or delete."""
    kind = rng.choice("ssspn")
    made = MAKERS[kind](rng, f"{kind}{rng.randrange(1, 7)}")
    there = world.get(made.key)
    if there is not None and rng.random() < 0.4:
        world.delete(made.key)
    elif there is None or kind != "n":  # a node's spec is not re-applied
        world.put(made)
        if isinstance(made, Service):
            world.by_hand |= {(made.name, value) for value in named(made)} | {
                (made.name, made.spec.cluster_ip)
            }


def granted(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """(value, who): every address and node port that a service uses and was not refused."""
    for one in snapshot.list(Service):
        if not one.refused:
            yield from ((value, one.name) for value in named(one))


def named(one: Service) -> set[str]:
    ports = (str(p.node_port) for p in one.spec.ports if p.node_port)
    return {*(ip for ip in one.spec.cluster_ips if ip != "None"), *ports}


def check_nothing_lost(world: World) -> None:
    """What a controller gave to a service is never taken from it while its spec says so.

    (A claim has one holder by its nature, so two can share a value only if one's claim was lost.)
    What a user named by hand may be released by whoever has not seen it yet; it is claimed again.
    """
    for index in range(len(world.events)):
        old, new = world.events[index]
        if not isinstance(old, Allocation) or old.spec.holder_kind != "Service":
            continue
        if isinstance(new, Allocation) and new.spec.holder_name == old.spec.holder_name:
            continue
        holder = world.history[index + 1].get(Service, "default", old.spec.holder_name)
        if holder is not None and (holder.name, old.spec.value) not in world.by_hand:
            assert old.spec.value not in named(holder), f"{holder.name} lost {old.spec.value}"


def check_settled(world: World) -> None:
    """At the fixpoint all that is used is claimed, all that is claimed is used, nothing is doubled."""
    snapshot = world.snapshot
    claimed = {(a.spec.value, a.spec.holder_name) for a in snapshot.list(Allocation)}
    used = list(granted(snapshot))
    cidrs = [(c, n.name) for n in snapshot.list(Node) if not n.refused for c in n.pod_cidrs]
    assert len({value for value, _ in used}) == len(used)
    assert claimed >= {*used, *cidrs}
    names = {o.name for kind in (Service, Node) for o in snapshot.list(kind)}
    assert {who for _, who in claimed} <= names
    nets = [ipaddress.ip_network(c) for c, _ in cidrs]
    for i, net in enumerate(nets):
        assert not any(net.version == other.version and net.overlaps(other) for other in nets[:i])
    for one in snapshot.list(Service):
        if not one.refused and one.spec.cluster_ip != "None":
            assert one.spec.cluster_ip
    for one in snapshot.list(Service):
        check_endpoints(snapshot, one)


def check_endpoints(snapshot: Snapshot, one: Service) -> None:
    pods = [
        p
        for p in snapshot.list(Pod, one.namespace)
        if p.labels["app"] == one.spec.selector["app"] and not p.finished
    ]
    slices = snapshot.by(EndpointSlice, "service", f"{one.namespace}/{one.name}")
    for family, colon in (("IPv4", False), ("IPv6", True)):
        want = sorted(ip for p in pods for ip in p.ips if (":" in ip) == colon)
        have = sorted(e.addresses[0] for s in slices for e in s.endpoints if s.address_type == family)
        assert have == (want if family in one.spec.ip_families else []) or one.refused


def fixpoint(world: World) -> None:
    """A fresh agent settles the world; a second one finds nothing to write."""
    world.settle(controllers(CONFIG))
    check_settled(world)
    before = world.writes
    world.settle(controllers(CONFIG))
    assert world.writes == before


@pytest.mark.parametrize("seed", SEEDS)
def test_events_in_any_order_and_more_than_once(seed: int) -> None:
    rng, world = random.Random(seed), World()
    agent = Loop(world, controllers(CONFIG))
    for _ in range(40):
        meddle(world, rng)
        if rng.random() < 0.5:
            agent.observe()
            queue = list(agent.queue)
            rng.shuffle(queue)
            agent.queue = dict.fromkeys(queue)
            for _ in range(rng.randrange(6)):
                agent.step()
        if rng.random() < 0.1:
            agent.seen = rng.randrange(agent.seen + 1)  # replay
    while agent.step():
        pass
    check_nothing_lost(world)
    check_settled(world)  # by events alone, without a resync
    before = world.writes
    fixpoint(world)
    assert world.writes == before, "events left something undone"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_crash_after_any_write(seed: int) -> None:
    rng, world = random.Random(seed), World()
    for budget in range(30):
        meddle(world, rng)
        agent = Loop(world, controllers(CONFIG))
        agent.resync()
        agent.budget = budget % 4
        try:
            while agent.step():
                pass
        except Crash:
            pass
    fixpoint(world)
    check_nothing_lost(world)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_agents_at_once_each_behind_by_as_much_as_it_is(seed: int) -> None:
    rng, world = random.Random(seed), World()
    agents = [Loop(world, controllers(CONFIG)) for _ in range(2)]
    for _ in range(60):
        if rng.random() < 0.4:
            meddle(world, rng)
        agent = rng.choice(agents)
        agent.step(lag=rng.randrange(6))
    for _ in range(4000):
        if not sum(agent.step() for agent in agents):
            break
    else:
        raise AssertionError("the agents do not come to rest")
    check_nothing_lost(world)
    check_settled(world)
    before = world.writes
    fixpoint(world)
    assert world.writes == before, "events left something undone"


@pytest.mark.parametrize("k", range(6))
def test_the_first_k_writes_of_a_decision_then_a_crash(k: int) -> None:
    """A dual-stack NodePort service takes three claims and a write; any part of it is adopted."""
    rng, world = random.Random(1), World()
    asked = amend(service(rng, "s1"))
    ports = (amend(asked.spec.ports[0], target_port=0),)
    spec = amend(asked.spec, type="NodePort", cluster_ip="", ip_family_policy="RequireDualStack", ports=ports)
    world.put(amend(asked, spec=spec), 0)
    agent = Loop(world, controllers(CONFIG))
    agent.resync()
    agent.budget = k
    try:
        while agent.step():
            pass
    except Crash:
        pass
    fixpoint(world)
    values = {a.spec.value for a in world.snapshot.list(Allocation)}
    (settled,) = world.snapshot.list(Service)
    assert values == {*settled.spec.cluster_ips, str(settled.spec.ports[0].node_port)}

"""Every node gets a pod CIDR of each family, keeps it, and never shares an address with another."""

from __future__ import annotations

import pytest

from netplane.cluster.config import ClusterConfig
from netplane.cluster.podcidr import PodCIDRs
from netplane.model.base import ObjectMeta, amend
from netplane.model.nodes import Node, NodeSpec
from netplane.model.own import Allocation
from tests.cluster_world import World

DUAL = ClusterConfig(("10.244.0.0/16", "fd00:10:244::/56"), ("10.96.0.0/12",))
FOUR = ClusterConfig(("10.244.0.0/22",))


def node(name: str, *cidrs: str) -> Node:
    spec = NodeSpec(pod_cidr=cidrs[0] if cidrs else "", pod_cidrs=cidrs)
    return Node(metadata=ObjectMeta(name=name), spec=spec)


def settled(world: World, config: ClusterConfig = DUAL) -> list[str]:
    refusals = world.settle([PodCIDRs(config)])
    before = world.writes
    assert world.settle([PodCIDRs(config)]) == refusals
    assert world.writes == before, "a write at the fixpoint"
    return refusals


def after(*nodes: Node, config: ClusterConfig = DUAL) -> World:
    world = World()
    for one in nodes:
        world.put(one, 0)
    settled(world, config)
    return world


def the(world: World, name: str) -> Node:
    found = world.snapshot.get(Node, "", name)
    assert found is not None
    return found


def held(world: World) -> dict[str, str]:
    return {a.spec.value: a.spec.holder_name for a in world.snapshot.list(Allocation)}


def test_one_of_each_family_lowest_first() -> None:
    world = after(node("a"), node("b"))
    assert the(world, "a").pod_cidrs == ("10.244.0.0/24", "fd00:10:244::/64")
    assert the(world, "b").pod_cidrs == ("10.244.1.0/24", "fd00:10:244:1::/64")
    assert the(world, "a").spec.pod_cidr == "10.244.0.0/24"
    names = {a.name for a in world.snapshot.list(Allocation)}
    assert "podcidr.10.244.0.0-24" in names and "podcidr.fd00-10-244---64" in names


def test_a_deleted_node_gives_its_cidr_back_and_the_others_keep_theirs() -> None:
    world = after(node("a"), node("b"))
    world.delete(the(world, "a").key)
    settled(world)
    assert set(held(world).values()) == {"b"}
    world.put(node("c"), 0)
    settled(world)
    assert the(world, "c").pod_cidrs[0] == "10.244.0.0/24"
    assert the(world, "b").pod_cidrs[0] == "10.244.1.0/24"


def test_a_declared_cidr_is_honoured_and_the_missing_family_added() -> None:
    world = after(node("auto"), node("own", "10.244.0.0/24"), node("far", "192.168.7.0/25"))
    assert the(world, "own").pod_cidrs == ("10.244.0.0/24", the(world, "own").pod_cidrs[1])
    assert the(world, "auto").pod_cidrs[0] == "10.244.1.0/24"
    assert the(world, "far").pod_cidrs[0] == "192.168.7.0/25"
    assert held(world)["192.168.7.0/25"] == "far"


REFUSED = {
    "the service CIDR": (
        ("10.100.0.0/24",),
        "10.100.0.0/24 overlaps service CIDR 10.96.0.0/12",
    ),
    "another node's": (("10.244.0.0/24",), "overlaps 10.244.0.0/24 of Node first"),
    "a wider one": (("10.244.0.0/20",), "overlaps 10.244.0.0/24 of Node first"),
    "a narrower one": (("10.244.0.128/25",), "overlaps 10.244.0.0/24 of Node first"),
    "two of a family": (("10.9.0.0/24", "10.10.0.0/24"), "at most one CIDR per family"),
}


@pytest.mark.parametrize(("cidrs", "reason"), REFUSED.values(), ids=REFUSED)
def test_an_overlap_is_refused_on_the_node(cidrs: tuple[str, ...], reason: str) -> None:
    world = after(node("first"))
    world.put(node("second", *cidrs), 0)
    refusals = settled(world)
    assert reason in the(world, "second").refused
    assert reason in refusals[0]
    assert the(world, "second").pod_cidrs == cidrs
    assert the(world, "first").refused == ""


def test_a_refused_node_is_served_once_the_other_is_gone() -> None:
    world = after(node("first"))
    world.put(node("second", "10.244.0.0/24"), 0)
    assert settled(world)
    world.delete(the(world, "first").key)
    assert settled(world) == []
    assert the(world, "second").refused == "" and held(world)["10.244.0.0/24"] == "second"


def test_exhaustion_names_the_range_and_its_use() -> None:
    world = after(*(node(n) for n in "abcde"), config=FOUR)
    full = [n for n in "abcde" if the(world, n).refused]
    assert len(full) == 1
    assert "cluster CIDR 10.244.0.0/22 is exhausted: all 4 node CIDRs of /24" in the(world, full[0]).refused
    world.delete(the(world, next(n for n in "abcde" if n not in full)).key)
    assert settled(world, FOUR) == []


def test_a_node_keeps_its_cidr_when_the_cluster_cidr_changes() -> None:
    world = after(node("a"), config=FOUR)
    settled(world, ClusterConfig(("172.20.0.0/16",)))
    assert the(world, "a").pod_cidrs == ("10.244.0.0/24",)


def test_of_two_overlapping_claims_made_at_once_the_older_stands() -> None:
    """Agents that cannot see each other yet: their claims have different names, so both succeed."""
    world = World()
    world.put(node("a"), 0)
    world.put(node("b", "10.244.0.0/23"), 0)
    config = ClusterConfig(("10.244.0.0/16",))
    controller = PodCIDRs(config)
    blind = world.snapshot.with_delete(node("b").key)
    scopes = sorted(controller.scopes(None, world.snapshot))
    for_a, for_b = controller.decide(scopes[0], blind), controller.decide(scopes[1], world.snapshot)
    for write in (*for_a, *for_b):
        world.write(write)
    assert held(world) == {"10.244.0.0/24": "a", "10.244.0.0/23": "b"}
    settled(world, config)
    assert the(world, "a").pod_cidrs == ("10.244.0.0/24",)
    assert "overlaps 10.244.0.0/24 of Node a" in the(world, "b").refused


def test_what_others_wrote_to_the_node_stays() -> None:
    mine = node("a")
    world = after(amend(mine, spec=amend(mine.spec, unschedulable=True)))
    assert the(world, "a").spec.unschedulable and the(world, "a").pod_cidrs

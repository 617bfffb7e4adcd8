"""ClusterIPs and node ports as users see them: on the Service, or as a reason on the Service."""

from __future__ import annotations

import time
from typing import Any

import pytest

from netplane.cluster.addresses import Addresses
from netplane.cluster.config import ClusterConfig
from netplane.model.changes import Delete
from netplane.model.codec import parse
from netplane.model.errors import Conflict
from netplane.model.facts import Scope
from netplane.model.own import Allocation
from netplane.model.services import Service
from netplane.model.snapshot import Snapshot
from tests.cluster_world import World

DUAL = ClusterConfig(service_cidrs=("10.96.0.0/16", "fd00:96::/112"))
V4 = ClusterConfig(service_cidrs=("10.96.0.0/16",))
TINY = ClusterConfig(service_cidrs=("10.96.0.0/30",), node_port_range=(30000, 30001))


def service(name: str = "web", namespace: str = "default", **spec: Any) -> Service:
    spec.setdefault("ports", [{"port": 80}])
    if spec.get("type") == "ExternalName":
        spec.pop("ports")
    manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}}
    made = parse({**manifest, "spec": spec})
    assert isinstance(made, Service)
    return made


def settled(world: World, config: ClusterConfig = DUAL) -> list[str]:
    refusals = world.settle([Addresses(config)])
    before = world.writes
    assert world.settle([Addresses(config)]) == refusals
    assert world.writes == before, "a write at the fixpoint"
    return refusals


def after(*services: Service, config: ClusterConfig = DUAL) -> World:
    world = World()
    for one in services:
        world.put(one, 0)
    world.refusals = settled(world, config)  # type: ignore[attr-defined]
    return world


def the(world: World, name: str = "web", namespace: str = "default") -> Service:
    found = world.snapshot.get(Service, namespace, name)
    assert found is not None
    return found


def claims(world: World) -> dict[str, str]:
    return {a.name: a.spec.holder_name for a in world.snapshot.list(Allocation)}


FAMILIES = {
    "default is the first family": (DUAL, {}, ("IPv4",), "SingleStack"),
    "the other by name": (DUAL, {"ipFamilies": ["IPv6"]}, ("IPv6",), "SingleStack"),
    "both by name": (DUAL, {"ipFamilies": ["IPv6", "IPv4"]}, ("IPv6", "IPv4"), "RequireDualStack"),
    "prefer dual": (
        DUAL,
        {"ipFamilyPolicy": "PreferDualStack"},
        ("IPv4", "IPv6"),
        "PreferDualStack",
    ),
    "prefer dual, one is there": (V4, {"ipFamilyPolicy": "PreferDualStack"}, ("IPv4",), "PreferDualStack"),
    "require dual": (DUAL, {"ipFamilyPolicy": "RequireDualStack"}, ("IPv4", "IPv6"), "RequireDualStack"),
    "by address": (DUAL, {"clusterIP": "fd00:96::77"}, ("IPv6",), "SingleStack"),
    "single keeps the primary": (
        DUAL,
        {"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "SingleStack"},
        ("IPv6",),
        "SingleStack",
    ),
}


@pytest.mark.parametrize(("config", "spec", "names", "policy"), FAMILIES.values(), ids=FAMILIES)
def test_families_are_defaulted(
    config: ClusterConfig, spec: dict[str, Any], names: tuple[str, ...], policy: str
) -> None:
    got = the(after(service(**spec), config=config)).spec
    assert (got.ip_families, got.ip_family_policy) == (names, policy)
    assert tuple("IPv6" if ":" in ip else "IPv4" for ip in got.cluster_ips) == names
    assert got.cluster_ip == got.cluster_ips[0]


def test_a_headless_service_gets_families_and_no_address() -> None:
    world = after(
        service("a", clusterIP="None", selector={"app": "a"}),
        service("b", clusterIP="None"),
        config=V4,
    )
    assert the(world, "a").spec.cluster_ips == ("None",)
    assert the(world, "a").spec.ip_families == ("IPv4",)
    assert the(world, "b").spec.ip_families == ("IPv4", "IPv6")  # its endpoints are the user's own
    assert claims(world) == {}


def test_an_external_name_gets_nothing() -> None:
    world = after(service(type="ExternalName", externalName="example.org"))
    assert claims(world) == {} and the(world).spec.ip_families == ()


REFUSED: dict[str, tuple[ClusterConfig, dict[str, Any], str]] = {
    "out of range": (DUAL, {"clusterIP": "10.97.0.1"}, "10.97.0.1 is not a usable address of service CIDR"),
    "network address": (DUAL, {"clusterIP": "10.96.0.0"}, "10.96.0.0 is not a usable address"),
    "broadcast address": (DUAL, {"clusterIP": "10.96.255.255"}, "10.96.255.255 is not a usable address"),
    "no such family": (V4, {"ipFamilies": ["IPv6"]}, "no service CIDR of IPv6 is configured, only of IPv4"),
    "dual in single": (V4, {"ipFamilyPolicy": "RequireDualStack"}, "needs a service CIDR of IPv6 as well"),
    "order": (
        DUAL,
        {"clusterIP": "10.96.0.9", "ipFamilies": ["IPv6"]},
        "10.96.0.9 stands where spec.ipFamilies says IPv6",
    ),
    "two of one family": (
        DUAL,
        {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "10.96.0.8"]},
        "are of one family",
    ),
    "no range at all": (ClusterConfig(), {}, "start the agent with --service-cidr"),
    "port out of range": (
        DUAL,
        {"type": "NodePort", "ports": [{"port": 80, "nodePort": 29999}]},
        "spec.ports[0].nodePort: 29999 is outside of the node port range 30000-32767",
    ),
}


@pytest.mark.parametrize(("config", "spec", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_on_the_service(
    config: ClusterConfig, spec: dict[str, Any], reason: str
) -> None:
    asked = service(**spec)
    world = after(asked, config=config)
    assert reason in the(world).refused
    assert the(world).spec == asked.spec  # nothing half applied
    assert claims(world) == {}
    assert reason in world.refusals[0]  # type: ignore[attr-defined]


def test_a_taken_address_and_port_name_their_holder_and_are_granted_once_free() -> None:
    ports = [{"port": 80, "nodePort": 30080}]
    first = service("first", clusterIP="10.96.0.50", type="NodePort", ports=ports)
    world = after(first, service("second", "other", clusterIP="10.96.0.50", type="NodePort", ports=ports))
    refused = the(world, "second", "other").refused
    assert "spec.clusterIP: 10.96.0.50 is taken by Service default/first" in refused
    assert "30080/tcp is taken by Service default/first" in refused
    world.delete(the(world, "first").key)
    assert settled(world) == []
    assert the(world, "second", "other").refused == ""
    assert set(claims(world).values()) == {"second"}


def test_a_port_of_another_protocol_is_another_port() -> None:
    ports = [
        {"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30053},
        {"name": "t", "port": 53, "nodePort": 30053},
    ]
    world = after(service("dns", type="NodePort", ports=ports))
    assert {"nodeport.udp.30053", "nodeport.tcp.30053"} < set(claims(world))


def test_automatic_node_ports_of_one_port_number_agree_across_protocols() -> None:
    ports = [{"name": "u", "port": 53, "protocol": "UDP"}, {"name": "t", "port": 53}]
    world = after(service("dns", type="NodePort", ports=ports))
    got = the(world, "dns").spec.ports
    assert got[0].node_port == got[1].node_port >= 30000 + 86  # beyond the band for explicit requests


def test_a_port_named_for_one_protocol_is_the_others_too_where_it_is_free() -> None:
    ports = [{"name": "a", "port": 53, "protocol": "UDP"}, {"name": "b", "port": 53, "nodePort": 30053}]
    other = {"name": "c", "port": 54}
    world = after(service(type="NodePort", ports=[*ports, other]))
    first, second, third = (p.node_port for p in the(world).spec.ports)
    assert first == second == 30053 != third
    taken = service("taken", type="NodePort", ports=[{"port": 1, "protocol": "UDP", "nodePort": 30053}])
    world = after(taken, service(type="NodePort", ports=ports))
    first, second = (p.node_port for p in the(world).spec.ports)
    assert first != second == 30053


def test_a_load_balancer_gets_a_health_check_port_and_node_ports_only_if_it_wants_them() -> None:
    local = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
    world = after(
        service("a", **local), service("b", type="LoadBalancer", allocateLoadBalancerNodePorts=False)
    )
    spec = the(world, "a").spec
    assert 30000 <= spec.health_check_node_port <= 32767
    assert spec.health_check_node_port != spec.ports[0].node_port
    assert the(world, "b").spec.ports[0].node_port == 0


def test_applying_the_manifest_anew_changes_nothing() -> None:
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
    asked = service(type="NodePort", ports=ports, ipFamilyPolicy="PreferDualStack")
    world = after(asked)
    before, held = the(world).spec, claims(world)
    world.put(asked)
    settled(world)
    assert the(world).spec == before and claims(world) == held


def test_a_port_removed_or_a_type_changed_gives_its_ports_back() -> None:
    world = after(service(type="NodePort", ports=[{"name": "a", "port": 80}, {"name": "b", "port": 81}]))
    world.put(service(type="NodePort", ports=[{"name": "a", "port": 80}]))
    settled(world)
    assert sum(name.startswith("nodeport") for name in claims(world)) == 1
    world.put(service())
    settled(world)
    assert [name.partition(".")[0] for name in claims(world)] == ["clusterip"]
    world.put(service(clusterIP="None"))
    settled(world)
    assert claims(world) == {}


def test_dual_stack_turned_single_gives_the_second_address_back() -> None:
    world = after(service(ipFamilyPolicy="RequireDualStack"))
    spec = the(world).spec
    again = service(
        clusterIP=spec.cluster_ip,
        clusterIPs=list(spec.cluster_ips),
        ipFamilies=list(spec.ip_families),
        ipFamilyPolicy="SingleStack",
    )
    world.put(again)
    settled(world)
    assert the(world).spec.cluster_ips == (spec.cluster_ip,)
    assert list(claims(world)) == [f"clusterip.{spec.cluster_ip}"]


def test_two_services_may_swap_their_addresses() -> None:
    world = after(service("a", clusterIP="10.96.0.5"), service("b", clusterIP="10.96.0.6"))
    world.put(service("a", clusterIP="10.96.0.6"))
    world.put(service("b", clusterIP="10.96.0.5"))
    assert settled(world) == []
    assert claims(world) == {"clusterip.10.96.0.6": "a", "clusterip.10.96.0.5": "b"}


def test_a_refused_wish_costs_no_other() -> None:
    """A new family policy that cannot be does not free the address that is in use."""
    world = after(service(), config=V4)
    used = the(world).spec.cluster_ip
    world.put(service(clusterIP=used, ipFamilyPolicy="RequireDualStack"))
    assert settled(world, V4) != []
    assert list(claims(world)) == [f"clusterip.{used}"]


def test_a_reused_name_is_a_new_holder() -> None:
    world = after(service(clusterIP="10.96.0.50"))
    old = world.delete(the(world).key)
    world.put(service(clusterIP="10.96.0.51"), 0)
    settled(world)
    held = list(world.snapshot.list(Allocation))
    assert [(a.spec.value, a.spec.holder_uid) for a in held] == [("10.96.0.51", the(world).metadata.uid)]
    assert held[0].spec.holder_uid != old.metadata.uid


def test_exhaustion_names_the_range_and_its_use_and_ends_with_a_deletion() -> None:
    world = after(*(service(n, type="NodePort") for n in "abc"), config=TINY)
    full = [n for n in "abc" if the(world, n).refused]
    assert len(full) == 1
    why = the(world, full[0]).refused
    assert "service CIDR 10.96.0.0/30 is exhausted: 2 of 2 addresses in use" in why
    assert "node port range 30000-30001 is exhausted: 2 of 2 tcp ports in use" in why
    world.delete(the(world, next(n for n in "abc" if n not in full)).key)
    assert settled(world, TINY) == []
    assert the(world, full[0]).spec.cluster_ip


def test_ipv6_addresses_that_end_in_zeros_have_names() -> None:
    config = ClusterConfig(service_cidrs=("fd00:96::/64",))
    world = after(service(clusterIP="fd00:96:0:0:1::"), config=config)
    assert the(world).spec.cluster_ip == "fd00:96:0:0:1::" and len(claims(world)) == 1


def test_allocation_stays_fast_with_30000_services() -> None:
    """A decision asks for names; it never walks the services."""
    controller = Addresses(ClusterConfig(service_cidrs=("10.96.0.0/16",)))
    snapshot = Snapshot.of(())
    for i in range(30_000):
        one = service(f"s{i}")
        snapshot = snapshot.with_put(one)
        for write in controller.decide(Scope("addresses", f"default/s{i}"), snapshot):
            snapshot = snapshot.with_put(write.object)  # type: ignore[union-attr]
        if i == 29_000:
            start = time.perf_counter()
    per_service = (time.perf_counter() - start) / 999
    assert snapshot.count(Allocation) == 30_000
    assert per_service < 0.002, f"{per_service * 1e6:.0f} µs a service"


def test_an_adopted_claim_is_safe_from_whoever_still_means_to_release_it() -> None:
    """Claimed, crashed, turned headless and back, while a slow agent acts on the headless moment."""
    controller, scope, world = Addresses(DUAL), Scope("addresses", "default/web"), World()
    world.put(service(), 0)
    world.write(controller.decide(scope, world.snapshot)[0])  # the claim alone, then a crash
    world.put(service(clusterIP="None"))
    (slow,) = [w for w in controller.decide(scope, world.snapshot) if isinstance(w, Delete)]
    world.put(service())
    settled(world)
    with pytest.raises(Conflict):
        world.write(slow)
    assert list(claims(world)) == [f"clusterip.{the(world).spec.cluster_ip}"]

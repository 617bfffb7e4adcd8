"""Services and slices → facts; events → scopes."""

from __future__ import annotations

import pytest

from netplane.model.base import Object, ObjectMeta, amend
from netplane.model.errors import Invalid
from netplane.model.facts import Chain, Element, Fact, HealthCheck, Scope, Set
from netplane.model.nodes import Namespace, Node
from netplane.model.own import ALLOCATED
from netplane.model.services import (
    ENDPOINT_MODE,
    HEADLESS,
    LOAD_BALANCING,
    MAGLEV_SLOTS,
    PROXY_NAME,
    PUBLISH_MODE,
    EndpointPort,
    LoadBalancerIngress,
    LoadBalancerStatus,
    ServicePort,
    ServiceStatus,
)
from netplane.model.snapshot import Snapshot
from netplane.services import ServicesRoom, affinity, chains, steps
from netplane.services.endpoints import Backend
from netplane.services.explain import explain
from netplane.services.maglev import table
from netplane.services.topology import ZONE
from tests.services_kit import endpoint, endpoints, load_balanced, service

ROOM = ServicesRoom(
    "n1", ("192.0.2.1", "2001:db8::1"), ("10.244.0.0/16", "fd01::/48"), ("10.96.0.0/16", "fd96::/112")
)
WEB = Scope("services", "default/web")
NODE_PORT = (ServicePort(port=80, target_port=8080, node_port=30080),)
TWO = endpoints(endpoint("10.244.1.5", "n1"), endpoint("10.244.2.5", "n2"))


def facts(*objects: Object) -> list[Fact]:
    return list(ROOM.render(WEB, Snapshot.of(objects)))


def elements(*objects: Object) -> dict[str, dict[tuple[str | int, ...], str]]:
    """{set: {key: value}} of the service, values joined by blanks."""
    found: dict[str, dict[tuple[str | int, ...], str]] = {}
    for fact in facts(*objects):
        if isinstance(fact, Element):
            found.setdefault(fact.of, {})[fact.item] = " ".join(map(str, fact.value or ()))
    return found


def names(*objects: Object) -> set[str]:
    return {fact.name for fact in facts(*objects) if isinstance(fact, Chain)}


def test_a_virtual_ip_is_one_verdict_and_a_slot_for_each_endpoint() -> None:
    assert elements(service(), TWO) == {
        "svc-cluster-ips4": {("10.96.0.1",): ""},
        "svc-services4": {("10.96.0.1", "tcp", 80): "1:2"},
        "svc-endpoints4-tcp": {
            ("10.96.0.1", 80, 0): "10.244.1.5 8080",
            ("10.96.0.1", 80, 1): "10.244.2.5 8080",
        },
        "svc-chains4": {("tcp", "1:2"): "goto svc-lb4-tcp-2"},
        "svc-hairpin4": {("10.244.1.5", "10.244.1.5"): ""},
    }
    assert names(service(), TWO) == {"svc-lb4-tcp-2"}


def test_both_families_are_the_same() -> None:
    dual = service(ips=("10.96.0.1", "fd96::1"))
    found = elements(dual, TWO, endpoints(endpoint("fd01::5", "n1")))
    assert found["svc-services6"] == {("fd96::1", "tcp", 80): "1:1"}
    assert found["svc-endpoints6-tcp"] == {("fd96::1", 80, 0): "fd01::5 8080"}
    assert found["svc-hairpin6"] == {("fd01::5", "fd01::5"): ""}


def test_a_node_port_is_a_frontend_on_each_address_of_the_node_and_masqueraded() -> None:
    found = elements(service(type="NodePort", ports=NODE_PORT), TWO)
    assert found["svc-services4"] == {
        ("10.96.0.1", "tcp", 80): "1:2",
        ("192.0.2.1", "tcp", 30080): "2:2",
    }
    assert found["svc-endpoints4-tcp"][("192.0.2.1", 30080, 1)] == "10.244.2.5 8080"
    assert found["svc-chains4"] == {
        ("tcp", "1:2"): "goto svc-lb4-tcp-2",
        ("tcp", "2:2"): "goto svc-ext4-tcp-2",
    }
    assert "svc-services6" not in found  # an IPv4 service has no IPv6 node port


def test_external_and_load_balancer_addresses_are_frontends_but_a_proxys_is_not() -> None:
    lb = service(type="LoadBalancer", external_ips=("198.51.100.7",))
    ingress = (
        LoadBalancerIngress(ip="198.51.100.8"),
        LoadBalancerIngress(ip="198.51.100.9", ip_mode="Proxy"),
    )
    lb = amend(lb, status=ServiceStatus(load_balancer=LoadBalancerStatus(ingress=ingress)))
    assert set(elements(lb, TWO)["svc-services4"]) == {
        (address, "tcp", 80) for address in ("10.96.0.1", "198.51.100.7", "198.51.100.8")
    }


def test_an_address_of_a_family_that_the_service_has_not_is_not_its_own() -> None:
    """As kube-proxy has it, of which each family has one of its own."""
    single = service(type="LoadBalancer", external_ips=("198.51.100.7", "2001:db8:8::7"))
    single = amend(single, status=load_balanced("198.51.100.8", "2001:db8:8::8"))
    found = elements(single, TWO)
    assert {key[0] for key in found["svc-services4"]} == {"10.96.0.1", "198.51.100.7", "198.51.100.8"}
    assert "svc-services6" not in found


def test_an_external_ip_that_is_the_load_balancers_too_is_guarded() -> None:
    both = service(
        type="LoadBalancer",
        external_ips=("198.51.100.8", "198.51.100.7"),
        load_balancer_source_ranges=("192.0.2.0/24",),
    )
    found = elements(amend(both, status=load_balanced("198.51.100.8")), TWO)["svc-services4"]
    assert found["198.51.100.8", "tcp", 80] == steps.GUARD
    assert found["198.51.100.7", "tcp", 80] == "2:2"


def test_a_class_counts_in_hexadecimal() -> None:
    many = endpoints(*(f"10.244.2.{i}" for i in range(1, 32)))
    assert elements(service(), many)["svc-services4"] == {("10.96.0.1", "tcp", 80): "1:1f"}
    assert names(service(), many) == {"svc-lb4-tcp-31"}


def test_no_endpoint_is_a_reject_and_an_address_stays_known() -> None:
    assert elements(service()) == {
        "svc-cluster-ips4": {("10.96.0.1",): ""},
        "svc-services4": {("10.96.0.1", "tcp", 80): "3:1"},
    }


def test_policy_local_splits_by_source_keeps_the_clients_address_and_drops_without_an_endpoint() -> None:
    spec = {"type": "NodePort", "ports": NODE_PORT, "external_traffic_policy": "Local"}
    node = ("192.0.2.1", "tcp", 30080)
    found = elements(service(**spec), TWO)
    assert found["svc-services4"] == {node: steps.SPLIT, ("10.96.0.1", "tcp", 80): "1:2"}
    assert found["svc-next4"] == {(*node, steps.OUTSIDE): "1:1", (*node, steps.INSIDE): "5:2"}
    assert found["svc-endpoints4-tcp"][("192.0.2.1", 30080, 0)] == "10.244.1.5 8080"
    assert found["svc-endpoints4-tcp"][("192.0.2.1", 30080, chains.INSIDE_SLOTS + 1)] == "10.244.2.5 8080"
    away = endpoints(endpoint("10.244.2.5", "n2"))
    found = elements(service(**spec), away)
    assert found["svc-next4"] == {(*node, steps.OUTSIDE): "3:2", (*node, steps.INSIDE): "5:1"}
    assert elements(service(**spec))["svc-services4"][node] == "3:1"
    inside = service(internal_traffic_policy="Local")
    assert elements(inside, away)["svc-services4"] == {("10.96.0.1", "tcp", 80): "3:2"}


def test_protocols_have_maps_of_their_own_and_may_share_a_port() -> None:
    ports = tuple(ServicePort(port=53, name=p.lower(), protocol=p) for p in ("TCP", "UDP", "SCTP"))
    offered = [EndpointPort(port=5353 + i, name=p.name, protocol=p.protocol) for i, p in enumerate(ports)]
    found = elements(service(ports=ports), endpoints("10.244.1.5", ports=offered))
    for number, protocol in enumerate(("tcp", "udp", "sctp"), 5353):
        assert found["svc-services4"][("10.96.0.1", protocol, 53)] == "1:1"
        assert found[f"svc-endpoints4-{protocol}"] == {("10.96.0.1", 53, 0): f"10.244.1.5 {number}"}


UNSERVED = {
    "headless": service(ips=("None",)),
    "external name": service(ips=(), type="ExternalName", external_name="example.org"),
    "another proxy's": service(labels={PROXY_NAME: "mesh"}),
    "labelled headless": service(labels={HEADLESS: ""}),
    "without an address yet": service(ips=()),
    "refused": amend(
        service(),
        status=ServiceStatus(conditions=({"type": ALLOCATED, "status": "False", "message": "taken"},)),
    ),
}


@pytest.mark.parametrize("case", UNSERVED, ids=UNSERVED)
def test_what_is_not_served_has_no_frontend(case: str) -> None:
    assert "svc-services4" not in elements(UNSERVED[case], TWO)


@pytest.mark.parametrize("label", [PROXY_NAME, HEADLESS])
def test_a_slice_that_is_labelled_as_another_proxys_does_not_count(label: str) -> None:
    """kube-proxy asks for Services and EndpointSlices by the same labels."""
    other = endpoints("10.244.3.5", name="other")
    other = amend(other, metadata=amend(other.metadata, labels={**other.labels, label: ""}))
    assert elements(service(), TWO, other) == elements(service(), TWO)


def test_dnsrr_keeps_the_addresses_and_node_ports_that_the_service_holds() -> None:
    notes = {ENDPOINT_MODE: "dnsrr"}
    assert elements(service(annotations=notes), TWO) == elements(service(), TWO)
    only_port = service(ips=(), annotations=notes, type="NodePort", ports=NODE_PORT)
    assert elements(only_port, TWO)["svc-services4"] == {("192.0.2.1", "tcp", 30080): "2:2"}


def test_equal_counts_want_equal_chains_so_that_the_last_user_takes_it_away() -> None:
    other = Scope("services", "default/api")
    snapshot = Snapshot.of(
        [service(), TWO, service("api", ("10.96.0.2",)), endpoints("10.0.0.1", "10.0.0.2", of="api")]
    )
    mine, theirs = (
        {f for f in ROOM.render(scope, snapshot) if isinstance(f, Chain)} for scope in (WEB, other)
    )
    assert mine == theirs == {chains.spread("IPv4", "tcp", chains.LB, 2)}


def test_every_key_of_a_scope_is_wanted_once_or_the_same() -> None:
    twice = service(external_ips=("10.96.0.1", "192.0.2.1"), type="NodePort", ports=NODE_PORT)
    marks: dict[object, object] = {}
    for fact in facts(twice, TWO):
        assert marks.setdefault(fact.key, fact.mark) == fact.mark


def test_a_service_that_is_gone_wants_nothing() -> None:
    assert facts(TWO) == []


def test_scopes_of_events() -> None:
    snapshot = Snapshot.of([service(), TWO])
    every = list(ROOM.scopes(None, snapshot))
    assert every[0] == Scope("services") and WEB in every and len(every) == 3
    assert list(ROOM.scopes((None, service()), snapshot)) == [WEB]
    assert list(ROOM.scopes((TWO, None), snapshot)) == [WEB]
    moved = endpoints("10.0.0.1", of="api", name=TWO.name)
    assert list(ROOM.scopes((TWO, moved), snapshot)) == [Scope("services", "default/api"), WEB]
    assert list(ROOM.scopes((None, Namespace()), snapshot)) == []


def test_a_base_without_cidrs_masquerades_and_drops_nothing_by_range() -> None:
    dispatch = next(f for f in chains.base((), ()) if f.key == ("chain", "svc-dispatch"))
    assert not any("drop" in rule or "mark" in rule for rule in dispatch.rules)


def test_the_base_names_every_set_that_services_use() -> None:
    ports = tuple(
        ServicePort(port=53, name=p.lower(), protocol=p, node_port=30053) for p in ("TCP", "UDP", "SCTP")
    )
    offered = [EndpointPort(port=53, name=p.name, protocol=p.protocol) for p in ports]
    spec = {"ports": ports, "type": "LoadBalancer", "load_balancer_source_ranges": ("0.0.0.0/0", "::/0")}
    status = load_balanced("198.51.100.8", "2001:db8:8::8")
    slices = [endpoints(endpoint(ip, "n1"), ports=offered) for ip in ("10.0.0.1", "fd01::1")]
    used: set[str] = set()
    for more in ({"session_affinity": "ClientIP"}, {"annotations": {PUBLISH_MODE: "ingress"}}):
        dual = service(ips=("10.96.0.1", "fd96::1"), **spec, **more)
        used |= set(elements(amend(dual, status=status), *slices))
    sets = {f.name: f for f in ROOM.render(Scope("services"), Snapshot()) if isinstance(f, Set)}
    from_packets = {name for name, f in sets.items() if "flags dynamic,timeout" in f.spec}
    assert used == set(sets) - from_packets


def test_an_endpoint_keeps_its_token_whoever_comes_and_goes() -> None:
    every = [(f"10.244.{i % 250}.{i // 250}", 8080) for i in range(3000)]
    names = affinity.tokens(every)
    assert len(set(names.values())) == len(every)
    some = affinity.tokens(every[::7])
    assert all(names[backend] == token for backend, token in some.items())


def test_affinity_classes_differ_by_timeout_count_and_list() -> None:
    asked = [
        (t, n, where) for t in (1, 10800, 86400) for n in (1, 2, affinity.MOST) for where in (False, True)
    ]
    assert len({affinity.klass(*one) for one in asked}) == len(asked)
    with pytest.raises(Invalid, match="sessionAffinity: 8192 endpoints of one port; it can be 8191 at most"):
        affinity.klass(10800, 8192, False)


def test_source_ranges_are_merged_and_let_a_node_use_the_address_that_it_holds() -> None:
    ranges = ("192.0.2.0/24 ", "192.0.2.128/25", "203.0.113.7/32", "2001:db8:1::/64")
    lb = service(type="LoadBalancer", load_balancer_source_ranges=ranges)
    found = elements(amend(lb, status=load_balanced("198.51.100.8")), TWO)
    key = ("198.51.100.8", "tcp", 80)
    assert set(found["svc-sources4"]) == {
        (*key, source) for source in ("192.0.2.0/24", "198.51.100.8", "203.0.113.7")
    }
    assert found["svc-services4"][key] == steps.GUARD
    assert found["svc-next4"] == {(*key, steps.GUARD): "2:2"}
    assert found["svc-services4"][("10.96.0.1", "tcp", 80)] == "1:2"


def maglev(count: int, size: int = 1009) -> tuple[Backend, ...]:
    return table(tuple((f"10.0.0.{i}", 80) for i in range(count)), size)


def test_consistent_slots_are_shared_evenly_and_few_change_hands() -> None:
    ten, nine = maglev(10), maglev(9)
    shares = [ten.count(backend) for backend in set(ten)]
    assert len(shares) == 10 and max(shares) - min(shares) <= 1
    left = sum(address == "10.0.0.9" for address, _ in ten)
    moved = sum(a != b for a, b in zip(ten, nine, strict=True))
    assert left <= moved <= left + len(ten) * 0.15  # the paper's figure 12: a few percent at 100 slots each
    modulo = sum(i % 10 != i % 9 for i in range(len(ten)))
    assert moved < modulo / 2


BAD_SLOTS = {
    "many": "'many'; it must be a prime from 3 to 65521",
    "256": "'256'; it must be a prime",
    "0": "'0'; it must be a prime",
}


@pytest.mark.parametrize("text", BAD_SLOTS)
def test_a_number_of_slots_that_cannot_be_is_refused_by_name(text: str) -> None:
    web = service(annotations={LOAD_BALANCING: "maglev", MAGLEV_SLOTS: text})
    with pytest.raises(
        Invalid, match=f"default/web: annotation netplane.io/maglev-slots is {BAD_SLOTS[text]}"
    ):
        facts(web, TWO)


def test_more_endpoints_than_slots_are_refused() -> None:
    web = service(annotations={LOAD_BALANCING: "maglev", MAGLEV_SLOTS: "3"})
    with pytest.raises(Invalid, match="4 endpoints do not fit into 3 slots"):
        facts(web, endpoints(*(f"10.0.0.{i}" for i in range(4))))


def test_modes_that_are_none_are_refused_by_name() -> None:
    notes = {PUBLISH_MODE: "global", LOAD_BALANCING: "rr", ENDPOINT_MODE: "dns"}
    paths = [path for path, _ in service(annotations=notes).check()]
    assert paths == [f"metadata.annotations[{n}]" for n in (ENDPOINT_MODE, PUBLISH_MODE, LOAD_BALANCING)]


def test_this_nodes_zone_touches_every_service_and_nothing_else_of_a_node_does() -> None:
    def node(name: str, **labels: str) -> Node:
        return Node(
            metadata=ObjectMeta(name=name, labels={k.replace("_", "/"): v for k, v in labels.items()})
        )

    old = node("n1")
    new = amend(old, metadata=amend(old.metadata, labels={ZONE: "z1"}))
    snapshot = Snapshot.of([service(), TWO])
    assert list(ROOM.scopes((old, new), snapshot)) == [WEB]
    assert list(ROOM.scopes((None, new), snapshot)) == [WEB]
    assert list(ROOM.scopes((old, node("n1", other="x")), snapshot)) == []
    elsewhere = amend(new, metadata=amend(new.metadata, name="n2"))
    assert list(ROOM.scopes((node("n2"), elsewhere), snapshot)) == []


def test_a_wrong_cidr_is_refused_by_name() -> None:
    with pytest.raises(Invalid, match=r"services: cluster_cidrs: '10.244.0.1/16' is not a CIDR.*host bits"):
        ServicesRoom("n1", cluster_cidrs=["10.244.0.1/16"])


def test_addresses_are_written_as_the_kernel_gives_them_back() -> None:
    shouting = service(ips=("FD96::1",), type="LoadBalancer", external_ips=("2001:DB8::7",))
    found = elements(amend(shouting, status=load_balanced("2001:db8:0::8")), endpoints("FD01::5"))
    assert {key[0] for key in found["svc-services6"]} == {"fd96::1", "2001:db8::7", "2001:db8::8"}
    assert set(found["svc-cluster-ips6"]) == {("fd96::1",)}
    assert set(found["svc-endpoints6-tcp"].values()) == {"fd01::5 8080"}


def test_a_load_balancers_status_that_is_no_address_is_refused_by_name() -> None:
    with pytest.raises(
        Invalid, match=r"default/web: status\.loadBalancer\.ingress: 'pending' is no IP address"
    ):
        facts(amend(service(type="LoadBalancer"), status=load_balanced("pending")), TWO)


def test_a_health_check_counts_who_can_answer_the_service() -> None:
    lb = service(type="LoadBalancer", external_traffic_policy="Local", health_check_node_port=31999)
    here = [endpoint(f"10.244.1.{n}", "n1") for n in (5, 5, 6)]
    count = HealthCheck(31999, "default", "web", 2)
    assert count in facts(lb, endpoints(*here))
    other = endpoints(*(endpoint(f"fd01::{n}", "n1") for n in range(1, 5)))
    named = amend(other, address_type="FQDN", endpoints=(endpoint("example.org", "n1"),))
    for slices in ((other,), (named,), (endpoints(*here, ports=[EndpointPort(port=None)]),)):
        assert amend(count, endpoints=0) in facts(lb, *slices)


@pytest.mark.parametrize(
    ("policy", "client", "masqueraded"),
    [
        ("Cluster", "10.244.9.9", True),
        ("Local", "10.244.9.9", False),
        ("Local", "192.0.2.1", True),
        ("Local", "203.0.113.9", False),
    ],
)
def test_explain_says_who_is_masqueraded(policy: str, client: str, masqueraded: bool) -> None:
    published = service(type="NodePort", ports=NODE_PORT, external_traffic_policy=policy)
    told = explain(ROOM, Snapshot.of([published, TWO]), client, "192.0.2.1:30080")
    assert told.verdict == "dnat"
    assert told.notes == ["masqueraded: the endpoint sees this node's address"] * masqueraded

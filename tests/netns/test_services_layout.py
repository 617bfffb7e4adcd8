"""The layout of the services' rules on the real kernel: constant chains, whatever there is to serve.

The network is that of services_net: client ══ node ── pods a, b, c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from netplane.kernel import netns
from netplane.model.base import Object, amend
from netplane.model.facts import Plan
from netplane.model.services import (
    LOAD_BALANCING,
    MAGLEV_SLOTS,
    EndpointPort,
    ServicePort,
)
from tests.netns.test_services_features import who
from tests.services_kit import endpoint, endpoints, load_balanced, service
from tests.services_net import NODE, VIP, Net, Node, pod_ip

pytestmark = pytest.mark.root


def crowd(count: int) -> list[Object]:
    """Services of every kind in turn, two endpoints each."""
    objects: list[Object] = []
    for n in range(count):
        name, ip = f"s{n}", f"10.96.{n // 250 + 1}.{n % 250 + 1}"
        spec: dict[str, Any] = {"ports": (ServicePort(port=80, node_port=30000 + n % 2768),)}
        if n % 5 == 0:
            spec |= {"session_affinity": "ClientIP"}
        if n % 5 == 1:
            spec |= {"external_traffic_policy": "Local"}
        if n % 5 == 2:
            spec |= {"annotations": {LOAD_BALANCING: "maglev", MAGLEV_SLOTS: "5"}}
        if n % 5 == 3:
            spec |= {"load_balancer_source_ranges": ("192.0.2.0/24",)}
        made = service(name, (ip,), type="LoadBalancer" if n < 2768 else "ClusterIP", **spec)
        objects.append(amend(made, status=load_balanced(f"198.18.{n // 250}.{n % 250 + 1}")))
        one, other = f"10.200.{n // 250}.{n % 250 + 1}", f"10.201.{n // 250}.{n % 250 + 1}"
        objects.append(endpoints(endpoint(one, "n1"), endpoint(other, "n2"), of=name))
    return objects


def test_the_number_of_chains_and_rules_is_the_same_with_10_and_3000_services(
    make_netns: Callable[[str], str],
) -> None:
    node = Node(make_netns("layout"), (NODE[4],))
    shape: dict[int, tuple[int, int]] = {}
    for count in (10, 3000):
        node.sync(*crowd(count))
        listed = netns.run(node.path, "nft", "-t", "list", "ruleset")  # -t: without elements
        shape[count] = listed.count("chain svc-"), listed.count("\n")
    assert shape[10] == shape[3000] and shape[10][0] > 30
    assert node.sync(*crowd(3000)) == Plan()


def test_hundreds_of_ports_and_thousands_of_endpoints(net: Net) -> None:
    ports = tuple(ServicePort(port=1000 + n, name=f"p{n}", target_port=8080) for n in range(300))
    offered = tuple(EndpointPort(name=p.name, port=8080) for p in ports)
    wide = service("wide", ("10.96.0.9",), ports=ports)
    many = [f"10.{200 + n // 62500}.{n // 250 % 250}.{n % 250 + 1}" for n in range(3000)]
    deep = service("deep", ("10.96.0.10",), session_affinity="ClientIP")
    net.node.sync(
        wide,
        endpoints(endpoint(pod_ip("b", 4), "n1"), of="wide", ports=offered),
        deep,
        endpoints(*many, of="deep"),
    )
    assert {who(net.tcp("a", "10.96.0.9", port)) for port in (1000, 1150, 1299)} == {"b"}
    chosen = endpoint(pod_ip("c", 4), "n1")
    net.node.sync(deep, endpoints(*many, of="deep", name="many"), endpoints(chosen, of="deep", name="one"))
    counted = netns.run(net.ns["node"], "nft", "list", "map", "inet", "netplane", "svc-tokens4-tcp").count(
        " . "
    )
    assert counted > 3000


def test_names_of_any_kind(net: Net) -> None:
    """Names are never part of a rule, so that none can break one."""
    for name in ("drop", "fwd", "a" * 63, "0-9", "svc-lb4-tcp-1"):
        net.node.sync(service(name, (VIP[4],)), endpoints(pod_ip("b", 4), of=name, name="x." + "y" * 200))
        assert who(net.tcp("a", VIP[4])) == "b"

"""One application by virtual IP, by DNS round robin and on the host, on two nodes with real agents.

outside ── wire ──┬── node-1 ── shop-1, client
                  └── node-2
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netplane.lab import Lab, Settings
from netplane.lab.place import Place
from netplane.lab.runner import until

EXAMPLE = Path(__file__).parents[2] / "docs/examples/publish.yaml"
pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]
NODES = {"IPv4": ("192.168.77.11", "192.168.77.12"), "IPv6": ("fd00:77::11", "fd00:77::12")}
OUTSIDE = {"IPv4": "192.168.77.1", "IPv6": "fd00:77::1"}
FAMILIES = pytest.mark.parametrize("family", ["IPv4", "IPv6"])


def ask(place: Place, *words: str | int) -> dict[str, Any]:
    process = place.probe(*words)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    return dict(json.loads(out.splitlines()[-1]))


@pytest.fixture(scope="module")
def shop(make_module_lab: Callable[..., Lab]) -> Lab:
    lab = make_module_lab()
    lab.start_agents()
    lab.apply(EXAMPLE)
    pod = lab.nodes[0].add_pod("shop-1", labels={"app": "shop"})
    lab.nodes[0].add_pod("client")  # has no labels, so it is nobody's endpoint
    server = pod.probe("serve", "shop-1", "--tcp", 8080)
    assert server.stdout and server.stdout.readline() == "ready\n"
    until(lambda: not ask(lab.outside, "connect", NODES["IPv6"][1], 30081, 1)["errors"], "node ports", 20)
    return lab


@FAMILIES
@pytest.mark.parametrize("port", [30080, 30081], ids=["virtual IP", "round robin"])
def test_every_node_answers_a_published_port(shop: Lab, family: str, port: int) -> None:
    near, far = (ask(shop.outside, "connect", node, port, 5) for node in NODES[family])
    assert near["names"] == far["names"] == {"shop-1": 5}
    assert near["peers"] == [OUTSIDE[family]], "the client's address is kept where the endpoint is"
    assert far["peers"] != [OUTSIDE[family]] and len(far["peers"]) == 1


@FAMILIES
def test_a_port_published_on_the_host_answers_where_the_pod_is_alone(shop: Lab, family: str) -> None:
    near, far = (ask(shop.outside, "connect", node, 30082, 1) for node in NODES[family])
    assert near["peers"] == [OUTSIDE[family]]
    assert "refused" in far["errors"][0]


@FAMILIES
def test_a_name_answers_its_virtual_ip_or_its_pods(shop: Lab, family: str) -> None:
    pod, client = sorted(shop.nodes[0].pods, key=lambda p: "client" in p.name)
    kind = {"IPv4": "A", "IPv6": "AAAA"}[family]
    vips = shop.get("service", "shop")["spec"]["clusterIPs"]
    for name, want in (("shop", vips), ("shop-rr", [pod.ip_of(family)])):
        found = ask(client, "resolve", client.resolvers[0], f"{name}.default.svc.cluster.local", kind)
        assert found["answers"][0] and set(found["answers"][0]) <= set(want)
        assert ask(client, "connect", found["answers"][0][0], {"shop": 80, "shop-rr": 8080}[name], 1)["names"]


def test_node_ports_answer_in_the_networks_that_the_agent_was_told(make_lab: Callable[..., Lab]) -> None:
    named, own = "192.168.77.99", NODES["IPv4"][0]
    lab = make_lab(nodes=1, settings=Settings(agent_args=("--node-port-addresses", f"{named}/32")))
    lab.nodes[0].run("ip", "addr", "add", f"{named}/24", "dev", "eth0")
    lab.start_agents()
    lab.apply(EXAMPLE)
    pod = lab.nodes[0].add_pod("shop-1", labels={"app": "shop"})
    server = pod.probe("serve", "shop-1", "--tcp", 8080)
    assert server.stdout and server.stdout.readline() == "ready\n"
    until(lambda: not ask(lab.outside, "connect", named, 30080, 1)["errors"], "node ports", 20)
    assert "refused" in ask(lab.outside, "connect", own, 30080, 1)["errors"][0]

"""The lab's pure parts: manifests of the examples, addresses, the wire's plan, CNI's words, the spread."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from netplane.lab import cni, wire
from netplane.lab.demo.job import Missed, spread
from netplane.lab.settings import Plan
from netplane.model.codec import parse_all
from netplane.model.errors import Invalid, Unavailable
from netplane.model.pods import Pod
from netplane.model.services import Service

EXAMPLES = sorted((Path(__file__).parents[2] / "docs/examples").rglob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_an_example_is_what_the_model_accepts(path: Path) -> None:
    assert parse_all(path.read_text(), str(path))


def test_the_examples_together_are_the_main_job() -> None:
    objects = [obj for path in EXAMPLES for obj in parse_all(path.read_text(), str(path))]
    services = {obj.name: obj for obj in objects if isinstance(obj, Service)}
    assert [port.name for port in services["web"].spec.ports] == ["http", "metrics"]
    assert services["peers"].headless and services["web-rr"].dnsrr
    assert services["web-public"].spec.ports[0].node_port == 30080
    web = [obj for obj in objects if isinstance(obj, Pod) and obj.labels.get("app") == "web"]
    assert sorted(pod.spec.node_name for pod in web) == ["node-1", "node-1", "node-2", "node-2"]


def test_a_plan_gives_the_addresses_of_its_families_in_order() -> None:
    assert Plan(2, ("IPv4", "IPv6")).node(1) == ("192.168.77.12", "fd00:77::12")
    assert Plan(2, ("IPv6",)).cluster_cidrs == ("fd00:10:244::/48",)
    with pytest.raises(Invalid, match="IPv4, IPv6 or both"):
        Plan(1, ("IPX",))


def test_a_node_routes_by_the_outside_and_the_outside_by_nobody() -> None:
    plan = Plan(1, ("IPv4", "IPv6"))
    node = list(wire.plan_addresses(plan.node(0), plan))
    assert "route add 0.0.0.0/0 via 192.168.77.1 dev eth0" in node
    assert "route add ::/0 via fd00:77::1 dev eth0" in node
    outside = list(wire.plan_addresses(plan.outside, plan, gateway=True))
    assert "address add 203.0.113.1/32 dev lo" in outside
    assert not [line for line in outside if line.startswith("route")]


@pytest.mark.parametrize(
    ("code", "kind"), [(11, Unavailable), (50, Unavailable), (7, Invalid), (100, Invalid)], ids=str
)
def test_a_plugins_error_says_what_it_said(code: int, kind: type[Exception]) -> None:
    said = f'{{"code": {code}, "msg": "no address left", "details": "10.244.0.0/24"}}'
    with pytest.raises(kind, match=rf"CNI ADD of web: no address left: 10.244.0.0/24 \(code {code}\)"):
        cni.read("ADD", "web", 1, said)


def test_a_plugin_that_prints_no_json_or_nothing_is_named() -> None:
    with pytest.raises(Invalid, match="printed no JSON: 'panic'"):
        cni.read("ADD", "web", 2, "panic")
    with pytest.raises(Invalid, match="CNI DEL of web: cannot connect"):
        cni.read("DEL", "web", 1, "", "cannot connect\n")
    assert cni.read("DEL", "web", 0, "") == {}


def test_a_pod_asks_the_results_servers_or_else_its_gateway() -> None:
    ips = [{"address": "10.244.0.5/24", "gateway": "10.244.0.1"}]
    assert cni.resolvers({"ips": ips}) == ("10.244.0.1",)
    assert cni.resolvers({"ips": ips, "dns": {"nameservers": ["10.96.0.10"]}}) == ("10.96.0.10",)


def test_chance_is_allowed_and_nothing_more() -> None:
    assert spread({"a": 140, "b": 160}, {"a", "b"}).startswith("140/160 of 300")
    with pytest.raises(Missed, match="uneven"):
        spread({"a": 80, "b": 220}, {"a", "b"})
    with pytest.raises(Missed, match="answers came from"):
        spread({"a": 300}, {"a", "b"})


def test_the_pytest_plugin_costs_nothing_until_it_is_used() -> None:
    import subprocess

    script = "import sys, netplane.lab.pytest_plugin; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    ours = {name for name in loaded.stdout.split() if name.startswith("netplane")}
    assert ours == {"netplane", "netplane.lab", "netplane.lab.pytest_plugin"}

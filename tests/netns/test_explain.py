"""`netplane explain` and the proxy's metrics and health, by a real agent.

outside ── wire ── node-1: agent with HTTP on 127.0.0.1:9081, npbr0 ── client, a
"""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.error
import urllib.request
from typing import Any

import pytest

from netplane.lab.settings import Settings
from netplane.model.base import Key, amend
from netplane.model.nodes import Node, Taint
from netplane.model.services import COUNT_PACKETS, Service
from tests.faults.test_services_live import World, eventually, vip

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def world(make_module_lab: Any) -> World:
    args = ("--rooms", "cni,services", "--http-listen", "127.0.0.1:9081")
    world = World(make_module_lab(nodes=1, settings=Settings(agent_args=args)))
    world.serve("web", vip(world, "IPv4", 1), "a")
    world.serve("empty", vip(world, "IPv4", 2))
    world.serve("far", vip(world, "IPv4", 3), internal_traffic_policy="Local")
    from tests.faults.test_services_live import OFFERED
    from tests.services_kit import endpoint, endpoints

    outside = {"external_ips": ("198.51.100.7",), "external_traffic_policy": "Local"}
    world.serve("away", vip(world, "IPv4", 4), **outside)
    for of in ("far", "away"):
        far = endpoints(endpoint("10.244.9.9", node="other"), of=of, name=f"{of}-1", ports=OFFERED)
        world.store.put(far)
    world.node.agent.wait()
    return world


def explain(world: World, *args: str) -> tuple[int, dict[str, Any], str]:
    program = str(world.lab.settings.programs.netplane)
    argv = [program, "explain", *args, "--run-dir", str(world.node.run_dir), "-o", "json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


@pytest.mark.parametrize(
    ("destination", "verdict", "reason"),
    [
        ("web:80", "dnat", "one of 1 endpoints"),
        ("default/web:dns/udp", "dnat", "one of 1 endpoints"),
        ("empty:web", "refuse", "no endpoint"),
        ("far:80", "drop", "none of its 1 endpoints is on node-1"),
        ("web:81", "refuse", "it has 80/tcp, 53/udp"),
        ("10.96.250.250:80", "drop", "no service holds it"),
        ("203.0.113.1:443", "pass", "no service's"),
    ],
)
def test_the_verdict_and_its_reason(world: World, destination: str, verdict: str, reason: str) -> None:
    code, found, err = explain(world, world.client.ip, destination)
    assert (code, found.get("verdict"), found.get("differs")) == (0, verdict, []), err
    assert reason in found["reason"]


def test_it_names_the_endpoint_that_answers_and_the_elements(world: World) -> None:
    _, found, _ = explain(world, world.client.ip, "web:80")
    assert found["endpoints"] == [[world.pods["a"].ip, 8080]] and found["service"] == "default/web:web"
    assert any(e.startswith("svc-services4: ") for e in found["elements"])
    assert any(world.pods["a"].ip in e for e in found["elements"])


@pytest.mark.parametrize(
    ("source", "destination", "words"),
    [
        ("10.0.0.1", "nosuch:80", "Service default/nosuch is not there"),
        ("nosuch", "web:80", "Pod default/nosuch is not there"),
        ("10.0.0.1", "web", "is not SERVICE:PORT"),
        ("10.0.0.1", "web:nosuch", "no port named"),
    ],
)
def test_what_cannot_be_explained_says_why(world: World, source: str, destination: str, words: str) -> None:
    code, _, err = explain(world, source, destination)
    assert code == 1 and words in err and len(err.splitlines()) == 1


def fetch(world: World, path: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:9081{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as exc:
            return exc.code, exc.read().decode()

    found: tuple[int, str] = world.node.python(get)
    return found


def value(world: World, name: str) -> float:
    lines = fetch(world, "/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_metrics_have_kube_proxys_names_and_count(world: World) -> None:
    before = value(world, "kubeproxy_sync_proxy_rules_endpoint_changes_total")
    world.turn("web", "b")
    world.turn("web", "a")
    eventually(lambda: value(world, "kubeproxy_sync_proxy_rules_endpoint_changes_total") >= before + 2)
    for name in (
        "kubeproxy_sync_proxy_rules_duration_seconds_count",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count",
        "kubeproxy_conntrack_reconciler_sync_duration_seconds_count",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_service_changes_total",
    ):
        assert value(world, name) > 0, name
    for policy in ("internal", "external"):
        nobody = f'kubeproxy_sync_proxy_rules_no_local_endpoints_total{{traffic_policy="{policy}"}}'
        eventually(lambda name=nobody: value(world, name) == 1)


def test_connections_and_drops_of_each_service_are_counted(world: World) -> None:
    web = 'netplane_service_connections_total{namespace="default",service="web"}'
    empty = 'netplane_service_drops_total{namespace="default",service="empty",verdict="refused"}'
    before = value(world, web), value(world, empty)
    for number in (1, 1, 1, 2):
        probe = world.client.probe("connect", vip(world, "IPv4", number), 80, 1)
        probe.communicate(timeout=10)
    assert value(world, web) == before[0] + 3
    assert value(world, empty) == before[1] + 1


def test_packets_are_counted_where_a_service_asks_for_it(world: World) -> None:
    name = 'netplane_service_packets_total{namespace="default",service="web"}'
    assert name not in fetch(world, "/metrics")[1] and "svc-count" not in world.table()
    held = world.store.get(Key("Service", "default", "web"))
    assert isinstance(held, Service)
    notes = {**held.metadata.annotations, COUNT_PACKETS: "on"}
    world.store.put(amend(held, metadata=amend(held.metadata, annotations=notes)))
    eventually(lambda: "svc-count-output" in world.table())

    def talk() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:  # one flow
            sock.settimeout(2)
            sock.connect((vip(world, "IPv4", 1), 53))
            for _ in range(20):
                sock.send(b"x")
                sock.recv(100)

    before = value(world, name)
    world.client.python(talk)
    world.node.python(talk)
    assert value(world, name) == before + 40
    world.store.put(amend(world.store.get(held.key), metadata=amend(held.metadata, resource_version="")))
    eventually(lambda: "svc-count" not in world.table())


def test_healthz_follows_the_node_and_livez_does_not(world: World) -> None:
    assert fetch(world, "/healthz")[0] == fetch(world, "/livez")[0] == 200
    node = world.store.get(Key("Node", "", "node-1"))
    assert isinstance(node, Node)
    taint = Taint(key="ToBeDeletedByClusterAutoscaler", effect="NoSchedule")
    world.store.put(amend(node, spec=amend(node.spec, taints=(taint,))))
    eventually(lambda: fetch(world, "/healthz")[0] == 503)
    assert fetch(world, "/livez")[0] == 200
    assert value(world, 'kubeproxy_proxy_healthz_total{code="503"}') > 0

"""A service under traffic while things go wrong: endpoints leave, somebody flushes, the agent dies.

outside (client) ── wire ── node-1: agent, npbr0 ── a, b   each answers on 8080 (tcp) and 5300 (udp)
"""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from netplane.kernel import netns
from netplane.kernel.nftables import NftDriver
from netplane.lab.settings import Settings
from netplane.model.base import Key, amend
from netplane.model.services import (
    EndpointPort,
    ServicePort,
)
from netplane.store import open_store
from tests.services_kit import endpoint, endpoints, load_balanced, service

pytestmark = pytest.mark.root

PORTS = (
    ServicePort(name="web", port=80, target_port=8080),
    ServicePort(name="dns", protocol="UDP", port=53, target_port=5300),
)
OFFERED = (EndpointPort(name="web", port=8080), EndpointPort(name="dns", protocol="UDP", port=5300))


def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, "it did not come about"
        time.sleep(0.01)
    return found


class World:
    """One node with its agent, two pods that answer, and the store, written to directly."""

    def __init__(self, lab: Any) -> None:
        self.lab, self.node = lab, lab.nodes[0]
        lab.start_agents()
        self.pods = {name: self.node.add_pod(name) for name in ("a", "b")}
        for name, pod in self.pods.items():
            server = pod.probe("serve", name, "--tcp", "8080", "--udp", "5300")
            assert server.stdout.readline() == "ready\n"
        self.client = self.node.add_pod("client")
        self.store = open_store(lab.store)

    def serve(self, name: str, vip: str, *pods: str, family: str = "IPv4", **spec: Any) -> None:
        """A service on 80/tcp and 53/udp with these pods as its endpoints, and the kernel has it."""
        self.turn(name, *pods, family=family)  # first: a service without endpoints is in force, too
        self.store.put(service(name, (vip,), ports=PORTS, **spec))
        eventually(lambda: vip in self.table())

    def turn(self, name: str, *pods: str, family: str = "IPv4") -> None:
        found = [endpoint(self.pods[p].ip_of(family), node="node-1") for p in pods]
        piece = endpoints(*found, of=name, name=f"{name}-1", ports=OFFERED)
        self.store.put(amend(piece, address_type=family))

    def table(self) -> str:
        return str(self.node.run("nft", "list", "table", "inet", "netplane", check=False))

    def words(self) -> list[str]:
        """The table without its order: elements are listed as they lie in the kernel's hash."""
        return sorted(self.table().replace(",", " ").split())

    def ask(self, sock: socket.socket, to: tuple[str, int]) -> str:
        """Who answers a datagram; "" for nobody."""
        try:
            sock.sendto(b"x", to)
            return sock.recv(100).decode().split()[0]
        except OSError:
            return ""


@pytest.fixture(scope="module")
def world(make_module_lab: Any) -> World:
    return World(make_module_lab(nodes=1, settings=Settings(agent_args=("--rooms", "cni,services"))))


def udp(world: World, family: str) -> socket.socket:
    kind = socket.AF_INET if family == "IPv4" else socket.AF_INET6
    sock = world.client.python(socket.socket, kind, socket.SOCK_DGRAM)
    sock.settimeout(0.2)
    return sock


def vip(world: World, family: str, number: int) -> str:
    cidrs = world.lab.plan.service_cidrs
    base = next(c for c in cidrs if (":" in c) == (family == "IPv6")).partition("/")[0]
    return (
        f"{base}{number:x}"
        if family == "IPv6"
        else f"{base.rpartition('.')[0].rpartition('.')[0]}.9.{number}"
    )


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_a_udp_flow_moves_when_its_endpoint_leaves_and_when_the_first_one_comes(
    world: World, family: str
) -> None:
    name, address = f"flow-{family.lower()}", vip(world, family, 1)
    world.serve(name, address, "a", family=family)
    with udp(world, family) as sock:  # one socket: one flow
        eventually(lambda: world.ask(sock, (address, 53)) == "a")
        world.turn(name, "b", family=family)
        eventually(lambda: world.ask(sock, (address, 53)) == "b")
        world.turn(name, family=family)  # nobody: refused, not sent on to b
        eventually(lambda: world.ask(sock, (address, 53)) == "")
        world.turn(name, "a", family=family)
        eventually(lambda: world.ask(sock, (address, 53)) == "a")
        world.store.delete(Key("Service", "default", name))
        eventually(lambda: world.ask(sock, (address, 53)) == "")


def test_a_udp_flow_to_a_node_port_moves_too(world: World) -> None:
    dns = amend(PORTS[1], node_port=30053)
    world.store.put(service("published", (vip(world, "IPv4", 7),), type="NodePort", ports=(PORTS[0], dns)))
    world.turn("published", "a")
    at = (world.node.addresses[0], 30053)
    sock = world.lab.outside.python(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(0.2)
    with sock:
        eventually(lambda: world.ask(sock, at) == "a")
        world.turn("published", "b")
        eventually(lambda: world.ask(sock, at) == "b")
        world.turn("published")
        eventually(lambda: world.ask(sock, at) == "")
        world.turn("published", "a")
        eventually(lambda: world.ask(sock, at) == "a")
    world.store.delete(Key("Service", "default", "published"))


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_a_udp_flow_follows_what_happened_while_the_agent_was_down(world: World, family: str) -> None:
    name, address = f"down-{family.lower()}", vip(world, family, 8)
    world.serve(name, address, "a", family=family)
    with udp(world, family) as sock:
        eventually(lambda: world.ask(sock, (address, 53)) == "a")
        world.node.agent.kill()
        world.turn(name, "b", family=family)
        world.node.agent.start().wait()
        eventually(lambda: world.ask(sock, (address, 53)) == "b")
        world.node.agent.kill()
        world.store.delete(Key("Service", "default", name))
        world.node.agent.start().wait()
        eventually(lambda: world.ask(sock, (address, 53)) == "")


def test_a_udp_flow_to_an_endpoint_that_stays_is_left_alone(world: World) -> None:
    address = vip(world, "IPv4", 2)
    world.serve("stay", address, "a")
    with udp(world, "IPv4") as sock:
        eventually(lambda: world.ask(sock, (address, 53)) == "a")
        world.turn("stay", "a", "b")
        eventually(lambda: f"{world.pods['b'].ip} . 5300" in world.table())
        assert {world.ask(sock, (address, 53)) for _ in range(20)} == {"a"}
    world.store.delete(Key("Service", "default", "stay"))


def test_a_tcp_connection_outlives_its_endpoints_departure_and_its_service(world: World) -> None:
    address = vip(world, "IPv4", 3)
    world.serve("tcp", address, "a")
    with world.client.python(socket.create_connection, (address, 80), 2) as conn:
        world.turn("tcp", "b")
        world.store.delete(Key("Service", "default", "tcp"))
        eventually(lambda: address not in world.table())
        assert conn.recv(100).startswith(b"a ")
        conn.sendall(b"still here")


def test_another_programs_flush_is_mended_within_a_second_or_so(world: World) -> None:
    address = vip(world, "IPv4", 4)
    world.serve("mend", address, "a")
    whole = world.words()
    for damage in (
        ("flush", "table", "inet", "netplane"),
        ("delete", "table", "inet", "netplane"),
        ("flush", "map", "inet", "netplane", "svc-services4"),
        ("add", "chain", "inet", "netplane", "intruder"),
    ):
        world.node.run("nft", *damage)
        eventually(lambda: world.words() == whole)
    world.store.delete(Key("Service", "default", "mend"))


def test_a_restart_with_rules_in_place_loses_no_connection(world: World) -> None:
    address = vip(world, "IPv4", 5)
    world.serve("steady", address, "a", "b")
    held = world.client.python(socket.create_connection, (address, 80), 2)
    stream = world.client.probe("stream", "tcp", address, "80")
    assert stream.stdout.readline() == "ready\n"
    fresh = world.client.probe("connect", address, "80", "5000")  # new ones, meanwhile
    for _ in range(3):
        world.node.agent.kill()
        world.node.agent.start().wait()
    out, _ = stream.communicate("", timeout=10)
    found = json.loads(out)
    with held:
        assert held.recv(100)
    assert not json.loads(fresh.communicate(timeout=30)[0])["errors"], "new connections"
    assert not found["lost"] and found["sent"] > 100, found
    world.store.delete(Key("Service", "default", "steady"))


def test_health_check_node_ports_answer_as_kube_proxys(world: World) -> None:
    spec = {"type": "LoadBalancer", "external_traffic_policy": "Local", "health_check_node_port": 31999}
    world.serve("lb", vip(world, "IPv4", 6), "a", "b", **spec)
    held = world.store.get(Key("Service", "default", "lb"))
    world.store.put(amend(held, status=load_balanced("192.0.2.99")))

    def fetch() -> tuple[int, str, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://{world.node.addresses[0]}:31999/", timeout=2) as answer:
                return answer.status, answer.headers["X-Load-Balancing-Endpoint-Weight"], json.load(answer)
        except urllib.error.HTTPError as exc:
            return exc.code, exc.headers["X-Load-Balancing-Endpoint-Weight"], json.load(exc)

    def asked() -> tuple[int, str, dict[str, Any]] | None:
        try:
            return world.lab.outside.python(fetch)
        except OSError:
            return None

    body = {
        "service": {"namespace": "default", "name": "lb"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    eventually(lambda: asked() == (200, "2", body))
    world.turn("lb")
    eventually(lambda: asked() == (503, "0", {**body, "localEndpoints": 0}))
    world.store.delete(Key("Service", "default", "lb"))
    eventually(lambda: asked() is None)


def test_an_agent_killed_in_the_middle_of_commits_leaves_whole_services_and_recovers(world: World) -> None:
    """Hundreds of services come; the agent is killed at five moments, and never seen half done."""
    for number in range(1, 251):
        address = vip(world, "IPv4", number).replace(".9.", ".10.")
        world.store.put(service(f"many{number}", (address,)))
        world.store.put(endpoints(world.pods["a"].ip, world.pods["b"].ip, of=f"many{number}"))
        if number % 50 == 0:
            world.node.agent.kill()
            assert_whole(world)
            world.node.agent.start()
    world.node.agent.wait()
    assert len(assert_whole(world)) >= 250


def assert_whole(world: World) -> set[str]:
    """Every address that has a class with two slots has both of them; all such addresses."""
    held = netns.call(world.node.netns, NftDriver).observe()
    load_balanced = {
        k[2][0] for k, mark in held.items() if k[:2] == ("element", "svc-services4") and mark == ("1:2",)
    }
    slots = {k[2] for k in held if k[:2] == ("element", "svc-endpoints4-tcp")}
    assert all((address, 80, slot) in slots for address in load_balanced for slot in (0, 1))
    return load_balanced

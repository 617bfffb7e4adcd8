"""Passive ejection by real agents: an endpoint that refuses or is silent goes, and comes back.

outside (client) ── wire ──┬── node-1: agent, npbr0 ── a, b, c, client
                           └── node-2: agent, npbr0 ── other
a, b and c answer on 8080 with their name; a test makes one refuse (no server) or silent (SYNs dropped).
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from netplane.health import read_status
from netplane.lab.settings import Settings
from netplane.model.base import Key, amend
from netplane.model.services import EJECTION_FAILURES, EJECTION_SECONDS, PASSIVE_EJECTION
from netplane.store import open_store
from tests.faults.test_services_live import eventually, vip
from tests.services_kit import endpoint, endpoints, service

pytestmark = pytest.mark.root

ON = {PASSIVE_EJECTION: "on", EJECTION_FAILURES: "3", EJECTION_SECONDS: "2"}


class Shop:
    """A lab with three pods that answer, and one service in each test."""

    def __init__(self, lab: Any) -> None:
        self.lab, self.node = lab, lab.nodes[0]
        lab.start_agents()
        self.pods = {name: self.node.add_pod(name) for name in ("a", "b", "c")}
        self.client, self.other = self.node.add_pod("client"), lab.nodes[1].add_pod("other")
        self.servers = {name: self.start(name) for name in self.pods}
        self.store = open_store(lab.store)
        self.number = 20

    def start(self, name: str) -> Any:
        server = self.pods[name].probe("serve", name, "--tcp", "8080")
        assert server.stdout.readline() == "ready\n"
        return server

    def refuse(self, name: str) -> None:
        self.servers[name].kill()
        self.servers[name].wait()

    def silence(self, name: str) -> None:
        self.pods[name].run(
            "nft", "add table inet t; add chain inet t c { type filter hook input priority 0; }"
        )
        self.pods[name].run("nft", "add rule inet t c tcp flags & (syn | ack) == syn drop")

    def mend(self, name: str) -> None:
        self.pods[name].run("nft", "delete", "table", "inet", "t", check=False)
        if self.servers[name].poll() is not None:
            self.servers[name] = self.start(name)

    def serve(self, *pods: str, family: str = "IPv4", **spec: Any) -> str:
        """A service that ejects, in force on both nodes; its address."""
        self.number += 1
        address = vip(self, family, self.number)
        name = f"shop{self.number}"
        notes = spec.pop("annotations", ON)
        found = [endpoint(self.pods[p].ip_of(family), node="node-1") for p in pods]
        self.store.put(amend(endpoints(*found, of=name), address_type=family))
        self.store.put(service(name, (address,), annotations=notes, **spec))
        for node in self.lab.nodes:
            eventually(lambda n=node: address in n.run("nft", "list", "table", "inet", "netplane"))
        return address

    def ask(self, address: str, place: Any = None, timeout: float = 2.0) -> str:
        """Who answers a connection: a name, "refused" or "silent" (as a busy machine is only for a while)."""

        def connect() -> str:
            try:
                with socket.create_connection((address, 80), timeout) as conn:
                    return conn.recv(64).decode().split()[0]
            except ConnectionRefusedError:
                return "refused"
            except TimeoutError:
                return "silent"

        return str((place or self.client).python(connect))

    def tally(self, address: str, number: int = 30, place: Any = None) -> Counter[str]:
        return Counter(self.ask(address, place) for _ in range(number))

    def ejected(self, node: int = 0) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = read_status(self.lab.nodes[node].run_dir)["ejected"]
        return found

    def met_while_out(self, address: str) -> set[str]:
        """Who answers while somebody is out, to ten connections at most; nobody, where it is over by now."""
        found: set[str] = set()
        for _ in range(10):
            answer = self.ask(address)
            if not self.ejected():
                break
            found.add(answer)
        return found

    def until_out(self, address: str, seconds: float = 12.0) -> dict[str, Any]:
        """Ask until the agent takes an endpoint out, and the kernel has heard; what the agent says of it."""

        def asked() -> dict[str, Any] | None:
            self.ask(address, timeout=0.2)
            return next(iter(self.ejected()), None)

        found: dict[str, Any] = eventually(asked, seconds)
        ip, _, port = found["endpoint"].rpartition(":")
        slot = f": {ip.strip('[]')} . {port}"
        eventually(lambda: slot not in self.node.run("nft", "list", "table", "inet", "netplane"))
        return found


@pytest.fixture(scope="module")
def lab_shop(make_module_lab: Any) -> Shop:
    args = ("--rooms", "cni,overlay,services", "--http-listen", "127.0.0.1:9082")
    return Shop(make_module_lab(nodes=2, settings=Settings(agent_args=args)))


@pytest.fixture
def shop(lab_shop: Shop) -> Iterator[Shop]:
    yield lab_shop
    for name in lab_shop.pods:
        lab_shop.mend(name)
    lab_shop.store.delete(Key("Service", "default", f"shop{lab_shop.number}"))
    eventually(lambda: not lab_shop.ejected())


@pytest.mark.parametrize(("fault", "family"), [("refuse", "IPv6"), ("silence", "IPv4")])
def test_an_endpoint_that_fails_goes_and_returns_when_its_time_is_over(
    shop: Shop, fault: str, family: str
) -> None:
    address = shop.serve("a", "b", "c", family=family)
    eventually(lambda: set(shop.tally(address, 10)) == {"a", "b", "c"})
    getattr(shop, fault)("b")
    found = shop.until_out(address)
    words = {"refuse": "connections in a row refused", "silence": "connections in a row without an answer"}
    assert words[fault] in found["reason"] and shop.pods["b"].ip_of(family) in found["endpoint"]
    met = eventually(lambda: shop.met_while_out(address))
    assert met <= {"a", "c"}, "nobody meets it any more"
    shop.mend("b")
    eventually(lambda: not shop.ejected(), 20)
    eventually(lambda: shop.ask(address) == "b")


def test_what_fails_again_stays_out_for_twice_as_long(shop: Shop) -> None:
    address = shop.serve("a", "b")
    shop.refuse("b")
    assert shop.until_out(address)["seconds"] <= 2
    eventually(lambda: not shop.ejected(), 20)
    assert shop.until_out(address)["seconds"] > 2


def test_all_fail_and_none_is_taken_out(shop: Shop) -> None:
    address = shop.serve("a", "b")
    for name in ("a", "b"):
        shop.refuse(name)
    assert set(shop.tally(address, 60)) == {"refused"}
    eventually(lambda: shop.ask(address) and len(shop.ejected()) == 2)
    assert shop.ask(address) == "refused"
    assert all(e["tried"] for e in shop.ejected())
    shop.mend("a")
    eventually(lambda: shop.ask(address) == "a")  # it is still tried, so it is found out
    eventually(lambda: set(shop.tally(address, 10)) == {"a"})


def test_other_nodes_judge_for_themselves(shop: Shop) -> None:
    address = shop.serve("a", "b", annotations={**ON, EJECTION_SECONDS: "60"})
    shop.refuse("b")
    shop.until_out(address)
    assert not shop.ejected(1)
    eventually(lambda: shop.ask(address, shop.other) == "refused")


def test_affinity_to_an_ejected_endpoint_goes(shop: Shop) -> None:
    long = {**ON, EJECTION_SECONDS: "4"}  # enough to meet another one: it is kept, so nobody fails again
    address = shop.serve("a", "b", "c", session_affinity="ClientIP", annotations=long)
    mine = shop.ask(address)
    assert set(shop.tally(address, 10)) == {mine}
    shop.refuse(mine)
    shop.until_out(address)
    (theirs,) = shop.met_while_out(address)
    assert theirs in {"a", "b", "c"} - {mine}
    shop.mend(mine)
    eventually(lambda: not shop.ejected(), 20)
    assert set(shop.tally(address, 10)) == {theirs}, "the new one is kept"


def test_without_the_annotation_nothing_is_counted_or_taken_out(shop: Shop) -> None:
    address = shop.serve("a", "b", annotations={})
    assert "svc-watch" not in shop.node.run("nft", "list", "table", "inet", "netplane")
    shop.refuse("b")
    assert set(shop.tally(address, 40)) == {"a", "refused"}
    assert not shop.ejected()


def test_connections_that_are_cut_later_are_no_failures(shop: Shop) -> None:
    address = shop.serve("a", "b")

    def cut() -> None:
        with socket.create_connection((address, 80), 1) as conn:
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset

    for _ in range(20):
        shop.client.python(cut)
    time.sleep(2.5)  # two looks
    assert not shop.ejected()


def test_people_and_programs_can_see_it(shop: Shop) -> None:
    address = shop.serve("a", "b", annotations={**ON, EJECTION_SECONDS: "60"})
    shop.refuse("b")
    name, place = f"shop{shop.number}", f"{shop.pods['b'].ip}:8080"
    shop.until_out(address)
    program, run_dir = str(shop.lab.settings.programs.netplane), str(shop.node.run_dir)

    def told(*words: str) -> str:
        return subprocess.run(
            [program, *words, "--run-dir", run_dir], capture_output=True, text=True, timeout=30, check=True
        ).stdout

    assert f"ejected      default/{name} {place}: " in told("status")
    assert f"Ejected here:    {place} (" in told("describe", "service", name, "--store", shop.lab.store)
    found = json.loads(told("explain", shop.client.ip, f"{name}:80", "-o", "json"))
    assert found["endpoints"] == [[shop.pods["a"].ip, 8080]] and found["differs"] == []
    assert any("is out of rotation: " in note for note in found["notes"])

    def fetch() -> str:
        with urllib.request.urlopen("http://127.0.0.1:9082/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    labels = f'{{namespace="default",service="{name}"}}'
    metrics = shop.node.python(fetch)
    assert f"netplane_service_ejections_total{labels} 1.0" in metrics
    assert f"netplane_service_ejected_endpoints{labels} 1.0" in metrics


def test_a_restart_gives_every_endpoint_another_chance(shop: Shop) -> None:
    address = shop.serve("a", "b", annotations={**ON, EJECTION_SECONDS: "60"})
    shop.refuse("b")
    shop.until_out(address)
    shop.node.agent.kill()
    assert set(shop.tally(address, 20)) == {"a"}, "the kernel goes on without the agent"
    shop.mend("b")
    shop.node.agent.start().wait()
    eventually(lambda: shop.ask(address) == "b")

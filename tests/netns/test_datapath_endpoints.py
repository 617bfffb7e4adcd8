"""An endpoint that goes in the middle of a flow, with the fast path and without: how soon the flow follows.

a ── npbr0 (node-1) ── b        the service's first endpoint, then its only one
             └── wire ── node-2 ── far
"""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from typing import Any

import pytest

from netplane.lab import Lab
from netplane.lab.settings import Settings
from netplane.model.services import EndpointPort, ServicePort
from netplane.store import open_store
from tests.services_kit import endpoint, endpoints, service

from ..datapath_world import Echo, eventually, remembered, talk, verdicts, wait_hooked

pytestmark = pytest.mark.root
VIPS = {"IPv4": "10.96.0.44", "IPv6": "fd00:10:96::44"}
PORT = (ServicePort(name="udp", protocol="UDP", port=53, target_port=5300),)
OFFERED = (EndpointPort(name="udp", protocol="UDP", port=5300),)
ROUNDS = 5


class World:
    def __init__(self, make_lab: Any, mode: str) -> None:
        settings = Settings(agent_args=("--datapath", mode))
        self.lab: Lab = make_lab(nodes=2, dual_stack=True, settings=settings)
        self.lab.start_agents()
        near, far = self.lab.nodes
        self.a, self.b, self.far = near.add_pod("a"), near.add_pod("b"), far.add_pod("far")
        self.echoes = {name: Echo(place) for name, place in (("b", self.b), ("far", self.far))}
        if mode == "fast":
            wait_hooked(self.lab)

    def offer(self, store: Any, pod: Any, family: str) -> None:
        name = f"s-{family.lower()}"
        place = endpoint(pod.ip_of(family), node=pod.node.name)
        store.put(endpoints(place, of=name, name=name, ports=OFFERED))

    def moved_after(self, family: str) -> float:
        """Seconds from the change's way into the store to the first answer of the other endpoint."""
        with closing(open_store(self.lab.store)) as store:
            store.put(service(f"s-{family.lower()}", (VIPS[family],), ports=PORT))
            self.offer(store, self.b, family)
            for node in self.lab.nodes:
                node.agent.wait()
            with talk(self.a, VIPS[family], 53, "udp") as flow:
                eventually(lambda: flow.answered(0.3), what="an answer of the first endpoint")
                for _ in range(50):
                    flow.say()
                self.echoes["far"].peers.clear()
                begin = time.monotonic()
                self.offer(store, self.far, family)
                own = self.a.ip_of(family)
                eventually(lambda: flow.answered(0.005) and own in self.echoes["far"].peers, what="a move")
                took = time.monotonic() - begin
                if remembered_of := self.carried(flow.port):
                    assert {one["new_destination"] for one in remembered_of} <= {own, self.far.ip_of(family)}
                return took

    def carried(self, port: int) -> list[dict[str, Any]]:
        if "kernel" in self.lab.settings.agent_args:
            return []
        return [one for one in remembered(self.lab.nodes[0], port) if one["current"]]


@pytest.fixture(scope="module")
def worlds(make_module_lab: Any) -> tuple[World, World]:
    return World(make_module_lab, "fast"), World(make_module_lab, "kernel")


@pytest.mark.parametrize("family", VIPS)
def test_a_flow_follows_its_endpoints_as_fast_as_on_the_kernel_path(
    worlds: tuple[World, World], family: str
) -> None:
    fast, kernel = [], []
    before = verdicts(worlds[0].lab.nodes[0])["fast"]
    for _ in range(ROUNDS):
        fast.append(worlds[0].moved_after(family))
        kernel.append(worlds[1].moved_after(family))
    assert statistics.median(fast) <= statistics.median(kernel) + 0.05, (fast, kernel)
    assert verdicts(worlds[0].lab.nodes[0])["fast"] > before + 50 * ROUNDS
    print(family, "fast, kernel: ms", *(round(statistics.median(x) * 1e3, 1) for x in (fast, kernel)))

"""Thousands of random changes of services, in random order, against a rendering from scratch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from netplane.model.base import Object, amend
from netplane.model.services import (
    LOAD_BALANCING,
    MAGLEV_SLOTS,
    PUBLISH_MODE,
    ClientIPConfig,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Service,
    ServicePort,
    SessionAffinityConfig,
)

from ..services_kit import endpoint, endpoints, load_balanced, service
from .services_world import ServicesWorld

pytestmark = pytest.mark.root

NAMES = [f"s{n}" for n in range(1, 41)]
PORTS = {
    "web": EndpointPort(name="web", port=8080),
    "dns": EndpointPort(name="dns", protocol="UDP", port=5300),
    "call": EndpointPort(name="call", protocol="SCTP", port=9000),
}


@pytest.fixture
def world(make_netns: Callable[[str], str]) -> Iterator[ServicesWorld]:
    world = ServicesWorld(make_netns("n"))
    yield world
    world.stop()


class Chance:
    """One random change at a time, of one service or one of its slices."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def change(self, world: ServicesWorld) -> None:
        objects = list(world.store.objects.values())
        if objects and self.dice.random() < 0.2:
            world.delete(self.dice.choice(objects))
        elif self.dice.random() < 0.3:
            world.write(self.service(self.dice.choice(NAMES)))
        else:
            world.write(self.slice(self.dice.choice([*NAMES, "nobody"])))

    def some(self, found: list[Any], least: int = 0) -> list[Any]:
        return self.dice.sample(found, self.dice.randint(least, len(found)))

    def service(self, name: str) -> Service:
        number, dice = int(name[1:]), self.dice
        node_port = dice.choice((0, 30000 + number))
        ports = {
            "web": ServicePort(name="web", port=dice.choice((80, 443)), node_port=node_port),
            "dns": ServicePort(name="dns", protocol="UDP", port=53),
            "call": ServicePort(name="call", protocol="SCTP", port=9),
        }
        spec: dict[str, Any] = {
            "type": "NodePort" if node_port else "ClusterIP",
            "external_traffic_policy": dice.choice(("Cluster", "Local")) if node_port else "Cluster",
            "internal_traffic_policy": dice.choice(("Cluster", "Cluster", "Local")),
            "external_ips": tuple(self.some([f"203.0.113.{number}", f"2001:db8:1::{number:x}"])),
            "labels": dice.choice(({}, {}, {}, {"service.kubernetes.io/service-proxy-name": "other"})),
        }
        ips = dice.choice((["10.96.1.{}"], ["fd96::1:{:x}"], ["10.96.1.{}", "fd96::1:{:x}"]))
        kept = tuple(ports[p] for p in self.some(list(ports), 1))
        if not any(p.node_port for p in kept):
            spec["type"] = "ClusterIP"
        return balanced(service(name, [ip.format(number) for ip in ips], ports=kept, **spec | self.wishes()))

    def wishes(self) -> dict[str, Any]:
        """How the endpoints are to be drawn, and who may ask."""
        dice = self.dice
        timeout = ClientIPConfig(timeout_seconds=dice.choice((60, 10800)))
        return {
            "session_affinity": dice.choice(("None", "None", "ClientIP")),
            "session_affinity_config": SessionAffinityConfig(client_ip=timeout),
            "load_balancer_source_ranges": tuple(
                self.some(["192.0.2.0/25", "192.0.2.0/24", "2001:db8::/64"])
            ),
            "annotations": dice.choice(
                (
                    {},
                    {PUBLISH_MODE: "ingress"},
                    {PUBLISH_MODE: "host"},
                    {LOAD_BALANCING: "maglev", MAGLEV_SLOTS: "17"},
                )
            ),
        }

    def slice(self, of: str) -> EndpointSlice:
        family = self.dice.choice(("10.244.0.{}", "fd01::{:x}"))
        pods = [self.pod(family.format(n + 1)) for n in self.some(list(range(8)))]
        name = f"{of}-{'v6' if ':' in family else 'v4'}-{self.dice.choice('ab')}"
        found = endpoints(*pods, of=of, name=name, ports=[PORTS[p] for p in self.some(list(PORTS), 1)])
        return amend(found, address_type="IPv6" if ":" in family else "IPv4")

    def pod(self, address: str) -> Endpoint:
        conditions = {
            "ready": self.dice.choice((True, True, None, False)),
            "serving": self.dice.choice((True, None, False)),
            "terminating": self.dice.choice((False, None, True)),
        }
        return endpoint(address, node=self.dice.choice(("n1", "n2", "")), **conditions)


def balanced(made: Service) -> Service:
    """A NodePort service as a load balancer's, with addresses of both families."""
    if made.spec.type != "NodePort":
        return made
    number = int(made.name[1:])
    status = load_balanced(f"198.51.100.{number}", f"2001:db8:2::{number:x}")
    return amend(made, spec=amend(made.spec, type="LoadBalancer"), status=status)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_every_batch_the_kernel_is_what_a_rendering_from_scratch_says(
    world: ServicesWorld, seed: int
) -> None:
    chance = Chance(seed)
    for batch in range(25):
        for _ in range(chance.dice.choice((1, 5, 50, 150))):
            chance.change(world)
        status = world.settle()
        assert not status["rooms"]["services"]["failing"], status
        assert world.held() == world.rendered(), f"seed {seed}, batch {batch}"
        if batch % 10 == 9:
            world.stop()
            world.start()


def everything(chance: Chance) -> list[Object]:
    pieces = [chance.slice(name) for name in NAMES for _ in range(3)]
    return [*(chance.service(name) for name in NAMES), *pieces]


def test_the_order_in_which_objects_arrive_leaves_no_trace(world: ServicesWorld) -> None:
    chance = Chance(7)
    objects = {o.key: o for o in everything(chance)}
    found = []
    for _ in range(3):
        order = list(objects.values())
        chance.dice.shuffle(order)
        world.write(*order)
        world.settle()
        found.append(world.held())
        for obj in order:
            world.delete(obj)
        world.settle()
        assert world.held() == world.rendered()
    assert found[0] == found[1] == found[2]

"""What is wrong with one service stays with that service, on the real kernel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from netplane.kernel import netns
from netplane.model.base import amend
from netplane.model.services import (
    EndpointPort,
    ServicePort,
)

from ..sequences.services_world import ServicesWorld
from ..services_kit import endpoint, endpoints, load_balanced, service

pytestmark = pytest.mark.root


@pytest.fixture
def world(make_netns: Callable[[str], str]) -> Iterator[ServicesWorld]:
    world = ServicesWorld(make_netns("n"))
    yield world
    world.stop()


def vip(number: int) -> str:
    return f"10.96.{number >> 8}.{number & 255}"


def slots(world: ServicesWorld, address: str) -> list[object]:
    """Where the kernel sends flows to an address, slot by slot."""
    held = world.held().items()
    return [
        mark
        for key, mark in sorted(held, key=str)
        if key[:2] == ("element", "svc-endpoints4-tcp") and key[2][0] == address
    ]


def test_two_services_that_ask_for_one_address_the_first_keeps_it_and_the_second_is_named(
    world: ServicesWorld,
) -> None:
    world.write(service("first", [vip(9)]), endpoints("10.244.0.1", of="first"))
    world.settle()
    world.write(service("second", [vip(9)]), endpoints("10.244.0.2", of="second"))
    world.write(service("third", [vip(10)]), endpoints("10.244.0.3", of="third"))
    world.until(world.failing)
    assert list(world.failing()) == ["default/second"]
    assert (
        "default/first" in world.failing()["default/second"] and vip(9) in world.failing()["default/second"]
    )
    world.until(lambda: slots(world, vip(10)))
    assert slots(world, vip(9)) == [("10.244.0.1", 8080)]
    world.delete(service("first"))
    world.until(lambda: not world.failing())
    assert slots(world, vip(9)) == [("10.244.0.2", 8080)]


def test_two_services_that_ask_for_one_node_port(world: ServicesWorld) -> None:
    port = ServicePort(port=80, target_port=8080, node_port=30080)
    for number, name in enumerate(("first", "second"), 1):
        world.write(service(name, [vip(number)], type="NodePort", ports=(port,)))
        world.write(endpoints(f"10.244.0.{number}", of=name))
        world.until(lambda: slots(world, vip(1)))
    world.until(world.failing)
    assert list(world.failing()) == ["default/second"]
    assert "192.0.2.1" in world.failing()["default/second"]
    assert slots(world, "192.0.2.1") == [("10.244.0.1", 8080)]
    assert slots(world, vip(2)) == [], "a service is there whole or not at all"


def test_a_slice_that_refers_to_nothing_waits_for_its_service(world: ServicesWorld) -> None:
    world.write(endpoints("10.244.0.1", of="late"))
    world.settle()
    assert world.held() == world.rendered()
    world.write(service("late", [vip(3)]))
    world.settle()
    assert slots(world, vip(3)) == [("10.244.0.1", 8080)]


def test_endpoints_anywhere_are_served(world: ServicesWorld) -> None:
    """Outside any pod CIDR: a machine of the office, as Endpoints without a selector are used."""
    world.write(service("out", [vip(4)]), endpoints("198.51.100.7", "10.244.0.1", of="out"))
    status = world.settle()
    assert not status["rooms"]["services"]["failing"]
    assert slots(world, vip(4)) == [("10.244.0.1", 8080), ("198.51.100.7", 8080)]


def test_the_one_service_that_nft_refuses_is_named_and_the_others_go_on(world: ServicesWorld) -> None:
    """An address that no store would let pass stands for whatever a kernel may refuse."""
    world.write(service("good", [vip(1)]), endpoints("10.244.0.1", of="good"))
    world.settle()
    bad = amend(endpoints("10.244.0.1", of="s700"), endpoints=(endpoint("10.244.0.300"),))
    for number in range(2, 1500):
        piece = endpoints("10.244.0.1", "10.244.0.2", of=f"s{number}")
        world.write(service(f"s{number}", [vip(number)]), bad if number == 700 else piece)
    world.until(lambda: world.failing() and slots(world, vip(1499)), 20)
    assert list(world.failing()) == ["default/s700"]
    assert "10.244.0.300" in world.failing()["default/s700"], "nft's own words"
    assert world.held() == {
        key: mark
        for key, mark in world.rendered(bad.key).items()
        if not (key[0] == "element" and vip(700) in key[2])
    }
    good = endpoints("10.244.0.9", of="s700")
    world.write(good)
    world.until(lambda: slots(world, vip(700)) == [("10.244.0.9", 8080)])
    assert not world.failing()


def test_a_refused_change_leaves_the_previous_state_in_force(world: ServicesWorld) -> None:
    world.write(service("web", [vip(1)]), endpoints("10.244.0.1", "10.244.0.2"))
    world.settle()
    before = slots(world, vip(1))
    world.write(endpoints("10.244.0.1", "10.244.0.300"))
    world.until(world.failing)
    assert slots(world, vip(1)) == before
    world.write(endpoints("10.244.0.5"))
    world.until(lambda: not world.failing())
    assert slots(world, vip(1)) == [("10.244.0.5", 8080)]


def test_thousands_of_changes_a_second_are_gathered_and_the_last_one_wins(world: ServicesWorld) -> None:
    names = [f"s{n}" for n in range(20)]
    for n, name in enumerate(names, 1):
        world.write(service(name, [vip(n)]), endpoints("10.244.0.1", of=name))
    world.settle()
    begin, transactions = time.monotonic(), generation(world)
    most = 0
    for turn in range(250):
        for name in names:
            world.write(endpoints(f"10.244.{turn}.7", of=name))
        most = max(most, world.core.status()["pending"])
    rate = 5000 / (time.monotonic() - begin)
    world.settle()
    assert all(slots(world, vip(n)) == [("10.244.249.7", 8080)] for n in range(1, 21))
    assert rate > 1000, f"{rate:.0f} changes a second"
    assert most <= 2 * len(names), "what waits is bounded by what there is, not by what happens"
    assert generation(world) - transactions < 2500


def generation(world: ServicesWorld) -> int:
    """How many transactions the namespace has seen."""
    return netns.call(world.path, lambda: world.driver._batches.generation())


def test_hundreds_of_ports_and_thousands_of_endpoints(world: ServicesWorld) -> None:
    ports = tuple(ServicePort(name=f"p{n}", port=n) for n in range(1, 301))
    offered = tuple(EndpointPort(name=f"p{n}", port=n) for n in range(1, 301))
    world.write(service("wide", [vip(1)], ports=ports), endpoints("10.244.0.1", of="wide", ports=offered))
    many = [f"10.244.{n >> 8}.{n & 255}" for n in range(2500)]
    world.write(service("deep", [vip(2)]))
    for part in range(25):
        world.write(endpoints(*many[part * 100 : part * 100 + 100], of="deep", name=f"deep-{part}"))
    world.settle()
    assert len(slots(world, vip(1))) == 300 and len(slots(world, vip(2))) == 2500
    assert world.held() == world.rendered()


def test_addresses_in_any_form_are_read_back_as_they_were_wanted(world: ServicesWorld) -> None:
    """RFC 5952 is how the kernel's are written; objects have them as people and controllers write them."""
    odd = service(
        "odd",
        ["FD96:0:0::0009"],
        type="LoadBalancer",
        external_ips=("2001:0DB8::0:7", "2001:db8:0:0:0:0:0:7", "::FFFF:198.51.100.7"),
        load_balancer_source_ranges=("2001:DB8:0::/48", "2001:db8:1:0::1/64"),
        ports=(ServicePort(port=80), ServicePort(name="dns", protocol="UDP", port=53)),
    )
    odd = amend(odd, status=load_balanced("2001:DB8::8:0:0", "2001:db8:0:0:0:8:0:0"))
    world.write(odd, endpoints("FD01::00A", "fd01:0::a", "fd01::b", of="odd"))
    status = world.settle()
    assert not status["rooms"]["services"]["failing"]
    held = world.held()
    assert held == world.rendered()
    places = {key[2][0] for key in held if key[:2] == ("element", "svc-services6")}
    assert {"fd96::9", "2001:db8::7", "2001:db8::8:0:0"} < places and len(places) == 4
    answered = {mark for key, mark in held.items() if key[:2] == ("element", "svc-endpoints6-tcp")}
    assert answered == {("fd01::a", 8080), ("fd01::b", 8080)}
    world.stop()
    world.start()
    world.settle()
    assert world.driver.plans == 0, "a restart finds nothing to change"

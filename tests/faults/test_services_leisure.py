"""What is compared at leisure: changes do not wait for it, and it does not forget them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

import pytest

from netplane.kernel import netns
from netplane.model.base import amend
from netplane.model.facts import FactKey, Mark, Plan
from netplane.reconcile import core, roomloop

from ..sequences.services_world import ServicesWorld
from ..services_kit import endpoint, endpoints, service

pytestmark = pytest.mark.root


@pytest.fixture
def world(make_netns: Callable[[str], str]) -> Iterator[ServicesWorld]:
    world = ServicesWorld(make_netns("n"))
    world.write(service("web", ["10.96.0.1"]), endpoints("10.244.0.1"))
    world.settle()
    yield world
    world.stop()


class Slow:
    """Makes the driver's next look at the kernel wait, before it or after it, until it may go on."""

    def __init__(self, world: ServicesWorld, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        look = world.driver.observe_beside

        def observe(expected: Iterable[FactKey]) -> Mapping[FactKey, Mark]:
            held = look(expected) if after else {}
            self.began.set()
            assert self.go.wait(30)
            return held if after else look(expected)

        monkeypatch.setattr(world.driver, "observe_beside", observe)


def slots(world: ServicesWorld) -> set[Mark]:
    return {mark for key, mark in world.held().items() if key[:2] == ("element", "svc-endpoints4-tcp")}


@pytest.mark.parametrize("after", [False, True], ids=["before it lists", "after it listed"])
def test_changes_go_on_while_everything_is_compared(
    world: ServicesWorld, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    slow = Slow(world, monkeypatch, after)
    world.core.resync()
    assert slow.began.wait(10)
    world.write(endpoints("10.244.0.2", "10.244.0.3"))
    world.until(lambda: slots(world) == {("10.244.0.2", 8080), ("10.244.0.3", 8080)})
    world.write(endpoints("10.244.0.4"))  # what came meanwhile goes again, too
    world.until(lambda: slots(world) == {("10.244.0.4", 8080)})
    assert world.core.status()["pending"], "it is not through"
    slow.go.set()
    world.settle()
    assert world.held() == world.rendered()
    world.write(service("more", ["10.96.0.2"]), endpoints("10.244.0.4", "10.244.0.5", of="more"))
    world.settle()
    assert world.held() == world.rendered() and not world.failing()


def test_a_change_made_by_another_program_while_it_compares_is_mended(world: ServicesWorld) -> None:
    for damage in ("flush map inet netplane svc-services4", "delete table inet netplane"):
        netns.run(world.path, "nft", *damage.split())
        world.core.resync()
        world.write(endpoints("10.244.0.7"))
        world.until(lambda: not world.core.status()["pending"] and world.held() == world.rendered())
        world.write(endpoints("10.244.0.1"))


def test_who_is_refused_again_and_again_costs_one_comparison(
    world: ServicesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roomloop, "DOUBT", 0.01)
    looks, tries = [0], [0]
    look, work = world.driver.observe_beside, world.driver.apply

    def observe(expected: Iterable[FactKey]) -> Mapping[FactKey, Mark]:
        looks[0] += 1
        return look(expected)

    def apply(plan: Plan) -> None:
        tries[0] += any("10.244.0.300" in str(fact) for fact in (*plan.add, *plan.change))
        work(plan)

    monkeypatch.setattr(world.driver, "observe_beside", observe)
    monkeypatch.setattr(world.driver, "apply", apply)
    world.write(service("bad", ["10.96.0.2"]))
    world.write(amend(endpoints("10.244.0.1", of="bad"), endpoints=(endpoint("10.244.0.300"),)))
    world.until(lambda: tries[0] >= 7, 20)
    assert list(world.failing()) == ["default/bad"]
    assert looks[0] <= 2, "the first refusal may mean that the kernel holds something else; the same one not"
    world.write(endpoints("10.244.0.9", of="bad"))
    world.until(lambda: not world.failing() and ("10.244.0.9", 8080) in slots(world))


def test_a_change_that_does_not_reach_the_kernel_makes_the_proxy_unhealthy(
    world: ServicesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What /livez and the health check ports say: kube-proxy's two sync periods, here a tenth of a second."""
    monkeypatch.setattr(core, "OVERDUE", 0.1)
    go, work = threading.Event(), world.driver.apply

    def stuck(plan: Plan) -> None:
        assert go.wait(30)
        work(plan)

    monkeypatch.setattr(world.driver, "apply", stuck)
    assert world.core.healthy()
    world.write(endpoints("10.244.0.2"))
    world.until(lambda: not world.core.healthy())
    go.set()
    world.until(world.core.healthy)
    assert slots(world) == {("10.244.0.2", 8080)}

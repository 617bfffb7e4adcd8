"""Plans that are carried out at once, by a driver that does several: what they share goes with the last."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import pytest

from netplane.model.errors import KernelError
from netplane.model.facts import Element, Fact, FactKey, Mark, Plan, Scope
from netplane.reconcile.settle import Settler

SHARED = Element(of="shared", item=("bridge",))
ONE, TWO, THREE = (Scope("cni", name) for name in ("one", "two", "three"))


def facts(scope: Scope) -> tuple[Fact, ...]:
    return SHARED, Element(of="own", item=(scope.name,))


class Held:
    """What a kernel holds; a plan that means what ``hold`` names stands still until `go`."""

    name = "held"
    accepts = (Element,)
    parallel = True

    def __init__(self) -> None:
        self.there: set[FactKey] = set()
        self.hold, self.fail = "", ""
        self.stands, self.open = threading.Event(), threading.Event()

    def observe(self) -> Mapping[FactKey, Mark]:
        return dict.fromkeys(self.there, "")

    def apply(self, plan: Plan) -> None:
        named = str([*plan.remove, *(fact.key for fact in (*plan.add, *plan.change))])
        if self.hold and self.hold in named:
            self.stands.set()
            assert self.open.wait(5)
        if self.fail and self.fail in named:
            raise KernelError(5, "refused")
        self.there.difference_update(plan.remove)
        self.there.update(fact.key for fact in (*plan.add, *plan.change))


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


class World:
    def __init__(self, *scopes: Scope) -> None:
        self.driver = Held()
        self.settler = Settler(self.driver)
        for scope in scopes:
            self.put(scope)

    def put(self, scope: Scope) -> bool:
        return not self.settler.settle({scope: facts(scope)})

    def drop(self, scope: Scope) -> bool:
        return not self.settler.settle({scope: ()})

    def standing(self, hold: str, work: Callable[[], object]) -> threading.Thread:
        """``work`` under way, at what names ``hold``."""
        self.driver.hold = hold
        thread = started(work)
        assert self.driver.stands.wait(5)
        return thread

    def go(self, *threads: threading.Thread) -> None:
        self.driver.open.set()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()


@pytest.fixture
def world() -> World:
    return World(ONE, TWO)


def test_of_two_that_leave_at_once_the_last_takes_away_what_they_shared(world: World) -> None:
    first = world.standing("one", lambda: world.drop(ONE))
    assert world.drop(TWO)
    world.go(first)
    assert world.driver.there == set() and not world.settler.ledger.have


def test_who_comes_while_the_last_one_leaves_waits_and_makes_it_again() -> None:
    world = World(ONE)
    last = world.standing("one", lambda: world.drop(ONE))
    comes = started(lambda: world.put(TWO))
    while not world.settler._waiting:
        time.sleep(0.001)
    world.go(last, comes)
    assert world.driver.there == {fact.key for fact in facts(TWO)} == set(world.settler.ledger.have)
    assert world.drop(TWO) and world.driver.there == set()


def test_who_leaves_while_another_comes_lets_it_be() -> None:
    world = World(ONE)
    comes = world.standing("two", lambda: world.put(TWO))
    assert world.drop(ONE)
    world.go(comes)
    assert world.driver.there == {fact.key for fact in facts(TWO)}


def test_what_one_makes_the_next_waits_for_and_makes_itself_when_it_fails() -> None:
    world = World()
    world.driver.fail = "one"
    first = world.standing("one", lambda: world.put(ONE))
    comes = started(lambda: world.put(TWO))
    while not world.settler._waiting:
        time.sleep(0.001)
    world.go(first, comes)
    assert world.driver.there == {fact.key for fact in facts(TWO)}


def test_after_a_refusal_everything_goes_all_the_same(world: World) -> None:
    world.driver.fail = "one"
    assert not world.drop(ONE) and world.drop(TWO)
    world.driver.fail = ""
    assert world.drop(ONE) and world.driver.there == set()
    world.driver.fail = "three"
    assert world.put(ONE) and not world.put(THREE)
    assert world.drop(ONE) and world.drop(THREE), "it had counted on what ONE left to it"
    assert world.driver.there == set()

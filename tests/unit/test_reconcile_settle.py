"""Transactions of a parallel driver that meet at a fact that several scopes share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from netplane.model.errors import KernelError
from netplane.model.facts import Fact, FactKey, Mark, Neighbour, Plan, Route, Scope
from netplane.reconcile.settle import Failures, Settler

A, B, C = (Scope("cni", name) for name in "abc")
SHARED = Route(dst="10.0.0.0/24", link="npbr1")


class Slow:
    """A driver whose plans wait until the test lets them go, by the scope's own fact."""

    name, accepts, parallel = "slow", (Route, Neighbour), True

    def __init__(self) -> None:
        self.there: set[FactKey] = set()
        self.begun: dict[FactKey, threading.Event] = {}
        self.let: dict[FactKey, threading.Event] = {}
        self.refused: set[FactKey] = set()

    def expect(self, *facts: Fact) -> None:
        for fact in facts:
            self.begun[fact.key], self.let[fact.key] = threading.Event(), threading.Event()

    def apply(self, plan: Plan) -> None:
        touched = [*(fact.key for fact in plan.add), *plan.remove]
        for key in touched:
            if key in self.let:
                self.begun[key].set()
                assert self.let[key].wait(5)
        if self.refused.intersection(touched):
            raise KernelError(22, "put it")
        self.there.difference_update(plan.remove)
        self.there.update(fact.key for fact in plan.add)

    def begin(self, plan: Plan) -> Callable[[], None] | None:
        return (lambda: self.apply(plan)) if not plan.remove else None

    def observe(self) -> Mapping[FactKey, Mark]:
        return {}


def own(scope: Scope) -> Neighbour:
    return Neighbour(link="npbr1", address=f"10.0.0.{ord(scope.name)}", mac="02:00:00:00:00:01")


@pytest.fixture
def settler() -> Settler:
    return Settler(Slow())


def driver(settler: Settler) -> Slow:
    assert isinstance(settler.driver, Slow)
    return settler.driver


def add(settler: Settler, scope: Scope) -> Failures:
    return settler.settle({scope: (SHARED, own(scope))})


def delete(settler: Settler, scope: Scope) -> Failures:
    return settler.settle({scope: ()})


class Crossing:
    """``first`` is under way when ``second`` comes, and ends ``after`` a moment."""

    def __init__(self, settler: Settler, first: Callable[[], Failures], of: Scope) -> None:
        self.slow, self.of = driver(settler), own(of).key
        self.slow.expect(own(of))
        self.pool = ThreadPoolExecutor(2)
        self.first = self.pool.submit(first)
        assert self.slow.begun[self.of].wait(5)

    def meets(self, second: Callable[[], Failures]) -> tuple[bool, Failures, Failures]:
        """Whether the second went on beside the first; and what became of both."""
        done: Future[Failures] = self.pool.submit(second)
        with contextlib.suppress(TimeoutError):
            done.result(0.05)
        beside = done.done()
        self.slow.let[self.of].set()
        with self.pool:
            return beside, self.first.result(5), done.result(5)


def test_who_wants_what_is_being_taken_away_waits_and_brings_it_again(settler: Settler) -> None:
    add(settler, A)
    crossing = Crossing(settler, lambda: delete(settler, A), A)
    assert crossing.meets(lambda: add(settler, B)) == (False, {}, {})
    assert driver(settler).there == {SHARED.key, own(B).key}


def test_who_would_take_away_what_is_being_relied_upon_waits_and_leaves_it(settler: Settler) -> None:
    add(settler, A)
    crossing = Crossing(settler, lambda: add(settler, B), B)
    assert crossing.meets(lambda: delete(settler, A)) == (False, {}, {})
    assert driver(settler).there == {SHARED.key, own(B).key}


def test_and_takes_it_away_when_that_one_was_refused(settler: Settler) -> None:
    add(settler, A)
    driver(settler).refused = {own(B).key}
    beside, failures, none = Crossing(settler, lambda: add(settler, B), B).meets(lambda: delete(settler, A))
    assert not beside and set(failures) == {B} and not none
    assert not driver(settler).there


def test_of_two_that_go_at_once_the_last_takes_away_what_they_share(settler: Settler) -> None:
    for scope in (A, B, C):
        add(settler, scope)
    delete(settler, C)
    crossing = Crossing(settler, lambda: delete(settler, A), A)
    assert crossing.meets(lambda: delete(settler, B)) == (True, {}, {})
    assert not driver(settler).there and not settler.ledger.have


def test_the_second_of_two_first_ones_waits_until_what_they_share_is_there(settler: Settler) -> None:
    crossing = Crossing(settler, lambda: add(settler, A), A)
    assert settler.begin({B: (SHARED, own(B))}) is None  # it does not wait
    assert crossing.meets(lambda: add(settler, B)) == (False, {}, {})
    assert driver(settler).there == {SHARED.key, own(A).key, own(B).key}


def test_those_that_share_what_is_there_go_on_beside_each_other(settler: Settler) -> None:
    for scope in (A, C):
        add(settler, scope)
    crossing = Crossing(settler, lambda: add(settler, B), B)
    assert crossing.meets(lambda: delete(settler, A)) == (True, {}, {})
    assert driver(settler).there == {SHARED.key, own(B).key, own(C).key}


def test_what_was_begun_counts_as_under_way_until_its_end(settler: Settler) -> None:
    add(settler, A)
    end = settler.begin({B: (SHARED, own(B))})
    assert end is not None
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(delete, settler, A)
        with pytest.raises(TimeoutError):
            going.result(0.05)
        assert not end() and not going.result(5)
    assert driver(settler).there == {SHARED.key, own(B).key}

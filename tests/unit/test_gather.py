"""Work that threads ask for at once: one round at a time, and the next for all who came meanwhile."""

from __future__ import annotations

import threading

import pytest

from netplane.model.errors import Invalid
from netplane.model.facts import Element, Plan, Scope
from netplane.model.gather import Gathering
from netplane.reconcile.settle import Settler


class Gate:
    """Work whose first round waits until ``count`` others have asked."""

    def __init__(self, fail: bool = False) -> None:
        self.rounds: list[list[int]] = []
        self.begun, self.open = threading.Event(), threading.Event()
        self.fail = fail

    def work(self, items: list[int]) -> None:
        self.rounds.append(items)
        self.begun.set()
        assert self.open.wait(5)
        if self.fail and len(self.rounds) == 2:
            raise Invalid("the second round")


def asked(gathering: Gathering[int], gate: Gate, count: int) -> list[str]:
    """0 is at work while 1 … count ask; what each of these was told."""
    told = [""] * (count + 1)

    def ask(i: int) -> None:
        try:
            gathering.do(i)
        except Invalid as exc:
            told[i] = str(exc)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(count + 1)]
    threads[0].start()
    assert gate.begun.wait(5)
    for thread in threads[1:]:
        thread.start()
    while len(gathering) < count:
        pass
    gate.open.set()
    for thread in threads:
        thread.join(5)
    return told


def test_who_comes_meanwhile_is_the_next_round() -> None:
    gate = Gate()
    assert asked(Gathering(gate.work), gate, 9) == [""] * 10
    assert [sorted(items) for items in gate.rounds] == [[0], list(range(1, 10))]


def test_what_a_round_raises_its_own_get_and_no_other() -> None:
    gate = Gate(fail=True)
    gathering = Gathering(gate.work)
    assert asked(gathering, gate, 3) == ["", *["the second round"] * 3]
    gathering.do(7)
    assert gate.rounds[-1] == [7]


class Table:
    """A driver that refuses one element, and counts its transactions."""

    name, accepts, parallel = "table", (Element,), False

    def __init__(self) -> None:
        self.held: set[object] = set()
        self.plans: list[Plan] = []
        self.begun, self.open = threading.Event(), threading.Event()

    def observe(self) -> dict[tuple[object, ...], object]:
        return {}

    def apply(self, plan: Plan) -> None:
        self.plans.append(plan)
        self.begun.set()
        assert self.open.wait(5)
        if any(fact.item == ("bad",) for fact in plan.add):
            raise Invalid("bad is refused")
        self.held |= {fact.item[0] for fact in plan.add}


@pytest.mark.parametrize("names", [["a", "b", "c", "d"], ["a", "bad", "c", "d"]], ids=["all", "a-culprit"])
def test_scopes_that_come_together_are_one_transaction_and_a_culprit_stands_alone(names: list[str]) -> None:
    table = Table()
    settler = Settler(table)
    failed: dict[str, str] = {}

    def settle(name: str) -> None:
        scope = Scope("room", name)
        for one, exc in settler.settle({scope: [Element("s", (name,))]}).items():
            failed[one.name] = str(exc)

    threads = [threading.Thread(target=settle, args=(name,)) for name in ["first", *names]]
    threads[0].start()
    assert table.begun.wait(5)
    for thread in threads[1:]:
        thread.start()
    while len(settler.together) < len(names):
        pass
    table.open.set()
    for thread in threads:
        thread.join(5)
    good = [name for name in names if name != "bad"]
    assert table.held == {"first", *good}
    assert failed == ({} if good == names else {"bad": "bad is refused"})
    assert len(table.plans[1].add) == len(names)
    assert len(table.plans) == 2 or good != names

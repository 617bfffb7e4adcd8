"""Binding in the loop itself, by events alone, on a store in a file: nobody is left waiting."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.model.changes import Put, Write
from netplane.model.codec import parse
from netplane.model.errors import Conflict, NetplaneError, Unavailable
from netplane.model.facts import Scope
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolumeClaim
from netplane.reconcile.controlloop import ControlLoop
from netplane.reconcile.core import Core
from netplane.store import Store, open_store
from storageplane.claims.bind import Binder

from .storage_world import pv, pvc

Stores = Callable[[], Store]


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    opened: list[Store] = []

    def more() -> Store:
        opened.append(open_store(f"sqlite://{tmp_path}/state.db"))
        return opened[-1]

    yield more
    for store in opened:
        store.close()


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    give_up = time.monotonic() + seconds
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.01)
    return condition()


def phases(store: Store) -> dict[str, str]:
    return {o.name: o.status.phase for o in store.list(["PersistentVolumeClaim"])[0]}  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(4))
def test_every_claim_that_can_be_bound_is_whatever_comes_when(stores: Stores, seed: int) -> None:
    """Claims and volumes of some sizes and modes, alone and in bunches, to two agents at once."""
    chance = random.Random(seed)
    user, agents = stores(), [Core(stores(), (), [Binder()]) for _ in range(2)]
    for agent in agents:
        agent.start()
        assert agent.wait_synced(10)
    sizes = [f"{chance.choice((1, 2, 3))}Gi" for _ in range(40)]
    objects: list[Any] = [pvc(f"c{i}", size) for i, size in enumerate(sizes)]
    objects += [pv(f"v{i}", size) for i, size in enumerate(chance.sample(sizes, len(sizes)))]
    chance.shuffle(objects)
    while objects:
        some = [objects.pop() for _ in range(min(len(objects), chance.choice((1, 1, 15))))]
        user.put_all([parse(o) for o in some])  # type: ignore[attr-defined]
    # a claim may have taken a larger volume than it needs before its own came: as many, then none is left
    assert until(lambda: settled(user)), phases(user)
    for agent in agents:
        agent.stop()


def settled(store: Store) -> bool:
    """Nothing that waits would fit anything that is free."""
    snapshot = Snapshot.of(store.list()[0])
    binder = Binder()
    due = [w for s in binder.scopes(None, snapshot) for w in binder.decide(s, snapshot)]
    return not due and "Bound" in phases(store).values()


def claims(snapshot: Snapshot) -> list[PersistentVolumeClaim]:
    return list(snapshot.list(PersistentVolumeClaim))


class Counter:
    """A controller that gives each claim a label, once it has seen the others' of its batch."""

    name, together = "count", True

    def scopes(self, event: Any, snapshot: Snapshot) -> list[Scope]:
        return [Scope(self.name, c.name) for c in claims(snapshot)] if event is None else []

    def decide(self, scope: Scope, snapshot: Snapshot) -> list[Write]:
        found: Any = next(c for c in claims(snapshot) if c.name == scope.name)
        if found.labels:
            return []
        labelled = sum(1 for c in claims(snapshot) if c.labels)
        return [Put(relabelled(found, str(labelled)), found.revision)]


def relabelled(obj: Any, n: str) -> Any:
    import msgspec

    return msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, labels={"n": n}))


class Shelf:
    """A writer that counts transactions and refuses the first whole one."""

    def __init__(self, snapshot: Snapshot, refuse: bool, error: NetplaneError | None = None) -> None:
        self.now, self.refuse, self.batches = snapshot, refuse, list[int]()
        self.error = error or Conflict("somebody was faster")

    def snapshot(self) -> Snapshot:
        return self.now

    def write(self, writes: Any) -> Any:
        self.batches.append(len(writes))
        if self.refuse:
            raise self.error
        for write in writes:
            self.now = self.now.with_put(write.object)
        return []

    def put(self, obj: Any, expect: int | None = None) -> Any:
        del expect
        self.now = self.now.with_put(obj)
        return obj

    def delete(self, key: Any, expect: int | None = None) -> Any:
        raise AssertionError(key, expect)


def test_while_the_store_is_away_nothing_is_decided_one_by_one() -> None:
    """A batch that could not be written for want of the store waits; it is not tried object by object."""
    shelf = Shelf(Snapshot.of([parse(pvc(f"c{i}")) for i in range(5)]), True, Unavailable("the disk is full"))
    counter = Counter()
    loop = ControlLoop([counter], shelf, lambda _: 0)
    loop._decide_all(counter.scopes(None, shelf.now))
    assert (shelf.batches, len(loop.failures)) == ([5], 5)
    assert all("the disk is full" in why for why in loop.failures.values())


@pytest.mark.parametrize("refuse", [False, True])
def test_a_batch_is_one_transaction_and_each_decision_sees_those_before(refuse: bool) -> None:
    shelf = Shelf(Snapshot.of([parse(pvc(f"c{i}")) for i in range(5)]), refuse)
    counter = Counter()
    loop = ControlLoop([counter], shelf, lambda _: 0)
    loop._decide_all(counter.scopes(None, shelf.now))
    assert shelf.batches == [5]
    assert sorted(c.labels["n"] for c in claims(shelf.now)) == list("01234")

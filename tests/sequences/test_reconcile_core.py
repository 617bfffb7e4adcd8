"""The loop over a real table (a dict) as driver and a store in memory: orders, outages, refusals."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import pytest

from netplane.model.base import ObjectMeta
from netplane.model.errors import Conflict, Invalid, KernelError, NetplaneError
from netplane.model.facts import Fact, FactKey, Guard, Limit, Mark, Plan, Record, Scope
from netplane.model.services import Service, ServicePort, ServiceSpec
from netplane.model.snapshot import Snapshot
from netplane.reconcile.base import Event, Put
from netplane.reconcile.core import Core

from ..unit.memory_store import MemoryStore


class Table:
    """A driver whose kernel is a dict; refuses names that hold ``refuse``."""

    name = "table"
    accepts = (Record,)
    parallel = False

    def __init__(self) -> None:
        self.rows: dict[FactKey, Mark] = {}
        self.refuse = "\0"
        self.plans = 0

    def observe(self) -> Mapping[FactKey, Mark]:
        return dict(self.rows)

    def apply(self, plan: Plan) -> None:
        self.plans += 1
        if any(self.refuse in f.name for f in (*plan.add, *plan.change)):
            raise KernelError(22, "add record")
        for fact in (*plan.add, *plan.change):
            self.rows[fact.key] = fact.mark
        for key in plan.remove:
            self.rows.pop(key, None)


class NameRoom:
    name = "names"

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        objects = [event.object] if event else list(snapshot.list(Service))
        return [Scope("names", o.name) for o in objects if o.KIND == "Service"]

    def render(self, scope: Scope, snapshot: Snapshot) -> Iterable[Fact]:
        service = snapshot.get(Service, "default", scope.name)
        if service is None:
            return []
        if scope.name == "broken":
            raise Invalid("Service default/broken: cannot be")
        return [Record(name=service.name, type="A", data=(service.spec.cluster_ip,))]


def service(name: str, ip: str = "10.96.0.1") -> Service:
    spec = ServiceSpec(cluster_ip=ip, ports=(ServicePort(port=80),))
    return Service(metadata=ObjectMeta(name=name, namespace="default"), spec=spec)


def eventually(condition: Callable[[], object], seconds: float = 5.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come about"
        time.sleep(0.002)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def core(store: MemoryStore, table: Table) -> Iterator[Core]:
    core = Core(store, [(NameRoom(), [table])])
    yield core
    core.stop()


def names(table: Table) -> list[str]:
    return sorted(str(key[1]) for key in table.rows)


def test_what_is_declared_comes_about_and_goes_again(store: MemoryStore, table: Table, core: Core) -> None:
    store.put(service("a"))
    core.start()
    assert core.wait_synced(5)
    assert names(table) == ["a"]
    store.put(service("b"))
    eventually(lambda: names(table) == ["a", "b"])
    store.delete(service("a").key)
    eventually(lambda: names(table) == ["b"])
    eventually(lambda: core.status()["synced"])


def test_a_restart_adopts_what_fits_and_sweeps_the_rest(store: MemoryStore, table: Table, core: Core) -> None:
    store.put(service("a"))
    for name in ("a", "left-over"):
        fact = Record(name=name, type="A", data=("10.96.0.1",))
        table.rows[fact.key] = fact.mark
    core.start()
    assert core.wait_synced(5)
    assert names(table) == ["a"]
    assert table.plans == 1, "the sweep alone; what fitted was not touched"


def test_nothing_is_swept_before_the_store_answers(store: MemoryStore, table: Table, core: Core) -> None:
    fact = Record(name="old", type="A", data=())
    table.rows[fact.key] = fact.mark
    store.down = True
    core.start()
    assert not core.wait_synced(0.3)
    assert names(table) == ["old"]
    assert "down" in core.status()["store"]
    store.down = False
    assert core.wait_synced(5)
    assert names(table) == []


def test_an_outage_loses_no_change(store: MemoryStore, table: Table, core: Core) -> None:
    store.put(service("a"))
    core.start()
    assert core.wait_synced(5)
    with store.changed:
        store.down = True
        store.changed.notify_all()
    eventually(lambda: core.status()["store"] == "the store is down")
    assert names(table) == ["a"], "what is known stays in force"
    store.down = False
    store.put(service("b"))
    store.delete(service("a").key)
    eventually(lambda: names(table) == ["b"])


def test_one_refused_scope_does_not_stop_the_others(store: MemoryStore, table: Table, core: Core) -> None:
    table.refuse = "bad"
    for name in ("a", "bad", "broken", "c"):
        store.put(service(name))
    core.start()
    assert core.wait_synced(5)
    assert names(table) == ["a", "c"]
    status = core.status()
    assert not status["synced"]
    assert set(status["rooms"]["names"]["failing"]) == {"bad", "broken"}
    table.refuse = "\0"
    eventually(lambda: names(table) == ["a", "bad", "c"])
    store.delete(service("broken").key)
    eventually(lambda: core.status()["synced"], 10)


def test_sync_tells_the_outcome_and_sees_its_own_write(table: Table, core: Core) -> None:
    core.start()
    assert core.wait_synced(5)
    core.put(service("mine"))
    core.sync([Scope("names", "mine")])
    assert names(table) == ["mine"]
    table.refuse = "worse"
    core.put(service("worse"))
    with pytest.raises(KernelError):
        core.sync([Scope("names", "worse")])
    core.delete(service("worse").key)
    core.sync([Scope("names", "worse")])


def test_own_writes_and_the_watch_never_bring_an_object_back(table: Table, core: Core) -> None:
    core.start()
    assert core.wait_synced(5)

    def churn(name: str) -> None:
        for i in range(50):
            core.put(service(name, f"10.96.0.{i + 1}"))
            core.delete(service(name).key)

    threads = [threading.Thread(target=churn, args=(f"s{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: core.status()["pending"] == 0)
    assert list(core.snapshot().list(Service)) == []
    eventually(lambda: names(table) == [])


def test_what_somebody_else_changed_is_mended_by_a_resync(
    store: MemoryStore, table: Table, core: Core
) -> None:
    store.put(service("a"))
    core.start()
    assert core.wait_synced(5)
    table.rows.clear()
    core.resync()
    eventually(lambda: names(table) == ["a"])


def test_what_an_edge_brings_about_is_not_done_again_by_the_loop(table: Table, core: Core) -> None:
    core.start()
    assert core.wait_synced(5)
    plans = table.plans
    web = service("web")
    core.sync([Scope("names", "web")], lambda: core.put(web, 0))
    assert names(table) == ["web"] and table.plans == plans + 1
    core.put(service("other"))  # the loop's: when it is through, so is whatever was queued before
    eventually(lambda: names(table) == ["other", "web"])
    assert table.plans == plans + 2


def test_a_draft_is_rendered_and_outlives_whatever_the_store_says(
    store: MemoryStore, table: Table, core: Core
) -> None:
    core.start()
    assert core.wait_synced(5)
    draft = service("web")
    core.sync([Scope("names", "web")], lambda: core.draft(draft))
    assert names(table) == ["web"] and store.get(draft.key) is None
    with pytest.raises(Conflict):
        core.draft(draft)
    with store.changed:  # an outage ends in a new list: what it lacks is not gone
        store.down = True
        store.changed.notify_all()
    eventually(lambda: core.status()["store"] == "the store is down")
    store.down = False
    eventually(lambda: core.status()["store"] == "ok")
    store.put(service("other"))
    eventually(lambda: names(table) == ["other", "web"])
    with pytest.raises(Conflict):  # of the other write: the draft stays one
        core.write([Put(service("other"), 0), Put(draft, 0)])
    assert core.snapshot().find(draft.key) == draft
    core.write([Put(draft, 0)])
    core.retract(draft.key)  # no draft any more
    assert core.snapshot().get(Service, "default", "web") is not None
    core.resync()
    eventually(lambda: core.status()["pending"] == 0)
    assert names(table) == ["other", "web"]


def test_a_draft_that_is_retracted_is_taken_back(table: Table, core: Core) -> None:
    core.start()
    assert core.wait_synced(5)
    scope, draft = Scope("names", "web"), service("web")
    core.sync([scope], lambda: core.draft(draft))
    core.sync([scope], lambda: core.retract(draft.key))
    assert names(table) == []
    core.put(draft, 0)
    eventually(lambda: names(table) == ["web"])


def test_a_write_that_fails_leaves_its_scope_to_the_loop(table: Table, core: Core) -> None:
    core.start()
    assert core.wait_synced(5)

    def half() -> None:
        core.put(service("web"), 0)
        raise Invalid("the second write was refused")

    with pytest.raises(Invalid):
        core.sync([Scope("names", "web")], half)
    eventually(lambda: names(table) == ["web"])


def test_one_piece_of_work_without_the_loops(store: MemoryStore, table: Table) -> None:
    store.put(service("kept"))
    left = Record(name="left", type="A", data=("10.96.0.9",))
    table.rows = {left.key: left.mark, **{f.key: f.mark for f in [Record("kept", "A", ("10.96.0.1",))]}}
    core = Core(store, [(NameRoom(), (table,))])
    core.load()
    core.sync([Scope("names", "new")], lambda: core.put(service("new"), 0))
    assert names(table) == ["kept", "left", "new"]
    core.sweep(lambda key: key == left.key)
    core.sync([Scope("names", "kept")], lambda: core.delete(service("kept").key))
    assert names(table) == ["new"]


def test_who_was_too_late_decides_again_on_what_the_other_wrote(store: MemoryStore, table: Table) -> None:
    """The watch may bring another's write much later than the store refuses ours because of it."""
    core = Core(store, [(NameRoom(), (table,))])
    core.load()
    mine = core.put(service("both"), 0)
    theirs = store.put(service("both", "10.96.0.7"))
    with pytest.raises(Conflict):
        core.put(service("both", "10.96.0.8"), mine.revision)
    assert core.snapshot().find(mine.key) == theirs
    store.delete(mine.key)
    with pytest.raises(NetplaneError):
        core.put(service("both", "10.96.0.8"), theirs.revision)
    assert core.snapshot().find(mine.key) is None
    assert core.put(service("both", "10.96.0.8"), 0)


class Story:
    """A driver of one type of fact, which writes down what it is asked for."""

    parallel = True

    def __init__(self, name: str, accepts: type[Fact], story: list[str]) -> None:
        self.name, self.accepts, self.story = name, (accepts,), story
        self.apart = name == "apart"
        self.refuse = False
        if name == "first":
            self.begin = self._begin

    def observe(self) -> Mapping[FactKey, Mark]:
        return {}

    def apply(self, plan: Plan) -> None:
        self.story.append(f"{self.name} does {len(plan.add)} and undoes {len(plan.remove)}")

    def _begin(self, plan: Plan) -> Callable[[], None] | None:
        if plan.remove:
            return None
        self.story.append(f"{self.name} begins")

        def end() -> None:
            self.story.append(f"{self.name} ends")
            if self.refuse:
                raise KernelError(22, "make it")

        return end


class ThreeRoom(NameRoom):
    """A service as three facts, each for another driver."""

    def render(self, scope: Scope, snapshot: Snapshot) -> Iterable[Fact]:
        if snapshot.get(Service, "default", scope.name) is None:
            return []
        return [Guard(scope.name, ()), Record(name=scope.name, type="A", data=()), Limit(scope.name, 1, 1)]


def test_what_a_driver_begins_goes_on_beside_those_that_are_apart(store: MemoryStore) -> None:
    story: list[str] = []
    first, last = Story("first", Record, story), Story("last", Guard, story)
    core = Core(store, [(ThreeRoom(), (first, Story("apart", Limit, story), last))])
    core.load()
    scope = Scope("names", "web")
    core.sync([scope], lambda: core.put(service("web")))
    both = ["first begins", "apart does 1 and undoes 0", "first ends"]
    assert story == [*both, "last does 1 and undoes 0"]
    story.clear()
    core.sync([scope])
    assert story == [], "it is remembered"
    core.sync([scope], lambda: core.delete(service("web").key))
    assert story == [f"{name} does 0 and undoes 1" for name in ("first", "apart", "last")]
    story.clear()
    first.refuse = True
    with pytest.raises(KernelError, match="make it"):
        core.sync([scope], lambda: core.put(service("web")))
    assert story == both, "who needs the first one's does not go on"
    first.refuse = False
    core.sync([scope])
    assert story[3:] == ["first begins", "first ends", "last does 1 and undoes 0"]

"""The names that the server answers for: a driver for Records, and what `answer` looks names up in.

Rule 1: readers take `view` once and see one state of all names, whatever is applied meanwhile; a plan
        is there for them whole or not at all.
Rule 2: a record that has no wire form is refused when it is applied, not when it is asked for.
Rule 3: a name above another name exists, though it has no records (RFC 8020; RFC 4592 2.2.2).
Rule 4: a twin (the table of the C loop) gets the names that a plan touched, and no others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, count
from typing import ClassVar, NamedTuple, Protocol

from immutables import Map, MapMutation

from ..model.errors import Invalid
from ..model.facts import Fact, FactKey, Mark, Plan, Record
from . import wire

Records = tuple[Record, ...]
Turn = tuple[bytes, str]  # a name, and a type
_NAMES: Map[bytes, Records] = Map()
_BELOW: Map[bytes, int] = Map()
_TURNS: Map[Turn, count[int]] = Map()


class RRset(NamedTuple):
    """The records of one name and type, as bytes whose owner is the name in the question.

    ``turn``: of sets that rotate; whoever replaces such a set goes on with it.
    """

    type: int
    records: tuple[bytes, ...]
    turn: count[int] | None = None

    @property
    def rotates(self) -> bool:
        return self.turn is not None

    def next(self) -> tuple[bytes, ...]:
        """The records in the order of this answer: each call begins with the next one, if they rotate."""
        if self.turn is None:
            return self.records
        first = next(self.turn) % len(self.records)
        return self.records[first:] + self.records[:first]


class View(NamedTuple):
    """One state of the table. ``below`` counts the names that exist one label beneath a name, ``turns``
    are of the sets that rotate, by name and type."""

    apex: bytes
    synced: bool = False
    names: Map[bytes, Records] = _NAMES
    below: Map[bytes, int] = _BELOW
    turns: Map[Turn, count[int]] = _TURNS

    def find(self, name: bytes) -> tuple[RRset, ...] | None:
        """The RRsets of a name, none for one that only has names beneath it; None: it does not exist."""
        facts = self.names.get(name)
        if facts is None:
            return () if name in self.below else None
        return tuple(
            [RRset(wire.TYPES[kind], rrs, self.turns.get((name, kind))) for kind, rrs in _wired(facts)]
        )

    def rrset(self, name: bytes, kind: int) -> RRset | None:
        return pick(self.find(name) or (), kind)


def pick(rrsets: tuple[RRset, ...], kind: int) -> RRset | None:
    for rrset in rrsets:
        if rrset.type == kind:
            return rrset
    return None


class Twin(Protocol):
    """Another table with the same names (loop.Twin). One thread at a time calls it."""

    def change(self, names: Iterable[tuple[bytes, Sequence[RRset] | None]]) -> None: ...

    def sync(self, synced: bool) -> None: ...


class NameTable:
    """The Driver "names". One thread applies, any number read `view`.

    ``domain`` is the cluster's, such as "cluster.local". Until `mark_synced`, the zone's names are
    answered with SERVFAIL: a name that has not arrived yet must not be denied.
    """

    name: ClassVar[str] = "names"
    accepts: ClassVar[tuple[type[Fact], ...]] = (Record,)
    parallel: ClassVar[bool] = False

    def __init__(self, domain: str = "cluster.local") -> None:
        self.domain = domain
        self.view = View(wire.name(domain))
        self._twins: tuple[Twin, ...] = ()
        self._lock = threading.Lock()  # of whoever changes view and twin

    def attach(self, twin: Twin) -> None:
        """From now on ``twin`` holds the same names; when this returns, it does."""
        with self._lock:
            view = self.view
            above = (name for name in view.below if wire.within(name, view.apex))
            twin.change((name, view.find(name)) for name in chain(view.names, above))
            twin.sync(view.synced)
            self._twins += (twin,)

    def detach(self, twin: Twin) -> None:
        with self._lock:
            self._twins = tuple(other for other in self._twins if other is not twin)

    @property
    def synced(self) -> bool:
        return self.view.synced

    def mark_synced(self) -> None:
        """The first full sync has been applied: from now on an unknown name is NXDOMAIN."""
        with self._lock:
            self.view = self.view._replace(synced=True)
            for twin in self._twins:
                twin.sync(True)

    def observe(self) -> Mapping[FactKey, Mark]:
        return {fact.key: fact.mark for facts in self.view.names.values() for fact in facts}

    def apply(self, plan: Plan) -> None:
        """Raises Invalid for a record that has no wire form; then nothing is changed."""
        with self._lock:
            view = self.view
            names, below, turns = view.names.mutate(), view.below.mutate(), view.turns.mutate()
            touched: dict[bytes, None] = {}
            for name, (gone, new) in _by_name(plan).items():
                old = names.get(name, ())
                facts = (*(f for f in old if f.key not in gone), *new)
                _wired(facts)
                if facts:
                    names[name] = facts
                elif old:
                    del names[name]
                _keep_turns(name, old, facts, turns)
                touched[name] = None
                if bool(facts) != bool(old) and wire.within(name, view.apex):
                    above = _count(name, 1 if facts else -1, names, below)
                    touched |= dict.fromkeys(n for n in above if wire.within(n, view.apex))
            view = self.view = View(view.apex, view.synced, names.finish(), below.finish(), turns.finish())
            for twin in self._twins:
                twin.change((name, view.find(name)) for name in touched)


def _by_name(plan: Plan) -> dict[bytes, tuple[set[FactKey], list[Record]]]:
    """Per wire name: the keys that go or are replaced, and the records that come."""
    changes: dict[bytes, tuple[set[FactKey], list[Record]]] = {}
    for key in plan.remove:
        changes.setdefault(wire.name(str(key[1])), (set(), []))[0].add(key)
    for fact in (*plan.add, *plan.change):
        gone, new = changes.setdefault(wire.name(fact.name), (set(), []))
        gone.add(fact.key)
        new.append(fact)
    return changes


@lru_cache(maxsize=1024)
def _wired(facts: Records) -> tuple[tuple[str, tuple[bytes, ...]], ...]:
    """A name's types, each with its records as bytes. Raises Invalid.

    Made when somebody asks, and kept while they go on: most names are asked for in C, which has its own.
    """
    kinds: dict[str, list[Record]] = {}
    for fact in facts:
        if fact.data:
            kinds.setdefault(fact.type, []).append(fact)
    return tuple([(kind, _records(kind, same)) for kind, same in kinds.items()])


def _records(kind: str, facts: list[Record]) -> tuple[bytes, ...]:
    """The union of the owners' data; one RRset has one TTL (RFC 2181 5.2), the smallest."""
    ttl = min(f.ttl for f in facts)
    data = facts[0].data if len(facts) == 1 else dict.fromkeys(item for f in facts for item in f.data)
    try:
        return tuple([wire.record(kind, ttl, item) for item in data])
    except Invalid as exc:
        raise Invalid(f"record {facts[0].name}: {exc}") from None


def _keep_turns(name: bytes, old: Records, new: Records, turns: MapMutation[Turn, count[int]]) -> None:
    """Sets that still rotate go on with their turn, others get one or lose it."""
    before, after = ({(name, f.type) for f in facts if f.rotate} for facts in (old, new))
    for turn in before - after:
        del turns[turn]
    for turn in after - before:
        turns[turn] = count()


def _count(
    name: bytes, step: int, names: MapMutation[bytes, Records], below: MapMutation[bytes, int]
) -> list[bytes]:
    """A name of the zone got its first record or lost its last: carry that upwards while it matters.

    Returns the names above that came to exist or ceased to.
    """
    changed: list[bytes] = []
    if name in below:
        return changed  # it exists for the names beneath it, before and after
    for parent in wire.parents(name):
        left = below.get(parent, 0) + step
        existed = parent in names
        if left:
            below[parent] = left
        else:
            del below[parent]
        if existed or left > (step > 0):
            break
        changed.append(parent)
    return changed

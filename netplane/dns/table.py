"""The names that the server answers for: a driver for Records, and what `answer` looks names up in.

Rule 1: readers take `view` once and see one state of all names, whatever is applied meanwhile; a plan
        is there for them whole or not at all.
Rule 2: everything that can be known before a question comes is prepared when a record is applied.
Rule 3: a name above another name exists, though it has no records (RFC 8020; RFC 4592 2.2.2).
Rule 4: a twin (the table of the C loop) gets the names that a plan touched, and no others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from typing import ClassVar, NamedTuple, Protocol

from immutables import Map, MapMutation

from ..model.errors import Invalid
from ..model.facts import Fact, FactKey, Mark, Plan, Record
from . import wire

_Names = MapMutation[bytes, "Entry"]
_Below = MapMutation[bytes, int]
_NAMES: Map[bytes, Entry] = Map()
_BELOW: Map[bytes, int] = Map()


class RRset:
    """The records of one name and type, as bytes whose owner is the name in the question."""

    __slots__ = ("records", "turn", "type")

    def __init__(self, kind: int, records: tuple[bytes, ...], turn: count[int] | None) -> None:
        self.type = kind
        self.records = records
        self.turn = turn  # of sets that rotate; whoever replaces this set goes on with it

    @property
    def rotates(self) -> bool:
        return self.turn is not None

    def next(self) -> tuple[bytes, ...]:
        """The records in the order of this answer: each call begins with the next one, if they rotate."""
        if self.turn is None:
            return self.records
        first = next(self.turn) % len(self.records)
        return self.records[first:] + self.records[:first]


class Entry(NamedTuple):
    """One name: what was applied, and the answers made of it (a tuple: there are one to three)."""

    facts: tuple[Record, ...]
    rrsets: tuple[RRset, ...]


class View(NamedTuple):
    """One state of the table. ``below`` counts the names that exist one label beneath a name."""

    apex: bytes
    synced: bool = False
    names: Map[bytes, Entry] = _NAMES
    below: Map[bytes, int] = _BELOW

    def find(self, name: bytes) -> tuple[RRset, ...] | None:
        """The RRsets of a name, none for one that only has names beneath it; None: it does not exist."""
        entry = self.names.get(name)
        if entry is not None:
            return entry.rrsets
        return () if name in self.below else None

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
        return {fact.key: fact.mark for entry in self.view.names.values() for fact in entry.facts}

    def apply(self, plan: Plan) -> None:
        """Raises Invalid for a record that has no wire form; then nothing is changed."""
        with self._lock:
            view = self.view
            names, below = view.names.mutate(), view.below.mutate()
            touched: dict[bytes, None] = {}
            for name, (gone, new) in _by_name(plan).items():
                old = names.get(name)
                entry = _entry(old, gone, new)
                if entry is not None:
                    names[name] = entry
                elif old is not None:
                    del names[name]
                touched[name] = None
                if (entry is None) != (old is None) and wire.within(name, view.apex):
                    above = _count(name, -1 if entry is None else 1, names, below)
                    touched |= dict.fromkeys(n for n in above if wire.within(n, view.apex))
            view = self.view = view._replace(names=names.finish(), below=below.finish())
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


def _entry(old: Entry | None, gone: set[FactKey], new: list[Record]) -> Entry | None:
    kept = [f for f in old.facts if f.key not in gone] if old is not None else []
    facts = (*kept, *new)
    if not facts:
        return None
    kinds: dict[str, list[Record]] = {}
    for fact in facts:
        if fact.data:
            kinds.setdefault(fact.type, []).append(fact)
    before = old.rrsets if old is not None else ()
    return Entry(facts, tuple(_rrset(kind, same, before) for kind, same in kinds.items()))


def _rrset(kind: str, facts: list[Record], before: tuple[RRset, ...]) -> RRset:
    """The union of the owners' data; one RRset has one TTL (RFC 2181 5.2), the smallest."""
    ttl = min(f.ttl for f in facts)
    data = facts[0].data if len(facts) == 1 else dict.fromkeys(item for f in facts for item in f.data)
    try:
        records = tuple([wire.record(kind, ttl, item) for item in data])
    except Invalid as exc:
        raise Invalid(f"record {facts[0].name}: {exc}") from None
    if not any(f.rotate for f in facts):
        return RRset(wire.TYPES[kind], records, None)
    last = pick(before, wire.TYPES[kind])
    turn = last.turn if last is not None else None
    return RRset(wire.TYPES[kind], records, turn or count())


def _count(name: bytes, step: int, names: _Names, below: _Below) -> list[bytes]:
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

"""What one driver holds, what scopes want of it, and the difference.

Rule 1: a fact that several scopes want is held until none does; they must want the same of it.
Rule 2: the ledger remembers what was committed and never asks the driver on the hot path; `reset`
        takes over what the driver observes (at start, after an error, at leisure).
Rule 3: facts that nobody wants are removed by `sweep` only, which the caller allows once all scopes
        of a synced store are rendered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..model.errors import Conflict
from ..model.facts import Fact, FactKey, Mark, Plan, Scope

_ABSENT = object()
Updates = Mapping[Scope, tuple[Fact, ...]]


class Difference(NamedTuple):
    """A plan, and what the ledger is to remember once the driver has carried it out."""

    plan: Plan
    claims: dict[Scope, dict[FactKey, Mark]]


class Ledger:
    """Not thread-safe: the caller (Settler) holds its lock around every call."""

    def __init__(self) -> None:
        self.have: dict[FactKey, Mark] = {}
        self._claims: dict[Scope, frozenset[FactKey]] = {}
        self._holders: dict[FactKey, Scope | set[Scope]] = {}

    def reset(self, observed: Mapping[FactKey, Mark]) -> None:
        """Believe the driver: ``observed`` is what there is. Claims stay."""
        self.have = dict(observed)

    def holders(self, key: FactKey) -> set[Scope]:
        found = self._holders.get(key)
        return set() if found is None else {found} if isinstance(found, Scope) else found

    def knows(self, scope: Scope) -> bool:
        return scope in self._claims

    def scopes(self) -> tuple[Scope, ...]:
        return tuple(self._claims)

    def difference(self, updates: Updates) -> Difference:
        """The plan that takes these scopes from what they had to what they want now.

        Raises Conflict when two scopes want different things under one key.
        """
        claims: dict[Scope, dict[FactKey, Mark]] = {}
        wanted: dict[FactKey, Mark] = {}
        add: dict[FactKey, Fact] = {}
        change: dict[FactKey, Fact] = {}
        for scope, facts in updates.items():
            mine = claims[scope] = {}
            for fact in facts:
                key, mark = fact.key, fact.mark
                mine[key] = mark
                have = self.have.get(key, _ABSENT)
                self._refuse_conflict(key, mark, scope, wanted, updates)
                wanted[key] = mark
                if have is _ABSENT:
                    add[key] = fact
                elif have != mark:
                    change[key] = fact
        remove = [key for key in self._dropped(claims) if key not in wanted and key in self.have]
        return Difference(Plan(tuple(add.values()), tuple(change.values()), tuple(remove)), claims)

    def _refuse_conflict(
        self, key: FactKey, mark: Mark, scope: Scope, wanted: Mapping[FactKey, Mark], updates: Updates
    ) -> None:
        if wanted.get(key, mark) != mark:
            raise Conflict(f"{scope}: {describe(key)} is wanted differently by another scope of this change")
        found = self._holders.get(key)
        if found is None or found == scope or self.have.get(key, mark) == mark:
            return
        others = self.holders(key) - updates.keys()
        if others:
            raise Conflict(f"{scope}: {describe(key)} is already held by {min(others)} in another shape")

    def _dropped(self, claims: Mapping[Scope, Mapping[FactKey, Mark]]) -> list[FactKey]:
        """Keys that lose their last holder, each once, in the order in which they were claimed."""
        dropped = []
        for scope, mine in claims.items():
            for key in self._claims.get(scope, ()):
                if key in mine:
                    continue
                rest = self.holders(key) - {scope}
                if not any(key in claims[s] if s in claims else True for s in rest):
                    dropped.append(key)
        return list(dict.fromkeys(dropped))

    def claim(self, updates: Updates) -> None:
        """Remember what these scopes want without bringing it about."""
        claims = {scope: {f.key: f.mark for f in facts} for scope, facts in updates.items()}
        self.commit(Difference(Plan(), claims))

    def commit(self, done: Difference) -> None:
        """Remember that the driver has carried the plan out."""
        marks = {key: mark for mine in done.claims.values() for key, mark in mine.items()}
        for fact in (*done.plan.add, *done.plan.change):
            self.have[fact.key] = marks[fact.key]
        for key in done.plan.remove:
            self.have.pop(key, None)
        for scope, mine in done.claims.items():
            before = self._claims.get(scope, frozenset())
            for key in before - mine.keys():
                self._release(key, scope)
            for key in mine.keys() - before:
                self._hold(key, scope)
            if mine:
                self._claims[scope] = frozenset(mine)
            else:
                self._claims.pop(scope, None)

    def orphans(self) -> Plan:
        """Everything of ours that no scope wants."""
        return Plan(remove=tuple(key for key in self.have if key not in self._holders))

    def _hold(self, key: FactKey, scope: Scope) -> None:
        found = self._holders.get(key)
        if found is None:
            self._holders[key] = scope
        elif isinstance(found, Scope):
            self._holders[key] = {found, scope}
        else:
            found.add(scope)

    def _release(self, key: FactKey, scope: Scope) -> None:
        found = self._holders.get(key)
        if found == scope:
            del self._holders[key]
        elif isinstance(found, set):
            found.discard(scope)
            if len(found) == 1:
                self._holders[key] = found.pop()


def describe(key: FactKey) -> str:
    """A key in words: ("element", "svc-services4", ("10.0.0.1", "tcp", 80)) → "element svc-… 10.0.0.1 …"."""
    parts = (" . ".join(map(str, p)) if isinstance(p, tuple) else str(p) for p in key)
    return " ".join(p for p in parts if p)

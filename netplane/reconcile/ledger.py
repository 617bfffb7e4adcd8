"""What one driver holds, what scopes want of it, and the difference.

Rule 1: a fact that several scopes want is held until none does; they must want the same of it.
Rule 2: the ledger remembers what was committed and never asks the driver on the hot path; `reset`
        takes over what the driver observes (at start, after an error, at leisure). What it cannot see
        (Driver.unseen) is removed when its last holder goes, whether it was seen or not.
Rule 3: what somebody else changed is not what the holders want: a scope that wants what was committed may
        have it back, alone.
Rule 4: facts that nobody wants are removed by `sweep` only, which the caller allows once all scopes
        of a synced store are rendered.
Rule 5: of differences that are carried out at once none takes away, or has yet to bring, what another
        wants (`must_wait`); who is letting a fact go is its holder no more: the last of several at once takes
        it away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..model.errors import Conflict
from ..model.facts import Fact, FactKey, Mark, Plan, Scope

_ABSENT = object()
Updates = Mapping[Scope, Sequence[Fact]]


class Difference(NamedTuple):
    """A plan, and what the ledger is to remember once the driver has carried it out."""

    plan: Plan
    claims: dict[Scope, dict[FactKey, Mark]]
    wanted: dict[FactKey, Mark]
    moved: tuple[FactKey, ...] = ()  # what the plan touches


class Ledger:
    """Not thread-safe: the caller (Settler) holds its lock around every call."""

    def __init__(self, unseen: Callable[[FactKey], bool] | None = None) -> None:
        self._unseen = unseen or (lambda _: False)
        self.have: dict[FactKey, Mark] = {}
        self._meant: dict[FactKey, Mark] = {}  # what was committed of shared facts that are otherwise now
        self._claims: dict[Scope, tuple[FactKey, ...]] = {}  # a set would cost five times a tuple
        self._holders: dict[FactKey, Scope | set[Scope]] = {}
        self._under_way: dict[int, Difference] = {}
        self._moving: set[FactKey] = set()  # what these touch

    def reset(self, observed: Mapping[FactKey, Mark]) -> None:
        """Believe the driver: ``observed`` is what there is. Claims stay."""
        for key, holders in self._holders.items():
            if isinstance(holders, set) and key in self.have and key in observed:
                mark = self.have[key]
                if observed[key] != mark:
                    self._meant.setdefault(key, mark)
        known = {key: key for key in self._holders}  # one copy of each key is enough
        self.have = {known.get(key, key): mark for key, mark in observed.items()}

    def holders(self, key: FactKey) -> set[Scope]:
        found = self._holders.get(key)
        return set() if found is None else {found} if isinstance(found, Scope) else found

    def knows(self, scope: Scope) -> bool:
        """Whether it wants anything here until now."""
        return scope in self._claims

    def scopes(self) -> tuple[Scope, ...]:
        return tuple(self._claims)

    def difference(self, updates: Updates) -> Difference:
        """The plan that takes these scopes from what they had to what they want now.

        Raises Conflict when two scopes want different things under one key.
        """
        claims: dict[Scope, dict[FactKey, Mark]] = {}
        wanted: dict[FactKey, Mark] = {}
        add: list[Fact] = []
        change: list[Fact] = []
        moved: list[FactKey] = []
        for scope, facts in updates.items():
            mine = claims[scope] = {}
            for fact in facts:
                key, mark = fact.key, fact.mark
                mine[key] = mark
                if key in wanted:
                    if wanted[key] != mark:
                        raise Conflict(
                            f"{scope}: {describe(key)} is wanted differently by another scope of this change"
                        )
                    continue
                have = self.have.get(key, _ABSENT)
                if have == mark:
                    mark = have  # and the equal one goes: what stays is held once
                wanted[key] = mark
                if have is _ABSENT:
                    add.append(fact)
                    moved.append(key)
                elif have != mark:
                    if self._meant.get(key, have) != mark:
                        self._refuse_held(key, scope, updates)
                    change.append(fact)
                    moved.append(key)
        dropped = (key for key in self._dropped(claims) if key not in wanted)
        remove = [key for key in dropped if key in self.have or self._unseen(key)]
        plan = Plan(tuple(add), tuple(change), tuple(remove))
        return Difference(plan, claims, wanted, (*moved, *remove))

    # --- differences that are carried out at once --------------------------------------------------

    def begin(self, one: Difference) -> None:
        """It is being carried out from now until `end`."""
        self._under_way[id(one)] = one
        self._moving.update(one.moved)

    def end(self, one: Difference) -> None:
        del self._under_way[id(one)]
        self._moving.difference_update(one.moved)

    def must_wait(self, one: Difference) -> bool:
        """Whether something under way is to end first; then it is to be asked for anew."""
        if not self._under_way:
            return False
        if not self._moving.isdisjoint(one.wanted):
            return True
        gone, others = one.plan.remove, self._under_way.values()
        return bool(gone) and any(not other.wanted.keys().isdisjoint(gone) for other in others)

    def _refuse_held(self, key: FactKey, scope: Scope, updates: Updates) -> None:
        others = self.holders(key) - updates.keys() - {scope}
        if others:
            raise Conflict(f"{scope}: {describe(key)} is already held by {min(others)} in another shape")

    def _dropped(self, claims: Mapping[Scope, Mapping[FactKey, Mark]]) -> list[FactKey]:
        """Keys that lose their last holder, each once, in the order in which they were claimed."""
        dropped = []
        known = claims
        if self._under_way:
            known = {s: keys for one in self._under_way.values() for s, keys in one.claims.items()} | dict(
                claims
            )
        for scope, mine in claims.items():
            for key in self._claims.get(scope, ()):
                if key in mine:
                    continue
                if self._holders.get(key) == scope or not self._kept(key, scope, known):
                    dropped.append(key)
        return list(dict.fromkeys(dropped))

    def _kept(self, key: FactKey, scope: Scope, claims: Mapping[Scope, Mapping[FactKey, Mark]]) -> bool:
        """Whether another scope goes on wanting it; 30,000 may hold a chain, so nothing is copied."""
        found = self._holders.get(key)
        if found is None or isinstance(found, Scope):
            return found is not None and found != scope
        if len(found) > len(claims):  # one of them is not of this change
            return True
        return any(s != scope and (s not in claims or key in claims[s]) for s in found)

    def claim(self, updates: Updates) -> None:
        """Remember what these scopes want without bringing it about."""
        claims = {scope: {f.key: f.mark for f in facts} for scope, facts in updates.items()}
        self.commit(Difference(Plan(), claims, {}))

    def commit(self, done: Difference) -> None:
        """Remember that the driver has carried the plan out."""
        self.have.update(done.wanted)
        if self._meant:
            settled = done.wanted.keys() | set(done.plan.remove)
            self._meant = {key: mark for key, mark in self._meant.items() if key not in settled}
        for key in done.plan.remove:
            self.have.pop(key, None)
        for scope, mine in done.claims.items():
            before = self._claims.get(scope, ())
            if before == tuple(mine):
                continue
            for key in before:
                if key in mine:
                    continue
                if self._holders.get(key) == scope:  # of a pod's facts nearly all
                    del self._holders[key]
                else:
                    self._release(key, scope)
            known = set(before)
            for key in mine:
                if key not in known and self._holders.setdefault(key, scope) is not scope:
                    self._hold(key, scope)  # beside others
            if mine:
                self._claims[scope] = tuple(mine)
            else:
                self._claims.pop(scope, None)

    def orphans(self) -> Plan:
        """Everything of ours that no scope wants."""
        return Plan(remove=tuple(key for key in self.have if key not in self._holders))

    def _hold(self, key: FactKey, scope: Scope) -> None:
        found = self._holders[key]
        if found == scope:
            return
        if isinstance(found, Scope):
            self._holders[key] = {found, scope}
        else:
            found.add(scope)

    def _release(self, key: FactKey, scope: Scope) -> None:
        found = self._holders.get(key)
        if isinstance(found, set):
            found.discard(scope)
            if len(found) == 1:
                self._holders[key] = found.pop()


def describe(key: FactKey) -> str:
    """A key in words: ("element", "svc-services4", ("10.0.0.1", "tcp", 80)) → "element svc-… 10.0.0.1 …"."""
    parts = (" . ".join(map(str, p)) if isinstance(p, tuple) else str(p) for p in key)
    return " ".join(p for p in parts if p)

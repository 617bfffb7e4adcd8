"""One driver and its ledger: take scopes to what they want, in one transaction where it works.

Rule 1: a refused transaction is split until the scope that is refused stands alone; the others go on.
Rule 2: after the kernel refused something the ledger is in doubt: `stale` asks for a resync.
Rule 3: a driver that is `parallel` applies plans of different scopes at once. For any other, what threads
        ask for while a transaction is under way is the next one, together (the first rule still holds).
Rule 4: a driver that can `begin` a plan carries it out while the caller goes on (model.facts.Driver).
Rule 5: plans that are carried out at once agree on what several scopes share. Who counts on a thing holds it
        before his plan is carried out, and who leaves it to others holds it no more: so the last one takes
        it away, and nobody else. What one plan is making or taking away is waited for by the next that
        means it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from ..model.errors import KernelError, NetplaneError, Unavailable
from ..model.facts import Driver, Fact, FactKey, Mark, Plan, Scope
from ..model.gather import Gathering
from .ledger import Difference, Ledger, Updates

log = logging.getLogger(__name__)
Failures = dict[Scope, NetplaneError]
_GONE = object()


class _Asked:
    """What one thread asks for, and what became of it."""

    def __init__(self, updates: Updates) -> None:
        self.updates = updates
        self.failures: Failures = {}


class _Agreed(NamedTuple):
    """What is to be done, and what nobody else may mean meanwhile."""

    difference: Difference
    moving: tuple[FactKey, ...]


class Settler:
    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.ledger = Ledger(getattr(driver, "unseen", None))
        self.stale = False
        self._refused: dict[Scope, str] = {}  # whose refusal has been doubted already
        self._meanwhile: dict[FactKey, Mark] | None = None  # what was committed while the driver looks
        self._lock = threading.Lock()  # a bare one: a Condition's own costs two calls more each time
        self._idle = threading.Condition(self._lock)
        self._busy = 0
        self._moving: set[FactKey] = set()  # what plans under way make or take away
        self._waiting = 0  # for one of these
        self.together = Gathering[_Asked](self._settle_all)
        self._start: Callable[[Plan], Callable[[], None] | None] | None = getattr(driver, "begin", None)
        self.apart: bool = getattr(driver, "apart", False)

    def accepts(self, fact: Fact) -> bool:
        return isinstance(fact, self.driver.accepts)

    def settle(self, updates: Updates) -> Failures:
        """Bring these scopes about; the scopes that could not be, each with its error."""
        if not updates:
            return {}
        if self.driver.parallel:
            return self._settle(updates)
        asked = _Asked(updates)
        self.together.do(asked)
        return asked.failures

    def begin(self, updates: Updates) -> Callable[[], Failures] | None:
        """The same of one scope while the caller goes on; what is returned waits for the end.

        None: nothing was done, for the driver cannot do this so, or refuses it: `settle` tells.
        """
        if self._start is None or len(updates) != 1 or not all(updates.values()):
            return None  # what takes away waits for nobody, and is gathered
        self._enter()
        agreed, end = None, None
        try:
            with self._lock:
                agreed = self._agree(updates)
            end = self._start(agreed.difference.plan) if agreed.difference.plan else None
        except NetplaneError:
            log.debug("%s: not begun: %s", self.driver.name, updates)
        finally:
            if end is None:
                self._leave(agreed, done=False)
        return partial(self._end, updates, agreed, end) if agreed and end else None

    def _end(self, updates: Updates, agreed: _Agreed, end: Callable[[], None]) -> Failures:
        (scope,) = updates
        done = False
        try:
            end()
            done = True
        except NetplaneError as exc:
            if not isinstance(exc, Unavailable):
                self._doubt(scope, exc)
            return {scope: exc}
        finally:
            self._leave(agreed, done)
        self._refused.pop(scope, None)
        return {}

    def _settle_all(self, round_: list[_Asked]) -> None:
        """No scope is in two of them: it is worked on by one thread at a time."""
        failures = self._settle({scope: facts for asked in round_ for scope, facts in asked.updates.items()})
        for asked in round_ if failures else ():
            asked.failures = {scope: exc for scope, exc in failures.items() if scope in asked.updates}

    def _settle(self, updates: Updates) -> Failures:
        try:
            self._transact(updates)
            for scope in updates.keys() & self._refused.keys():
                self._refused.pop(scope, None)
            return {}
        except Unavailable as exc:
            return dict.fromkeys(updates, exc)
        except NetplaneError as exc:
            if len(updates) == 1:
                self._doubt(next(iter(updates)), exc)
                return dict.fromkeys(updates, exc)
        scopes = list(updates)
        middle = len(scopes) // 2
        failures = self._settle({s: updates[s] for s in scopes[:middle]})
        return failures | self._settle({s: updates[s] for s in scopes[middle:]})

    def _doubt(self, scope: Scope, exc: NetplaneError) -> None:
        """A refusal says that the kernel may hold something else than we think: once, not at every try."""
        if isinstance(exc, KernelError) and self._refused.get(scope) != str(exc):
            self._refused[scope] = str(exc)
            self.stale = True

    def _transact(self, updates: Updates) -> None:
        """Without `contextmanager`, which would cost a tenth of an ADD in all."""
        agreed, done = None, False
        self._enter()
        try:
            with self._lock:
                agreed = self._agree(updates)
            if agreed.difference.plan:
                self.driver.apply(agreed.difference.plan)
            done = True
        finally:
            self._leave(agreed, done)

    def _agree(self, updates: Updates) -> _Agreed:
        """With the lock held: what is to be done, when nothing of it is under way any more (rule 5).

        Raises Conflict.
        """
        while True:
            difference = self.ledger.difference(updates)
            if self._moving.isdisjoint(difference.wanted) and self._moving.isdisjoint(difference.plan.remove):
                break
            self._waiting += 1
            self._idle.wait()
            self._waiting -= 1
        if not self.driver.parallel:
            return _Agreed(difference, ())
        have = self.ledger.have
        moving = (*difference.plan.remove, *(key for key in difference.wanted if key not in have))
        self._moving.update(moving)
        self._claim(difference)
        return _Agreed(difference, moving)

    def _claim(self, difference: Difference) -> None:
        """Before the plan is carried out. What it adds is claimed when it is there, and what it removes until
        that has gone: a plan that fails is made again."""
        ledger, claims = self.ledger, {}
        for scope, mine in difference.claims.items():
            before = ledger.knows(scope)
            claims[scope] = {
                key: mark
                for key, mark in mine.items()
                if key in ledger.have or (before and scope in ledger.holders(key))
            }
        for key in difference.plan.remove:
            for scope in ledger.holders(key):
                claims[scope][key] = ""
        ledger.commit(Difference(Plan(), claims, {}))

    def _enter(self) -> None:
        with self._lock:
            while self._busy < 0 or (self._busy and not self.driver.parallel):
                self._idle.wait()
            self._busy += 1

    def _leave(self, agreed: _Agreed | None, done: bool) -> None:
        with self._lock:
            self._busy -= 1
            if agreed is not None:
                self._moving.difference_update(agreed.moving)
                if done:
                    self.ledger.commit(agreed.difference)
                    self._note(agreed.difference.plan)
            if not self._busy or self._waiting:  # else nobody who waits may go on
                self._idle.notify_all()

    def _note(self, plan: Plan) -> None:
        if self._meanwhile is not None:
            self._meanwhile.update((f.key, f.mark) for f in (*plan.add, *plan.change))
            self._meanwhile.update(dict.fromkeys(plan.remove, _GONE))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._idle:
            self._idle.wait_for(lambda: self._busy == 0)
            self._busy = -1
        try:
            yield
        finally:
            with self._idle:
                self._busy = 0
                self._idle.notify_all()

    def resync(self) -> None:
        """Observe the driver and believe it. Raises KernelError, Unavailable."""
        with self._alone():
            self._believe(self.driver.observe())

    def compare(self) -> None:
        """The same beside the work, where the driver can: what it commits meanwhile counts."""
        look = getattr(self.driver, "observe_beside", None)
        if look is None:
            self.resync()
            return
        doubted, self.stale = self.stale, False  # a refusal from now on is a new doubt
        with self._idle:
            self._meanwhile = {}
            expected = tuple(self.ledger.have)
        try:
            observed = dict(look(expected))
        except NetplaneError:
            self.stale = self.stale or doubted
            raise
        with self._alone():
            refused, meanwhile, self._meanwhile = self.stale, self._meanwhile, None
            observed.update(meanwhile)
            for key in [key for key, mark in meanwhile.items() if mark is _GONE]:
                del observed[key]
            self._believe(observed)
            self.stale = refused

    def _believe(self, observed: Mapping[FactKey, Mark]) -> None:
        self.ledger.reset(observed)
        self.stale = False

    def adopt(self, updates: Updates) -> None:
        """These scopes want these facts; nothing is done about it."""
        with self._idle:
            self.ledger.claim(updates)

    def sweep(self, ours: Callable[[FactKey], bool] = lambda _: True) -> int:
        """Remove what no scope wants; how many facts went. Raises KernelError, Unavailable."""
        with self._alone():
            found = self.ledger.orphans()
            plan = Plan(remove=tuple(key for key in found.remove if ours(key)))
            if plan:
                self.driver.apply(plan)
                self._note(plan)
                for key in plan.remove:
                    self.ledger.have.pop(key, None)
            return len(plan.remove)

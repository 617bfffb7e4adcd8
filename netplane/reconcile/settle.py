"""One driver and its ledger: take scopes to what they want, in one transaction where it works.

Rule 1: a refused transaction is split until the scope that is refused stands alone; the others go on.
Rule 2: after the kernel refused something the ledger is in doubt: `stale` asks for a resync.
Rule 3: a driver that is `parallel` applies plans of different scopes at once. For any other, what threads
        ask for while a transaction is under way is the next one, together (the first rule still holds).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..model.errors import KernelError, NetplaneError, Unavailable
from ..model.facts import Driver, Fact, FactKey, Plan, Scope
from ..model.gather import Gathering
from .ledger import Ledger, Updates

Failures = dict[Scope, NetplaneError]


class _Asked:
    """What one thread asks for, and what became of it."""

    def __init__(self, updates: Updates) -> None:
        self.updates = updates
        self.failures: Failures = {}


class Settler:
    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.ledger = Ledger()
        self.stale = False
        self._idle = threading.Condition()
        self._busy = 0
        self.together = Gathering[_Asked](self._settle_all)

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

    def _settle_all(self, round_: list[_Asked]) -> None:
        """No scope is in two of them: it is worked on by one thread at a time."""
        failures = self._settle({scope: facts for asked in round_ for scope, facts in asked.updates.items()})
        for asked in round_ if failures else ():
            asked.failures = {scope: exc for scope, exc in failures.items() if scope in asked.updates}

    def _settle(self, updates: Updates) -> Failures:
        try:
            self._transact(updates)
            return {}
        except Unavailable as exc:
            return dict.fromkeys(updates, exc)
        except NetplaneError as exc:
            if len(updates) == 1:
                self.stale = self.stale or isinstance(exc, KernelError)
                return dict.fromkeys(updates, exc)
        scopes = list(updates)
        middle = len(scopes) // 2
        failures = self._settle({s: updates[s] for s in scopes[:middle]})
        return failures | self._settle({s: updates[s] for s in scopes[middle:]})

    def _transact(self, updates: Updates) -> None:
        with self._working():
            with self._idle:
                difference = self.ledger.difference(updates)
            if difference.plan:
                self.driver.apply(difference.plan)
            with self._idle:
                self.ledger.commit(difference)

    @contextmanager
    def _working(self) -> Iterator[None]:
        with self._idle:
            self._idle.wait_for(lambda: self._busy >= 0 and (self.driver.parallel or self._busy == 0))
            self._busy += 1
        try:
            yield
        finally:
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()

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
            self.ledger.reset(self.driver.observe())
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
                for key in plan.remove:
                    self.ledger.have.pop(key, None)
            return len(plan.remove)

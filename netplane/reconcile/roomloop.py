"""Rooms: dirty scopes are rendered, compared with the ledgers and applied, driver by driver.

Rule 1: nothing is swept before every scope of a synced snapshot has been rendered once.
Rule 2: a scope is worked on by one thread at a time: the loop's, or an edge's that calls `settle`.
Rule 3: a scope that fails keeps its last facts, is reported, and is tried again, later each time.
Rule 4: a doubt about what the kernel holds (a refusal, an hour gone by) ends in a full comparison.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from ..model.errors import NetplaneError
from ..model.facts import Driver, Fact, Scope
from ..model.snapshot import Snapshot
from .base import Event, Listeners, Observer, Room, Settled
from .ledger import Updates
from .queue import Queue
from .settle import Failures, Settler

log = logging.getLogger(__name__)

CHUNK = 2000  # scopes in one transaction: a cold start of 30,000 services goes in steps
LEISURE = 100  # scopes that are compared between two looks at what is due
GATHER = 0.001  # seconds: events that come together are worked on together
ASIDE = 0.01  # seconds that what an edge's writes touch beside its own scopes may wait for more of it
RESYNC = 3600.0  # seconds between full comparisons with the kernel
DOUBT = 5.0  # seconds at least between full comparisons after refusals
NOBODY = -1  # facts of a type that no driver here takes
FINISH = Scope("", "finish")  # queued behind a full pass: sweep when all of it is through


class RoomLoop:
    def __init__(
        self,
        rooms: Sequence[tuple[Room, Sequence[Driver]]],
        snapshot: Callable[[], Snapshot],
        observer: Observer | None = None,
    ) -> None:
        self.rooms = {room.name: room for room, _ in rooms}
        drivers = {id(d): d for _, mine in rooms for d in mine}
        self.settlers = [Settler(d) for d in drivers.values()]
        self._which: dict[type[Fact], int] = {}  # the settler that takes facts of a type
        self.queue = Queue()
        self.failures: dict[Scope, str] = {}
        self.held: set[Scope] = set()
        self.passed = threading.Event()  # the first full pass is through
        self._listeners = Listeners(room for room, _ in rooms)
        self._snapshot = snapshot
        self._promised: set[Scope] = set()  # held by an edge that has not rendered them yet
        self._edge = threading.local()  # .aside: what the writes of this thread touch, in `aside`
        self._lock = threading.Lock()  # bare, as in Settler
        self._freed = threading.Condition(self._lock)
        self._resynced = float("-inf")
        self._observe = True
        self._passing = False  # in a full pass
        self._compare = threading.Event()  # asks for a look at what the drivers hold
        self._looking = False
        self._later: deque[Scope] = deque()  # of a full pass, to be compared when nothing is due
        self._observer = observer
        self._stopping = False
        self._began = 0.0  # when the loop took up what it works on; 0 while it waits
        self._thread = threading.Thread(target=self._run, name="rooms", daemon=True)
        self._looker = threading.Thread(target=self._look, name="rooms look", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._looker.start()

    def stop(self) -> None:
        self._stopping = True
        self._compare.set()
        self.queue.close()
        self._thread.join(timeout=10)
        self._looker.join(timeout=10)

    def notice(self, events: Sequence[Event], snapshot: Snapshot) -> None:
        """What came together goes to the kernel together: a rule and the sets that it names."""
        if self._observer is not None:
            self._observer.noticed(events)
        touched = {
            scope: None
            for event in events
            for room in self._listeners.of(event.object.KIND)
            for scope in room.scopes(event, snapshot)
        }
        due = [s for s in touched if s not in self._promised]
        aside: dict[Scope, None] | None = getattr(self._edge, "aside", None)
        if aside is not None:
            aside.update(dict.fromkeys(due))
        elif due:  # else nobody need wake
            self.queue.add_all(due, GATHER)

    def aside(self) -> _Aside:
        """For `with`: what this thread's writes touch is left to the loop at the end, but for what it
        settled itself."""
        return _Aside(self._edge, self.queue)

    def full_pass(self) -> None:
        """Everything again: observe the drivers, render every scope, sweep.

        The first one comes before anything else. Later ones are at leisure: what changes goes before.
        """
        self._resynced = time.monotonic()
        self._passing = True
        if self.passed.is_set():
            self._compare.set()
            return
        self._observe = True
        for scope in self._all_scopes():
            self.queue.add(scope)
        self.queue.add(FINISH, GATHER)

    def _all_scopes(self) -> list[Scope]:
        snapshot = self._snapshot()
        return [scope for room in self.rooms.values() for scope in room.scopes(None, snapshot)]

    def _look(self) -> None:
        """Every full pass but the first begins here, in a thread of its own: listing takes seconds."""
        while True:
            self._compare.wait()
            if self._stopping:
                return
            self._looking = True
            self._compare.clear()
            if self._observed(Settler.compare):
                self._later = deque(self._all_scopes())
                self.queue.add(FINISH, GATHER)
            else:
                time.sleep(1.0)
                self._compare.set()
            self._looking = False

    def behind(self) -> int:
        """How much of a full pass is still to be done: scopes, and looks at the drivers."""
        return len(self._later) + (self._looking or self._compare.is_set())

    def adopt(self) -> None:
        """Without the loop: believe what the drivers hold, and let every scope claim what it wants of it."""
        rendered, _ = self._render(self._all_scopes(), self._snapshot())
        for settler in self.settlers:
            settler.resync()
            settler.adopt({scope: tuple(filter(settler.accepts, facts)) for scope, facts in rendered.items()})

    def settle(self, scopes: Sequence[Scope], before: Callable[[], object] | None = None) -> Failures:
        """Render these scopes on the newest snapshot and bring them about; those that failed, and why.

        What ``before`` (an edge's writes) changes about them is not queued: this call sees to it.
        """
        begin = time.perf_counter()
        held = self._hold(scopes)
        try:
            if before is not None:
                self._promise(scopes, before)
            self._drop(scopes)  # before the snapshot: what comes later is queued again
            rendered, failures = self._render(scopes, self._snapshot())
            self._bring_about(self._shares(rendered), failures)
        finally:
            self._free(held)
        for scope in scopes:
            self._note(scope, failures.get(scope))
        if self._observer is not None:
            seconds = time.perf_counter() - begin
            self._observer.settled(Settled(scopes, seconds, len(failures), self._passing))
        return failures

    def _bring_about(self, shares: Sequence[Updates], failures: Failures) -> None:
        """Driver by driver; what one does by itself goes on beside those whose facts need nothing of it."""
        work = [(settler, updates) for settler, updates in zip(self.settlers, shares, strict=True) if updates]
        running: list[Callable[[], Failures]] = []  # one at most
        try:
            for place, (settler, updates) in enumerate(work):
                if running and not settler.apart:
                    failures |= running.pop()()
                if failures:
                    updates = {scope: facts for scope, facts in updates.items() if scope not in failures}
                if not running and place + 1 < len(work) and work[place + 1][0].apart:
                    begun = settler.begin(updates)
                    if begun is not None:
                        running.append(begun)
                        continue
                failures |= settler.settle(updates)
        finally:
            if running:
                failures |= running.pop()()

    def _shares(self, rendered: Mapping[Scope, Sequence[Fact]]) -> list[dict[Scope, list[Fact]]]:
        """Each settler's part of what was rendered, in one walk over it; scopes that want something of it,
        or did until now."""
        shares: list[dict[Scope, list[Fact]]] = [{} for _ in self.settlers]
        for scope, facts in rendered.items():
            for settler, share in zip(self.settlers, shares, strict=True):
                if settler.ledger.knows(scope):
                    share[scope] = []
            for fact in facts:
                which = self._which.get(type(fact))
                if which is None:
                    takes = (i for i, s in enumerate(self.settlers) if s.accepts(fact))
                    which = self._which[type(fact)] = next(takes, NOBODY)
                if which != NOBODY:
                    shares[which].setdefault(scope, []).append(fact)
        return shares

    def overdue(self) -> float:
        """How long the oldest change waits that is due, or is being worked on; in seconds."""
        began = self._began
        return max(self.queue.overdue(), time.monotonic() - began if began else 0.0)

    def _drop(self, scopes: Sequence[Scope]) -> None:
        self.queue.drop(scopes)
        aside: dict[Scope, None] = getattr(self._edge, "aside", None) or {}
        for scope in scopes:
            aside.pop(scope, None)

    def _promise(self, scopes: Sequence[Scope], before: Callable[[], object]) -> None:
        self._promised.update(scopes)
        try:
            before()
        except BaseException:
            self._promised.difference_update(scopes)
            for scope in scopes:  # whatever became of the write
                self.queue.add(scope, GATHER)
            raise
        self._promised.difference_update(scopes)

    def _note(self, scope: Scope, error: NetplaneError | None) -> None:
        if error is None:
            self.queue.done(scope)
            self.failures.pop(scope, None)
            return
        delay = self.queue.retry(scope)
        if self.failures.get(scope) != str(error):
            log.warning("%s: %s (again in %.1f s)", scope, error, delay)
        self.failures[scope] = str(error)

    def _run(self) -> None:
        while not self._stopping:
            scopes = self._take()
            if self._stopping:
                return
            age = time.monotonic() - self._resynced
            if self.passed.is_set() and age > (DOUBT if self._doubtful() else RESYNC):
                self.full_pass()
            if self._observe and not self._observed():
                for scope in scopes:
                    self.queue.retry(scope)
                continue
            self._observe = False
            if scopes:
                self._began = time.monotonic()
                self.settle([s for s in scopes if s != FINISH])
                self._began = 0.0
            if FINISH in scopes:
                self._finish_pass()

    def _take(self) -> list[Scope]:
        """What is due, and a little of what is to be compared at leisure."""
        later = self._later
        wait = 0.0 if later else 1.0 if self._doubtful() else 60.0
        scopes = self.queue.take(CHUNK, wait)
        known = set(scopes)
        while later and len(scopes) < LEISURE:
            scope = later.popleft()
            if scope not in known:
                scopes.append(scope)
        return scopes

    def _doubtful(self) -> bool:
        return any(s.stale for s in self.settlers)

    def _observed(self, look: Callable[[Settler], None] = Settler.resync) -> bool:
        """At the start of a full pass: ask the drivers what there is."""
        for settler in self.settlers:
            where = Scope("kernel", settler.driver.name)
            try:
                look(settler)
                self.failures.pop(where, None)
            except NetplaneError as exc:
                log.error("%s: cannot observe: %s", where, exc)
                self.failures[where] = str(exc)
                return False
        return True

    def _finish_pass(self) -> None:
        """Everything that was due is rendered: what is left in the kernel is nobody's."""
        if self._later or self.queue.due():
            self.queue.add(FINISH, GATHER)
            return
        for settler in self.settlers:
            try:
                swept = settler.sweep()
            except NetplaneError as exc:
                log.error("%s: cannot remove leftovers: %s", settler.driver.name, exc)
                self.queue.retry(FINISH)
                return
            if swept:
                log.info("%s: removed %d leftovers", settler.driver.name, swept)
        self._passing = False
        self.passed.set()

    def _render(
        self, scopes: Sequence[Scope], snapshot: Snapshot
    ) -> tuple[dict[Scope, tuple[Fact, ...]], Failures]:
        rendered: dict[Scope, tuple[Fact, ...]] = {}
        failures: Failures = {}
        for scope in scopes:
            try:
                rendered[scope] = tuple(self.rooms[scope.room].render(scope, snapshot))
            except NetplaneError as exc:
                failures[scope] = exc
            except Exception as exc:  # a bug in one room must not stop the others
                log.exception("%s: cannot be rendered", scope)
                failures[scope] = NetplaneError(f"{type(exc).__name__}: {exc}")
        return rendered, failures

    def _hold(self, scopes: Sequence[Scope]) -> set[Scope]:
        wanted = set(scopes)
        with self._lock:
            while self.held & wanted:
                self._freed.wait()
            self.held |= wanted
        return wanted

    def _free(self, held: set[Scope]) -> None:
        with self._lock:
            self.held -= held
            self._freed.notify_all()


class _Aside:
    """Of one thread; one within another is part of it."""

    def __init__(self, edge: threading.local, queue: Queue) -> None:
        self._edge, self._queue = edge, queue
        self._touched: dict[Scope, None] | None = None

    def __enter__(self) -> None:
        if getattr(self._edge, "aside", None) is None:
            self._touched = self._edge.aside = {}

    def __exit__(self, *_: object) -> None:
        if self._touched is not None:
            self._edge.aside = None
            if self._touched:
                self._queue.add_all(self._touched.keys(), ASIDE)

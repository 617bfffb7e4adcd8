"""What is to be done, each scope once, when it is due; a scope that fails waits longer each time."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Collection, Iterable

from ..model.facts import Scope

FIRST_BACKOFF, LAST_BACKOFF = 0.1, 30.0  # seconds
FOREVER = float("inf")
SOON = 0.01  # seconds: what is gathered, and so to be done at once


class Queue:
    """Thread-safe. A scope added twice is done once, at the earlier of its two times."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # bare, as in Settler
        self._changed = threading.Condition(self._lock)
        self._due: dict[Scope, float] = {}
        self._heap: list[tuple[float, Scope]] = []
        self._tries: dict[Scope, int] = {}
        self._asleep = 0.0  # until when `take` sleeps unless it is woken; 0: it does not
        self.taken = 0  # taken, and not done before the next `take`
        self._closed = False

    def __len__(self) -> int:
        return len(self._due)

    def add(self, scope: Scope, delay: float = 0.0) -> None:
        due = time.monotonic() + delay
        with self._lock:
            if due < self._due.get(scope, float("inf")):
                self._due[scope] = due
                heapq.heappush(self._heap, (due, scope))
                self._wake(due)

    def add_all(self, scopes: Collection[Scope], delay: float) -> None:
        """Add scopes that one change touches: they come due together, and `take` does not part them."""
        due = time.monotonic() + delay
        with self._lock:
            due = min([due, *(self._due[s] for s in scopes if s in self._due)])
            for scope in scopes:
                if due < self._due.get(scope, float("inf")):
                    self._due[scope] = due
                    heapq.heappush(self._heap, (due, scope))
            self._wake(due)

    def _wake(self, due: float) -> None:
        """A thread that is up in time is not woken: waking costs whoever asks more than all else here."""
        if due < self._asleep:
            self._asleep = 0.0
            self._changed.notify()

    def drop(self, scopes: Iterable[Scope]) -> None:
        """These are about to be worked on by somebody else, on what is known now."""
        with self._lock:
            for scope in scopes:
                self._due.pop(scope, None)

    def retry(self, scope: Scope) -> float:
        """Add a scope that failed, later each time; the delay in seconds."""
        with self._lock:
            tries = self._tries[scope] = self._tries.get(scope, 0) + 1
        delay = min(FIRST_BACKOFF * 2.0 ** min(tries - 1, 16), LAST_BACKOFF)
        self.add(scope, delay)
        return delay

    def done(self, scope: Scope) -> None:
        """It went well: the next failure starts from the shortest wait."""
        with self._lock:
            self._tries.pop(scope, None)

    def take(self, limit: int, timeout: float | None = None) -> list[Scope]:
        """Up to ``limit`` scopes that are due; waits for the first. [] on timeout or when closed."""
        give_up = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self.taken = 0
            while not self._closed:
                now = time.monotonic()
                taken = self._pop_due(now, limit)
                self.taken = len(taken)
                if taken or (give_up is not None and now >= give_up):
                    return taken
                self._asleep = min(give_up or FOREVER, self._heap[0][0] if self._heap else FOREVER)
                self._changed.wait(None if self._asleep == FOREVER else self._asleep - now)
                self._asleep = 0.0
            return []

    def _pop_due(self, now: float, limit: int) -> list[Scope]:
        taken: list[Scope] = []
        last = 0.0
        while self._heap and self._heap[0][0] <= now and (len(taken) < limit or self._heap[0][0] == last):
            due, scope = heapq.heappop(self._heap)
            last = due
            if self._due.get(scope) == due:  # else it was moved to an earlier time, and done
                del self._due[scope]
                taken.append(scope)
        if not self._due:
            self._due.clear()  # gives back what a full pass took; deletions alone do not
        return taken

    def due(self) -> int:
        """How many scopes wait that are due now (retries that wait for their time do not count)."""
        now = time.monotonic()
        with self._lock:
            return sum(1 for t in self._due.values() if t <= now)

    def pending(self) -> int:
        """How many scopes are due, or nearly so."""
        soon = time.monotonic() + SOON
        with self._lock:
            return sum(1 for t in self._due.values() if t <= soon)

    def overdue(self) -> float:
        """How many seconds the oldest scope waits that is due; 0 with none."""
        now = time.monotonic()
        with self._lock:
            while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
                heapq.heappop(self._heap)  # moved to an earlier time, and done
            return max(0.0, now - self._heap[0][0]) if self._heap else 0.0

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._changed.notify_all()

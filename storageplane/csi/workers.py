"""The threads that calls are carried out in, for grpcio to hand them to.

Rule 1: who worked last works next: what it needs is still in the processor's caches.
Rule 2: a thread is made when all are at work, up to as many as there may be; more calls wait, in order.

concurrent.futures' pool does the same with a future, its condition and two queues for every call, which
cost 20 to 50 µs of a call; nobody here looks at the future.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

log = logging.getLogger(__name__)
Work = tuple[Callable[..., Any], tuple[Any, ...]]


class Workers(Executor):
    """At most ``most`` calls at a time. What is submitted must not raise."""

    def __init__(self, most: int) -> None:
        self._most, self._made = most, 0
        self._lock = threading.Lock()
        self._quiet = threading.Condition(self._lock)
        self._parked: list[_Worker] = []
        self._waiting: deque[Work] = deque()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Any:
        work = (fn, args)
        with self._lock:
            worker = self._parked.pop() if self._parked else None
            if worker is None and self._made == self._most:
                self._waiting.append(work)
                return _TAKEN
            self._made += worker is None
        if worker is None:
            worker = _Worker(self)
        worker.give(work)
        return _TAKEN

    def following(self, worker: _Worker) -> Work | None:
        """What a worker that is done does next; None: it is parked, and given work when there is some."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._parked.append(worker)
            if len(self._parked) == self._made:
                self._quiet.notify_all()
            return None

    def rest(self, patience: float) -> bool:
        """Whether nothing is under way (any more); seconds are waited for that."""
        with self._quiet:
            return self._quiet.wait_for(lambda: len(self._parked) == self._made, patience)


class _Worker:
    __slots__ = ("_given", "_work", "_workers")

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._work: Work | None = None
        self._given = threading.Lock()
        self._given.acquire()
        threading.Thread(target=self._run, name="csi", daemon=True).start()

    def give(self, work: Work) -> None:
        self._work = work
        self._given.release()

    def _run(self) -> None:
        while True:
            self._given.acquire()
            work, self._work = self._work, None
            while work is not None:
                try:
                    work[0](*work[1])
                except BaseException:
                    log.exception("a call")
                work = self._workers.following(self)


class _Taken:
    """Instead of a future: what grpcio does when a call is done, which is to count it, it does at once."""

    @staticmethod
    def add_done_callback(done: Callable[[Any], Any]) -> None:
        done(None)


_TAKEN = _Taken()

"""Work that may wait, done in a thread of its own once no more of it comes.

Rule 1: of what is asked for one key the last counts: what was undone before its time is never done.
Rule 2: it waits for calm, but not for ever: a flock that does not end is begun after ``most`` seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """``work`` gets a flock's items by key; it must not raise. ``calm``: seconds without a new one."""

    def __init__(self, work: Callable[[dict[str, T]], None], calm: float, most: float) -> None:
        self._work = work
        self._calm, self._most = calm, most
        self._changed = threading.Condition()
        self._items: dict[str, T] = {}
        self._first = self._last = 0.0
        self._thread: threading.Thread | None = None

    def put(self, key: str, item: T) -> None:
        with self._changed:
            self._last = time.monotonic()
            if not self._items:
                self._first = self._last
                self._changed.notify()
            self._items[key] = item
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="later", daemon=True)
                self._thread.start()

    def drop(self, key: str) -> None:
        """It is not to be done any more; what is being done is."""
        with self._changed:
            self._items.pop(key, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items)
                due = min(self._last + self._calm, self._first + self._most)
            left = due - time.monotonic()
            if left > 0:  # asleep, not waiting: nobody who asks need wake us
                time.sleep(left)
                continue
            with self._changed:
                items, self._items = self._items, {}
            self._work(items)

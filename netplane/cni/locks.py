"""Mutual exclusion per key, and writes that meet other writers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

from ..model.errors import Conflict

_TRIES = 8


def persist(write: Callable[[], None]) -> None:
    """Run a read-decide-write until nobody wrote in between; the last try's Conflict is raised."""
    for _ in range(_TRIES - 1):
        try:
            write()
            return
        except Conflict:
            continue
    write()


class _Entry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0


class Locks:
    """A lock per key, made when wanted and forgotten when not."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[Hashable, _Entry] = {}

    def hold(self, key: Hashable) -> _Hold:
        """For `with`."""
        return _Hold(self, key)

    def busy(self) -> frozenset[Hashable]:
        """The keys that somebody holds or waits for."""
        with self._guard:
            return frozenset(self._held)

    def take(self, key: Hashable) -> None:
        with self._guard:
            entry = self._held.setdefault(key, _Entry())
            entry.users += 1
        entry.lock.acquire()

    def give(self, key: Hashable) -> None:
        with self._guard:
            entry = self._held[key]
            entry.users -= 1
            if not entry.users:
                del self._held[key]
        entry.lock.release()


class _Hold:
    def __init__(self, locks: Locks, key: Hashable) -> None:
        self._locks, self._key = locks, key

    def __enter__(self) -> None:
        self._locks.take(self._key)

    def __exit__(self, *_: object) -> None:
        self._locks.give(self._key)

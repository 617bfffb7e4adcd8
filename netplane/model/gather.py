"""Work that threads ask for at once, done by one of them for all who have come by then.

Rule 1: nobody waits for company: who finds nobody at work begins at once, and those who come meanwhile
        are the next round.
Rule 2: a thread is woken once: when its own is done, or to do the next round.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Gathering(Generic[T]):
    """``work`` gets every item once, in the order in which they came; what it raises, all of these get."""

    def __init__(self, work: Callable[[list[T]], None]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._waiting: list[_Ticket[T]] = []
        self._busy = False

    def __len__(self) -> int:
        """How many wait for the next round."""
        return len(self._waiting)

    def do(self, item: T) -> None:
        """Return when the item is worked on. Raises what the work does."""
        ticket = _Ticket(item)
        with self._lock:
            self._waiting.append(ticket)
            first, self._busy = not self._busy, True
        if not first:
            ticket.woken.acquire()
        if not ticket.done:
            self._round()
        if ticket.error is not None:
            raise ticket.error

    def _round(self) -> None:
        with self._lock:
            round_, self._waiting = self._waiting, []
        error: BaseException | None = None
        try:
            self._work([ticket.item for ticket in round_])
        except BaseException as exc:
            error = exc
        with self._lock:
            following = self._waiting[:1]
            self._busy = bool(following)
        for ticket in round_:
            ticket.done, ticket.error = True, error
        for ticket in (*round_, *following):
            ticket.woken.release()


class _Ticket(Generic[T]):
    def __init__(self, item: T) -> None:
        self.item = item
        self.done = False
        self.error: BaseException | None = None
        self.woken = threading.Lock()
        self.woken.acquire()

"""A thread that notices commits of other processes: inotify on the WAL, and a slow poll for safety.

A writer appends frames to the WAL before the commit is visible (SQLite's wal-index moves last), so
one wake-up is followed by a few looks at growing distances. At rest the thread sleeps.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

from inotify_simple import INotify, flags

LOOKS = (0.0, 0.001, 0.004, 0.015, 0.04, 0.1)  # seconds after the last event
FEWER = (0.0, 0.015, 0.04, 0.1)  # the same while the writes are most likely our own
CLOSEST = 0.001  # a burst of writes costs one look per this many seconds
CALM = 0.01  # seconds that events gather while the writes are most likely our own
SAFETY = 1.0  # seconds; finds a file that went away or came back
WITHOUT_INOTIFY = 0.02
MASK = (
    flags.MODIFY | flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO
    | flags.DELETE_SELF | flags.MOVE_SELF
)  # fmt: skip

log = logging.getLogger(__name__)


class Pulse:
    """Calls ``look`` whenever the file at ``path`` may have changed, until `close`."""

    def __init__(self, path: str, look: Callable[[], None], own: Callable[[], bool]) -> None:
        self._directory = Path(path).parent
        self._name = Path(path).name
        self._look = look
        self._own = own  # whether what is felt now is probably our own doing
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._inotify = self._open()
        self._watched: tuple[int, int] | None = None
        self._safety = SAFETY if self._inotify else WITHOUT_INOTIFY
        self._follow()
        self._thread = threading.Thread(target=self._run, name=f"store {self._name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.eventfd_write(self._stop, 1)
        if self._thread is not threading.current_thread():
            self._thread.join()
        if self._inotify:
            self._inotify.close()
        os.close(self._stop)

    def _open(self) -> INotify | None:
        try:
            return INotify()
        except OSError as exc:
            log.warning("store: no inotify (%s): looking every %d ms", exc.strerror, WITHOUT_INOTIFY * 1000)
            return None

    def _follow(self) -> None:
        """Watch the directory, again when another one stands at its path."""
        try:
            found = os.stat(self._directory)
            if self._inotify and (found.st_dev, found.st_ino) != self._watched:
                self._inotify.add_watch(self._directory, MASK)
                self._watched = (found.st_dev, found.st_ino)
        except OSError:
            self._watched = None  # it comes back, or it does not: the safety poll asks again

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        if self._inotify:
            poll.register(self._inotify, select.POLLIN)
        due: list[float] = []
        last = 0.0
        while True:
            wait = max(0.0, due[0] - time.monotonic()) if due else self._safety
            ready = {fd for fd, _ in poll.poll(wait * 1000)}
            if self._stop in ready:
                return
            own = bool(ready) and self._own()
            if own and self._ended(CALM):
                return
            at = time.monotonic()
            if ready and self._relevant():
                due = [at + after for after in (FEWER if own else LOOKS) if at + after >= last + CLOSEST]
            elif ready:
                continue
            if due and due[0] > time.monotonic():
                continue
            if not due:
                self._follow()
            del due[:1]
            last = at
            self._look()

    def _ended(self, seconds: float) -> bool:
        """Let events gather for a while."""
        stop = select.poll()
        stop.register(self._stop, select.POLLIN)
        return bool(stop.poll(seconds * 1000))

    def _relevant(self) -> bool:
        assert self._inotify is not None
        found = False
        for event in self._inotify.read(timeout=0):
            found = found or not event.name or event.name.startswith(self._name)
        return found

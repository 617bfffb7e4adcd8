"""Says when one of some files has changed, by inotify on their directories. An edge.

Rule: a directory is watched, not the file: editors and ConfigMaps put a new file in the old one's place.
What an event means is seen by the files' stamps alone; where there is no inotify, these are looked at
every few seconds.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable

from inotify_simple import INotify, flags

MASK = flags.CLOSE_WRITE | flags.MOVED_TO | flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.ATTRIB
SETTLE = 20  # milliseconds that events of one change are gathered
LOOK = 2000  # milliseconds between looks at what inotify does not tell: a link's target, a new directory
_log = logging.getLogger("netplane.dns")
Stamp = tuple[int, int, int]


class FileWatch:
    """Calls ``changed`` in a thread of its own; ``paths`` is asked again after each call."""

    def __init__(self, paths: Callable[[], tuple[str, ...]], changed: Callable[[], None]) -> None:
        self._paths, self._changed = paths, changed
        self._stopping = threading.Event()
        self._stamps = self._look()
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="dns-files", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        os.write(self._wake_w, b".")
        self._thread.join()
        os.close(self._wake_r)
        os.close(self._wake_w)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                events = INotify(nonblocking=True)
            except OSError as exc:
                _log.warning("no inotify (%s): looking every %d s", exc.strerror, LOOK // 1000)
                _readable(self._wake_r)
                self._compare()
                continue
            with events:
                for directory in {os.path.dirname(path) for path in self._paths()}:
                    try:
                        events.add_watch(directory, MASK)
                    except OSError:
                        continue  # not there yet: the stamps tell when it is
                self._follow(events)

    def _follow(self, events: INotify) -> None:
        """Until the files that matter are others."""
        known = self._paths()
        self._compare()
        while not self._stopping.is_set() and self._paths() == known:
            if events.fileno() in _readable(events.fileno(), self._wake_r):
                events.read(timeout=0, read_delay=SETTLE)
            self._compare()

    def _compare(self) -> None:
        stamps = self._look()
        if stamps != self._stamps and not self._stopping.is_set():
            self._stamps = stamps
            self._changed()

    def _look(self) -> dict[str, Stamp | None]:
        found: dict[str, Stamp | None] = {}
        for path in self._paths():
            try:
                stat = os.stat(path)
                found[path] = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            except OSError:
                found[path] = None
        return found


def _readable(*descriptors: int) -> list[int]:
    """Those that can be read within LOOK. select(2) would end at descriptor 1,023."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [fd for fd, _ in poll.poll(LOOK)]

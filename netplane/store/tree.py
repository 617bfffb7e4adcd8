"""inotify over a directory tree: says that something changed, and which files are half written."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable

from inotify_simple import Event, INotify, flags

SAFETY = 30.0  # seconds between looks without any event
RETRY = 1.0  # seconds until the next look after one that failed
PATIENCE = 5.0  # seconds after which a file that nobody closed is read as it is
MASK = (
    flags.MODIFY | flags.CLOSE_WRITE | flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO
    | flags.ATTRIB | flags.ONLYDIR
)  # fmt: skip

log = logging.getLogger(__name__)


class Tree:
    """Calls ``changed`` from a thread after events, until `close`. `enter` adds a directory."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._inotify: INotify | None = None
        self._directories: dict[int, str] = {}
        self._writing: dict[str, float] = {}
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            self._inotify = INotify()
        except OSError as exc:
            log.warning("store: no inotify (%s): looking every %d s", exc.strerror, RETRY)
        self._thread = threading.Thread(target=self._run, name="store manifests", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        os.eventfd_write(self._stop, 1)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        if self._inotify:
            self._inotify.close()
        os.close(self._stop)

    def enter(self, directory: str) -> None:
        """Watch a directory (again: nothing happens). Raises FileNotFoundError when it went away."""
        if self._inotify:
            self._directories[self._inotify.add_watch(directory, MASK)] = directory

    def half_written(self, path: str) -> bool:
        since = self._writing.get(path)
        return since is not None and time.monotonic() - since < PATIENCE

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        if self._inotify:
            poll.register(self._inotify, select.POLLIN)
        wait = SAFETY if self._inotify else RETRY
        while True:
            ready = {fd for fd, _ in poll.poll(wait * 1000)}
            if self._stop in ready:
                return
            wait = SAFETY if self._inotify else RETRY
            if ready and not self._read():
                wait = PATIENCE if self._writing else wait
                continue
            try:
                self._changed()
            except Exception as exc:
                log.warning("store: manifests: %s", exc)
                wait = RETRY

    def _read(self) -> bool:
        events = self._inotify.read(timeout=0) if self._inotify else ()
        reasons = [self._note(event) for event in events]  # every event is noted
        return any(reasons)

    def _note(self, event: Event) -> bool:
        """Whether an event is a reason to look; keeps track of files that are open for writing."""
        path = os.path.join(self._directories.get(event.wd, ""), event.name)
        if event.name.startswith("."):
            return False
        if event.mask & flags.MODIFY:
            self._writing[path] = time.monotonic()
            return False
        self._writing.pop(path, None)
        return True

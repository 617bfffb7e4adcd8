"""The store's objects, here: list, then watch, as one growing snapshot and a stream of events.

Rule 1: every change becomes exactly one event (old, new), in order; after an outage or an expired
        watch the new list is compared with the snapshot, so nothing is missed and nothing repeated.
Rule 2: our own writes are taken in at once (`absorb`), and known again when the watch brings them.
Rule 3: the store going away changes nothing here: the last snapshot stays in force.
Rule 4: a draft is an object that an edge is about to write: the snapshot shows it and nobody is told, the
        store does not know it, so nothing that the store says or lacks takes it away. It ends as a write,
        whose event has the draft as its old state, or with `retract`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence

from ..model.base import Key, Object
from ..model.errors import Conflict, NetplaneError
from ..model.snapshot import Snapshot
from ..model.thrift import thrifty
from ..store.base import Change, Store, Watch
from .base import Event

log = logging.getLogger(__name__)
Listener = Callable[[list[Event], Snapshot], None]
RECONNECT = 0.5  # seconds, doubled up to 15


class Mirror:
    def __init__(self, store: Store, listener: Listener, kinds: Iterable[str] | None = None) -> None:
        self.snapshot = Snapshot()
        self.heard = 0  # the revision up to which the listener has been told
        self.problem = ""  # why the store does not answer, "" when it does
        self._store = store
        self._listener = listener
        self._kinds = tuple(kinds) if kinds is not None else None
        self._lock = threading.Lock()
        self._drafts: set[Key] = set()
        self._graves: dict[Key, int] = {}  # our own deletes that the watch has not brought yet
        self._brought = 0  # the watch has brought every change up to this revision
        self._stopping = threading.Event()
        self._watch: Watch | None = None
        self._skip: Callable[[int], int] | None = None  # tells the watch what it need not bring
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def load(self) -> None:
        """Read the store once, and do not follow it. Raises Unavailable, Invalid."""
        self._list()

    def stop(self) -> None:
        self._stopping.set()
        if self._watch is not None:
            self._watch.close()
        self._thread.join(timeout=5)

    def absorb(self, obj: Object) -> None:
        """Take one write of our own in. Older than what is known: ignored."""
        self.take_in([(obj, False)])

    def take_in(self, written: Iterable[tuple[Object, bool]]) -> None:
        """Our own writes as the store returned them, each with whether the object went with it."""
        with self._lock:
            events = [self._own(obj, gone) for obj, gone in written]
            self._tell(events)

    def draft(self, obj: Object) -> None:
        """Show an object before it is written. Raises Conflict where there is one of its name."""
        with self._lock:
            if self.snapshot.find(obj.key) is not None:
                raise Conflict(f"{obj.key} exists already")
            self._drafts.add(obj.key)
            self.snapshot = self.snapshot.with_put(obj)

    def retract(self, key: Key) -> None:
        """A draft that is not written after all; nothing when it is none (any more)."""
        with self._lock:
            if key in self._drafts:
                self._drafts.discard(key)
                old = self.snapshot.find(key)
                self.snapshot = self.snapshot.with_delete(key)
                self._tell([Event(old, None)])

    def reread(self, keys: Iterable[Key]) -> None:
        """Ask the store for what the watch has not brought yet: somebody else was faster with these."""
        found = [(key, self._store.get(key)) for key in keys]
        known = [
            (obj or self.snapshot.find(key), obj is None)
            for key, obj in found
            if obj is not None or key not in self._drafts
        ]
        self.take_in((obj, gone) for obj, gone in known if obj is not None)

    def _own(self, obj: Object, gone: bool) -> Event | None:
        if not gone and obj.revision <= self._brought and self.snapshot.find(obj.key) is None:
            return None  # the watch was faster: the object is gone since
        if gone:
            self._graves[obj.key] = obj.revision  # writes of it that the watch still brings are older
        event = self._apply(obj, gone, obj.revision)
        if self._skip is not None:
            self._advance(self._skip(obj.revision))
        return event

    def _advance(self, brought: int) -> None:
        self._brought = max(self._brought, brought)
        self._graves = {k: r for k, r in self._graves.items() if r > self._brought}

    def _apply(self, obj: Object, deleted: bool, revision: int) -> Event | None:
        key = obj.key
        old = self.snapshot.find(key)
        if old is not None and old.revision > revision:
            return None
        if deleted:
            if key in self._drafts:
                return None  # it was another object, of the same name
            self.snapshot = self.snapshot.with_delete(key, revision)
            return Event(old, None) if old is not None else None
        grave = self._graves.get(key)
        if (old is not None and old.revision == revision) or (grave is not None and revision <= grave):
            return None
        thrifty(obj)
        self._drafts.discard(key)
        self.snapshot = self.snapshot.with_put(obj)
        return Event(old, obj)

    def _run(self) -> None:
        delay = RECONNECT
        while not self._stopping.is_set():
            try:
                self._follow()
                delay = RECONNECT
            except Conflict as exc:  # Expired: list again at once
                log.info("the store's history is gone, listing again: %s", exc)
            except NetplaneError as exc:
                if not self.problem:
                    log.warning("the store does not answer, what is known stays in force: %s", exc)
                self.problem = str(exc)
                self._stopping.wait(delay)
                delay = min(delay * 2, 15.0)

    def _follow(self) -> None:
        """Nothing here holds what was listed or brought while it waits: that would be objects twice."""
        revision = self._list()
        self.problem = ""
        with self._store.watch(revision, self._kinds) as watch:
            self._watch = watch
            self._skip = getattr(watch, "skip", None)
            while not self._stopping.is_set():
                self._bring(watch.next(timeout=60))

    def _list(self) -> int:
        objects, revision = self._store.list(self._kinds)
        self._relist(objects, revision)
        return revision

    def _bring(self, changes: Sequence[Change]) -> None:
        if changes:
            with self._lock:
                events = [self._apply(c.object, c.deleted, c.revision) for c in changes]
                self._advance(changes[-1].revision)
                self._tell(events)

    def _relist(self, objects: list[Object], revision: int) -> None:
        """Compare a full list with what is known; what is known newer (our own writes) stays."""
        with self._lock:
            gone = set(self.snapshot.keys()).difference(self._drafts, (obj.key for obj in objects))
            events = [self._apply(obj, False, obj.revision) for obj in objects]
            for key in gone:
                known = self.snapshot.find(key)
                if known is not None and known.revision <= revision:
                    events.append(self._apply(known, True, revision))
            self._brought = revision
            first = not self.snapshot.synced
            self.snapshot = self.snapshot.at(max(revision, self.snapshot.revision), True)
            self._tell(events, always=first)

    def _tell(self, events: list[Event | None], always: bool = False) -> None:
        real = [e for e in events if e is not None]
        if real or always:
            self._listener(real, self.snapshot)
        self.heard = self.snapshot.revision

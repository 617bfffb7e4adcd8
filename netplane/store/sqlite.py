"""The embedded store: one SQLite file that several processes share.

Rule 1: a write is one transaction that changes the object's row and appends to the log; the log's last
        revision and one more is its own, so revisions have no gaps and a gap means lost history.
Rule 2: the log keeps the last KEEP changes, never none; a watch from before raises Expired.
Rule 3: reads never wait for writes (WAL, a connection for each), writers wait for each other.
Rule 4: the file is known by its inode and its identity: one that was replaced expires every watch.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ..model import codec
from ..model.base import Key, Object
from ..model.changes import Delete, Put, Write, key_of
from ..model.errors import Expired, NetplaneError
from ..model.gather import Gathering
from . import sqlitefile
from .base import Change
from .pulse import Pulse
from .sqlitewrite import HEAD, Transaction

KEEP = 10_000
COMPACT_EVERY = 256  # revisions between two compactions
BUSY = 0.01  # seconds after a write of ours in which others' are looked for less often
BATCH = 1_000  # changes that one call of a watch returns at most

Objects = list[Object]  # the class below has a method named list
Changes = list[Change]

_ONE = "SELECT body FROM objects WHERE kind = ? AND namespace = ? AND name = ?"
_SINCE = f"SELECT revision, kind, deleted, body FROM log WHERE revision > ? ORDER BY revision LIMIT {BATCH}"


class _Asked:
    """What one thread wants written, and what became of it."""

    def __init__(self, writes: Sequence[Write]) -> None:
        self.writes = writes
        self.stored: Objects = []
        self.error: Exception | None = None


class SqliteStore:
    """See store/base.py. ``keep`` is how many changes the log holds for watches."""

    allocates = False

    def __init__(self, path: str, keep: int = KEEP) -> None:
        self.path = os.path.abspath(path)
        self.url = f"sqlite://{self.path}"
        self.keep = keep
        sqlitefile.create(self.path)
        self._writer = sqlitefile.Handle(self.path)
        self._reader = sqlitefile.Handle(self.path)
        self._beat = threading.Condition()
        self._beats = 0  # grows with every sign of a change; watches wait for it
        self._head = 0
        self._fresh: list[int] = []  # the revisions of the transaction in hand
        self._wrote = 0.0  # when we wrote last, or began to; the pulse feels our own writes too
        self._watches: weakref.WeakSet[SqliteWatch] = weakref.WeakSet()
        self._pulse: Pulse | None = None
        self._pulse_lock = threading.Lock()
        self.together = Gathering[_Asked](self._write_all)
        with self._reader.use(), self._writer.use():
            pass  # refuse a bad file now rather than at the first write

    @property
    def identity(self) -> str:
        """Of the store in the file that stands at the path: another file has another one."""
        return self._reader.identity

    # --- the verbs ---------------------------------------------------------------------------

    def list(self, kinds: Iterable[str] | None = None) -> tuple[Objects, int]:
        """All objects (of these kinds) and the revision that the list is true at. Raises Unavailable."""
        wanted = None if kinds is None else tuple(kinds)
        where = "" if wanted is None else f" WHERE kind IN ({','.join('?' * len(wanted))})"
        with self.view() as db:
            revision: int = db.execute(HEAD).fetchone()[0]
            rows = db.execute(f"SELECT * FROM objects{where}", wanted or ()).fetchall()
        return [self._decoded(*row) for row in rows], revision

    def get(self, key: Key) -> Object | None:
        with self._reader.use() as db:
            row = db.execute(_ONE, key).fetchone()
        return self._decoded(*key, row[0]) if row else None

    def _decoded(self, kind: str, namespace: str, name: str, body: bytes) -> Object:
        return sqlitefile.decoded(self.path, Key(kind, namespace, name), kind, body)

    def watch(self, since: int, kinds: Iterable[str] | None = None) -> SqliteWatch:
        """Every change after revision ``since``."""
        with self._pulse_lock, self._reader.use():
            if self._pulse is None:
                self._pulse = Pulse(self.path, self._look, lambda: time.monotonic() < self._wrote + BUSY)
            wanted = None if kinds is None else frozenset(kinds)
            made = SqliteWatch(self, since, wanted, self._reader.identity)
            self._watches.add(made)
            return made

    def put(self, obj: Object, expect: int | None = None) -> Object:
        """Write one object, return it as stored. Raises Invalid, Conflict, Unavailable."""
        return self.put_all((obj,), (expect,))[0]

    def put_all(self, objects: Iterable[Object], expects: Sequence[int | None] = ()) -> Objects:
        """Write many objects in one transaction: all of them, or none. Raises as `put` does."""
        valid = list(objects)
        conditions = tuple(expects) or (None,) * len(valid)
        return self.write([Put(obj, expect) for obj, expect in zip(valid, conditions, strict=True)])

    def delete(self, key: Key, expect: int | None = None) -> Object:
        """Remove one object (or mark it, when finalizers hold it), return its last state."""
        return self.write([Delete(key, expect)])[0]

    def write(self, writes: Sequence[Write]) -> Objects:
        """All of these in one transaction, or none; what `put` and `delete` would return."""
        asked = _Asked([Put(codec.validate(w.object), w.expect) if isinstance(w, Put) else w for w in writes])
        self.together.do(asked)
        if asked.error is not None:
            raise asked.error
        return asked.stored

    def check(self) -> None:
        """Raise Unavailable or Invalid unless the file stands at its path."""
        with self._reader.use():
            pass

    def close(self) -> None:
        """End every watch and let the file go."""
        with self._pulse_lock:
            pulse, self._pulse = self._pulse, None
            self._reader.close()
        if pulse:
            pulse.close()
        self._writer.close()
        self._announce()

    # --- writing -----------------------------------------------------------------------------

    def _write_all(self, round_: Sequence[_Asked]) -> None:
        """What threads ask for at once is one transaction of SQLite, and each of it whole or nothing."""
        try:
            with self.writing() as db:
                work = Transaction(
                    self.path, db, (key_of(write) for asked in round_ for write in asked.writes)
                )
                for asked in round_:
                    try:
                        asked.stored = work.decide(asked.writes)
                    except NetplaneError as exc:
                        asked.error = exc
                work.carry_out()
                self._fresh = work.revisions
                compact = [r for r in self._fresh if r % COMPACT_EVERY == 0]
                if compact:
                    db.execute("DELETE FROM log WHERE revision <= ?", (compact[-1] - self.keep,))
        except Exception as exc:
            if len(round_) == 1:
                round_[0].error = exc
                return
            for asked in round_:  # what broke the transaction was one of them, or will be again
                asked.error = None
                self._write_all([asked])

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The writer's connection inside a transaction that commits when the block ends well."""
        with self._writer.use() as db:
            self._fresh = []
            self._wrote = time.monotonic()  # the pulse feels the file before it is committed
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        self._wrote = time.monotonic()
        others = bool(self._fresh) and self._fresh[0] != self._head + 1
        if self._fresh:
            self._head = self._fresh[-1]
        if others or not all(watch.informed for watch in self._watches):
            self._announce()

    # --- reading and waking ------------------------------------------------------------------

    @contextmanager
    def view(self) -> Iterator[sqlite3.Connection]:
        """The reader's connection inside a transaction: every statement sees the same revision."""
        with self._reader.use() as db:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("COMMIT")

    def changes(self, since: int, identity: str) -> Changes:
        """At most BATCH changes after ``since``, oldest first. Raises Expired, Unavailable."""
        with self.view() as db:
            rows = db.execute(_SINCE, (since,)).fetchall()
            head = since if rows else db.execute(HEAD).fetchone()[0]
        first = rows[0][0] if rows else head + 1
        if identity != self._reader.identity or first != since + 1:
            raise Expired(f"store {self.path} no longer holds the changes after revision {since}: list again")
        return [
            Change(revision, sqlitefile.decoded(self.path, f"change {revision}", kind, body), bool(deleted))
            for revision, kind, deleted, body in rows
        ]

    def _look(self) -> None:
        """Called by the pulse: wake the watches when the head moved, or when it cannot be read."""
        try:
            with self._reader.use() as db:
                head = db.execute(HEAD).fetchone()[0]
        except Exception:
            head = -1
        if head != self._head or head < 0:
            self._head = head
            self._announce()

    def _announce(self) -> None:
        with self._beat:
            self._beats += 1
            self._beat.notify_all()


class SqliteWatch:
    """See store/base.py's Watch."""

    def __init__(self, store: SqliteStore, since: int, kinds: frozenset[str] | None, identity: str) -> None:
        self._store = store
        self._since = since
        self._kinds = kinds
        self._identity = identity
        self._closed = False
        self._in_hand: int | None = None  # the revision before what `next` returned last
        self._skipped: set[int] = set()  # told by the watcher, behind a change that it does not know yet
        self.informed = False  # the watcher tells us of this store object's own writes

    def skip(self, revision: int) -> int:
        """The watcher knows this change, which it made through this very store: it need not be brought,
        and is not worth waking for. Returns the revision up to which nothing is left to bring, nor in
        the hand of who called `next` and has not called it again."""
        self.informed = True
        with self._store._beat:
            if revision > self._since:
                self._skipped.add(revision)
                self._go_on(self._since)
            return self._since if self._in_hand is None else self._in_hand

    def _go_on(self, revision: int) -> None:
        """On to ``revision``, and over what is known behind it; each revision is looked at once."""
        if revision > self._since:
            self._since = revision
            self._skipped = {r for r in self._skipped if r > revision}
        while self._since + 1 in self._skipped:
            self._since += 1
            self._skipped.remove(self._since)

    def next(self, timeout: float | None = None) -> Changes:
        """The changes since the last call; [] after ``timeout`` seconds, or when closed."""
        store = self._store
        deadline = None if timeout is None else time.monotonic() + timeout
        self._in_hand = None
        while not self._closed:
            seen = store._beats
            changes = store.changes(self._since, self._identity)
            if changes:
                wanted = [c for c in changes if self._kinds is None or c.object.KIND in self._kinds]
                with store._beat:
                    self._in_hand = changes[0].revision - 1 if wanted else None
                    self._go_on(changes[-1].revision)
                if wanted:
                    return wanted
                continue
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            with store._beat:
                if not self._closed and store._beats == seen:
                    store._beat.wait(left)
        return []

    def close(self) -> None:
        self._closed = True
        self._store._announce()

    def __enter__(self) -> SqliteWatch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

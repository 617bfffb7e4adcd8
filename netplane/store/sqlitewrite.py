"""One transaction of the embedded store: what it changes, decided on what is there, then written at once.

Rule 1: each who asks gets all of its writes or none; those who ask later see what those before them did.
Rule 2: a handful of statements whatever is asked: each lets the GIL go, and waits to get it back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from ..model import codec
from ..model.base import Key, Object
from ..model.changes import Put, Write
from ..model.errors import NotFound
from . import rules
from .sqlitefile import decoded

HEAD = "SELECT coalesce(max(revision), 0) FROM log"
_HEAD = f"SELECT '', '', '', ({HEAD})"
_HELD = " UNION ALL SELECT * FROM objects WHERE kind = ? AND namespace = ? AND name = ?"
_PUT = "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)"
_DROP = "DELETE FROM objects WHERE kind = ? AND namespace = ? AND name = ?"
_LOG = "INSERT INTO log VALUES (?, ?, ?, ?)"
_ROW = ", (?, ?, ?, ?)"
_MOST = 64  # rows of one statement
T = TypeVar("T")


class _Line(NamedTuple):
    """A change, as the log keeps it."""

    revision: int
    kind: str
    gone: bool
    body: bytes


class _Step:
    """What one who asks changes; nothing of it counts before all of it is decided."""

    def __init__(self, held: dict[Key, Object | None], last: int) -> None:
        self._before, self._last = held, last
        self.held: dict[Key, Object | None] = {}
        self.bodies: dict[Key, bytes | None] = {}  # None: the row goes
        self.log: list[_Line] = []

    def put(self, obj: Object, expect: int | None) -> Object:
        key = obj.key
        current = self._current(key)
        rules.admit(key, current, expect)
        new = rules.settle(obj, current)
        if current is not None and rules.same(new, current):
            return current
        return self._record(key, new, gone=rules.leaves(new))

    def delete(self, key: Key, expect: int | None) -> Object:
        current = self._current(key)
        if current is None:
            raise NotFound(f"{key}: not found")
        rules.admit(key, current, expect)
        marked = rules.condemned(current)
        if marked is None:
            return self._record(key, current, gone=True)
        return current if marked == current else self._record(key, marked, gone=False)

    def _current(self, key: Key) -> Object | None:
        return self.held[key] if key in self.held else self._before[key]

    def _record(self, key: Key, obj: Object, gone: bool) -> Object:
        revision = self._last + len(self.log) + 1
        obj = rules.at_revision(obj, revision)
        body = codec.encode(obj)
        self.log.append(_Line(revision, key.kind, gone, body))
        self.bodies[key], self.held[key] = (None, None) if gone else (body, obj)
        return obj


class Transaction:
    """Begun immediate: nobody else writes until it ends. Raises what SQLite does."""

    def __init__(self, path: str, db: sqlite3.Connection, keys: Iterable[Key]) -> None:
        self._db = db
        self._held: dict[Key, Object | None] = dict.fromkeys(keys)
        self._bodies: dict[Key, bytes | None] = {}
        self._log: list[_Line] = []
        self._last = 0
        for part in _parts(list(self._held)):
            words = [word for key in part for word in key]
            head, *rows = db.execute(_HEAD + _HELD * len(part), words)
            self._last = head[3]
            for kind, namespace, name, body in rows:
                key = Key(kind, namespace, name)
                self._held[key] = decoded(path, key, kind, body)

    @property
    def revisions(self) -> list[int]:
        return [line.revision for line in self._log]

    def decide(self, writes: Sequence[Write]) -> list[Object]:
        """What the store returns for each. Raises Invalid, Conflict, NotFound: nothing of them is done."""
        step = _Step(self._held, self._last + len(self._log))
        stored = [step.put(w.object, w.expect) if isinstance(w, Put) else step.delete(*w) for w in writes]
        self._held.update(step.held)
        self._bodies.update(step.bodies)
        self._log += step.log
        return stored

    def carry_out(self) -> None:
        """Write what is decided; the caller commits."""
        rows = [(*key, body) for key, body in self._bodies.items() if body is not None]
        for part in _parts(rows):
            self._db.execute(_PUT + _ROW * (len(part) - 1), [word for row in part for word in row])
        gone = [key for key, body in self._bodies.items() if body is None]
        if gone:
            self._db.executemany(_DROP, gone)
        for lines in _parts(self._log):
            self._db.execute(_LOG + _ROW * (len(lines) - 1), [word for line in lines for word in line])


def _parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """In pieces of few sizes, so that SQLite's prepared statements are found again: 64s, then a 32, …"""
    at, size = 0, _MOST
    while at < len(rows):
        while size > len(rows) - at:
            size //= 2
        yield rows[at : at + size]
        at += size

"""The file beneath SqliteStore: schema, connections, and what SQLite's errors mean to a caller.

Rule 1: a file that is not ours, is damaged, or comes from a newer netplane is Invalid and untouched.
Rule 2: everything that may come back (a missing file, a full disk, a long lock) is Unavailable.
Rule 3: a file is made only when a store is first opened, never while one is in use: one that
        vanishes may return, and an empty one in its place would look like everything deleted.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from ..model import codec
from ..model.base import Key, Object
from ..model.errors import Invalid, Unavailable

APPLICATION_ID = 0x6E706C6E  # "npln", in the file's header
SCHEMA = 1
BUSY_SECONDS = 5.0
REMEDY = "move it away and start again; agents write their own objects anew, manifests must be applied again"

# Rows in the order of their writing: in the order of their names (WITHOUT ROWID) a body of a kilobyte would
# spill into a page of its own, and a write would touch twice as many pages. Files made so are read as well.
TABLES = (
    """CREATE TABLE objects (
        kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (kind, namespace, name))""",
    """CREATE TABLE log (
        revision INTEGER PRIMARY KEY,
        kind TEXT NOT NULL, deleted INTEGER NOT NULL, body BLOB NOT NULL)""",
    "CREATE TABLE store (identity TEXT NOT NULL)",
)


class Handle:
    """One connection, used by one thread at a time, to whatever file stands at the path now."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.identity = ""  # of the store in the file; another one means that history is another's
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._closed = False

    def use(self) -> Handle:
        """For `with`: the connection, opened again if the file was replaced. Raises Unavailable, Invalid."""
        return self

    def __enter__(self) -> sqlite3.Connection:
        self._lock.acquire()
        try:
            return self._current()
        except BaseException as exc:
            self._lock.release()
            if isinstance(exc, sqlite3.Error | OSError):
                raise meaning(self.path, exc) from exc
            raise

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._lock.release()
        if isinstance(error, sqlite3.Error | OSError):
            raise meaning(self.path, error) from error

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._drop()

    def _current(self) -> sqlite3.Connection:
        if self._closed:
            raise Unavailable(f"store {self.path} is closed")
        try:
            found = os.stat(self.path)
        except OSError as exc:
            reason = f"{exc.strerror}; it is used again once it is back"
            raise Unavailable(f"store {self.path}: {reason}") from exc
        inode = (found.st_dev, found.st_ino)
        if self._db is None or inode != self._inode:
            self._drop()
            self._db, self._inode = connect(self.path), inode
            self.identity = self._db.execute("SELECT identity FROM store").fetchone()[0]
        return self._db

    def _drop(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = self._inode = None


@contextlib.contextmanager
def translated(path: str) -> Iterator[None]:
    """SQLite's and the system's errors as ours."""
    try:
        yield
    except (sqlite3.Error, OSError) as exc:
        raise meaning(path, exc) from exc


def meaning(path: str, error: sqlite3.Error | OSError) -> Invalid | Unavailable:
    """What one of SQLite's or of the system's errors means to a caller."""
    if isinstance(error, OSError):
        return Unavailable(f"store {path}: {error.strerror or error}")
    code = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Invalid(f"store {path} is damaged or not a netplane store ({error}): {REMEDY}")
    return Unavailable(f"store {path}: {error}")


def decoded(path: str, what: Key | str, kind: str, body: bytes) -> Object:
    """An object of the store; ``what`` names it where it cannot be read. Raises Invalid."""
    try:
        return codec.decode(kind, body)
    except (Invalid, TypeError, ValueError) as exc:  # the latter: a column that holds no bytes
        raise Invalid(f"store {path} is damaged: {what}: {exc}: {REMEDY}") from exc


def create(path: str) -> None:
    """Make the file (0600, it holds Secrets) and its directory (0700) when they are missing."""
    with translated(path):
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def connect(path: str) -> sqlite3.Connection:
    """A connection to a file that exists, in autocommit mode, with the schema in place."""
    with translated(path):
        db = sqlite3.connect(
            f"file:{_quoted(path)}?mode=rw", uri=True, timeout=BUSY_SECONDS,
            isolation_level=None, check_same_thread=False, cached_statements=64,
        )  # fmt: skip
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
        return db


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _prepare(db: sqlite3.Connection, path: str) -> None:
    db.execute("BEGIN")  # one view for all the questions: another process may be making the store
    try:
        made = _ours(db, path)
    finally:
        db.execute("COMMIT")
    if not made:
        _wal(db)
        _initialise(db, path)
    _wal(db)
    # In WAL mode NORMAL survives any crash of ours; a power cut may lose the last moments, never consistency.
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute("PRAGMA journal_size_limit=67108864")
    db.execute("PRAGMA cache_size=-512")  # KiB; the file's pages are in the kernel's cache anyway
    # A checkpoint syncs the file while writers wait: a quarter as often, for a WAL of 16 MiB instead of 4.
    db.execute("PRAGMA wal_autocheckpoint=4000")  # pages


def _ours(db: sqlite3.Connection, path: str) -> bool:
    """True for a store of ours, False for an empty file. Raises Invalid for anything else."""
    owner = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if owner == APPLICATION_ID and version == SCHEMA:
        return True
    if owner == APPLICATION_ID:
        raise Invalid(
            f"store {path} has schema {version}, this netplane reads {SCHEMA}: "
            "upgrade netplane on this machine, or name another file"
        )
    if owner or version or db.execute("SELECT 1 FROM sqlite_schema").fetchone():
        raise Invalid(f"store {path} is another program's SQLite file: name a file of netplane's own")
    return False


def _wal(db: sqlite3.Connection) -> None:
    """Switch to WAL; SQLite does not wait for other openers by itself here."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _initialise(db: sqlite3.Connection, path: str) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        if not _ours(db, path):
            for table in TABLES:
                db.execute(table)
            db.execute("INSERT INTO store VALUES (?)", (str(uuid.uuid4()),))
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            db.execute(f"PRAGMA user_version={SCHEMA}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise

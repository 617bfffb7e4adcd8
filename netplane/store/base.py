"""The store's contract: four verbs. Every store passes tests/contract.

Rule 1: a revision is a positive integer that only grows, store-wide; an object carries the one of
        its last write in metadata.resourceVersion.
Rule 2: ``expect`` makes a write conditional: None any, 0 must not exist, n must be at revision n.
Rule 3: a watch sees every change once, in revision order, from any process; or raises Expired.
Rule 4: an outage is Unavailable, from any verb and at any time; the caller backs off and lists again.
Rule 5: a write that changes nothing returns the stored object: no new revision, no event.
Rule 6: the store sets uid and creationTimestamp on the first put, and keeps them afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from ..model.base import Key, Object


class Change(NamedTuple):
    """One write that happened: ``object`` is the new state, or the last one when ``deleted``."""

    revision: int
    object: Object
    deleted: bool = False

    @property
    def key(self) -> Key:
        return self.object.key


class Watch(Protocol):
    """An open subscription; a context manager that closes itself."""

    def next(self, timeout: float | None = None) -> list[Change]:
        """The changes since the last call, oldest first; [] when ``timeout`` seconds pass without.

        Raises Expired, Unavailable. `close` from another thread ends a waiting call with [].
        """
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Watch: ...
    def __exit__(self, *exc: object) -> None: ...


class Store(Protocol):
    """Thread-safe. Objects are validated (`model.codec.validate`) before any write."""

    url: str
    allocates: bool  # True when somebody else plays the controllers (a Kubernetes API server)

    def list(self, kinds: Iterable[str] | None = None) -> tuple[list[Object], int]:
        """All objects (of these kinds) and the revision that the list is true at."""
        ...

    def watch(self, since: int, kinds: Iterable[str] | None = None) -> Watch:
        """Every change after revision ``since``."""
        ...

    def get(self, key: Key) -> Object | None: ...

    def put(self, obj: Object, expect: int | None = None) -> Object:
        """Write one object, return it as stored. Raises Invalid, Conflict, Unavailable."""
        ...

    def delete(self, key: Key, expect: int | None = None) -> Object:
        """Remove one object, return its last state. Raises NotFound, Conflict, Unavailable.

        An object with finalizers is not removed but marked: metadata.deletionTimestamp is set; it
        goes with the put that removes the last finalizer.
        """
        ...

    def close(self) -> None: ...

"""What happened to an object, and what is to be written: the words that the loop and rooms share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .base import Key, Object
from .snapshot import Snapshot


class Event(NamedTuple):
    """One change of one object: created (old None), changed, or deleted (new None)."""

    old: Object | None
    new: Object | None

    @property
    def object(self) -> Object:
        found = self.new if self.new is not None else self.old
        assert found is not None
        return found


class Put(NamedTuple):
    """Write ``object`` if it still is at revision ``expect`` (0: if it does not exist)."""

    object: Object
    expect: int | None = None


class Delete(NamedTuple):
    key: Key
    expect: int | None = None


Write = Put | Delete


def key_of(write: Write) -> Key:
    return write.object.key if isinstance(write, Put) else write.key


def assumed(snapshot: Snapshot, writes: Iterable[Write]) -> Snapshot:
    """The snapshot as it will be when these writes have gone through."""
    for write in writes:
        if isinstance(write, Delete) or (write.object.deleting and not write.object.metadata.finalizers):
            snapshot = snapshot.with_delete(key_of(write))
        else:
            snapshot = snapshot.with_put(write.object)
    return snapshot

"""What happened to an object, and what is to be written: the words that the loop and rooms share."""

from __future__ import annotations

from typing import NamedTuple

from .base import Key, Object


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

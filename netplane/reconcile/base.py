"""The two contracts of a room.

A Room turns objects into facts for a driver; a Controller turns objects into other objects for the
store (what Kubernetes' controllers do, when there is no Kubernetes). Both are pure: what they read
is in the snapshot and in their own frozen configuration, and they never touch a kernel or a socket.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from ..model.base import Key, Object
from ..model.facts import Facts, Scope
from ..model.snapshot import Snapshot


class Event(NamedTuple):
    """One change of one object: created (old None), changed, or deleted (new None)."""

    old: Object | None
    new: Object | None

    @property
    def object(self) -> Object:
        found = self.new if self.new is not None else self.old
        assert found is not None
        return found


class Room(Protocol):
    name: str

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        """The scopes that this event touches; all that exist when it is None (start, resync).

        Looks at both ``event.old`` and ``event.new``: a scope that vanished must be named too.
        """
        ...

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        """What the kernel must hold for this scope; nothing when the scope is gone.

        Raises Invalid when the objects cannot be rendered: the scope keeps its last facts.
        """
        ...


class Put(NamedTuple):
    """Write ``object`` if it still is at revision ``expect`` (0: if it does not exist)."""

    object: Object
    expect: int | None = None


class Delete(NamedTuple):
    key: Key
    expect: int | None = None


Write = Put | Delete


class Controller(Protocol):
    name: str

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]: ...

    def decide(self, scope: Scope, snapshot: Snapshot) -> Iterable[Write]:
        """The writes that bring this scope one step nearer; none when it is as it should be.

        Writes are carried out in order and stop at the first Conflict, after which the scope is
        decided again on a newer snapshot; so a crash between any two of them must converge.
        Raises Invalid when the objects ask for the impossible; it is reported on the scope.
        """
        ...

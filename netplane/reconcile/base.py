"""The two contracts of a room.

Either may name the kinds of object that mean something to it (``kinds``, a set of KINDs): it is asked about
no other. One that names none is asked about all.

A Room turns objects into facts for a driver; a Controller turns objects into other objects for the
store (what Kubernetes' controllers do, when there is no Kubernetes). Both are pure: what they read
is in the snapshot and in their own frozen configuration, and they never touch a kernel or a socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from ..model.changes import Delete, Event, Put, Write
from ..model.facts import Facts, Scope
from ..model.snapshot import Snapshot

__all__ = ["Controller", "Delete", "Event", "Listeners", "Observer", "Put", "Room", "Settled", "Write"]
T = TypeVar("T")


class Room(Protocol):
    @property
    def name(self) -> str: ...

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


class Controller(Protocol):
    @property
    def name(self) -> str: ...

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]: ...

    def decide(self, scope: Scope, snapshot: Snapshot) -> Iterable[Write]:
        """The writes that bring this scope one step nearer; none when it is as it should be.

        Writes are carried out in order and stop at the first Conflict, after which the scope is
        decided again on a newer snapshot; so a crash between any two of them must converge.
        Raises Invalid when the objects ask for the impossible; it is reported on the scope.
        """
        ...


class Listeners(Generic[T]):
    """Rooms or controllers by the kinds of object that they ask to be told of."""

    def __init__(self, everybody: Iterable[T]) -> None:
        self._everybody = tuple(everybody)
        self._of: dict[str, tuple[T, ...]] = {}

    def of(self, kind: str) -> tuple[T, ...]:
        found = self._of.get(kind)
        if found is None:
            kinds = ((one, getattr(one, "kinds", None)) for one in self._everybody)
            found = self._of[kind] = tuple(one for one, named in kinds if named is None or kind in named)
        return found


class Settled(NamedTuple):
    """One round of work: these scopes were rendered and brought about, or failed."""

    scopes: Sequence[Scope]
    seconds: float
    failed: int
    full: bool  # of a full pass


class Observer(Protocol):
    """Is told what the loop sees and does (metrics)."""

    def noticed(self, events: Iterable[Event]) -> None: ...
    def settled(self, work: Settled) -> None: ...

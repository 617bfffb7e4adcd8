"""One agent's heart: a mirror of the store, a loop for rooms and a loop for controllers.

Edges (CNI, DNS, HTTP, CSI) get a Core: they read `snapshot`, write with `put` and `delete` (seen in
the snapshot at once), and call `sync` when they must know the outcome before they answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..model.base import Key, Object
from ..model.errors import Conflict
from ..model.facts import Driver, FactKey, Facts, Scope
from ..model.snapshot import Snapshot
from ..store.base import Store
from .base import Controller, Delete, Event, Observer, Put, Room, Write
from .controlloop import ControlLoop
from .mirror import Mirror
from .roomloop import RoomLoop

OVERDUE = 60.0  # seconds that a change may wait; kube-proxy's two sync periods


class Core:
    """``rooms`` pairs each Room with the Drivers of its facts; a driver may serve several rooms.

    ``rank`` tells how many live nodes act before this one (0: none); see controlloop.
    """

    def __init__(
        self,
        store: Store,
        rooms: Sequence[tuple[Room, Sequence[Driver]]] = (),
        controllers: Sequence[Controller] = (),
        rank: Callable[[Snapshot], int] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._store = store
        self._mirror = Mirror(store, self._on_events)
        self._rooms = RoomLoop(rooms, self.snapshot, observer)
        self._controls = ControlLoop(controllers, self, rank or (lambda _: 0))
        self._primed = False

    def start(self) -> None:
        self._mirror.start()
        self._rooms.start()
        self._controls.start()

    def load(self) -> None:
        """Instead of `start`, for one piece of work: read the store, ask the drivers, no loops."""
        self._mirror.load()
        self._rooms.adopt()

    def stop(self) -> None:
        """Stop working; what the kernel holds stays."""
        self._mirror.stop()
        self._rooms.stop()
        self._controls.stop()

    def snapshot(self) -> Snapshot:
        return self._mirror.snapshot

    def get(self, key: Key) -> Object | None:
        """One object from the store itself, not from the snapshot."""
        return self._store.get(key)

    def put(self, obj: Object, expect: int | None = None) -> Object:
        """Write to the store; the snapshot holds it when this returns. Raises as Store.put."""
        return self.write([Put(obj, expect)])[0]

    def delete(self, key: Key, expect: int | None = None) -> Object:
        """Delete from the store; the snapshot shows it when this returns. Raises as Store.delete."""
        return self.write([Delete(key, expect)])[0]

    def write(self, writes: Sequence[Write]) -> list[Object]:
        """Several writes in order, in one transaction where the store has them; what it returned.

        When it raises Conflict, the snapshot holds what they met: who decides again decides on that.
        """
        try:
            return self._write(writes)
        except Conflict:
            self._mirror.reread(w.key if isinstance(w, Delete) else w.object.key for w in writes)
            raise

    def _write(self, writes: Sequence[Write]) -> list[Object]:
        together = getattr(self._store, "write", None)
        if together is None:
            return [self._write_one(write) for write in writes]
        stored: list[Object] = together(writes)
        self._mirror.take_in((obj, _gone(w, obj)) for w, obj in zip(writes, stored, strict=True))
        return stored

    def _write_one(self, write: Write) -> Object:
        if isinstance(write, Put):
            stored = self._store.put(write.object, write.expect)
        else:
            stored = self._store.delete(write.key, write.expect)
        self._mirror.take_in([(stored, _gone(write, stored))])
        return stored

    def draft(self, obj: Object) -> None:
        """Have `sync` render an object that the caller is about to write, or to `retract`. Raises Conflict.

        For what a crash in between leaves in the kernel no object speaks: the next start sweeps it.
        """
        self._mirror.draft(obj)

    def retract(self, key: Key) -> None:
        self._mirror.retract(key)

    def sync(self, scopes: Iterable[Scope], before: Callable[[], object] | None = None) -> None:
        """Bring these scopes about now, in this thread. Raises the first error.

        ``before`` writes what they are to be rendered from: the loop leaves them to this call.
        """
        wanted = list(scopes)
        if not wanted and before is None:
            return
        for error in self._rooms.settle(wanted, before).values():
            raise error

    def aside(self) -> AbstractContextManager[None]:
        """Around an edge's writes and `sync`: what these touch beside is queued at the end, in one go."""
        return self._rooms.aside()

    def sweep(self, ours: Callable[[FactKey], bool]) -> None:
        """Remove those facts that nobody wants of which ``ours`` says so (after `load`)."""
        for settler in self._rooms.settlers:
            settler.sweep(ours)

    def wanted(self, scope: Scope) -> Facts:
        """What the kernel must hold for this scope, by the newest snapshot. Raises Invalid."""
        return self._rooms.rooms[scope.room].render(scope, self.snapshot())

    def verify(self, scopes: Iterable[Scope]) -> list[str]:
        """In words, how the kernel differs from what these scopes want (drivers that can tell)."""
        facts = [fact for scope in scopes for fact in self.wanted(scope)]
        found: list[str] = []
        for settler in self._rooms.settlers:
            check = getattr(settler.driver, "verify", None)
            mine = [f for f in facts if settler.accepts(f)]
            if check is not None and mine:
                found += check(mine)
        return found

    def resync(self) -> None:
        """Compare everything with the kernel (somebody else changed it)."""
        self._rooms.full_pass()

    def wait_synced(self, timeout: float) -> bool:
        """Wait until the first full pass is through; False when ``timeout`` seconds were not enough."""
        return self._rooms.passed.wait(timeout)

    def status(self) -> dict[str, Any]:
        """What `netplane status` shows: in sync or not, the store, and per room what fails and why."""
        heard = self._mirror.heard  # first: what is heard is queued, what is queued fails or goes well
        queues = (self._rooms.queue, self._controls.queue)
        pending = max(len(self._rooms.held), queues[0].taken) + queues[1].taken
        pending += sum(queue.pending() for queue in queues) + self._rooms.behind()
        failures = {**self._rooms.failures, **self._controls.failures}
        snapshot, problem = self._mirror.snapshot, self._mirror.problem
        claimed = [s for settler in self._rooms.settlers for s in settler.ledger.scopes()]
        names = dict.fromkeys((*self._rooms.rooms, *self._controls.controllers))
        names.update(dict.fromkeys(s.room for s in failures))
        return {
            "synced": self._rooms.passed.is_set() and not (pending or failures or problem),
            "revision": heard,
            "store": problem or ("ok" if snapshot.synced else "listing"),
            "pending": pending,
            "rooms": {
                room: {
                    "scopes": len({s for s in claimed if s.room == room}),
                    "failing": {s.name: why for s, why in failures.items() if s.room == room},
                }
                for room in names
            },
        }

    def overdue(self) -> float:
        """How long the oldest change waits that is due, in seconds; 0 with none (kube-proxy's health)."""
        return self._rooms.overdue()

    def room(self, name: str) -> Room | None:
        return self._rooms.rooms.get(name)

    def healthy(self) -> bool:
        """Changes reach the kernel in time, and the kernel tells what it holds."""
        observed = not any(s.room == "kernel" for s in self._rooms.failures)
        return observed and self.overdue() < OVERDUE

    def _on_events(self, events: list[Event], snapshot: Snapshot) -> None:
        if not snapshot.synced:
            return
        if not self._primed:  # the first list: everything at once, not object by object
            self._primed = True
            self._rooms.full_pass()
            self._controls.notice([None], snapshot)
            return
        self._rooms.notice(events, snapshot)
        self._controls.notice(events, snapshot)


def _gone(write: Write, stored: Object) -> bool:
    """Whether the object went with this write: deleted, or with its last finalizer."""
    return not stored.metadata.finalizers and (isinstance(write, Delete) or stored.deleting)

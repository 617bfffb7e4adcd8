"""A store in a dict and a loop over controllers, for tests: revisions, `expect`, events, crashes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

from netplane.model.base import Key, Object, amend
from netplane.model.changes import Delete, Event, Put, Write
from netplane.model.codec import validate
from netplane.model.errors import Conflict, Invalid, NotFound
from netplane.model.facts import Scope
from netplane.model.snapshot import Snapshot


class World:
    """`put`, `get`, `delete` as a store's; every change is also an event in ``events``."""

    def __init__(self) -> None:
        self.snapshot = Snapshot.of(())
        self.history = [self.snapshot]
        self.events: list[Event] = []
        self.writes = 0
        self.by_hand: set[tuple[str, str]] = set()  # (service, address or port) that a user named
        self._revisions = count(1)

    def get(self, key: Key) -> Object | None:
        return self.snapshot.find(key)

    def put(self, obj: Object, expect: int | None = None) -> Any:
        obj = validate(obj)
        old = self.snapshot.find(obj.key)
        self._expect(obj.key, old, expect)
        meta = old.metadata if old is not None else None
        if old is not None and amend(obj, metadata=amend(obj.metadata, resource_version="")) == amend(
            old, metadata=amend(old.metadata, resource_version="")
        ):
            return old
        revision = next(self._revisions)
        uid = meta.uid if meta else f"uid-{revision}"
        obj = amend(obj, metadata=amend(obj.metadata, uid=uid, resource_version=str(revision)))
        self._commit(Event(old, obj), self.snapshot.with_put(obj))
        return obj

    def delete(self, key: Key, expect: int | None = None) -> Object:
        old = self.snapshot.find(key)
        if old is None:
            raise NotFound(f"{key} is not there")
        self._expect(key, old, expect)
        self._commit(Event(old, None), self.snapshot.with_delete(key, next(self._revisions)))
        return old

    def write(self, write: Write) -> None:
        if isinstance(write, Put):
            self.put(write.object, write.expect)
        else:
            assert isinstance(write, Delete)
            self.delete(write.key, write.expect)

    def _expect(self, key: Key, old: Object | None, expect: int | None) -> None:
        have = old.revision if old is not None else 0
        if expect is not None and have != expect:
            raise Conflict(f"{key} is at revision {have}, not {expect}")

    def _commit(self, event: Event, snapshot: Snapshot) -> None:
        self.snapshot = snapshot.at(snapshot.revision, True)
        self.history.append(self.snapshot)
        self.events.append(event)
        self.writes += 1

    def settle(self, controllers: Iterable[Any], resync: bool = True, limit: int = 10_000) -> list[str]:
        """Run to the fixpoint; the refusals that remain. ``resync``: start from all scopes."""
        loop = Loop(self, list(controllers))
        if resync:
            loop.resync()
        for _ in range(limit):
            if not loop.step():
                return sorted(loop.refused.values())
        raise AssertionError("no fixpoint")


class Loop:
    """One agent's controllers, with a cursor into the world's events."""

    def __init__(self, world: World, controllers: Sequence[Any]) -> None:
        self.world = world
        self.controllers = {c.name: c for c in controllers}
        self.queue: dict[Scope, None] = {}
        self.seen = len(world.events)
        self.refused: dict[Scope, str] = {}
        self.budget = -1  # writes until a crash; -1: never

    def resync(self) -> None:
        for controller in self.controllers.values():
            self.queue.update(dict.fromkeys(sorted(controller.scopes(None, self.world.snapshot))))

    def observe(self, lag: int = 0) -> Snapshot:
        """See all events but the last ``lag`` (never fewer than before); the snapshot at that point."""
        end = max(self.seen, len(self.world.events) - lag)
        for index in range(self.seen, end):
            for controller in self.controllers.values():
                touched = controller.scopes(self.world.events[index], self.world.history[index + 1])
                self.queue.update(dict.fromkeys(sorted(touched)))
        self.seen = end
        return self.world.history[end]

    def step(self, lag: int = 0) -> bool:
        """Decide one scope and write; False when idle."""
        snapshot = self.observe(lag)
        if not self.queue:
            return False
        scope = next(iter(self.queue))
        del self.queue[scope]
        self.refused.pop(scope, None)
        try:
            for write in self.controllers[scope.room].decide(scope, snapshot):
                if self.budget == 0:
                    raise Crash
                self.budget -= 1
                self.world.write(write)
        except Conflict:
            self.queue[scope] = None
        except Invalid as exc:
            self.refused[scope] = str(exc)
        return True


class Crash(Exception):
    """The agent dies between two writes."""

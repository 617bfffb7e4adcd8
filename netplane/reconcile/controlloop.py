"""Controllers: scopes are decided on the newest snapshot, and the writes carried out in order.

Rule 1: every node's agent decides every scope, the first in rank at once and each next one a little
        later; who comes late finds nothing left to write. Nobody is elected, nobody is waited for.
Rule 2: every write is conditional; losing one (Conflict) means to decide again on what is newer.
Rule 3: a controller that says so (`together`) has its scopes decided in batches, each on what those
        before it are about to write, and the writes go in one transaction where the store has them.
        Whatever goes wrong with a batch, its scopes are decided again one by one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from ..model.base import Key, Object
from ..model.changes import assumed, key_of
from ..model.errors import Conflict, NetplaneError, NotFound, Unavailable
from ..model.facts import Scope
from ..model.snapshot import Snapshot
from .base import Controller, Event, Listeners, Put, Write
from .queue import Queue

log = logging.getLogger(__name__)

PATIENCE = 0.25  # seconds for each node that ranks before us


class Writer(Protocol):
    def snapshot(self) -> Snapshot: ...
    def put(self, obj: Object, expect: int | None = None) -> Object: ...
    def delete(self, key: Key, expect: int | None = None) -> Object: ...
    def write(self, writes: Sequence[Write]) -> list[Object]: ...


BATCH = 100  # scopes that are taken, and at most decided, together


class ControlLoop:
    def __init__(
        self, controllers: Sequence[Controller], writer: Writer, rank: Callable[[Snapshot], int]
    ) -> None:
        self.controllers = {c.name: c for c in controllers}
        self.queue = Queue()
        self.failures: dict[Scope, str] = {}
        self._listeners = Listeners(controllers)
        self._writer = writer
        self._rank = rank
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="controllers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self.queue.close()
        self._thread.join(timeout=10)

    def notice(self, events: Sequence[Event | None], snapshot: Snapshot) -> None:
        """Queue what these events touch; None stands for everything."""
        touched = [
            scope
            for event in events
            for controller in (self._listeners.of(event.object.KIND) if event else self.controllers.values())
            for scope in controller.scopes(event, snapshot)
        ]
        if touched:
            delay = self._rank(snapshot) * PATIENCE
            for scope in touched:
                self.queue.add(scope, delay)

    def _run(self) -> None:
        while not self._stopping:
            batch: list[Scope] = []
            for scope in self.queue.take(BATCH, timeout=60):
                if self._stopping:
                    return
                if self._at_once(scope):
                    batch.append(scope)
                else:
                    self._decide(scope)
            if batch:
                self._decide_all(batch)

    def _decide_all(self, scopes: Sequence[Scope]) -> None:
        """Decide scopes on a snapshot that grows by their decisions; write these at once."""
        snapshot = self._writer.snapshot()
        writes: list[Write] = []
        touched: set[Key] = set()
        done: list[Scope] = []
        alone: list[Scope] = []
        for scope in scopes:
            try:
                mine = list(self.controllers[scope.room].decide(scope, snapshot))
            except Exception:  # told, and tried again, where it is decided alone
                alone.append(scope)
                continue
            keys = {key_of(write) for write in mine}
            if keys & touched:  # rests on a write whose revision nobody knows yet
                self.queue.add(scope)
                continue
            touched |= keys
            writes += mine
            done.append(scope)
            snapshot = assumed(snapshot, mine)
        if writes:
            try:
                self._writer.write(writes)
            except Unavailable as exc:
                for scope in done:
                    self._failed(scope, str(exc))
                done = []
            except NetplaneError as exc:
                log.debug("%d decisions are taken one by one: %s", len(done), exc)
                alone, done = [*done, *alone], []
        for scope in done:
            self._settled(scope)
        for scope in alone:
            self._decide(scope)

    def _decide(self, scope: Scope) -> None:
        try:
            writes = list(self.controllers[scope.room].decide(scope, self._writer.snapshot()))
            if len(writes) > 1 and self._at_once(scope) and all(isinstance(w, Put) for w in writes):
                self._writer.write(writes)
            else:
                for write in writes:
                    self._carry_out(write)
        except Conflict as exc:
            log.debug("%s: decided again: %s", scope, exc)
            self.queue.retry(scope)
        except Exception as exc:
            known = isinstance(exc, NetplaneError)
            why = str(exc) if known else f"{type(exc).__name__}: {exc}"
            self._failed(scope, why, unknown=not known)
        else:
            self._settled(scope)

    def _at_once(self, scope: Scope) -> bool:
        return bool(getattr(self.controllers[scope.room], "together", False))

    def _failed(self, scope: Scope, why: str, unknown: bool = False) -> None:
        if self.failures.get(scope) != why:
            log.warning("%s: %s", scope, why, exc_info=unknown)
        self.failures[scope] = why
        self.queue.retry(scope)

    def _settled(self, scope: Scope) -> None:
        self.queue.done(scope)
        self.failures.pop(scope, None)

    def _carry_out(self, write: Write) -> None:
        if isinstance(write, Put):
            self._writer.put(write.object, write.expect)
            return
        try:
            self._writer.delete(write.key, write.expect)
        except NotFound:
            log.debug("%s is gone already", write.key)

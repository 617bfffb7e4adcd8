"""An object that goes with its last finalizer is gone here too, whoever tells of it first."""

from __future__ import annotations

import queue
from pathlib import Path

from netplane.model.base import Object, amend
from netplane.model.changes import Event
from netplane.model.codec import parse
from netplane.reconcile.core import Core
from netplane.reconcile.mirror import Mirror
from netplane.store import Store, open_store

from .storage_world import pvc


def held(store: Store) -> Object:
    """A claim that is being deleted and only waits for its finalizer."""
    made = store.put(parse(pvc(meta={"finalizers": ["example.com/hold"]})))
    return store.delete(made.key)


def freed(obj: Object) -> Object:
    free: Object = amend(obj, metadata=amend(obj.metadata, finalizers=()))
    return free


def test_our_own_last_write_removes_it_at_once(tmp_path: Path) -> None:
    store = open_store(f"sqlite://{tmp_path}/state.db")
    marked = held(store)
    core = Core(store)
    core.start()
    assert core.wait_synced(10)
    core.put(freed(marked))
    assert core.snapshot().find(marked.key) is None
    core.stop()


def test_a_write_that_the_watch_has_overtaken_brings_nothing_back(tmp_path: Path) -> None:
    store = open_store(f"sqlite://{tmp_path}/state.db")
    marked = held(store)
    events: queue.Queue[Event] = queue.Queue()
    mirror = Mirror(store, lambda told, _: [events.put(e) for e in told])  # type: ignore[func-returns-value, arg-type]
    mirror.start()
    assert events.get(timeout=10).new is not None
    last = store.put(freed(marked))
    assert events.get(timeout=10).new is None
    mirror.absorb(last)
    assert mirror.snapshot.find(marked.key) is None
    mirror.stop()

"""One publication from the command line: the pod's claims bound here and now, with or without an agent.

Rule 1: the same controllers decide as in the agent. Both may run at once: every write carries the
        revision that it rests on, so the slower one only reads again.
Rule 2: a pod that no scheduler has placed is placed on this node, which is what publishing means.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from netplane.model.base import Key, amend
from netplane.model.changes import Put, Write
from netplane.model.errors import Conflict, Invalid, NetplaneError, NotFound, Unavailable
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume
from netplane.reconcile.base import Controller
from netplane.store.base import Change, Store

from ..claims.bind import Binder
from ..claims.snapshots import KINDS as SNAPSHOT_KINDS
from ..volumes.base import Context
from . import holds, wants
from .publish import Publication
from .recording import claimed

KINDS = (*Binder.kinds, *SNAPSHOT_KINDS, "ConfigMap", "Secret", "EndpointSlice")
ROUNDS = 10_000  # of writes without an end: a bug, not a store
REPEATS = 5  # of a publication whose objects keep changing


def ready(
    store: Store, key: Key, node: str, root: str, controllers: Sequence[Controller], wait: float = 30
) -> tuple[Pod, Snapshot]:
    """The pod, placed, with every claim bound. Raises Unavailable with the reason after ``wait`` seconds."""
    deadline = time.monotonic() + wait
    objects, revision = store.list(KINDS)
    snapshot = Snapshot.of(objects, revision)
    pod = _pod(snapshot, key)
    wants.check(pod, node)
    if not pod.spec.node_name:
        placed = amend(pod, spec=amend(pod.spec, node_name=node))
        snapshot = snapshot.with_put(store.put(placed, expect=pod.revision))
    mine = [volume for _, volume in claimed(_pod(snapshot, key), snapshot)]
    snapshot = holds.followed(store, snapshot, mine, (node, Path(root)))
    with store.watch(revision, KINDS) as watch:
        while True:
            try:
                pod = _pod(snapshot, key)
                wants.every(pod, "", Context(node, root, snapshot))
                return pod, snapshot
            except Unavailable:
                if time.monotonic() >= deadline:
                    raise
            settled = settle(store, snapshot, controllers)
            if settled is snapshot:
                left = max(0.0, deadline - time.monotonic())
                settled = folded(snapshot, watch.next(timeout=min(left, 1.0)))
            snapshot = settled


def publish(
    store: Store,
    found: tuple[Pod, Snapshot],
    where: tuple[str, str],
    carry_out: Callable[[Pod, Snapshot], Publication],
) -> Publication:
    """Take hold of its volumes and publish; once more while the store has something newer than that.

    An agent follows only what is published already. What changed before that is found here, what changes
    later is noticed there. ``where``: (node, root). Raises as ``carry_out``.
    """
    pod, (node, root) = found[0], where
    try:
        with holds.under_way(Path(root), pod.metadata.uid):
            holds.take(store, found, node)
            return _published(store, found, where, carry_out)
    except NetplaneError:
        mine = [volume for _, volume in claimed(*found)]
        with suppress(NetplaneError):
            holds.followed(store, found[1].with_put(pod), _live(store, mine), (node, Path(root)))
        raise


def _live(store: Store, volumes: Iterable[PersistentVolume]) -> Iterator[PersistentVolume]:
    found = (store.get(volume.key) for volume in volumes)
    return (live for live in found if isinstance(live, PersistentVolume))


def _published(
    store: Store,
    found: tuple[Pod, Snapshot],
    where: tuple[str, str],
    carry_out: Callable[[Pod, Snapshot], Publication],
) -> Publication:
    pod, snapshot = found
    for _ in range(REPEATS):
        done = carry_out(pod, snapshot)
        before = _digest(pod, snapshot, where)
        snapshot = Snapshot.of(*store.list(KINDS))
        newer = snapshot.get(Pod, pod.namespace, pod.name)
        if newer is None or newer.metadata.uid != pod.metadata.uid or newer.deleting:
            break
        pod = newer
        if _digest(pod, snapshot, where) in (before, ""):
            break
    return done


def _digest(pod: Pod, snapshot: Snapshot, where: tuple[str, str]) -> str:
    """What the pod's volumes come to; "" when one of them cannot be had any more."""
    try:
        return wants.digest(wants.every(pod, "", Context(*where, snapshot)).values())
    except NetplaneError:
        return ""


def _pod(snapshot: Snapshot, key: Key) -> Pod:
    pod = snapshot.get(Pod, key.namespace, key.name)
    if pod is None:
        raise NotFound(f"{key} is not in the store: apply its manifest first")
    return pod


def settle(store: Store, snapshot: Snapshot, controllers: Sequence[Controller]) -> Snapshot:
    """Carry out decisions until none is left; the same snapshot when there was nothing to decide."""
    for _ in range(ROUNDS):
        writes = [
            w for c in controllers for s in sorted(c.scopes(None, snapshot)) for w in c.decide(s, snapshot)
        ]
        after = snapshot
        for write in writes:
            after = _written(store, after, write)
        if after is snapshot:
            return snapshot
        snapshot = after
    raise Invalid(f"the controllers write without an end; the last: {writes[-1]}")


def _written(store: Store, snapshot: Snapshot, write: Write) -> Snapshot:
    """The snapshot after one write; unchanged on Conflict, since the watch brings what was newer."""
    try:
        if isinstance(write, Put):
            stored = store.put(write.object, expect=write.expect)
            stands = store.get(stored.key) is not None  # not when this was the last finalizer
            return snapshot.with_put(stored) if stands else snapshot.with_delete(stored.key, stored.revision)
        gone = store.delete(write.key, expect=write.expect)
        return snapshot.with_delete(gone.key, gone.revision)
    except Conflict:
        return snapshot


def folded(snapshot: Snapshot, changes: Iterable[Change]) -> Snapshot:
    """The snapshot with changes that it does not know yet."""
    for change in changes:
        have = snapshot.find(change.key)
        if have is not None and have.revision >= change.revision:
            continue
        if change.deleted:
            snapshot = snapshot.with_delete(change.key, change.revision)
        else:
            snapshot = snapshot.with_put(change.object)
    return snapshot

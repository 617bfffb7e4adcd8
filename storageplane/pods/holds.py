"""Who has a volume published, told to every node: an annotation of the volume, beside each node's journal.

Rule 1: it is taken before anything is made, on the volume's revision: of two pods that cannot share the
        volume, on whatever nodes, one gets it.
Rule 2: on its own node the journal is the truth. What the annotation says of this node and no record does, or
        the other way round, is put right by the agent and by whoever publishes here next (`followed`), unless
        that publication is under way (its lock).
Rule 3: a record that is damaged may be anybody's: then nothing is let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from netplane.model.base import Key
from netplane.model.errors import Conflict, Invalid, Unavailable
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim

from .. import names
from ..claims import access
from ..claims.access import Hold, Holds
from ..claims.writer import TRIES, Writer
from . import podlock
from .journal import Journal, Record
from .recording import claimed

Where = tuple[str, Path]  # (node, root)


@contextmanager
def under_way(root: Path, uid: str, wait: bool = True) -> Iterator[None]:
    """What the pod holds is nobody else's business meanwhile. Raises Unavailable where it may not wait."""
    with podlock.alone(root, f"hold {uid}", wait):
        yield


def take(store: Writer, found: tuple[Pod, Snapshot], node: str) -> None:
    """Every volume of the pod's claims. Raises Unavailable, naming the pod that has one of them."""
    pod, snapshot = found
    for claim, volume in claimed(pod, snapshot):
        mine = Hold(f"{pod.namespace}/{pod.name}", access.mode_of(pod, claim), node)

        def taken(
            held: Holds, live: PersistentVolume, mine: Hold = mine, of: PersistentVolumeClaim = claim
        ) -> Holds:
            busy = access.obstacle(pod, of, node, snapshot.with_put(live))
            if busy:
                raise Unavailable(busy)
            return held if pod.metadata.uid in held else {**held, pod.metadata.uid: mine}

        _changed(store, volume.key, taken)


def followed(
    store: Writer, snapshot: Snapshot, volumes: Iterable[PersistentVolume], where: Where
) -> Snapshot:
    """What these volumes say of this node made to agree with its journal; the snapshot with it written.

    Raises Invalid, after the others, for those whose annotation cannot be read; Unavailable.
    """
    node, root = where
    journal, unread = Journal(root), list[str]()
    records = {r.uid: r for r in journal.records()}
    shown = {name for r in records.values() for name in r.modes}
    for volume in volumes:
        if names.IN_USE not in volume.metadata.annotations and volume.name not in shown:
            continue
        try:
            held = access.holds(volume)
        except Invalid as exc:
            unread.append(str(exc))
            continue
        here = {uid for uid, hold in held.items() if hold.node == node}
        want = {uid for uid, r in records.items() if volume.name in r.modes}
        for uid in sorted((here - want) | (want - held.keys())):
            with suppress(Unavailable), under_way(root, uid, wait=False):
                live = _changed(store, volume.key, _as_recorded(journal, uid, volume.name))
                snapshot = snapshot.with_put(live) if live is not None else snapshot
    if unread:
        raise Invalid("; ".join(unread))
    return snapshot


def let_go(store: Writer, snapshot: Snapshot, gone: Iterable[Record], root: Path) -> None:
    """What was held by publications that this node has just taken away."""
    for record in gone:
        volumes = (snapshot.get(PersistentVolume, "", name) for name in record.modes)
        followed(store, snapshot, (v for v in volumes if v is not None), (record.node, root))


def _as_recorded(journal: Journal, uid: str, volume: str) -> Callable[[Holds, PersistentVolume], Holds]:
    """Of this pod what its record says, as it is now."""

    def change(held: Holds, _: PersistentVolume) -> Holds:
        try:
            record = journal.read(uid)
        except Invalid:
            return held  # its own publication says so
        if record is not None and volume in record.modes:
            mine = Hold(f"{record.namespace}/{record.name}", record.modes[volume], record.node)
            return held if uid in held else {**held, uid: mine}
        return held if journal.damaged() else {u: hold for u, hold in held.items() if u != uid}

    return change


def _changed(
    store: Writer, key: Key, change: Callable[[Holds, PersistentVolume], Holds]
) -> PersistentVolume | None:
    """The volume with its holds changed, by whatever others write meanwhile; None when it is gone."""
    for _ in range(TRIES):
        live = store.get(key)
        if not isinstance(live, PersistentVolume):
            return None
        held = access.holds(live)
        wanted = change(held, live)
        if wanted == held:
            return live
        with suppress(Conflict):
            stored = store.put(access.held_by(live, wanted), expect=live.revision)
            return stored if isinstance(stored, PersistentVolume) else live
    raise Unavailable(f"{key}: others keep writing to it; try again")

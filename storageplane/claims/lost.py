"""A node that does not come back: its volumes given up, or kept for it, by an operator's explicit word.

Rule 1: nobody is given up by a guess. A node whose lease is alive is refused, unless forced.
Rule 2: only what nobody else can reach is lost: volumes whose affinity no other node satisfies.
Rule 3: each volume is marked before its object goes, so that the node, should it come back, leaves alone
        what it still has; and every step may be done again after a crash. One that cannot be done now
        is named at the end and keeps none of the others.
Rule 4: what is kept is only said to be kept (policy Retain): objects, bonds and pods stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from netplane.model.base import Key, amend
from netplane.model.errors import Conflict, Invalid, NetplaneError, NotFound
from netplane.model.nodes import Lease, Node
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import ClaimStatus, PersistentVolume, PersistentVolumeClaim
from netplane.model.volumesnapshots import VolumeSnapshotContent
from netplane.store.base import Store

from .. import names
from . import access, match, pulse, steps

KINDS = ("PersistentVolume", "PersistentVolumeClaim", "Pod", "Node", "Lease", "VolumeSnapshotContent")
LEASES = (pulse.NAMESPACE, pulse.NODES)
TRIES = 10
_OURS = (names.DATA, names.PV_PROTECTION, names.SNAPSHOT_CONTENT)


class Loss(NamedTuple):
    """What a node takes with it; claims are those bound to its volumes, pods those that use them there."""

    volumes: tuple[PersistentVolume, ...]
    claims: tuple[PersistentVolumeClaim, ...]
    pods: tuple[Pod, ...]


def loss(node: str, snapshot: Snapshot) -> Loss:
    """What only ``node`` can reach. Pure."""
    volumes = tuple(v for v in _volumes(snapshot) if _only(v, node, snapshot))
    owners = (steps.owner(v, snapshot) for v in volumes)
    claims = tuple(c for c in owners if c is not None and c.spec.volume_name)
    pods = {p.key: p for c in claims for p in snapshot.by(Pod, "claim", match.claim_key(c))}
    return Loss(volumes, claims, tuple(p for p in pods.values() if p.spec.node_name == node))


def _volumes(snapshot: Snapshot) -> list[PersistentVolume]:
    return sorted(snapshot.list(PersistentVolume), key=lambda v: v.name)


def _only(volume: PersistentVolume, node: str, snapshot: Snapshot) -> bool:
    affinity = volume.spec.node_affinity
    if affinity is None or not match.fits_node(affinity, node, snapshot):
        return False
    others = (n.name for n in snapshot.list(Node) if n.name != node)
    return not any(match.fits_node(affinity, other, snapshot) for other in others)


def _known(node: str, snapshot: Snapshot) -> bool:
    named = snapshot.get(Node, "", node) or any(snapshot.get(Lease, ns, node) for ns in LEASES)
    return bool(named) or any(_only(v, node, snapshot) for v in snapshot.list(PersistentVolume))


def alive(node: str, snapshot: Snapshot, now: float) -> str:
    """Who says that the node lives and until when, or ""."""
    for namespace in LEASES:
        lease = snapshot.get(Lease, namespace, node)
        left = pulse.expires(lease) - now if lease is not None else 0.0
        if lease is not None and left > 0:
            return f"{lease.spec.holder_identity} holds its lease {namespace}/{node} for {left:.0f} s more"
    return ""


def retain(store: Store, node: str, force: bool = False) -> Iterator[str]:
    """Keep the node's volumes and snapshots for when it is back; a line for each that would have gone else.

    Raises as `give_up`. What is being deleted already is left to that.
    """
    snapshot, failed = _judged(store, node, force), list[str]()
    for volume in loss(node, snapshot).volumes:
        if not volume.deleting and volume.spec.persistent_volume_reclaim_policy != "Retain":
            yield from _told(f"volume {volume.name} retained", failed, _keep, store, volume)
    for content in contents(node, snapshot):
        if not content.deleting and content.spec.deletion_policy != "Retain":
            yield from _told(f"snapshot content {content.name} retained", failed, _keep, store, content)
    if failed:
        raise Invalid("; ".join(failed))


def _judged(store: Store, node: str, force: bool) -> Snapshot:
    """What is known of a node that may be said to be lost. Raises Invalid."""
    objects, revision = store.list(KINDS)
    snapshot = Snapshot.of(objects, revision)
    if not _known(node, snapshot):
        raise Invalid(f"nothing is known of a node {node}: no Node, no lease and no volume names it")
    living = alive(node, snapshot, time.time())
    if living and not force:
        raise Invalid(f"node {node} is alive: {living}; stop its agents and wait, or use --force")
    return snapshot


def give_up(store: Store, node: str, rebind: bool = False, force: bool = False) -> Iterator[str]:
    """Give the node's volumes up; a line for each object. ``rebind``: its claims start anew, and empty.

    Raises Invalid while the node's lease is alive (unless ``force``), or at the end for what could not be
    done.
    """
    snapshot = _judged(store, node, force)
    lost, failed = loss(node, snapshot), list[str]()
    for pod in lost.pods:
        yield from _told(f"pod {pod.namespace}/{pod.name} deleted", failed, _delete, store, pod.key)
    for volume in (v for v in _volumes(snapshot) if v not in lost.volumes and _held(v, node)):
        yield from _told(
            f"volume {volume.name} not in use there any more", failed, _free, store, volume, node
        )
    for claim in lost.claims if rebind else ():
        yield from _told("", failed, _mark, store, claim, node)
    for volume in lost.volumes:
        yield from _told(f"volume {volume.name} given up", failed, _abandon, store, volume, node)
    for content in contents(node, snapshot):
        said = f"snapshot content {content.name} given up"
        yield from _told(said, failed, _abandon, store, content, node)
    marked = [c for c in snapshot.list(PersistentVolumeClaim) if _mark_of(c) == node]
    again = {c.key: c for c in (*lost.claims, *marked)} if rebind else {}
    for claim in again.values():
        said = f"claim {match.claim_key(claim)} starts anew"
        yield from _told(said, failed, _restart, store, claim)
    if failed:
        raise Invalid("; ".join(failed))


def _told(line: str, failed: list[str], step: object, *words: object) -> Iterator[str]:
    try:
        step(*words)  # type: ignore[operator]
    except NetplaneError as exc:
        failed.append(str(exc))
    else:
        yield from (line,) if line else ()


def _delete(store: Store, key: Key) -> None:
    try:
        store.delete(key)
    except NotFound:
        return


def contents(node: str, snapshot: Snapshot) -> list[VolumeSnapshotContent]:
    """The snapshots that lie on the node."""
    host = match.hostname(node, snapshot)
    every = snapshot.list(VolumeSnapshotContent)
    return sorted(
        (c for c in every if c.metadata.annotations.get(names.SNAPSHOT_HOST) == host), key=lambda c: c.name
    )


def _keep(store: Store, lost: PersistentVolume | VolumeSnapshotContent) -> None:
    for _ in range(TRIES):
        live: Any = store.get(lost.key)
        if live is None or live.metadata.uid != lost.metadata.uid or live.deleting:
            return
        volume = isinstance(live, PersistentVolume)
        policy = {"persistent_volume_reclaim_policy" if volume else "deletion_policy": "Retain"}
        try:
            store.put(amend(live, spec=amend(live.spec, **policy)), expect=live.revision)
        except Conflict:
            continue
        return
    raise Conflict(f"{lost.key}: others keep writing to it; say it again")


def _abandon(store: Store, lost: PersistentVolume | VolumeSnapshotContent, node: str) -> None:
    """Mark, delete, and take off the finalizers that its node would have taken off."""
    for _ in range(TRIES):
        live = store.get(lost.key)
        if live is None or live.metadata.uid != lost.metadata.uid:
            return
        try:
            if names.LOST not in live.metadata.annotations:
                store.put(steps.annotated(live, {names.LOST: node}), expect=live.revision)
            elif not live.deleting:
                store.delete(live.key, expect=live.revision)
            elif set(_OURS) & set(live.metadata.finalizers):
                store.put(steps.without(live, *_OURS), expect=live.revision)
            else:
                held = ", ".join(live.metadata.finalizers)
                raise Invalid(f"{live.key} is given up, and held by {held}")
        except Conflict:
            continue
    raise Conflict(f"{lost.key}: others keep writing to it; give the node up again")


def _held(volume: PersistentVolume, node: str) -> bool:
    try:
        return any(hold.node == node for hold in access.holds(volume).values())
    except Invalid:
        return False


def _free(store: Store, volume: PersistentVolume, node: str) -> None:
    """A volume that others reach: what was published on the node keeps nobody waiting."""
    for _ in range(TRIES):
        live = store.get(volume.key)
        if not isinstance(live, PersistentVolume) or not _held(live, node):
            return
        rest = {uid: hold for uid, hold in access.holds(live).items() if hold.node != node}
        try:
            store.put(access.held_by(live, rest), expect=live.revision)
        except Conflict:
            continue
        return
    raise Conflict(f"{volume.key}: others keep writing to it; give the node up again")


def _mark_of(obj: PersistentVolumeClaim) -> str:
    return obj.metadata.annotations.get(names.LOST, "")


def _mark(store: Store, claim: PersistentVolumeClaim, node: str) -> None:
    """So that a crash after its volume went still leaves it to be found."""
    for _ in range(TRIES):
        live = store.get(claim.key)
        if live is None or _mark_of(claim) == node:
            return
        try:
            store.put(steps.annotated(live, {names.LOST: node}), expect=live.revision)
        except Conflict:
            continue
        return


def _restart(store: Store, claim: PersistentVolumeClaim) -> None:
    """A claim that has lost its volume waits for another one, as if it were new."""
    for _ in range(TRIES):
        live = store.get(claim.key)
        if not isinstance(live, PersistentVolumeClaim) or live.spec.volume_name != claim.spec.volume_name:
            return
        bare = steps.bare(
            live, names.BIND_COMPLETED, names.BOUND_BY_CONTROLLER, names.SELECTED_NODE,
            names.STORAGE_PROVISIONER, names.LOST,
        )  # fmt: skip
        spec = amend(bare.spec, volume_name="")
        try:
            store.put(amend(bare, spec=spec, status=ClaimStatus(phase="Pending")), expect=live.revision)
        except Conflict:
            continue

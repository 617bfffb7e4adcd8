"""What `netplane describe` says of claims, volumes and classes beyond their fields. Pure.

A claim that is not bound: one line for each volume and why it is not taken, in matching order, by the
same function that decides it (`match.obstacle`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from netplane.model.base import Object
from netplane.model.nodes import Node
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim, StorageClass

from .. import names
from . import match, reclaim, steps

KINDS = ("PersistentVolume", "PersistentVolumeClaim", "StorageClass", "Pod", "Node")
WIDTH = 16


class Describer:
    """One kind's words, as netplane.commands.extra asks for them."""

    kinds = KINDS

    def __call__(self, obj: Object, snapshot: Snapshot) -> Iterable[str]:
        if isinstance(obj, PersistentVolumeClaim):
            return _claim(obj, snapshot)
        if isinstance(obj, PersistentVolume):
            return _volume(obj, snapshot)
        return _class(obj, snapshot) if isinstance(obj, StorageClass) else ()


def _line(title: str, value: str) -> str:
    return f"{title + ':':<{WIDTH}} {value or '<none>'}"


def _claim(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[str]:
    pods = snapshot.by(Pod, "claim", match.claim_key(claim))
    yield _line("Used By", ", ".join(p.name for p in pods))
    if claim.deleting and names.PVC_PROTECTION in claim.metadata.finalizers:
        yield _line("Held", "it goes when no pod that was placed names it any more")
    if claim.status.phase == "Bound":
        return
    yield _line("Default class", default.name if (default := match.default_class(snapshot)) else "")
    reasons = match.why(claim, snapshot)
    yield "Volumes:" if reasons else _line("Volumes", "")
    wide = max((len(name) for name, _ in reasons), default=0)
    yield from (f"  {name:<{wide}}  {why or 'fits; it is about to be taken'}" for name, why in reasons)


def _volume(volume: PersistentVolume, snapshot: Snapshot) -> Iterator[str]:
    ref, claim = volume.spec.claim_ref, steps.owner(volume, snapshot)
    if ref is not None and ref.uid and claim is None:
        yield _line("Claim", f"{ref.namespace}/{ref.name} is gone (one of that name now is another)")
    if claim is not None:
        users = snapshot.by(Pod, "claim", match.claim_key(claim))
        yield _line("Used By", ", ".join(p.name for p in users))
    if volume.spec.node_affinity is not None:
        fits = (
            n.name
            for n in snapshot.list(Node)
            if match.fits_node(volume.spec.node_affinity, n.name, snapshot)
        )
        yield _line("Nodes", ", ".join(sorted(fits)))
    if names.LOST in volume.metadata.annotations:
        yield _line("Given up", f"with node {volume.metadata.annotations[names.LOST]}")
    if volume.status.phase in ("Released", "Failed"):
        yield _line("Reclaim", _reclaim(volume, snapshot))


def _reclaim(volume: PersistentVolume, snapshot: Snapshot) -> str:
    policy = volume.spec.persistent_volume_reclaim_policy
    _, never = reclaim.impossible(volume, snapshot)
    if never or volume.status.message:
        return never or volume.status.message
    if policy == "Retain":
        return "kept; remove spec.claimRef to offer it again, or delete the volume (its data stays)"
    users = ", ".join(reclaim.users_of(volume, snapshot)) if policy == "Recycle" else ""
    return f"used by pods: {users}" if users else f"{policy} by the agent of its node"


def _class(cls: StorageClass, snapshot: Snapshot) -> Iterator[str]:
    volumes = [v for v in snapshot.list(PersistentVolume) if v.spec.storage_class_name == cls.name]
    claims = [c for c in snapshot.list(PersistentVolumeClaim) if c.spec.storage_class_name == cls.name]
    waiting = sorted(match.claim_key(c) for c in claims if c.status.phase != "Bound")
    default = match.default_class(snapshot)
    yield _line("IsDefaultClass", "Yes" if cls.is_default else "No")
    if cls.is_default and default is not None and default.name != cls.name:
        yield _line("Note", f"{default.name} is a default class too, and newer: it is the one in force")
    yield _line("Volumes", f"{len(volumes)}, {sum(v.status.phase == 'Bound' for v in volumes)} bound")
    yield _line("Claims waiting", ", ".join(waiting))


describer = Describer()

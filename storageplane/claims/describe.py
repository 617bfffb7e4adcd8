"""What `netplane describe` says of claims, volumes and classes beyond their fields. Pure.

A claim that is not bound: one line for each volume and why it is not taken, in matching order, by the
functions that decide it (`match.why`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from netplane.model.base import Object
from netplane.model.errors import NetplaneError
from netplane.model.nodes import Node
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim, StorageClass
from netplane.model.volumesnapshots import VolumeSnapshot, VolumeSnapshotContent

from .. import names
from . import contents, match, reclaim, snapshots, sources, steps

KINDS = (
    "PersistentVolume", "PersistentVolumeClaim", "StorageClass", "Pod", "Node", "VolumeSnapshot",
    "VolumeSnapshotContent",
)  # fmt: skip
WIDTH = 16


class Describer:
    """One kind's words, as netplane.commands.extra asks for them."""

    kinds = KINDS

    def __call__(self, obj: Object, snapshot: Snapshot) -> Iterable[str]:
        if isinstance(obj, PersistentVolumeClaim):
            return _claim(obj, snapshot)
        if isinstance(obj, PersistentVolume):
            return _volume(obj, snapshot)
        if isinstance(obj, VolumeSnapshot):
            return _snapshot(obj, snapshot)
        if isinstance(obj, VolumeSnapshotContent):
            return _content(obj, snapshot)
        return _class(obj, snapshot) if isinstance(obj, StorageClass) else ()


def _line(title: str, value: str) -> str:
    return f"{title + ':':<{WIDTH}} {value or '<none>'}"


def _claim(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[str]:
    pods = snapshot.by(Pod, "claim", match.claim_key(claim))
    yield _line("Used By", ", ".join(p.name for p in pods))
    if claim.deleting and names.PVC_PROTECTION in claim.metadata.finalizers:
        yield _line("Held", "it goes when no pod that was placed names it any more")
    if sources.named(claim)[0]:
        yield _line("Copy of", _copied(claim, snapshot))
    if claim.status.phase == "Bound":
        return
    yield _line("Default class", default.name if (default := match.default_class(snapshot)) else "")
    reasons = match.why(claim, snapshot)
    yield "Volumes:" if reasons else _line("Volumes", "")
    wide = max((len(name) for name, _ in reasons), default=0)
    yield from (f"  {name:<{wide}}  {why or 'is about to be taken'}" for name, why in reasons)


def _copied(claim: PersistentVolumeClaim, snapshot: Snapshot) -> str:
    words = "{} {}".format(*sources.named(claim))
    if claim.spec.volume_name:
        return words if sources.served(claim, snapshot) else f"{words}, being copied"
    try:
        sources.find(claim, snapshot)
    except NetplaneError as exc:
        return f"{words}: {exc}"
    return words


def _snapshot(found: VolumeSnapshot, snapshot: Snapshot) -> Iterator[str]:
    users = snapshots.restoring(found, snapshot)
    yield _line("Restoring to", ", ".join(users))
    if found.deleting and users:
        yield _line("Held", "it goes when these claims have their data")
    content = snapshots.content_of(found, snapshot)
    if content is not None:
        stays = content.spec.deletion_policy == "Retain"
        yield _line("Its data", "stays when it is deleted" if stays else "goes with it")


def _content(content: VolumeSnapshotContent, snapshot: Snapshot) -> Iterator[str]:
    ref = content.spec.volume_snapshot_ref
    found = snapshot.get(VolumeSnapshot, ref.namespace, ref.name)
    bound = found is not None and contents.means(content, found)
    yield _line("Bound", "yes" if bound else f"no: VolumeSnapshot {ref.namespace}/{ref.name} is another")
    yield _line("Lies on", content.metadata.annotations.get(names.SNAPSHOT_HOST, ""))


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
    if not sources.whole(volume):
        yield _line("Being copied", f"from {volume.metadata.annotations[names.SOURCE]}")
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

"""What the data of a new volume is to be a copy of: a claim's dataSource or dataSourceRef. Pure.

Rule 1: a source is a VolumeSnapshot or another claim, of the same namespace; every other kind is refused by
        name, and nothing empty is ever made in its place.
Rule 2: a copy is of its source's volume mode, backend and file system, on its source's node, and no smaller.
"""

from __future__ import annotations

from typing import NamedTuple

from netplane.model.errors import Invalid, Unavailable
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim, VolumeNodeAffinity
from netplane.model.volumesnapshots import GROUP, VolumeSnapshot, VolumeSnapshotContent

from .. import names
from . import match

CLAIM, SNAPSHOT = PersistentVolumeClaim.KIND, VolumeSnapshot.KIND
SNAPSHOT_DIR = "snapshots/data"  # beneath the root
_GROUPS = {CLAIM: ("", "v1"), SNAPSHOT: (GROUP,)}


class Source(NamedTuple):
    """``words`` for people; ``path`` beneath the root of the node ``host``; ``size`` in bytes."""

    words: str
    path: str
    host: str
    size: int
    backend: str
    fstype: str
    block: bool


def named(claim: PersistentVolumeClaim) -> tuple[str, str]:
    """(kind, name) of what a claim is to be a copy of, as they stand; ("", "") for nothing."""
    source = claim.spec.data_source_ref or claim.spec.data_source
    if not isinstance(source, dict):
        return ("", "")
    return str(source.get("kind", "")), str(source.get("name", ""))


def asked(claim: PersistentVolumeClaim) -> tuple[str, str]:
    """(kind, name) of a source that can be had; ("", "") for none. Raises Invalid for any other."""
    source, twin = claim.spec.data_source_ref or claim.spec.data_source, claim.spec.data_source
    if source is None:
        return ("", "")
    where = "spec.dataSourceRef" if claim.spec.data_source_ref is not None else "spec.dataSource"
    kind, name = named(claim)
    if kind not in _GROUPS:
        what = f"kind {kind!r}" if kind else "a source without a kind"
        raise Invalid(
            f"{where}: {what} is not supported: name a {SNAPSHOT} or a {CLAIM} (no populators here)"
        )
    if source.get("apiGroup", _GROUPS[kind][0]) not in _GROUPS[kind]:
        raise Invalid(f"{where}.apiGroup: {source['apiGroup']!r} has no {kind}; use {_GROUPS[kind][0]!r}")
    if source.get("namespace", claim.namespace) != claim.namespace:
        raise Invalid(f"{where}.namespace: only sources of the claim's own namespace {claim.namespace}")
    if not name:
        raise Invalid(f"{where}.name: required")
    if twin is not None and (twin.get("kind"), twin.get("name")) != (kind, name):
        raise Invalid("spec.dataSource and spec.dataSourceRef name different things; leave one out")
    return kind, name


def find(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Source | None:
    """The source, checked against what the claim asks; None for none.

    Raises Invalid for what never fits, Unavailable for what may come.
    """
    kind, name = asked(claim)
    if not kind:
        return None
    found = _snapshot(claim, name, snapshot) if kind == SNAPSHOT else _claim(claim, name, snapshot)
    if match.requested(claim) < found.size:
        raise Invalid(f"{match.requested(claim)} bytes are less than the {found.size} of {found.words}")
    if (claim.spec.volume_mode == "Block") != found.block:
        mode = "Block" if found.block else "Filesystem"
        raise Invalid(f"spec.volumeMode {claim.spec.volume_mode}: {found.words} is {mode}")
    return found


def _snapshot(claim: PersistentVolumeClaim, name: str, snapshot: Snapshot) -> Source:
    words = f"{SNAPSHOT} {claim.namespace}/{name}"
    content = ready(claim.namespace, name, snapshot)
    notes, status = content.metadata.annotations, content.status
    if names.BACKEND not in notes:
        raise Invalid(f"{words} is of driver {content.spec.driver}: use a StorageClass of that provisioner")
    return Source(
        words,
        f"{SNAPSHOT_DIR}/{status.snapshot_handle}",
        notes.get(names.SNAPSHOT_HOST, ""),
        status.restore_size,
        notes[names.BACKEND],
        notes.get(names.FILE_SYSTEM, ""),
        content.spec.source_volume_mode == "Block",
    )


def ready(namespace: str, name: str, snapshot: Snapshot) -> VolumeSnapshotContent:
    """The content of a snapshot that is ready to use. Raises Unavailable."""
    found = snapshot.get(VolumeSnapshot, namespace, name)
    words = f"{SNAPSHOT} {namespace}/{name}"
    if found is None or found.deleting:
        raise Unavailable(f"{words} {'is being deleted' if found else 'does not exist'}")
    bound = found.status.bound_volume_snapshot_content_name
    content = snapshot.get(VolumeSnapshotContent, "", bound) if bound else None
    if content is None or not found.status.ready_to_use:
        error = found.status.error
        raise Unavailable(f"{words} is not ready to use" + (f": {error.message}" if error else ""))
    return content


def _claim(claim: PersistentVolumeClaim, name: str, snapshot: Snapshot) -> Source:
    words = f"{CLAIM} {claim.namespace}/{name}"
    volume = volume_of(claim.namespace, name, snapshot)
    if names.BACKEND not in volume.metadata.annotations or volume.spec.local is None:
        raise Invalid(f"{words}: its {volume.key} was not provisioned by the same provisioner")
    if not whole(volume):
        raise Unavailable(f"{words}: its own data is still being copied")
    return Source(
        words,
        f"{names.FILESYSTEM_DIR}/{volume.name}",
        host_of(volume),
        match.capacity(volume),
        volume.metadata.annotations[names.BACKEND],
        volume.spec.local.fs_type,
        volume.spec.volume_mode == "Block",
    )


def volume_of(namespace: str, name: str, snapshot: Snapshot) -> PersistentVolume:
    """The volume that a claim is bound to. Raises Unavailable."""
    found = snapshot.get(PersistentVolumeClaim, namespace, name)
    if found is None or found.deleting:
        why = "is being deleted" if found else "does not exist"
        raise Unavailable(f"{CLAIM} {namespace}/{name} {why}")
    volume = snapshot.get(PersistentVolume, "", found.spec.volume_name) if found.spec.volume_name else None
    if volume is None or found.status.phase != "Bound":
        raise Unavailable(f"{CLAIM} {namespace}/{name} is not bound")
    return volume


def whole(volume: PersistentVolume) -> bool:
    """Whether its data is not, or no longer, to be copied from somewhere."""
    notes = volume.metadata.annotations
    return names.SOURCE not in notes or names.FILLED in notes


def served(claim: PersistentVolumeClaim, snapshot: Snapshot) -> bool:
    """Whether the claim has a volume with all its data, so that its source is not needed any more."""
    volume = snapshot.get(PersistentVolume, "", claim.spec.volume_name) if claim.spec.volume_name else None
    return volume is not None and whole(volume)


def copied_to(volume: PersistentVolume, snapshot: Snapshot) -> list[str]:
    """The volumes that one of ours is being copied to: until they are whole it stays."""
    ref, path = volume.spec.claim_ref, f"{names.FILESYSTEM_DIR}/{volume.name}"
    key = f"{CLAIM}/{ref.namespace}/{ref.name}" if ref else ""
    copies = (
        snapshot.get(PersistentVolume, "", f"pvc-{c.metadata.uid}")
        for c in snapshot.by(PersistentVolumeClaim, "source", key)
    )
    return [v.name for v in copies if v and not whole(v) and v.metadata.annotations[names.SOURCE] == path]


def driver_of(volume: PersistentVolume) -> tuple[str, str]:
    """(driver, handle) by which snapshots of a volume are taken; ("", "") where nobody can."""
    if volume.spec.csi is not None:
        return volume.spec.csi.driver, volume.spec.csi.volume_handle
    notes = volume.metadata.annotations
    return (notes.get(names.PROVISIONED_BY, ""), volume.name) if names.BACKEND in notes else ("", "")


def host_of(volume: PersistentVolume) -> str:
    """The one host name that its node affinity asks for, or ""."""
    return host_in(volume.spec.node_affinity)


def host_in(affinity: VolumeNodeAffinity | None) -> str:
    terms = affinity.required.node_selector_terms if affinity and affinity.required else ()
    asked = [r.values for t in terms for r in t.match_expressions if r.key == names.HOSTNAME]
    return asked[0][0] if len(terms) == 1 and len(asked) == 1 and len(asked[0]) == 1 else ""

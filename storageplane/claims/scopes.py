"""Which claims and volumes an event touches, as scopes "claim/NAMESPACE/NAME" and "volume/NAME". Pure.

Rule 1: a volume that becomes free wakes nobody but itself: it looks for a claim (see `match.waiting`), so a
        thousand new volumes beside a thousand waiting claims are a thousand scopes, not a million.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from netplane.model.changes import Event
from netplane.model.facts import Scope
from netplane.model.nodes import Node
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim, StorageClass
from netplane.model.volumesnapshots import VolumeSnapshot

from .. import names
from . import match


def claim_scopes(controller: str, event: Event | None, snapshot: Snapshot) -> set[Scope]:
    """The claims that an event touches, as scopes of one controller; all of them for None."""
    if event is None:
        keys: Iterable[str] = (match.claim_key(c) for c in snapshot.list(PersistentVolumeClaim))
    else:
        keys = _claims_of(event, snapshot)
    return {Scope(controller, f"claim/{key}") for key in keys}


def volume_scopes(controller: str, event: Event | None, snapshot: Snapshot) -> set[Scope]:
    """The volumes that an event touches, as scopes of one controller; all of them for None."""
    if event is None:
        found: Iterable[str] = (v.name for v in snapshot.list(PersistentVolume))
    else:
        found = _volumes_of(event, snapshot)
    return {Scope(controller, f"volume/{name}") for name in found}


def static(event: Event | None) -> bool:
    """Whether an event is of a volume that nobody provisioned: no provisioner's business."""
    obj = event.object if event is not None else None
    return isinstance(obj, PersistentVolume) and names.PROVISIONED_BY not in obj.metadata.annotations


def claims_of_pod(pod: Pod) -> Iterator[str]:
    for volume in pod.spec.volumes:
        if volume.persistent_volume_claim:
            yield f"{pod.namespace}/{volume.persistent_volume_claim.claim_name}"
        elif volume.ephemeral:
            yield f"{pod.namespace}/{pod.name}-{volume.name}"


def _claims_of(event: Event, snapshot: Snapshot) -> Iterator[str]:
    obj, states = event.object, [o for o in event if o is not None]
    if isinstance(obj, PersistentVolumeClaim):
        yield match.claim_key(obj)
        copies = snapshot.by(PersistentVolumeClaim, "source", f"{obj.KIND}/{obj.namespace}/{obj.name}")
        yield from (match.claim_key(c) for c in copies)
    elif isinstance(obj, PersistentVolume):
        yield from {_ref(o) for o in states} - {""}
        yield from (match.claim_key(c) for c in snapshot.by(PersistentVolumeClaim, "volume", obj.name))
    elif isinstance(obj, Pod):
        for pod in states:
            yield from claims_of_pod(pod)  # type: ignore[arg-type]
    elif isinstance(obj, VolumeSnapshot):
        waiting = snapshot.by(PersistentVolumeClaim, "source", f"{obj.KIND}/{obj.namespace}/{obj.name}")
        yield from (match.claim_key(c) for c in waiting)
    elif isinstance(obj, StorageClass):
        waiting = _unbound(snapshot)
        yield from (match.claim_key(c) for c in waiting if c.spec.storage_class_name in (None, obj.name))
        yield from (match.claim_key(c) for c in _growing(obj, snapshot))
    elif isinstance(obj, Node) and _relabelled(event):
        yield from (match.claim_key(c) for c in _unbound(snapshot))


def _ref(volume: Any) -> str:
    ref = volume.spec.claim_ref
    return f"{ref.namespace}/{ref.name}" if ref is not None else ""


def _volumes_of(event: Event, snapshot: Snapshot) -> Iterator[str]:
    obj, states = event.object, [o for o in event if o is not None]
    if isinstance(obj, PersistentVolume):
        yield obj.name
        copied = obj.metadata.annotations.get(names.SOURCE, "")
        if copied.startswith(f"{names.FILESYSTEM_DIR}/"):  # it may go when its copy is whole
            yield copied.rpartition("/")[2]
    elif isinstance(obj, PersistentVolumeClaim):
        yield from (v.name for v in snapshot.by(PersistentVolume, "claim", match.claim_key(obj)))
    elif isinstance(obj, Pod):  # one that goes may have been the last to use what is recycled
        keys = {key for pod in states for key in claims_of_pod(pod)}  # type: ignore[arg-type]
        named = (v for key in keys for v in snapshot.by(PersistentVolume, "claim", key))
        yield from (v.name for v in named if v.spec.persistent_volume_reclaim_policy == "Recycle")
    elif isinstance(obj, StorageClass):
        yield from (c.spec.volume_name for c in _growing(obj, snapshot))


def _unbound(snapshot: Snapshot) -> tuple[PersistentVolumeClaim, ...]:
    return snapshot.by(PersistentVolumeClaim, "volume", "")


def _growing(cls: StorageClass, snapshot: Snapshot) -> Iterator[PersistentVolumeClaim]:
    """The claims of a class that ask for more than they have: it may allow now what it did not."""
    of_it = (c for c in snapshot.list(PersistentVolumeClaim) if c.spec.storage_class_name == cls.name)
    for claim in of_it:
        has = match.size_of(claim.status.capacity)
        if claim.status.phase == "Bound" and match.requested(claim) > has:
            yield claim


def _relabelled(event: Event) -> bool:
    return event.old is None or event.new is None or event.old.labels != event.new.labels

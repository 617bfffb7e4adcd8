"""Which claims and volumes an event touches, as scopes "claim/NAMESPACE/NAME" and "volume/NAME". Pure.

Rule 1: a volume that becomes free wakes nobody but itself: it looks for a claim (see `match.taker`), so a
        thousand new volumes beside a thousand waiting claims are a thousand scopes, not a million.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from netplane.model.changes import Event
from netplane.model.facts import Scope
from netplane.model.nodes import Node
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim, StorageClass

from . import match, names


def claim_scopes(controller: str, event: Event | None, snapshot: Snapshot) -> set[Scope]:
    """The claims that an event touches, as scopes of one controller; all of them for None."""
    if event is None:
        keys = {match.claim_key(c) for c in snapshot.list(PersistentVolumeClaim)}
    else:
        keys = {k for o in (event.old, event.new) if o is not None for k in _claims_of(o, event, snapshot)}
    return {Scope(controller, f"claim/{key}") for key in keys}


def volume_scopes(controller: str, event: Event | None, snapshot: Snapshot) -> set[Scope]:
    if event is None:
        found = {v.name for v in snapshot.list(PersistentVolume)}
    else:
        found = set()
        for obj in (event.old, event.new):
            if isinstance(obj, PersistentVolume):
                found.add(obj.name)
            elif isinstance(obj, PersistentVolumeClaim):
                referring = snapshot.by(PersistentVolume, "claim", match.claim_key(obj))
                found |= {obj.spec.volume_name, *(v.name for v in referring)} - {""}
            elif isinstance(obj, Pod):  # a pod that goes may have been the last to use what is recycled
                named = (v for key in claims_of_pod(obj) for v in snapshot.by(PersistentVolume, "claim", key))
                found |= {v.name for v in named if v.spec.persistent_volume_reclaim_policy == "Recycle"}
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


def _claims_of(obj: Any, event: Event, snapshot: Snapshot) -> Iterator[str]:
    if isinstance(obj, PersistentVolumeClaim):
        yield match.claim_key(obj)
    elif isinstance(obj, Pod):
        yield from claims_of_pod(obj)
    elif isinstance(obj, PersistentVolume):
        ref = obj.spec.claim_ref
        if ref is not None:
            yield f"{ref.namespace}/{ref.name}"
        yield from (match.claim_key(c) for c in snapshot.by(PersistentVolumeClaim, "volume", obj.name))
    elif isinstance(obj, StorageClass):
        waiting = _unbound(snapshot)
        yield from (match.claim_key(c) for c in waiting if c.spec.storage_class_name in (None, obj.name))
    elif isinstance(obj, Node) and _relabelled(event):
        yield from (match.claim_key(c) for c in _unbound(snapshot))


def _unbound(snapshot: Snapshot) -> tuple[PersistentVolumeClaim, ...]:
    return snapshot.by(PersistentVolumeClaim, "volume", "")


def _relabelled(event: Event) -> bool:
    return event.old is None or event.new is None or event.old.labels != event.new.labels

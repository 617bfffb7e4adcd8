"""The writes that the controllers share: the four of a bind, protection, phases. Pure.

Rule 1: every write carries the revision that it was decided on.
Rule 2: binding is four writes in this order: the volume's claimRef, the volume's phase, the claim's
        volumeName, the claim's status. The volume's claimRef is the lock.
Rule 3: an object that lives is protected by its finalizer with the first write that we make to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from netplane.model.base import Key, amend
from netplane.model.changes import Put, Write
from netplane.model.pods import Pod
from netplane.model.services import ObjectReference
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim

from .. import names
from . import events

_PROTECTION = {
    PersistentVolumeClaim.KIND: names.PVC_PROTECTION,
    PersistentVolume.KIND: names.PV_PROTECTION,
}


def together(steps: Iterable[Write]) -> list[Write]:
    """The steps that can be written at once: those before a second one to the same object, whose
    revision nobody knows yet."""
    chosen: dict[Key, Write] = {}
    for step in steps:
        key = step.object.key if isinstance(step, Put) else step.key
        if key in chosen:
            break
        chosen[key] = step
    return list(chosen.values())


def put(obj: Any) -> Put:
    finalizer = _PROTECTION.get(obj.KIND)
    have = obj.metadata.finalizers
    if finalizer and finalizer not in have and not obj.deleting:
        obj = amend(obj, metadata=amend(obj.metadata, finalizers=(*have, finalizer)))
    return Put(obj, obj.revision)


def protect(obj: Any) -> Iterator[Write]:
    """Hold an object that lives, where no other write has done so."""
    if not obj.deleting and _PROTECTION[obj.KIND] not in obj.metadata.finalizers:
        yield put(obj)


def let_go(obj: Any, in_use: bool) -> Iterator[Write]:
    """Let an object that is being deleted go once nobody uses it."""
    finalizer = _PROTECTION[obj.KIND]
    if obj.deleting and finalizer in obj.metadata.finalizers and not in_use:
        yield Put(without(obj, finalizer), obj.revision)


def without(obj: Any, *finalizers: str) -> Any:
    rest = tuple(f for f in obj.metadata.finalizers if f not in finalizers)
    return amend(obj, metadata=amend(obj.metadata, finalizers=rest))


def annotated(obj: Any, more: dict[str, str]) -> Any:
    return amend(obj, metadata=amend(obj.metadata, annotations={**obj.metadata.annotations, **more}))


def bare(obj: Any, *annotations: str) -> Any:
    """The object without these annotations."""
    rest = {k: v for k, v in obj.metadata.annotations.items() if k not in annotations}
    return amend(obj, metadata=amend(obj.metadata, annotations=rest))


def phased(volume: PersistentVolume, phase: str, message: str = "", reason: str = "") -> PersistentVolume:
    status = amend(volume.status, phase=phase, message=message, reason=reason)
    changed: PersistentVolume = amend(volume, status=status)
    return changed


def phase(volume: PersistentVolume, wanted: str) -> Iterator[Write]:
    if volume.status.phase != wanted:
        yield put(phased(volume, wanted))


def unbound(volume: PersistentVolume) -> PersistentVolume:
    """The volume let go by its claim: what we chose is cleared, of what a user chose only the UID."""
    if names.BOUND_BY_CONTROLLER in volume.metadata.annotations:
        freed: PersistentVolume = amend(volume, spec=amend(volume.spec, claim_ref=None))
        bared: PersistentVolume = bare(freed, names.BOUND_BY_CONTROLLER)
        return bared
    ref = volume.spec.claim_ref
    if ref is None:
        return volume
    kept: PersistentVolume = amend(volume, spec=amend(volume.spec, claim_ref=amend(ref, uid="")))
    return kept


def owner(volume: PersistentVolume, snapshot: Snapshot) -> PersistentVolumeClaim | None:
    """The claim that the claimRef means, by UID; None when it is gone or another of that name."""
    ref = volume.spec.claim_ref
    if ref is None:
        return None
    claim = snapshot.get(PersistentVolumeClaim, ref.namespace, ref.name)
    return claim if claim is not None and claim.metadata.uid == ref.uid else None


def owned(claim: PersistentVolumeClaim, pod: Pod) -> bool:
    """Whether the claim was made for one of the pod's ephemeral volumes."""
    owners = claim.metadata.owner_references
    return any(r.kind == Pod.KIND and r.controller and r.uid == pod.metadata.uid for r in owners)


def reference(claim: PersistentVolumeClaim) -> ObjectReference:
    return ObjectReference(
        kind=claim.KIND, namespace=claim.namespace, name=claim.name, uid=claim.metadata.uid, api_version="v1"
    )


def bind(volume: PersistentVolume, claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[Write]:
    """The writes that are still missing, in order; nothing when the two are bound."""
    ref = volume.spec.claim_ref
    if ref is None or ref.uid != claim.metadata.uid:
        yield put(_claimed(volume, claim))
    yield from phase(volume, "Bound")
    if claim.spec.volume_name != volume.name or names.BIND_COMPLETED not in claim.metadata.annotations:
        yield put(_completed(claim, volume))
    status = amend(
        claim.status,
        phase="Bound",
        access_modes=volume.spec.access_modes,
        capacity=claim.status.capacity if _resizing(claim) else volume.spec.capacity,
        current_volume_attributes_class_name=volume.spec.volume_attributes_class_name,
    )
    if claim.status != status:
        yield put(amend(claim, status=status))
    yield from events.note(claim, "binding", None, snapshot)


def _resizing(claim: PersistentVolumeClaim) -> bool:
    """Whether the claim's capacity is the resizer's to say: the volume grew, its file system has not yet."""
    return bool(claim.status.capacity) and bool(claim.status.allocated_resource_statuses)


def _claimed(volume: PersistentVolume, claim: PersistentVolumeClaim) -> PersistentVolume:
    spec = amend(volume.spec, claim_ref=reference(claim))
    bound: PersistentVolume = amend(volume, spec=spec)
    return bound if volume.spec.claim_ref else annotated(bound, {names.BOUND_BY_CONTROLLER: "yes"})


def _completed(claim: PersistentVolumeClaim, volume: PersistentVolume) -> PersistentVolumeClaim:
    ours = {} if claim.spec.volume_name == volume.name else {names.BOUND_BY_CONTROLLER: "yes"}
    bound: PersistentVolumeClaim = amend(claim, spec=amend(claim.spec, volume_name=volume.name))
    done: PersistentVolumeClaim = annotated(bound, {**ours, names.BIND_COMPLETED: "yes"})
    return done

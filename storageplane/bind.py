"""Binding claims to volumes: phases, the four-step bind, protection. Pure.

Rule 1: a decision is the one next write. Each carries the revision it was decided on, so a crash
        after any of them, or another agent's write before it, only means deciding again.
Rule 2: binding is four writes in this order: the volume's claimRef, the volume's phase, the claim's
        volumeName, the claim's status. The volume's claimRef is the lock.
Rule 3: what the user wrote (a claimRef without UID, a volumeName) is never undone, only what this
        controller added, which `bound-by-controller` tells apart.
Source: kubernetes pkg/controller/volume/persistentvolume/pv_controller.go, and the pvc/pv protection
controllers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from netplane.model.base import Key, amend
from netplane.model.changes import Delete, Event, Put, Write
from netplane.model.facts import Scope
from netplane.model.nodes import Event as Note
from netplane.model.nodes import EventSource, Node
from netplane.model.pods import Pod
from netplane.model.services import ObjectReference
from netplane.model.snapshot import Snapshot
from netplane.model.storage import ClaimStatus, PersistentVolume, PersistentVolumeClaim, StorageClass

from . import match, names


class Binder:
    """The controller of PersistentVolumes and PersistentVolumeClaims."""

    name = "bind"
    kinds = ("PersistentVolume", "PersistentVolumeClaim", "StorageClass", "Pod", "Node", "Event")

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        if event is None:
            return {*claim_scopes(self.name, None, snapshot), *volume_scopes(self.name, None, snapshot)}
        claims = claim_scopes(self.name, event, snapshot)
        return {*claims, *volume_scopes(self.name, event, snapshot)}

    def decide(self, scope: Scope, snapshot: Snapshot) -> Iterable[Write]:
        """The next write of one claim ("claim/NS/NAME") or one volume ("volume/NAME")."""
        what, _, name = scope.name.partition("/")
        if what == "claim":
            namespace, _, name = name.partition("/")
            claim = snapshot.get(PersistentVolumeClaim, namespace, name)
            steps = _claim_steps(claim, snapshot) if claim else _forget(namespace, name, snapshot)
        else:
            volume = snapshot.get(PersistentVolume, "", name)
            steps = _volume_steps(volume, snapshot) if volume else iter(())
        return [step for step in (next(steps, None),) if step is not None]


# --- which claims and volumes an event touches ----------------------------------------------------


def claim_scopes(controller: str, event: Event | None, snapshot: Snapshot) -> set[Scope]:
    """The claims that an event touches, as scopes of one controller; all of them for None."""
    if event is None:
        keys = {match.claim_key(c) for c in snapshot.list(PersistentVolumeClaim)}
    else:
        keys = {k for o in (event.old, event.new) if o is not None for k in _claims_of(o, event, snapshot)}
    return {Scope(controller, f"claim/{key}") for key in keys}


def _claims_of(obj: Any, event: Event, snapshot: Snapshot) -> Iterator[str]:
    if isinstance(obj, PersistentVolumeClaim):
        yield match.claim_key(obj)
    elif isinstance(obj, Pod):
        for volume in obj.spec.volumes:
            if volume.persistent_volume_claim:
                yield f"{obj.namespace}/{volume.persistent_volume_claim.claim_name}"
    elif isinstance(obj, PersistentVolume):
        ref = obj.spec.claim_ref
        if ref is not None:
            yield f"{ref.namespace}/{ref.name}"
        yield from (match.claim_key(c) for c in snapshot.by(PersistentVolumeClaim, "volume", obj.name))
        if obj is event.new and _freed(event.old, obj):
            yield from _unbound(snapshot)
    elif isinstance(obj, StorageClass) or (isinstance(obj, Node) and _relabelled(event)):
        yield from _unbound(snapshot)


def _freed(old: Any, new: PersistentVolume) -> bool:
    """Whether a volume can now be somebody's for whom it was nothing before; losing one wakes nobody."""
    if new.spec.claim_ref is not None or new.deleting:
        return False
    return old is None or old.spec != new.spec or old.labels != new.labels


def _unbound(snapshot: Snapshot) -> Iterator[str]:
    return (match.claim_key(c) for c in snapshot.by(PersistentVolumeClaim, "volume", ""))


def _relabelled(event: Event) -> bool:
    return event.old is None or event.new is None or event.old.labels != event.new.labels


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
    return {Scope(controller, f"volume/{name}") for name in found}


# --- claims ---------------------------------------------------------------------------------------


def _claim_steps(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[Write]:
    yield from _protect(claim, names.PVC_PROTECTION, _used(claim, snapshot))
    if names.BIND_COMPLETED in claim.metadata.annotations:
        yield from _bound_claim(claim, snapshot)
    elif not claim.deleting:
        yield from _unbound_claim(claim, snapshot)


def _used(claim: PersistentVolumeClaim, snapshot: Snapshot) -> bool:
    return any(p.spec.node_name for p in snapshot.by(Pod, "claim", match.claim_key(claim)))


def _unbound_claim(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[Write]:
    if claim.spec.volume_name:
        yield from _named_volume(claim, snapshot)
        return
    volume = match.find(claim, snapshot)
    if volume is not None:
        yield from bind_steps(volume, claim, snapshot)
        return
    if claim.spec.storage_class_name is None:
        default = match.default_class(snapshot)
        if default is not None:
            spec = amend(claim.spec, storage_class_name=default.name)
            yield _put(amend(claim, spec=spec))
    yield from _pending(claim, _why_unmatched(claim, snapshot), snapshot)


def _why_unmatched(claim: PersistentVolumeClaim, snapshot: Snapshot) -> tuple[str, str]:
    """(reason, message) in the upstream controller's words."""
    cls = match.class_of(claim, snapshot)
    if match.waits(claim, snapshot) and not match.consumer_node(claim, snapshot):
        return "WaitForFirstConsumer", "waiting for first consumer to be created before binding"
    if claim.spec.storage_class_name and cls is None:
        name = claim.spec.storage_class_name
        return "ProvisioningFailed", f'storageclass.storage.k8s.io "{name}" not found'
    if cls is not None and cls.provisioner != names.NO_PROVISIONER:
        return "ExternalProvisioning", f"waiting for a volume to be created by {cls.provisioner!r}"
    lacks = "its storage class provisions none" if cls is not None else "no storage class is set"
    return "FailedBinding", f"no persistent volumes available for this claim and {lacks}"


def _named_volume(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[Write]:
    """A claim whose spec.volumeName the user set (or a crash left after step 3)."""
    name = claim.spec.volume_name
    volume = snapshot.get(PersistentVolume, "", name)
    if volume is None:
        yield from _pending(claim, ("FailedBinding", f"volume {name!r} does not exist"), snapshot)
        return
    ref = volume.spec.claim_ref
    if ref is not None and not match.refers(ref, claim):
        message = f"volume {name!r} already bound to a different claim, {ref.namespace}/{ref.name}"
        yield from _pending(claim, ("FailedBinding", message), snapshot)
        return
    unfit = match.mismatch(volume, claim) if ref is None else match.unusable(volume, claim)
    if unfit:
        message = f"Cannot bind to requested volume {name!r}: {unfit}"
        yield from _pending(claim, ("VolumeMismatch", message), snapshot)
        return
    yield from bind_steps(volume, claim, snapshot)


def _bound_claim(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[Write]:
    volume = snapshot.get(PersistentVolume, "", claim.spec.volume_name)
    if not claim.spec.volume_name:
        message = "Bound claim has lost reference to PersistentVolume. Data may be lost!"
        yield from _lost(claim, message, snapshot)
    elif volume is None:
        message = "Bound claim has lost its PersistentVolume. Data may be lost!"
        yield from _lost(claim, message, snapshot)
    elif volume.spec.claim_ref is None or volume.spec.claim_ref.uid == claim.metadata.uid:
        yield from bind_steps(volume, claim, snapshot)
    else:
        message = "Two claims are bound to the same volume, this one is bound incorrectly"
        yield from _lost(claim, message, snapshot)


def _lost(claim: PersistentVolumeClaim, message: str, snapshot: Snapshot) -> Iterator[Write]:
    if claim.status.phase != "Lost":
        yield _put(amend(claim, status=ClaimStatus(phase="Lost")))
    yield from note(claim, "binding", ("ClaimLost", message), snapshot)


def _pending(claim: PersistentVolumeClaim, reason: tuple[str, str], snapshot: Snapshot) -> Iterator[Write]:
    if claim.status.phase != "Pending":
        yield _put(amend(claim, status=ClaimStatus(phase="Pending")))
    yield from note(claim, "binding", reason, snapshot)


def _forget(namespace: str, name: str, snapshot: Snapshot) -> Iterator[Write]:
    """What was said about a claim that is gone."""
    for slot in ("binding", "provision"):
        found = snapshot.get(Note, namespace, f"{name}.{slot}")
        if found is not None:
            yield Delete(found.key)


# --- the four-step bind ---------------------------------------------------------------------------


def bind_steps(volume: PersistentVolume, claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[Write]:
    """The writes that are still missing, in order; nothing when the two are bound."""
    ref = volume.spec.claim_ref
    if ref is None or ref.uid != claim.metadata.uid:
        yield _put(_claimed(volume, claim))
    if volume.status.phase != "Bound":
        yield _put(phased(volume, "Bound"))
    if claim.spec.volume_name != volume.name or names.BIND_COMPLETED not in claim.metadata.annotations:
        yield _put(_completed(claim, volume))
    status = amend(
        claim.status, phase="Bound", access_modes=volume.spec.access_modes, capacity=volume.spec.capacity
    )
    if claim.status != status:
        yield _put(amend(claim, status=status))
    yield from note(claim, "binding", None, snapshot)


def reference(claim: PersistentVolumeClaim) -> ObjectReference:
    return ObjectReference(
        kind=claim.KIND, namespace=claim.namespace, name=claim.name, uid=claim.metadata.uid, api_version="v1"
    )


def _claimed(volume: PersistentVolume, claim: PersistentVolumeClaim) -> PersistentVolume:
    spec = amend(volume.spec, claim_ref=reference(claim))
    bound: PersistentVolume = amend(volume, spec=spec)
    return bound if volume.spec.claim_ref else annotated(bound, {names.BOUND_BY_CONTROLLER: "yes"})


def _completed(claim: PersistentVolumeClaim, volume: PersistentVolume) -> PersistentVolumeClaim:
    ours = {} if claim.spec.volume_name == volume.name else {names.BOUND_BY_CONTROLLER: "yes"}
    bound: PersistentVolumeClaim = amend(claim, spec=amend(claim.spec, volume_name=volume.name))
    done: PersistentVolumeClaim = annotated(bound, {**ours, names.BIND_COMPLETED: "yes"})
    return done


# --- volumes --------------------------------------------------------------------------------------


def _volume_steps(volume: PersistentVolume, snapshot: Snapshot) -> Iterator[Write]:
    yield from _protect(volume, names.PV_PROTECTION, volume.status.phase == "Bound")
    ref = volume.spec.claim_ref
    if ref is None or not ref.uid:
        yield from _phase(volume, "Available")
        return
    claim = owner(volume, snapshot)
    if claim is None:
        if volume.status.phase != "Failed":
            yield from _phase(volume, "Released")
    elif claim.spec.volume_name == volume.name:
        yield from _phase(volume, "Bound")
    elif claim.spec.volume_name:
        yield from _superfluous(volume)


def _superfluous(volume: PersistentVolume) -> Iterator[Write]:
    """The volume's claim was bound to another one: let go what was ours to choose."""
    dynamic = names.PROVISIONED_BY in volume.metadata.annotations
    if dynamic and volume.spec.persistent_volume_reclaim_policy == "Delete":
        if volume.status.phase != "Failed":
            yield from _phase(volume, "Released")
        return
    ref = volume.spec.claim_ref
    if names.BOUND_BY_CONTROLLER in volume.metadata.annotations:
        kept = {k: v for k, v in volume.metadata.annotations.items() if k != names.BOUND_BY_CONTROLLER}
        freed = amend(volume, spec=amend(volume.spec, claim_ref=None))
        yield _put(amend(freed, metadata=amend(volume.metadata, annotations=kept)))
    elif ref is not None:
        yield _put(amend(volume, spec=amend(volume.spec, claim_ref=amend(ref, uid=""))))


def owner(volume: PersistentVolume, snapshot: Snapshot) -> PersistentVolumeClaim | None:
    """The claim that the claimRef means, by UID; None when it is gone or another of that name."""
    ref = volume.spec.claim_ref
    if ref is None:
        return None
    claim = snapshot.get(PersistentVolumeClaim, ref.namespace, ref.name)
    return claim if claim is not None and claim.metadata.uid == ref.uid else None


def _phase(volume: PersistentVolume, phase: str) -> Iterator[Write]:
    if volume.status.phase != phase:
        yield _put(phased(volume, phase))


def phased(volume: PersistentVolume, phase: str, message: str = "") -> PersistentVolume:
    changed: PersistentVolume = amend(volume, status=amend(volume.status, phase=phase, message=message))
    return changed


# --- shared by both -------------------------------------------------------------------------------


def _protect(obj: Any, finalizer: str, in_use: bool) -> Iterator[Write]:
    """Hold an object that lives; let one that is being deleted go once nobody uses it."""
    have = obj.metadata.finalizers
    if not obj.deleting and finalizer not in have:
        yield _put(amend(obj, metadata=amend(obj.metadata, finalizers=(*have, finalizer))))
    elif obj.deleting and finalizer in have and not in_use:
        rest = tuple(f for f in have if f != finalizer)
        yield _put(amend(obj, metadata=amend(obj.metadata, finalizers=rest)))


def annotated(obj: Any, more: dict[str, str]) -> Any:
    return amend(obj, metadata=amend(obj.metadata, annotations={**obj.metadata.annotations, **more}))


def note(
    claim: PersistentVolumeClaim, slot: str, reason: tuple[str, str] | None, snapshot: Snapshot
) -> Iterator[Write]:
    """What to tell the claim's user now: one Event per slot, replaced, and removed when all is well."""
    key = Key(Note.KIND, claim.namespace, f"{claim.name}.{slot}")
    have = snapshot.get(Note, key.namespace, key.name)
    if reason is None:
        if have is not None:
            yield Delete(key)
        return
    if have is not None and (have.reason, have.message, have.involved_object.uid) == (
        *reason,
        claim.metadata.uid,
    ):
        return
    calm = reason[0] in ("WaitForFirstConsumer", "ExternalProvisioning")
    base = have or Note(metadata=amend(claim.metadata.__class__(), name=key.name, namespace=key.namespace))
    said = amend(
        base,
        involved_object=reference(claim),
        reason=reason[0],
        message=reason[1],
        type="Normal" if calm else "Warning",
        source=EventSource(component="storageplane"),
    )
    yield Put(said, have.revision if have else 0)


def _put(obj: Any) -> Put:
    return Put(obj, obj.revision)

"""Binding claims to volumes: phases, the four-step bind, protection. Pure.

Rule 1: a decision is the next writes, at most one per object. Each carries the revision it was decided
        on, so a crash after any of them, or another agent's write before it, only means deciding again.
Rule 2: what the user wrote (a claimRef without UID, a volumeName) is never undone, only what this
        controller added, which `bound-by-controller` tells apart.
Source: kubernetes pkg/controller/volume/persistentvolume/pv_controller.go, and the pvc/pv protection
controllers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from netplane.model.base import amend
from netplane.model.changes import Event, Write, assumed
from netplane.model.facts import Scope
from netplane.model.nodes import Event as Note
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import ClaimStatus, PersistentVolume, PersistentVolumeClaim

from .. import names
from . import events, match, steps
from .scopes import claim_scopes, volume_scopes

SLOTS = ("binding", "provision", "resize")


class Binder:
    """The controller of PersistentVolumes and PersistentVolumeClaims."""

    name = "bind"
    kinds = ("PersistentVolume", "PersistentVolumeClaim", "StorageClass", "Pod", "Node", "Event")
    together = True  # decided in batches: see netplane.reconcile.controlloop

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        """Claims before volumes: a volume that a claim takes need not be made Available first."""
        claims = claim_scopes(self.name, event, snapshot)
        if event is None:
            spoken = {events.about(note) for note in snapshot.list(Note)} - {""}
            claims |= {Scope(self.name, f"claim/{key}") for key in spoken}
        return [*claims, *volume_scopes(self.name, event, snapshot)]

    def decide(self, scope: Scope, snapshot: Snapshot) -> list[Write]:
        """The next writes of one claim ("claim/NS/NAME") or one volume ("volume/NAME")."""
        what, _, name = scope.name.partition("/")
        if what == "claim":
            namespace, _, name = name.partition("/")
            claim = snapshot.get(PersistentVolumeClaim, namespace, name)
            if claim is None:
                return steps.together(events.forget(namespace, name, SLOTS, snapshot))
            return steps.together(_claim_steps(claim, snapshot))
        volume = snapshot.get(PersistentVolume, "", name)
        if volume is None:
            return steps.together(events.forget("", name, ("reclaim",), snapshot))
        return steps.together(_volume_steps(volume, snapshot))


# --- claims ---------------------------------------------------------------------------------------


def _claim_steps(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[Write]:
    if claim.deleting:
        yield from steps.let_go(claim, used(claim, snapshot))
    if names.BIND_COMPLETED in claim.metadata.annotations:
        yield from _bound_claim(claim, snapshot)
    elif not claim.deleting:
        yield from _unbound_claim(claim, snapshot)
    yield from steps.protect(claim)


def used(claim: PersistentVolumeClaim, snapshot: Snapshot) -> bool:
    """Whether a pod that has been placed names the claim, or owns it."""
    placed = (p for p in snapshot.by(Pod, "claim", match.claim_key(claim)) if p.spec.node_name)
    return any(_names(p, claim) or steps.owned(claim, p) for p in placed)


def _names(pod: Pod, claim: PersistentVolumeClaim) -> bool:
    sources = (v.persistent_volume_claim for v in pod.spec.volumes)
    return any(s is not None and s.claim_name == claim.name for s in sources)


def _unbound_claim(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[Write]:
    if claim.spec.volume_name:
        yield from _named_volume(claim, snapshot)
        return
    volume = match.find(claim, snapshot)
    if volume is not None:
        yield from steps.bind(volume, claim, snapshot)
        return
    if claim.spec.storage_class_name is None:
        default = match.default_class(snapshot)
        if default is not None:
            spec = amend(claim.spec, storage_class_name=default.name)
            yield steps.put(amend(claim, spec=spec))
    yield from _pending(claim, _why_unmatched(claim, snapshot), snapshot)


def _why_unmatched(claim: PersistentVolumeClaim, snapshot: Snapshot) -> events.Said:
    """(reason, message) in the upstream controller's words."""
    cls = match.class_of(claim, snapshot)
    if match.waits(claim, snapshot) and not match.consumer_node(claim, snapshot):
        pods = snapshot.by(Pod, "claim", match.claim_key(claim))
        unplaced = ", ".join(p.name for p in pods if not p.finished)
        if unplaced:
            return "WaitForPodScheduled", f"waiting for pod {unplaced} to be scheduled"
        return "WaitForFirstConsumer", "waiting for first consumer to be created before binding"
    if claim.spec.storage_class_name and cls is None:
        name = claim.spec.storage_class_name
        return "ProvisioningFailed", f'storageclass.storage.k8s.io "{name}" not found'
    if cls is not None and cls.provisioner != names.NO_PROVISIONER:
        return "ExternalProvisioning", (
            f"Waiting for a volume to be created either by the external provisioner '{cls.provisioner}' or "
            "manually by the system administrator. If volume creation is delayed, please verify that the "
            "provisioner is running and correctly registered."
        )
    lacks = "its storage class provisions none" if cls is not None else "no storage class is set"
    return "FailedBinding", f"no persistent volumes available for this claim and {lacks}"


def _named_volume(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[Write]:
    """A claim whose spec.volumeName the user set (or a crash left after step 3)."""
    name = claim.spec.volume_name
    volume = snapshot.get(PersistentVolume, "", name)
    reason, unfit = match.refusal(volume, claim)
    if volume is not None and not reason:
        yield from steps.bind(volume, claim, snapshot)
        return
    mismatch = reason == "VolumeMismatch"
    message = f"Cannot bind to requested volume {name!r}: {unfit}" if mismatch else f"volume {name!r} {unfit}"
    yield from _pending(claim, (reason, message), snapshot)


def _bound_claim(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[Write]:
    volume = snapshot.get(PersistentVolume, "", claim.spec.volume_name)
    said = match.lost(claim, snapshot)
    if volume is None or said[0]:
        yield from _lost(claim, said, snapshot)
    else:
        yield from steps.bind(volume, claim, snapshot)


def _lost(claim: PersistentVolumeClaim, said: events.Said, snapshot: Snapshot) -> Iterator[Write]:
    if claim.status.phase != "Lost":
        yield steps.put(amend(claim, status=ClaimStatus(phase="Lost")))
    yield from events.note(claim, "binding", said, snapshot)


def _pending(claim: PersistentVolumeClaim, said: events.Said, snapshot: Snapshot) -> Iterator[Write]:
    if claim.status.phase != "Pending":
        yield steps.put(amend(claim, status=ClaimStatus(phase="Pending")))
    yield from events.note(claim, "binding", said, snapshot)


# --- volumes --------------------------------------------------------------------------------------


def _volume_steps(volume: PersistentVolume, snapshot: Snapshot) -> Iterator[Write]:
    yield from steps.let_go(volume, volume.status.phase == "Bound")
    ref = volume.spec.claim_ref
    if ref is None or not ref.uid:
        if ref is None and not volume.deleting:
            yield from _offer(volume, snapshot)
        yield from steps.phase(volume, "Available")
    else:
        claim = steps.owner(volume, snapshot)
        if claim is None:
            if volume.status.phase != "Failed":
                yield from steps.phase(volume, "Released")
        elif claim.spec.volume_name == volume.name:
            yield from steps.phase(volume, "Bound")
        elif claim.spec.volume_name:
            yield from _superfluous(volume)
    yield from steps.protect(volume)


def _offer(volume: PersistentVolume, snapshot: Snapshot) -> Iterator[Write]:
    """The first writes of the binds that a free volume brings about.

    A claim that waits may find a better one than this, that is free too; then it is bound to that, and
    the next claim asked, until one takes this volume. So nobody is left waiting whatever came first.
    """
    for claim in match.waiting(volume, snapshot):
        found = match.find(claim, snapshot)
        first = next(steps.bind(found, claim, snapshot), None) if found is not None else None
        if first is None or found is None:
            continue
        yield first
        if found.name == volume.name:
            return
        snapshot = assumed(snapshot, (first,))


def _superfluous(volume: PersistentVolume) -> Iterator[Write]:
    """The volume's claim was bound to another one: let go what was ours to choose."""
    dynamic = names.PROVISIONED_BY in volume.metadata.annotations
    if not (dynamic and volume.spec.persistent_volume_reclaim_policy == "Delete"):
        yield steps.put(steps.unbound(volume))
    elif volume.status.phase != "Failed":
        yield from steps.phase(volume, "Released")

"""Claims that ask for more than they have: conditions, the volume's new size, the file system's. Pure.

Rule 1: sizes only grow. What a class does not allow, or nobody here can do, is said and left as it is.
Rule 2: the order is the claim's condition, the volume's capacity (its data follows as a fact), then the
        claim's capacity. Where a file system cannot grow while it is mounted, the claim keeps
        FileSystemResizePending until its next publication has let it.
Rule 3: volumes of CSI drivers are grown by `csi.provisioning`; here only their refusal is told.
Source: kubernetes-csi external-resizer and pkg/volume/util/resize_util.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from netplane.model.base import amend
from netplane.model.changes import Event, Write
from netplane.model.facts import Scope
from netplane.model.nodes import Condition
from netplane.model.snapshot import Snapshot
from netplane.model.storage import ClaimStatus, PersistentVolume, PersistentVolumeClaim, StorageClass

from .. import backends, names
from . import events, match, steps
from .provision import backend_of, is_ours
from .scopes import claim_scopes, static

RESIZING, PENDING = "Resizing", "FileSystemResizePending"
_STAGES = {RESIZING: "ControllerResizeInProgress", PENDING: "NodeResizePending"}


class Resizer:
    """Grows the volumes that this node holds. ``machine``: what is there to grow into; None: look."""

    name = "resize"

    def __init__(self, node: str, root: str | Path, machine: backends.Machine | None = None) -> None:
        self.node = node
        self.root = Path(root)
        self.fixed = machine

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        claim = event.new if event is not None else None
        if static(event) or (isinstance(claim, PersistentVolumeClaim) and claim.status.phase != "Bound"):
            return ()
        return claim_scopes(self.name, event, snapshot)

    def decide(self, scope: Scope, snapshot: Snapshot) -> list[Write]:
        namespace, _, name = scope.name.removeprefix("claim/").partition("/")
        claim = snapshot.get(PersistentVolumeClaim, namespace, name)
        if claim is None or claim.status.phase != "Bound" or claim.deleting:
            return []
        volume = snapshot.get(PersistentVolume, "", claim.spec.volume_name)
        if volume is None or not match.refers(volume.spec.claim_ref, claim):
            return []
        return steps.together(self._steps(claim, volume, snapshot))

    def _steps(
        self, claim: PersistentVolumeClaim, volume: PersistentVolume, snapshot: Snapshot
    ) -> Iterator[Write]:
        wanted, have = match.requested(claim), match.size_of(claim.status.capacity)
        modified = claim.spec.volume_attributes_class_name != volume.spec.volume_attributes_class_name
        if wanted <= have and modified:
            message = "no attributes of this volume can be modified; set spec.volumeAttributesClassName back"
            yield from events.note(claim, "resize", ("VolumeModifyFailed", message), snapshot)
        elif wanted <= have:
            yield from _finished(claim, snapshot)
        elif refusal := self._refused(claim, volume, snapshot):
            yield from events.note(claim, "resize", ("VolumeResizeFailed", refusal), snapshot)
        elif is_ours(volume, self.root) and match.fits_node(volume.spec.node_affinity, self.node, snapshot):
            yield from self._grow(claim, volume, snapshot)

    def _refused(self, claim: PersistentVolumeClaim, volume: PersistentVolume, snapshot: Snapshot) -> str:
        cls = snapshot.get(StorageClass, "", claim.spec.storage_class_name or "")
        if names.PROVISIONED_BY not in volume.metadata.annotations:
            return (
                f"only dynamically provisioned volumes can be resized, and nobody provisioned {volume.name}"
            )
        if cls is None or not cls.allow_volume_expansion:
            name = claim.spec.storage_class_name
            return f"StorageClass {name!r} does not allow it: set its allowVolumeExpansion to true"
        return ""

    def _grow(
        self, claim: PersistentVolumeClaim, volume: PersistentVolume, snapshot: Snapshot
    ) -> Iterator[Write]:
        size = match.requested(claim)
        if match.capacity(volume) < size:
            lacks = self._room(volume, size)
            if lacks:
                yield from events.note(claim, "resize", ("VolumeResizeFailed", lacks), snapshot)
                return
            yield from _at_stage(claim, RESIZING)
            larger = {"storage": _rounded(volume, claim)}
            yield steps.put(amend(volume, spec=amend(volume.spec, capacity=larger)))
            said = f"Resizing volume {volume.name}"
            yield from events.note(claim, "resize", ("Resizing", said), snapshot)
        elif file_system_lags(volume):
            yield from _at_stage(claim, PENDING)
            said = "Require file system resize of volume on node"
            yield from events.note(claim, "resize", ("FileSystemResizeRequired", said), snapshot)
        else:
            status = _plain(amend(claim.status, capacity=volume.spec.capacity))
            yield steps.put(amend(claim, status=status))
            said = "Resize volume succeeded"
            yield from events.note(claim, "resize", ("VolumeResizeSuccessful", said), snapshot)

    def _room(self, volume: PersistentVolume, size: int) -> str:
        backend = backend_of(volume)
        if not backends.BACKENDS[backend].enforced:
            return ""
        choice = backends.Choice(backend, "", names.OVERCOMMIT in volume.metadata.annotations)
        more = backends.rounded(size) - match.capacity(volume)
        lacks = backends.admit(choice, more, self.fixed or backends.look(self.root))
        return f"ResourceExhausted: to grow, {lacks}" if lacks else ""


def _rounded(volume: PersistentVolume, claim: PersistentVolumeClaim) -> str | int | float:
    size = match.requested(claim)
    whole = size if backend_of(volume) == "directory" else backends.rounded(size)
    return claim.spec.resources.requests["storage"] if whole == size else str(whole)


def file_system_lags(volume: PersistentVolume) -> bool:
    """Whether the file system in an image is not yet known to have grown with it."""
    notes = volume.metadata.annotations
    return backend_of(volume) == "image" and int(notes.get(names.GROWN, "0")) < match.capacity(volume)


def _at_stage(claim: PersistentVolumeClaim, stage: str) -> Iterator[Write]:
    asked = {"storage": claim.spec.resources.requests["storage"]}
    others = tuple(c for c in claim.status.conditions if c.type not in _STAGES)
    status = amend(
        claim.status,
        conditions=(*others, Condition(type=stage, status="True")),
        allocated_resources=asked,
        allocated_resource_statuses={"storage": _STAGES[stage]},
    )
    if status != claim.status:
        yield steps.put(amend(claim, status=status))


def _plain(status: ClaimStatus) -> ClaimStatus:
    """The status of a claim that nothing is being done to."""
    others = tuple(c for c in status.conditions if c.type not in _STAGES)
    plain: ClaimStatus = amend(
        status, conditions=others, allocated_resources={}, allocated_resource_statuses={}
    )
    return plain


def _finished(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[Write]:
    """It asks for no more than it has (any more)."""
    if _plain(claim.status) != claim.status:
        yield steps.put(amend(claim, status=_plain(claim.status)))
    said = snapshot.find(events.key_of(claim, "resize"))
    if said is not None and getattr(said, "reason", "") != "VolumeResizeSuccessful":
        yield from events.note(claim, "resize", None, snapshot)

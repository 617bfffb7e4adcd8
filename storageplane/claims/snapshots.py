"""VolumeSnapshots and their contents: bound both ways, protected, and said to be ready. Pure.

Rule 1: a snapshot's content is snapcontent-<its UID>, written once; whoever takes it (`capture`, or a CSI
        driver's client) writes the content's status, and the snapshot's follows.
Rule 2: what is being copied is held: a claim while a snapshot of it is taken, a snapshot while a volume is
        made from it, a content while its snapshot is bound to it.
Rule 3: deletionPolicy Delete lets the content go with its snapshot, and the data before the content;
        Retain leaves both.
Source: kubernetes-csi/external-snapshotter, pkg/common-controller.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from netplane.model.base import ObjectMeta, amend
from netplane.model.changes import Delete, Event, Put, Write
from netplane.model.facts import Scope
from netplane.model.nodes import Event as Note
from netplane.model.services import ObjectReference
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim
from netplane.model.volumesnapshots import (
    ContentSource,
    ContentSpec,
    SnapshotError,
    SnapshotStatus,
    VolumeSnapshot,
    VolumeSnapshotClass,
    VolumeSnapshotContent,
)

from .. import names
from . import contents, events, match, sources, steps
from .contents import means

SLOT = "snapshot"
KINDS = ("VolumeSnapshot", "VolumeSnapshotContent", "VolumeSnapshotClass")
_SECRET = "csi.storage.k8s.io/snapshotter-secret"  # parameters -name and -namespace


class Unready(Exception):
    """(reason, message): why there is no content yet."""


class Snapshotter:
    """The controller of VolumeSnapshots: scopes "snapshot/NS/NAME", "content/NAME" and "claim/NS/NAME"."""

    name = "snapshots"

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        return {Scope(self.name, text) for text in _touched(event, snapshot)}

    def decide(self, scope: Scope, snapshot: Snapshot) -> list[Write]:
        what, _, name = scope.name.partition("/")
        if what == "content":
            content = snapshot.get(VolumeSnapshotContent, "", name)
            return steps.together(contents.content_steps(content, snapshot)) if content else []
        namespace, _, name = name.partition("/")
        if what == "claim":
            claim = snapshot.get(PersistentVolumeClaim, namespace, name)
            return steps.together(_claim_steps(claim, snapshot)) if claim else []
        found = snapshot.get(VolumeSnapshot, namespace, name)
        if found is None:
            return steps.together(events.forget(namespace, name, (SLOT,), snapshot))
        return steps.together(_snapshot_steps(found, snapshot))


def _touched(event: Event | None, snapshot: Snapshot) -> Iterator[str]:
    """Kinds of which nobody has a snapshot cost nothing."""
    if event is None:
        for one in snapshot.list(VolumeSnapshot):
            yield from _of_snapshot(one)
        spoken = {events.about(note, VolumeSnapshot.KIND) for note in snapshot.list(Note)} - {""}
        yield from (f"snapshot/{key}" for key in spoken)
        yield from (f"content/{c.name}" for c in snapshot.list(VolumeSnapshotContent))
        return
    obj = event.object
    if isinstance(obj, VolumeSnapshot):
        yield from _of_snapshot(obj)
    elif isinstance(obj, VolumeSnapshotContent):
        ref = obj.spec.volume_snapshot_ref
        yield from (f"content/{obj.name}", f"snapshot/{ref.namespace}/{ref.name}")
    elif isinstance(obj, PersistentVolumeClaim):
        yield from _around(obj, snapshot)
    elif isinstance(obj, PersistentVolume) and names.FILLED in obj.metadata.annotations:
        owner = obj.spec.claim_ref
        claim = snapshot.get(PersistentVolumeClaim, owner.namespace, owner.name) if owner else None
        yield from _around(claim, snapshot) if claim is not None else ()
    elif isinstance(obj, VolumeSnapshotClass):
        waiting = (s for s in snapshot.list(VolumeSnapshot) if not s.status.ready_to_use)
        yield from (f"snapshot/{s.namespace}/{s.name}" for s in waiting)


def _around(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[str]:
    """The snapshots that are taken of a claim, and the one that it is made from."""
    for found in snapshot.by(VolumeSnapshot, "claim", match.claim_key(claim)):
        yield f"snapshot/{found.namespace}/{found.name}"
    kind, name = sources.named(claim)
    if kind == VolumeSnapshot.KIND:
        yield f"snapshot/{claim.namespace}/{name}"


def _of_snapshot(found: VolumeSnapshot) -> Iterator[str]:
    source = found.spec.source
    yield f"snapshot/{found.namespace}/{found.name}"
    for name in (source.volume_snapshot_content_name, content_name(found)):
        if name:
            yield f"content/{name}"
    if source.persistent_volume_claim_name:
        yield f"claim/{found.namespace}/{source.persistent_volume_claim_name}"


def content_name(found: VolumeSnapshot) -> str:
    return found.spec.source.volume_snapshot_content_name or f"snapcontent-{found.metadata.uid}"


def content_of(found: VolumeSnapshot, snapshot: Snapshot) -> VolumeSnapshotContent | None:
    """The content that is bound to this snapshot, both ways."""
    content = snapshot.get(VolumeSnapshotContent, "", content_name(found))
    return content if content is not None and means(content, found) else None


# --- snapshots ------------------------------------------------------------------------------------


def _snapshot_steps(found: VolumeSnapshot, snapshot: Snapshot) -> Iterator[Write]:
    if found.deleting:
        yield from _going(found, snapshot)
        return
    want = (*found.metadata.finalizers, names.SNAPSHOT_SOURCE, names.SNAPSHOT_BOUND)
    have = tuple(dict.fromkeys(want))
    if have != found.metadata.finalizers:
        yield Put(amend(found, metadata=amend(found.metadata, finalizers=have)), found.revision)
        return
    try:
        content = content_of(found, snapshot)
        if content is None and found.spec.source.volume_snapshot_content_name:
            yield from _bind(found, snapshot)
            return
        if content is None:
            yield from _create(found, snapshot)
            return
    except Unready as exc:
        reason, message = exc.args
        yield from _failed(found, reason, message, snapshot)
        return
    yield from _follow(found, content, snapshot)


def _bind(found: VolumeSnapshot, snapshot: Snapshot) -> Iterator[Write]:
    """To a content that somebody else made. Raises Unready."""
    name = content_name(found)
    content = snapshot.get(VolumeSnapshotContent, "", name)
    if content is None:
        raise Unready("SnapshotContentMissing", f"VolumeSnapshotContent {name} does not exist")
    ref = content.spec.volume_snapshot_ref
    if (ref.namespace, ref.name) != (found.namespace, found.name) or ref.uid:
        of = f"{ref.namespace}/{ref.name}" + (" of another UID" if ref.uid else "")
        raise Unready("SnapshotContentMisbound", f"VolumeSnapshotContent {name} is of VolumeSnapshot {of}")
    if not content.spec.source.snapshot_handle:
        raise Unready("SnapshotContentMismatch", f"VolumeSnapshotContent {name} names no snapshotHandle")
    bound = amend(content.spec, volume_snapshot_ref=amend(ref, uid=found.metadata.uid))
    yield Put(amend(content, spec=bound), content.revision)


def _create(found: VolumeSnapshot, snapshot: Snapshot) -> Iterator[Write]:
    """The content of a snapshot that is to be taken. Raises Unready."""
    name = content_name(found)
    if found.status.bound_volume_snapshot_content_name or snapshot.get(VolumeSnapshotContent, "", name):
        raise Unready("SnapshotContentMissing", f"VolumeSnapshotContent {name} is gone or another's")
    claim, volume = _taken_of(found, snapshot)
    driver, handle = sources.driver_of(volume)
    cls = _class(found, driver, snapshot)
    if found.spec.volume_snapshot_class_name is None:
        spec = amend(found.spec, volume_snapshot_class_name=cls.name)
        yield Put(amend(found, spec=spec), found.revision)
        return
    if names.SNAPSHOT_CLAIM not in claim.metadata.finalizers:
        held = (*claim.metadata.finalizers, names.SNAPSHOT_CLAIM)
        yield Put(amend(claim, metadata=amend(claim.metadata, finalizers=held)), claim.revision)
    spec = ContentSpec(
        deletion_policy=cls.deletion_policy,
        driver=cls.driver,
        source=ContentSource(volume_handle=handle),
        volume_snapshot_ref=_reference(found),
        source_volume_mode=claim.spec.volume_mode,
        volume_snapshot_class_name=cls.name,
    )
    notes = {names.SNAPSHOT_HOST: sources.host_of(volume), **_secret(cls, found)}
    meta = ObjectMeta(
        name=name,
        annotations={k: v for k, v in notes.items() if v},
        finalizers=(names.SNAPSHOT_CONTENT,),
    )
    yield Put(VolumeSnapshotContent(metadata=meta, spec=spec), 0)
    said = f"Waiting for a snapshot {found.namespace}/{found.name} to be created by driver {cls.driver}"
    yield from events.note(found, SLOT, ("CreatingSnapshot", said), snapshot)


def _taken_of(found: VolumeSnapshot, snapshot: Snapshot) -> tuple[PersistentVolumeClaim, PersistentVolume]:
    name = found.spec.source.persistent_volume_claim_name
    claim = snapshot.get(PersistentVolumeClaim, found.namespace, name)
    if claim is None or claim.deleting:
        why = "does not exist" if claim is None else "is being deleted"
        raise Unready("SnapshotCreationFailed", f"PersistentVolumeClaim {found.namespace}/{name} {why}")
    volume = snapshot.get(PersistentVolume, "", claim.spec.volume_name) if claim.spec.volume_name else None
    if volume is None or claim.status.phase != "Bound":
        raise Unready("SnapshotCreationFailed", f"{claim.key} is not bound to a volume yet")
    if not sources.whole(volume):
        raise Unready("SnapshotCreationFailed", f"{claim.key}: its own data is still being copied")
    return claim, volume


def _class(found: VolumeSnapshot, driver: str, snapshot: Snapshot) -> VolumeSnapshotClass:
    name = found.spec.volume_snapshot_class_name
    if not driver:
        raise Unready("SnapshotCreationFailed", "its volume is neither a CSI driver's nor provisioned here")
    if name is None:
        defaults = [c for c in snapshot.list(VolumeSnapshotClass) if c.is_default and _fits(c, driver)]
        if len(defaults) != 1:
            many = ", ".join(sorted(c.name for c in defaults)) or "none"
            said = f"one default VolumeSnapshotClass of driver {driver} is needed, there is {many}"
            raise Unready("SetDefaultSnapshotClassFailed", said)
        return defaults[0]
    cls = snapshot.get(VolumeSnapshotClass, "", name)
    if cls is None:
        raise Unready("GetSnapshotClassFailed", f"VolumeSnapshotClass {name} does not exist")
    if not _fits(cls, driver):
        said = f"VolumeSnapshotClass {name} is of driver {cls.driver}, the claim's volume of {driver}"
        raise Unready("SnapshotCreationFailed", said)
    return cls


def _fits(cls: VolumeSnapshotClass, driver: str) -> bool:
    ours = driver in (names.LOCAL, names.DIRECTORY)
    return cls.driver == driver or (ours and cls.driver == names.LOCAL)


def _secret(cls: VolumeSnapshotClass, found: VolumeSnapshot) -> dict[str, str]:
    """The annotations that name the class's secret."""
    words = {
        "${volumesnapshotcontent.name}": content_name(found),
        "${volumesnapshot.namespace}": found.namespace,
        "${volumesnapshot.name}": found.name,
    }
    notes = {}
    for part in ("name", "namespace"):
        value = cls.parameters.get(f"{_SECRET}-{part}", "")
        for word, text in words.items():
            value = value.replace(word, text)
        notes[f"{names.SNAPSHOT_SECRET}-{part}"] = value
    return notes


def _reference(found: VolumeSnapshot) -> ObjectReference:
    return ObjectReference(
        kind=found.KIND, namespace=found.namespace, name=found.name, uid=found.metadata.uid,
        api_version=found.API_VERSION,
    )  # fmt: skip


def _follow(found: VolumeSnapshot, content: VolumeSnapshotContent, snapshot: Snapshot) -> Iterator[Write]:
    """What the content says, as the snapshot's status."""
    told, error = content.status, content.status.error
    made = datetime.fromtimestamp(told.creation_time // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    status = SnapshotStatus(
        bound_volume_snapshot_content_name=content.name,
        creation_time=made if told.creation_time else "",
        ready_to_use=told.ready_to_use,
        restore_size=_quantity(told.restore_size) if told.restore_size else "",
        error=error,
    )
    if status != found.status:
        yield Put(amend(found, status=status), found.revision)
    if error is not None:
        yield from events.note(found, SLOT, ("SnapshotCreationFailed", error.message), snapshot)
    elif told.ready_to_use:
        said = f"Snapshot {found.namespace}/{found.name} is ready to use."
        yield from events.note(found, SLOT, ("SnapshotReady", said), snapshot)


def _quantity(size: int) -> str:
    """As users write it: 16777216 is 16Mi."""
    units = ["", "Ki", "Mi", "Gi", "Ti", "Pi"]
    while size % 1024 == 0 and len(units) > 1:
        size //= 1024
        units.pop(0)
    return f"{size}{units[0]}"


def _failed(found: VolumeSnapshot, reason: str, message: str, snapshot: Snapshot) -> Iterator[Write]:
    if found.status.error is None or found.status.error.message != message:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        status = amend(found.status, ready_to_use=False, error=SnapshotError(time=now, message=message))
        yield Put(amend(found, status=status), found.revision)
    yield from events.note(found, SLOT, (reason, message), snapshot)


def _going(found: VolumeSnapshot, snapshot: Snapshot) -> Iterator[Write]:
    """Let a snapshot that is being deleted go, with its content where the policy says so."""
    users = restoring(found, snapshot)
    if users:
        said = f"it is being restored to {', '.join(users)}"
        yield from events.note(found, SLOT, ("SnapshotDeletePending", said), snapshot)
        return
    content = content_of(found, snapshot)
    if content is not None and content.spec.deletion_policy == "Delete":
        if not content.deleting:
            yield Delete(content.key, content.revision)
        return
    ours = (names.SNAPSHOT_SOURCE, names.SNAPSHOT_BOUND)
    if set(ours) & set(found.metadata.finalizers):
        yield Put(steps.without(found, *ours), found.revision)


def restoring(found: VolumeSnapshot, snapshot: Snapshot) -> list[str]:
    """The claims whose volume is to be made from the snapshot and is not whole yet."""
    claims = snapshot.by(PersistentVolumeClaim, "source", f"{found.KIND}/{found.namespace}/{found.name}")
    return [c.name for c in claims if not c.deleting and not sources.served(c, snapshot)]


def _claim_steps(claim: PersistentVolumeClaim, snapshot: Snapshot) -> Iterator[Write]:
    """A claim that no snapshot is being taken of any more is let go."""
    if names.SNAPSHOT_CLAIM not in claim.metadata.finalizers:
        return
    found = snapshot.by(VolumeSnapshot, "claim", match.claim_key(claim))
    if all(s.status.ready_to_use or s.deleting for s in found):
        yield Put(steps.without(claim, names.SNAPSHOT_CLAIM), claim.revision)

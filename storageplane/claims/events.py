"""What users are told about a claim, a volume or a pod: one Event per object and slot, in kubectl's words.

Rule 1: a slot ("binding", "provision", "resize", "reclaim", "ephemeral") holds what is true now. The same
        reason and message again write nothing; the same reason with other words counts up.
Rule 2: what is no longer true is taken away, and everything goes with the object it was said about.
Rule 3: an Event of a volume, which has no namespace, stands in "default", where kubectl looks for it.
Source of the words: kubernetes pkg/controller/volume/events, the external provisioner and resizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime

from netplane.model.base import Key, Object, ObjectMeta, amend
from netplane.model.changes import Delete, Put, Write
from netplane.model.errors import NetplaneError
from netplane.model.nodes import Event, EventSource
from netplane.model.services import ObjectReference
from netplane.model.snapshot import Snapshot

from .writer import Writer

COMPONENT = "storageplane"
CALM = frozenset((
    "WaitForFirstConsumer", "WaitForPodScheduled", "ExternalProvisioning", "FailedBinding",
    "ProvisioningSucceeded", "Resizing", "FileSystemResizeRequired", "VolumeResizeSuccessful",
    "VolumeRecycled", "Provisioning", "CreatingSnapshot", "SnapshotReady",
))  # fmt: skip
Said = tuple[str, str]  # (reason, message)


def note(obj: Object, slot: str, said: Said | None, snapshot: Snapshot) -> Iterator[Write]:
    """The write that makes this the one thing said in this slot; None takes away what was said."""
    key = _key(obj.namespace, obj.name, slot)
    have = snapshot.get(Event, key.namespace, key.name)
    if said is None:
        if have is not None:
            yield Delete(key)
    elif not _stands(have, obj, said):
        yield Put(_told(obj, have, said, key), have.revision if have else 0)


def told(obj: Object, slot: str, said: Said) -> Event:
    """The Event itself, for an edge that has no snapshot."""
    return _told(obj, None, said, key_of(obj, slot))


def tell(store: Writer, obj: Object, slot: str, said: Said) -> None:
    """Write that, unless it stands there already; that it cannot be said stops nothing."""
    if not _stands(store.get(key_of(obj, slot)), obj, said):
        with suppress(NetplaneError):
            store.put(told(obj, slot, said))


def _stands(have: Object | None, obj: Object, said: Said) -> bool:
    now = (*said, obj.metadata.uid)
    return isinstance(have, Event) and (have.reason, have.message, have.involved_object.uid) == now


def forget(namespace: str, name: str, slots: tuple[str, ...], snapshot: Snapshot) -> Iterator[Write]:
    """What was said about an object that is gone."""
    for slot in slots:
        key = _key(namespace, name, slot)
        if snapshot.find(key) is not None:
            yield Delete(key)


def about(event: Event, kind: str = "PersistentVolumeClaim") -> str:
    """ "NAMESPACE/NAME" of the claim (or other kind) that an Event of ours speaks of, or ""."""
    ref = event.involved_object
    ours = event.source.component == COMPONENT and ref.kind == kind
    return f"{ref.namespace}/{ref.name}" if ours else ""


def key_of(obj: Object, slot: str) -> Key:
    return _key(obj.namespace, obj.name, slot)


def _key(namespace: str, name: str, slot: str) -> Key:
    return Key(Event.KIND, namespace or "default", f"{name}.{slot}")


def _told(obj: Object, have: Event | None, said: Said, key: Key) -> Event:
    reason, message = said
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    again = have is not None and have.reason == reason and have.involved_object.uid == obj.metadata.uid
    base = have or Event(metadata=ObjectMeta(name=key.name, namespace=key.namespace))
    told: Event = amend(
        base,
        involved_object=ObjectReference(
            kind=obj.KIND, namespace=obj.namespace, name=obj.name, uid=obj.metadata.uid,
            api_version=obj.API_VERSION,
        ),
        reason=reason,
        message=message,
        type="Normal" if reason in CALM else "Warning",
        count=base.count + 1 if again else 1,
        first_timestamp=base.first_timestamp if again else now,
        last_timestamp=now,
        source=EventSource(component=COMPONENT),
        reporting_component=COMPONENT,
    )  # fmt: skip
    return told

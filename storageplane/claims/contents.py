"""VolumeSnapshotContents: held while their snapshot is bound to them, and let go with it or after it. Pure.

Rule 1: what lies behind a content is deleted (`discardable`) only when the content itself is being deleted,
        its policy is Delete, and its snapshot is gone or going.
Rule 2: whoever deletes it takes the finalizer off; of what nobody ever found, or is to stay, we do.
"""

from __future__ import annotations

from collections.abc import Iterator

from netplane.model.base import amend
from netplane.model.changes import Delete, Put, Write
from netplane.model.nodes import Node
from netplane.model.snapshot import Snapshot
from netplane.model.volumesnapshots import SnapshotError, VolumeSnapshot, VolumeSnapshotContent

from .. import names
from . import steps


def means(content: VolumeSnapshotContent, found: VolumeSnapshot) -> bool:
    """Whether the content is bound to this very snapshot."""
    ref = content.spec.volume_snapshot_ref
    return ref.uid == found.metadata.uid and (ref.namespace, ref.name) == (found.namespace, found.name)


def content_steps(content: VolumeSnapshotContent, snapshot: Snapshot) -> Iterator[Write]:
    ref = content.spec.volume_snapshot_ref
    found = snapshot.get(VolumeSnapshot, ref.namespace, ref.name)
    bound = found is not None and means(content, found)
    held = names.SNAPSHOT_CONTENT in content.metadata.finalizers
    if not content.deleting:
        if not held:
            more = (*content.metadata.finalizers, names.SNAPSHOT_CONTENT)
            yield Put(amend(content, metadata=amend(content.metadata, finalizers=more)), content.revision)
        elif ref.uid and not bound and content.spec.deletion_policy == "Delete":
            yield Delete(content.key, content.revision)
        elif not _placed(content) and snapshot.count(Node) > 1:
            yield from _homeless(content)
    elif held and not (bound and found is not None and not found.deleting):
        nothing = content.spec.deletion_policy == "Retain" or _never(content)
        if nothing:
            yield Put(steps.without(content, names.SNAPSHOT_CONTENT), content.revision)


def discardable(content: VolumeSnapshotContent, snapshot: Snapshot) -> bool:
    """Whether the snapshot behind it is to be deleted now."""
    if not content.deleting or content.spec.deletion_policy != "Delete" or _never(content):
        return False
    ref = content.spec.volume_snapshot_ref
    found = snapshot.get(VolumeSnapshot, ref.namespace, ref.name)
    return found is None or found.deleting or not means(content, found)


def _never(content: VolumeSnapshotContent) -> bool:
    """Whether it names a snapshot that nobody has found."""
    return bool(content.spec.source.snapshot_handle) and not content.status.snapshot_handle


def _placed(content: VolumeSnapshotContent) -> bool:
    ours = content.spec.driver in (names.LOCAL, names.DIRECTORY)
    return not ours or names.SNAPSHOT_HOST in content.metadata.annotations


def _homeless(content: VolumeSnapshotContent) -> Iterator[Write]:
    said = (
        f"the annotation {names.SNAPSHOT_HOST} is needed where there are several nodes: it says which has it"
    )
    if content.status.error is None or content.status.error.message != said:
        status = amend(content.status, error=SnapshotError(message=said))
        yield Put(amend(content, status=status), content.revision)

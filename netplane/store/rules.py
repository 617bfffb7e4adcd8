"""What a write means, decided from the stored object alone: shared by every store of ours, pure.

Rule 1: identity (uid, creationTimestamp, deletionTimestamp) is the store's: a put never changes it.
        A uid that comes with the first put is kept, so that a runtime's own pod uid survives.
Rule 2: an object that is being deleted takes no new finalizer, and goes with its last one.
"""

from __future__ import annotations

import functools
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from ..model import codec
from ..model.base import Key, Object, amend
from ..model.errors import Conflict, Invalid, NotFound


def now() -> str:
    """This moment as Kubernetes writes it: RFC 3339, UTC, whole seconds."""
    return _written(int(time.time()))


@functools.lru_cache(maxsize=2)
def _written(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def admit(key: Key, current: Object | None, expect: int | None) -> None:
    """Hold a write to its condition. Raises Conflict, NotFound."""
    if expect is None:
        return
    if expect == 0 and current is not None:
        raise Conflict(f"{key}: exists already, at revision {current.revision}")
    if expect and current is None:
        raise NotFound(f"{key}: is gone; the write expected revision {expect}")
    if expect and current is not None and current.revision != expect:
        raise Conflict(f"{key}: is at revision {current.revision}, the write expected {expect}")


def settle(obj: Object, current: Object | None) -> Object:
    """``obj`` with the identity of the stored object, or a new one. Raises Invalid."""
    meta = obj.metadata
    if current is None:
        uid = meta.uid or str(uuid.uuid4())
        fresh = amend(meta, uid=uid, creation_timestamp=now(), deletion_timestamp="", resource_version="")
        return _with(obj, fresh)
    was = current.metadata
    if was.deletion_timestamp and not set(meta.finalizers) <= set(was.finalizers):
        new = sorted(set(meta.finalizers) - set(was.finalizers))
        raise Invalid(f"{obj.key}: metadata.finalizers: {new} cannot be added while it is being deleted")
    kept = amend(
        meta,
        uid=was.uid,
        creation_timestamp=was.creation_timestamp,
        deletion_timestamp=was.deletion_timestamp,
        resource_version=was.resource_version,
    )
    return _with(obj, kept)


def same(new: Object, current: Object) -> bool:
    """Whether a write would change nothing; what is stored decides, not how it was spelled in Python."""
    return new == current or codec.decode(current.KIND, codec.encode(new)) == current


def leaves(obj: Object) -> bool:
    """Whether this put is the one with which a deleted object goes."""
    return obj.deleting and not obj.metadata.finalizers


def condemned(current: Object) -> Object | None:
    """The marked object when finalizers hold it; None when it may go at once."""
    if not current.metadata.finalizers:
        return None
    stamp = current.metadata.deletion_timestamp or now()
    return _with(current, amend(current.metadata, deletion_timestamp=stamp))


def at_revision(obj: Object, revision: int) -> Object:
    return _with(obj, amend(obj.metadata, resource_version=str(revision)))


def _with(obj: Object, meta: Any) -> Object:
    changed: Object = amend(obj, metadata=meta)
    return changed

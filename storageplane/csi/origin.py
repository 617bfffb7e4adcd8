"""What a claim's volume is to be a copy of at a CSI driver, from the store itself.

Rule: a driver copies only what is its own, into what is no smaller and of the same volume mode.
"""

from __future__ import annotations

from typing import Any

from netplane.model.base import Key, Object
from netplane.model.errors import Invalid
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim, StorageClass

from ..claims import match, sources
from ..claims.writer import Writer


def origin(claim: PersistentVolumeClaim, cls: StorageClass, store: Writer) -> tuple[str, str]:
    """What a claim is to be a copy of, as ("volume" or "snapshot", handle). Raises as `sources`."""
    kind, name = sources.asked(claim)
    if not kind:
        return ("", "")
    snapshot = Snapshot.of(_around(kind, Key(kind, claim.namespace, name), store))
    words = f"{kind} {claim.namespace}/{name}"
    if kind == sources.SNAPSHOT:
        content = sources.ready(claim.namespace, name, snapshot)
        driver, handle = content.spec.driver, content.status.snapshot_handle
        size, mode = content.status.restore_size, content.spec.source_volume_mode
    else:
        volume = sources.volume_of(claim.namespace, name, snapshot)
        driver, handle = sources.driver_of(volume)
        size, mode = match.capacity(volume), volume.spec.volume_mode
    if driver != cls.provisioner:
        raise Invalid(f"{words} is of {driver or 'no driver'}: use a StorageClass of that provisioner")
    if match.requested(claim) < size:
        raise Invalid(f"{match.requested(claim)} bytes are less than the {size} of {words}")
    if mode not in ("", claim.spec.volume_mode):
        raise Invalid(f"spec.volumeMode {claim.spec.volume_mode}: {words} is {mode}")
    return ("snapshot" if kind == sources.SNAPSHOT else "volume", handle)


def _around(kind: str, key: Key, store: Writer) -> list[Object]:
    """A claim's source and what it is bound to, from the store itself."""
    found: Any = store.get(key)
    if found is None:
        return []
    if kind == sources.SNAPSHOT:
        other = Key("VolumeSnapshotContent", "", found.status.bound_volume_snapshot_content_name)
    else:
        other = Key(PersistentVolume.KIND, "", found.spec.volume_name)
    bound = store.get(other) if other.name else None
    return [found, bound] if bound is not None else [found]

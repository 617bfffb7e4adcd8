"""What a publication writes down: the keys that unpublishing removes, and what is in use. No content.

Rule 1: not what a user keeps (data, paths of the host), and not a place that was there before.
Rule 2: a record only grows while its pod is published: what was once made, unpublishing must find.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from netplane.model.errors import Unavailable
from netplane.model.facts import Fact
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim
from netplane.model.storage_facts import (
    Data,
    Directory,
    HostPath,
    Image,
    Ownership,
    Payload,
    Point,
    SubPath,
)
from netplane.model.volumes import Volume

from ..claims import access
from ..volumes import ephemeral
from ..volumes.base import Context
from .journal import Record

KEPT = (Data, HostPath, Ownership, SubPath)  # a user's, so it outlives the pod
WITHIN = (Payload, Image)  # goes with the pod's directory
Key = tuple[str, str]


def record(
    pod: Pod, target: str, context: Context, made: tuple[Sequence[Fact], Sequence[str]], old: Record | None
) -> Record:
    """The pod's record. ``made``: (facts in the order in which they are made, what they have in use)."""
    facts, sources = made
    alone = {*(old.exclusive if old else ()), *_exclusive(pod, context.snapshot)}
    return Record(
        uid=pod.metadata.uid,
        namespace=pod.namespace,
        name=pod.name,
        node=context.node,
        target=target,
        keys=tuple(dict.fromkeys([*(old.keys if old else ()), *_ours(facts, old)])),
        sources=tuple(dict.fromkeys([*(old.sources if old else ()), *sources])),
        exclusive=tuple(sorted(alone)),
        modes={**_modes(pod, context.snapshot), **(old.modes if old else {})},
    )


def check_exclusive(mine: Record, others: Iterable[Record]) -> None:
    """Raises Unavailable while another pod has a ReadWriteOncePod volume of this one."""
    for other in others:
        shared = set(other.exclusive) & set(mine.exclusive)
        if shared:
            who = f"pod {other.namespace}/{other.name}"
            raise Unavailable(f"{min(shared)} is ReadWriteOncePod and published for {who}")


def check_modes(mine: Record, others: Iterable[Record]) -> None:
    """Raises Unavailable while another pod has a volume of this one in a mode that they cannot share."""
    for other in others:
        for name in sorted(mine.modes.keys() & other.modes.keys()):
            if not access.share((other.modes[name], other.node), (mine.modes[name], mine.node)):
                who = f"{other.modes[name]} and published for pod {other.namespace}/{other.name}"
                raise Unavailable(f"PersistentVolume {name} is {who}; this pod needs {mine.modes[name]}")


def _ours(facts: Iterable[Fact], old: Record | None) -> list[Key]:
    before = set(old.keys) if old else set()
    keys = []
    for fact in facts:
        key = (str(fact.key[0]), str(fact.key[1]))
        placed = isinstance(fact, (Directory, Point)) and key[1].startswith("/")
        stood = placed and key not in before and os.path.lexists(key[1])
        if not isinstance(fact, (*KEPT, *WITHIN)) and not stood:
            keys.append(key)
    return keys


def _exclusive(pod: Pod, snapshot: Snapshot) -> set[str]:
    """The pod's ReadWriteOncePod volumes, by name."""
    return {v.name for _, v in claimed(pod, snapshot) if "ReadWriteOncePod" in v.spec.access_modes}


def _modes(pod: Pod, snapshot: Snapshot) -> dict[str, str]:
    return {volume.name: access.mode_of(pod, claim) for claim, volume in claimed(pod, snapshot)}


def claimed(pod: Pod, snapshot: Snapshot) -> Iterator[tuple[PersistentVolumeClaim, PersistentVolume]]:
    """The pod's claims that have a volume, with it."""
    for volume in pod.spec.volumes:
        name = _claim_name(pod, volume)
        claim = snapshot.get(PersistentVolumeClaim, pod.namespace, name) if name else None
        held = snapshot.get(PersistentVolume, "", claim.spec.volume_name) if claim else None
        if claim is not None and held is not None:
            yield claim, held


def _claim_name(pod: Pod, volume: Volume) -> str:
    if volume.ephemeral is not None:
        return ephemeral.claim_name(pod, volume)
    return volume.persistent_volume_claim.claim_name if volume.persistent_volume_claim else ""

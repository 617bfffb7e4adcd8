"""Access modes where they are enforced: when a pod's volume is about to be published. Pure.

Rule 1: a volume is used in one mode at a time, whatever its list offers. The pod that came first decides
        which; a later one that needs another mode, or another node than a single-node mode allows, waits.
Rule 2: ReadWriteOncePod is one pod: the second is refused, naming the first.
Rule 3: a mode is what a pod needs: ReadOnlyMany when it reads only and the claim offers it, else the widest
        that the claim asked for.
"""

from __future__ import annotations

from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolumeClaim

from . import match

WIDEST = ("ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany")


def mode_of(pod: Pod, claim: PersistentVolumeClaim) -> str:
    """The access mode that this pod uses the claim in."""
    asked = claim.spec.access_modes
    named = [v.persistent_volume_claim for v in pod.spec.volumes if v.persistent_volume_claim]
    readers = [source.read_only for source in named if source.claim_name == claim.name]
    if "ReadOnlyMany" in asked and readers and all(readers):
        return "ReadOnlyMany"
    return next((mode for mode in WIDEST if mode in asked), "ReadWriteOnce")


def obstacle(pod: Pod, claim: PersistentVolumeClaim, node: str, snapshot: Snapshot) -> str:
    """Why the pod cannot use the claim on ``node`` now, naming the pod that came first; "" when it can."""
    mine = mode_of(pod, claim)
    for other in snapshot.by(Pod, "claim", match.claim_key(claim)):
        theirs = mode_of(other, claim)
        if not _before(other, pod) or _share((theirs, other.spec.node_name), (mine, node)):
            continue
        where = "" if other.spec.node_name == node else f" on node {other.spec.node_name}"
        return f"{claim.key} is {theirs} and in use by pod {other.namespace}/{other.name}{where}"
    return ""


def _before(other: Pod, pod: Pod) -> bool:
    """Whether the other pod has been placed, has not ended, and is the older one."""
    if other.metadata.uid == pod.metadata.uid or not other.spec.node_name or other.finished:
        return False
    return _age(other) < _age(pod)


def _age(pod: Pod) -> tuple[str, str, str]:
    return pod.metadata.creation_timestamp or "~", pod.name, pod.metadata.uid


def _share(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether two uses (mode, node) of a volume go together."""
    modes = {first[0], second[0]}
    if "ReadWriteOncePod" in modes:
        return False
    if "ReadWriteOnce" in modes:
        return first[1] == second[1] and "ReadOnlyMany" not in modes
    return len(modes) == 1

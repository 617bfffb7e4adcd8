"""Access modes where they are enforced: when a pod's volume is about to be published. Pure.

Rule 1: a volume is used in one mode at a time, whatever its list offers. Who has it published decides which
        (an annotation of the volume says who, on every node); one that needs another mode, or another node
        than a single-node mode allows, waits. Only while nobody has it, the oldest of those that are placed
        comes first.
Rule 2: ReadWriteOncePod is one pod: the second is refused, naming the first.
Rule 3: a mode is what a pod needs: ReadOnlyMany when it reads only and the claim offers it, else the widest
        that the claim asked for.
Rule 4: a pod that has ended holds nothing. One whose object is gone does, until its node has unpublished it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from netplane.model.base import Struct
from netplane.model.errors import Invalid
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim

from .. import names
from . import match, steps

WIDEST = ("ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany")


def mode_of(pod: Pod, claim: PersistentVolumeClaim) -> str:
    """The access mode that this pod uses the claim in."""
    asked = claim.spec.access_modes
    named = [v.persistent_volume_claim for v in pod.spec.volumes if v.persistent_volume_claim]
    readers = [source.read_only for source in named if source.claim_name == claim.name]
    if "ReadOnlyMany" in asked and readers and all(readers):
        return "ReadOnlyMany"
    return next((mode for mode in WIDEST if mode in asked), "ReadWriteOnce")


class Hold(Struct, frozen=True):
    """One pod ("NAMESPACE/NAME") that has a volume published on a node, and in which mode."""

    pod: str
    mode: str
    node: str


Holds = dict[str, Hold]  # by the pod's UID


def holds(volume: PersistentVolume) -> Holds:
    """Who has the volume published, as it says. Raises Invalid for what we did not write."""
    text = volume.metadata.annotations.get(names.IN_USE, "{}")
    try:
        return msgspec.json.decode(text, type=Holds)
    except (msgspec.DecodeError, ValueError) as exc:
        where = f"{volume.key}: metadata.annotations: {names.IN_USE}"
        raise Invalid(f"{where}: {exc}; remove it: agents write it anew from their records") from None


def held_by(volume: PersistentVolume, who: Holds) -> PersistentVolume:
    """The volume, saying that these have it published."""
    text = msgspec.json.encode(who, order="sorted").decode()
    held: PersistentVolume = (
        steps.annotated(volume, {names.IN_USE: text}) if who else steps.bare(volume, names.IN_USE)
    )
    return held


def obstacle(pod: Pod, claim: PersistentVolumeClaim, node: str, snapshot: Snapshot) -> str:
    """Why the pod cannot use the claim on ``node`` now, naming the pod that has it; "" when it can."""
    mine, users = (mode_of(pod, claim), node), snapshot.by(Pod, "claim", match.claim_key(claim))
    volume = snapshot.get(PersistentVolume, "", claim.spec.volume_name) if claim.spec.volume_name else None
    held = holds(volume) if volume is not None and match.refers(volume.spec.claim_ref, claim) else {}
    if pod.metadata.uid in held:
        return ""
    ended = {p.metadata.uid for p in users if p.finished}
    holding = [(uid, hold) for uid, hold in held.items() if uid not in ended]
    known = {p.metadata.uid for p in users}
    for uid, hold in holding or _older(pod, claim, users):
        if not share((hold.mode, hold.node), mine):
            where = "" if hold.node == node else f" on node {hold.node}"
            gone = "" if uid in known else "; its object is gone: unpublish it there"
            return f"{claim.key} is {hold.mode} and in use by pod {hold.pod}{where}{gone}"
    return ""


def _older(pod: Pod, claim: PersistentVolumeClaim, users: tuple[Pod, ...]) -> Iterator[tuple[str, Hold]]:
    """The pods that come before it where nobody has the volume yet: placed, not ended, and older."""
    for other in users:
        placed = other.spec.node_name and not other.finished
        if placed and other.metadata.uid != pod.metadata.uid and _age(other) < _age(pod):
            name = f"{other.namespace}/{other.name}"
            yield other.metadata.uid, Hold(name, mode_of(other, claim), other.spec.node_name)


def _age(pod: Pod) -> tuple[str, str, str]:
    return pod.metadata.creation_timestamp or "~", pod.name, pod.metadata.uid


def share(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether two uses (mode, node) of a volume go together."""
    modes = {first[0], second[0]}
    if "ReadWriteOncePod" in modes:
        return False
    if "ReadWriteOnce" in modes:
        return first[1] == second[1] and "ReadOnlyMany" not in modes
    return len(modes) == 1

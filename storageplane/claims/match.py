"""Which volume fits a claim, and why the others do not.

Rule 1: the order is the upstream binder's: access-mode sets that cover the request, fewest modes
        first; in a set a volume prebound to the claim at once, else the smallest that fits.
Rule 2: `why` asks the functions that decide (`find` and `obstacle`, `refusal`, `lost`), so an explanation
        is never another opinion than the decision.
Source: kubernetes pkg/controller/volume/persistentvolume (index.go, FindMatchingVolume).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from itertools import combinations

from netplane.model.checks import parse_quantity
from netplane.model.nodes import Node
from netplane.model.pods import Pod
from netplane.model.services import ObjectReference
from netplane.model.snapshot import Place, Snapshot
from netplane.model.storage import (
    ACCESS_MODES,
    NodeSelectorRequirement,
    PersistentVolume,
    PersistentVolumeClaim,
    Resources,
    StorageClass,
    VolumeNodeAffinity,
)

from .. import names

# A volume that nobody has looked at yet will be Available: taking it now makes the result the same
# whichever of the two is looked at first.
FREE = ("Available", "Pending", "")
_bytes = lru_cache(maxsize=4096)(parse_quantity)


def claim_key(claim: PersistentVolumeClaim) -> str:
    return f"{claim.namespace}/{claim.name}"


def size_of(resources: Resources) -> int:
    """Bytes of "storage" in a map of resources; 0 without."""
    return _bytes(resources.get("storage", 0))


def requested(claim: PersistentVolumeClaim) -> int:
    """Bytes that the claim asks for."""
    return size_of(claim.spec.resources.requests)


def capacity(volume: PersistentVolume) -> int:
    """Bytes that the volume offers."""
    return size_of(volume.spec.capacity)


def refers(ref: ObjectReference | None, claim: PersistentVolumeClaim) -> bool:
    """Whether a claimRef means this claim; a reference without UID is by name (a prebound volume)."""
    if ref is None or (ref.namespace, ref.name) != (claim.namespace, claim.name):
        return False
    return not ref.uid or ref.uid == claim.metadata.uid


def class_of(claim: PersistentVolumeClaim, snapshot: Snapshot) -> StorageClass | None:
    return snapshot.get(StorageClass, "", claim.spec.storage_class_name or "")


def default_class(snapshot: Snapshot) -> StorageClass | None:
    """The default class; the newest of several (then by name, so that all agents agree)."""
    found = [c for c in snapshot.list(StorageClass) if c.is_default and not c.deleting]
    return max(found, key=lambda c: (c.metadata.creation_timestamp, c.name), default=None)


def waits(claim: PersistentVolumeClaim, snapshot: Snapshot) -> bool:
    """Whether the claim's class binds only when a pod is placed (WaitForFirstConsumer)."""
    cls = class_of(claim, snapshot)
    return cls is not None and cls.volume_binding_mode == "WaitForFirstConsumer"


def consumer_node(claim: PersistentVolumeClaim, snapshot: Snapshot) -> str:
    """The node where the claim is to be used: a scheduler's choice, or that of its first placed pod."""
    chosen = claim.metadata.annotations.get(names.SELECTED_NODE, "")
    pods = (p for p in snapshot.by(Pod, "claim", claim_key(claim)) if not p.finished)
    return chosen or next((p.spec.node_name for p in pods if p.spec.node_name), "")


def find(claim: PersistentVolumeClaim, snapshot: Snapshot) -> PersistentVolume | None:
    """The volume that the claim is to be bound to now, or None."""
    late = waits(claim, snapshot)
    place = late, consumer_node(claim, snapshot) if late else ""
    own = in_order(claim, snapshot.by(PersistentVolume, "claim", claim_key(claim)))
    named = [v for v in own if not obstacle(v, claim, snapshot, place)]
    for modes in covering(claim.spec.access_modes):
        for volume in named:
            if tuple(sorted(set(volume.spec.access_modes))) == modes:
                return volume
        group = "\0".join((claim.spec.storage_class_name or "", claim.spec.volume_mode, *modes))
        for volume in snapshot.at_least(PersistentVolume, "free", group, requested(claim)):
            if not obstacle(volume, claim, snapshot, place):
                return volume
            if late and not place[1]:
                break  # none of them will do before the pod is placed
    return None


def waiting(volume: PersistentVolume, snapshot: Snapshot) -> Iterator[PersistentVolumeClaim]:
    """The claims that wait and that a free volume would do for, the largest first."""
    group = f"{volume.spec.storage_class_name}\0{volume.spec.volume_mode}"
    modes = set(volume.spec.access_modes)
    for claim, node in _asking(group, (capacity(volume) + 1, "", ""), snapshot):
        fits = modes.issuperset(claim.spec.access_modes)
        if fits and not obstacle(volume, claim, snapshot, (node is not None, node or "")):
            yield claim


def _asking(group: str, top: Place, snapshot: Snapshot) -> Iterator[tuple[PersistentVolumeClaim, str | None]]:
    """The claims of a group that a volume is looked for, from ``top`` downwards, and the node where it is to
    be; None for one that does not wait for a node."""
    jumps = _jumps(group, snapshot)
    begin: Place | None = None  # of the stretch that is walked through
    onward: Place | None = top
    while onward is not None:
        walk, onward = snapshot.until(PersistentVolumeClaim, "waiting", group, onward), None
        for at, claim in walk:
            node = consumer_node(claim, snapshot) if waits(claim, snapshot) else None
            if node != "" and not _being_bound(claim, snapshot):
                begin = None
                yield claim, node
                continue
            begin = begin or at
            jumps[begin] = jumps.get(at, at)
            if jumps[begin] != at:
                onward = jumps[begin]
                break


def _being_bound(claim: PersistentVolumeClaim, snapshot: Snapshot) -> bool:
    """Whether a volume is the claim's by UID already, and the other writes are only to come."""
    if names.BIND_COMPLETED in claim.metadata.annotations:
        return True
    own = snapshot.by(PersistentVolume, "claim", claim_key(claim))
    refs = (volume.spec.claim_ref for volume in own)
    return any(ref is not None and ref.uid == claim.metadata.uid for ref in refs)


class _Memo:
    """From where to where the walk through a group's claims may jump: what lies between are claims that no
    volume is for now, whichever it be, because they are being bound, or their pod has no node yet.

    So where a thousand volumes come to a thousand claims, each begins after those of the ones before. It
    holds for as long as claims, pods and classes are what they were; a claim that loses its volume meanwhile
    is looked at for its own sake (`scopes`).
    """

    def __init__(self, rests_on: tuple[object, ...] = ()) -> None:
        self.rests_on = rests_on
        self.jumps: dict[str, dict[Place, Place]] = {}


_memo = [_Memo()]


def _jumps(group: str, snapshot: Snapshot) -> dict[Place, Place]:
    found = tuple(snapshot.version(kind) for kind in (PersistentVolumeClaim, Pod, StorageClass))
    memo = _memo[0]
    if len(memo.rests_on) != len(found) or any(a is not b for a, b in zip(memo.rests_on, found, strict=True)):
        memo = _memo[0] = _Memo(found)
    return memo.jumps.setdefault(group, {})


@cache
def covering(wanted: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Every set of access modes that covers these, fewest modes first: (ReadWriteOnce,), …"""
    rest = [mode for mode in ACCESS_MODES if mode not in wanted]
    sets = (tuple(sorted({*wanted, *more})) for n in range(len(rest) + 1) for more in combinations(rest, n))
    return tuple(sorted(sets, key=lambda modes: (len(modes), modes)))


def why(claim: PersistentVolumeClaim, snapshot: Snapshot) -> list[tuple[str, str]]:
    """(volume, reason it is not taken) for every volume, in matching order; "" for the one that is taken."""
    ordered, own = in_order(claim, snapshot.list(PersistentVolume)), claim.spec.volume_name
    if names.BIND_COMPLETED in claim.metadata.annotations:
        rest = "is not looked at: a claim that was bound gets no other volume"
        return _one_alone(ordered, own, lost(claim, snapshot)[1], rest)
    if claim.deleting:
        return [(v.name, "is not looked at: the claim is being deleted") for v in ordered]
    if own:
        refused = refusal(snapshot.get(PersistentVolume, "", own), claim)[1]
        return _one_alone(ordered, own, refused, f"is not {own}, which the claim names")
    late, taken = waits(claim, snapshot), find(claim, snapshot)
    place = late, consumer_node(claim, snapshot) if late else ""
    behind = f"fits, but {taken.name} comes first" if taken else ""
    found = [(v.name, _lacking(v, claim) or obstacle(v, claim, snapshot, place) or behind) for v in ordered]
    return [(name, "" if taken and name == taken.name else reason) for name, reason in found]


def _one_alone(
    ordered: Iterable[PersistentVolume], own: str, reason: str, rest: str
) -> list[tuple[str, str]]:
    """The rows where a claim has one volume to ask for, which need not exist, and no other is looked at."""
    others = [(v.name, rest) for v in ordered if v.name != own]
    return [(own, reason), *others] if own else others


def _lacking(volume: PersistentVolume, claim: PersistentVolumeClaim) -> str:
    if set(claim.spec.access_modes) <= set(volume.spec.access_modes):
        return ""
    return f"does not offer the access modes {', '.join(claim.spec.access_modes)}"


def in_order(claim: PersistentVolumeClaim, volumes: Iterable[PersistentVolume]) -> list[PersistentVolume]:
    """In matching order; at the end, by name, those whose access modes do not cover the claim's."""

    def rank(volume: PersistentVolume) -> tuple[bool, int, list[str], bool, int, str]:
        if _lacking(volume, claim):
            return True, 0, [], False, 0, volume.name
        modes, own = sorted(set(volume.spec.access_modes)), refers(volume.spec.claim_ref, claim)
        return False, len(modes), modes, not own, capacity(volume), volume.name

    return sorted(volumes, key=rank)


def lost(claim: PersistentVolumeClaim, snapshot: Snapshot) -> tuple[str, str]:
    """(event's reason, message) why a claim that was bound is Lost; ("", "") when it keeps its volume."""
    volume = snapshot.get(PersistentVolume, "", claim.spec.volume_name)
    if not claim.spec.volume_name:
        return "ClaimLost", "Bound claim has lost reference to PersistentVolume. Data may be lost!"
    if volume is None:
        return "ClaimLost", "Bound claim has lost its PersistentVolume. Data may be lost!"
    ref = volume.spec.claim_ref
    if ref is None or ref.uid == claim.metadata.uid:
        return "", ""
    return "ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly"


def refusal(volume: PersistentVolume | None, claim: PersistentVolumeClaim) -> tuple[str, str]:
    """(event's reason, why) the volume that a claim names is not bound to it; ("", "") when it is to be."""
    if volume is None:
        return "FailedBinding", "does not exist"
    ref = volume.spec.claim_ref
    if ref is not None and not refers(ref, claim):
        return "FailedBinding", f"already bound to a different claim, {ref.namespace}/{ref.name}"
    unfit = mismatch(volume, claim) if ref is None else unusable(volume, claim)
    return ("VolumeMismatch", unfit) if unfit else ("", "")


def obstacle(
    volume: PersistentVolume,
    claim: PersistentVolumeClaim,
    snapshot: Snapshot,
    place: tuple[bool, str] = (False, ""),
) -> str:
    """Why the volume cannot be this claim's, or "". ``place``: (wait for a pod, its node or "")."""
    waiting, node = place
    ref = volume.spec.claim_ref
    if ref is not None and not refers(ref, claim):
        return f"is claimed by {ref.namespace}/{ref.name}"
    unfit = unsatisfied(volume, claim)
    if unfit:
        return unfit
    away = node and not fits_node(volume.spec.node_affinity, node, snapshot)
    if ref is not None:
        return f"is not reachable from node {node}" if away else ""
    if waiting and not node:
        return "waits for a pod that uses the claim to be placed on a node"
    if volume.status.phase not in FREE:
        return f"is {volume.status.phase}, not Available"
    if claim.spec.selector and not claim.spec.selector.matches(volume.labels):
        return "its labels do not match the claim's selector"
    if (claim.spec.storage_class_name or "") != volume.spec.storage_class_name:
        return f"its storage class is {volume.spec.storage_class_name!r}"
    return f"is not reachable from node {node}" if away else ""


def unsatisfied(volume: PersistentVolume, claim: PersistentVolumeClaim) -> str:
    """What no binding can overlook: size, volume mode, attributes class, deletion."""
    if capacity(volume) < requested(claim):
        have, want = volume.spec.capacity.get("storage"), claim.spec.resources.requests.get("storage")
        return f"is too small: {have} of {want}"
    if volume.spec.volume_attributes_class_name != claim.spec.volume_attributes_class_name:
        return f"its attributes class is {volume.spec.volume_attributes_class_name!r}"
    return unusable(volume, claim)


def unusable(volume: PersistentVolume, claim: PersistentVolumeClaim) -> str:
    """What not even claimRef and volumeName that name each other can overlook."""
    if volume.spec.volume_mode != claim.spec.volume_mode:
        return f"its volume mode is {volume.spec.volume_mode}"
    if names.LOST in volume.metadata.annotations:
        return f"was given up with node {volume.metadata.annotations[names.LOST]}"
    return "is being deleted" if volume.deleting else ""


def mismatch(volume: PersistentVolume, claim: PersistentVolumeClaim) -> str:
    """Why a volume that the claim names itself (spec.volumeName) does not do; "" when it does."""
    unfit = unsatisfied(volume, claim)
    if unfit:
        return unfit
    if (claim.spec.storage_class_name or "") != volume.spec.storage_class_name:
        return f"its storage class is {volume.spec.storage_class_name!r}"
    missing = [m for m in claim.spec.access_modes if m not in volume.spec.access_modes]
    return f"does not offer {', '.join(missing)}" if missing else ""


def hostname(node: str, snapshot: Snapshot) -> str:
    """A node's hostname label; a node without an object has its name."""
    found = snapshot.get(Node, "", node)
    return found.labels.get(names.HOSTNAME, node) if found else node


def fits_node(affinity: VolumeNodeAffinity | None, node: str, snapshot: Snapshot) -> bool:
    """Whether the volume can be reached from a node. A node without an object has its hostname label."""
    if affinity is None or affinity.required is None:
        return True
    found = snapshot.get(Node, "", node)
    labels = {names.HOSTNAME: node, **(found.labels if found else {})}
    fields = {"metadata.name": node}
    return any(
        (term.match_expressions or term.match_fields)
        and all(_holds(r, labels) for r in term.match_expressions)
        and all(_holds(r, fields) for r in term.match_fields)
        for term in affinity.required.node_selector_terms
    )


def _holds(need: NodeSelectorRequirement, labels: dict[str, str]) -> bool:
    value = labels.get(need.key)
    if need.operator in ("Gt", "Lt"):
        try:
            have, want = int(value or ""), int(need.values[0])
        except (ValueError, IndexError):
            return False
        return have > want if need.operator == "Gt" else have < want
    if need.operator == "In":
        return value in need.values
    if need.operator == "NotIn":
        return value not in need.values
    return (value is not None) == (need.operator == "Exists")

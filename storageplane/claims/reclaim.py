"""What becomes of a volume whose claim is gone: Retain keeps, Delete removes, Recycle empties.

Rule 1: data goes only by an explicit `Erase` or `Scrub`, never because nothing wants it any more.
Rule 2: before data goes, the volume is read again from the store, and left if it is not released now.
Rule 3: a published volume is in use: that is no failure, the removal waits.
Rule 4: data first, object last. A crash in between leaves the object, and the removal runs again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

from netplane.model import codec
from netplane.model.base import Key, Object
from netplane.model.changes import Event, Put, Write
from netplane.model.errors import Conflict, KernelError, NetplaneError, Unavailable
from netplane.model.facts import Fact, FactKey, Facts, Mark, Plan, Scope
from netplane.model.nodes import Node
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import RECLAIM_POLICIES, PersistentVolume, PersistentVolumeClaim
from netplane.model.storage_facts import Data, Erase, Scrub

from .. import names
from ..host import growth, progress, tree
from ..host.trash import Trash
from . import events, sources, steps
from .copies import PATIENCE, TRASH, Copies, say
from .match import fits_node
from .provision import backend_of, data_of, is_ours
from .scopes import volume_scopes
from .steps import annotated, owner, phased, unbound, without
from .writer import TRIES, Timed, Writer


def holds(claim: Object | None, volume: PersistentVolume) -> bool:
    """Whether this claim has a right to the volume's data: it is the one meant, and not bound elsewhere."""
    ref = volume.spec.claim_ref
    if not isinstance(claim, PersistentVolumeClaim) or ref is None or claim.metadata.uid != ref.uid:
        return False
    return claim.spec.volume_name in ("", volume.name)


def released(volume: PersistentVolume, claimed: bool) -> bool:
    """Whether the data may go: policy Delete, and no claim holds the volume. ``claimed``: its claim lives."""
    if volume.spec.persistent_volume_reclaim_policy != "Delete" or claimed:
        return False
    return volume.status.phase in ("Released", "Failed") or volume.deleting


def recyclable(volume: PersistentVolume, claimed: bool) -> bool:
    """Whether what lies in it may go: policy Recycle, and no claim holds the volume."""
    if volume.spec.persistent_volume_reclaim_policy != "Recycle" or claimed or volume.deleting:
        return False
    return volume.status.phase in ("Released", "Failed")


class Reclaimer:
    """Says what cannot be reclaimed, and lets go of volumes whose data is to be kept."""

    name = "reclaim"

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        """A claim's events come as those of its volume, whose phase they change."""
        if event is not None and not _ended(event):
            return ()
        return volume_scopes(self.name, event, snapshot)

    def decide(self, scope: Scope, snapshot: Snapshot) -> list[Write]:
        volume = snapshot.get(PersistentVolume, "", scope.name.removeprefix("volume/"))
        return steps.together(_reclaim(volume, snapshot)) if volume is not None else []


def _ended(event: Event) -> bool:
    """Whether it is of a volume that is, or was, beyond its use; or of a pod, which may have ended that."""
    states = [o for o in (event.old, event.new) if isinstance(o, PersistentVolume)]
    over = ("Released", "Failed")
    return any(o.deleting or o.status.phase in over for o in states) or isinstance(event.object, Pod)


def _reclaim(volume: PersistentVolume, snapshot: Snapshot) -> Iterator[Write]:
    policy, phase = volume.spec.persistent_volume_reclaim_policy, volume.status.phase
    if volume.deleting and policy != "Delete" and names.DATA in volume.metadata.finalizers:
        yield Put(without(volume, names.DATA), volume.revision)
    if phase == "Released":
        reason, message = impossible(volume, snapshot)
        if message:
            yield Put(phased(volume, "Failed", message, reason), volume.revision)
            yield from events.note(volume, "reclaim", (reason, message), snapshot)
        elif policy == "Recycle" and (users := users_of(volume, snapshot)):
            said = "VolumeFailedRecycle", f"Volume is used by pods: {', '.join(users)}"
            yield from events.note(volume, "reclaim", said, snapshot)
    elif phase == "Failed":
        failed = "VolumeFailedRecycle" if policy == "Recycle" else "VolumeFailedDelete"
        said = volume.status.reason or failed, volume.status.message
        yield from events.note(volume, "reclaim", said, snapshot)
    else:
        told = snapshot.find(events.key_of(volume, "reclaim"))
        if getattr(told, "reason", "VolumeRecycled") != "VolumeRecycled":
            yield from events.note(volume, "reclaim", None, snapshot)


def users_of(volume: PersistentVolume, snapshot: Snapshot) -> list[str]:
    """The pods that have not ended and name the claim that the volume was bound to."""
    ref = volume.spec.claim_ref
    pods = snapshot.by(Pod, "claim", f"{ref.namespace}/{ref.name}") if ref else ()
    return [f"{p.namespace}/{p.name}" for p in pods if not p.finished]


def impossible(volume: PersistentVolume, snapshot: Snapshot) -> tuple[str, str]:
    """(reason, message) of a policy that cannot be carried out; ("", "") when it can."""
    policy = volume.spec.persistent_volume_reclaim_policy
    if policy == "Recycle" and volume.spec.host_path is None:
        return "VolumeFailedRecycle", (
            f"No recycler: only hostPath volumes are emptied here, not {volume.source}; "
            "use Retain, or Delete with a StorageClass"
        )
    if policy == "Recycle" and volume.spec.node_affinity is None and snapshot.count(Node) > 1:
        return "VolumeFailedRecycle", (
            "Recycle of a hostPath volume needs spec.nodeAffinity where there are several nodes: "
            "nobody knows on which of them it was used"
        )
    if policy == "Delete" and names.PROVISIONED_BY not in volume.metadata.annotations:
        return "VolumeFailedDelete", (
            "Delete: nobody here provisioned this volume, so its data stays; remove it by hand, or use Retain"
        )
    if policy not in RECLAIM_POLICIES:
        return (
            "VolumeUnknownReclaimPolicy",
            f"Volume has an unrecognized PersistentVolumeReclaimPolicy {policy!r}",
        )
    return "", ""


def _concerns(volume: PersistentVolume) -> bool:
    made = names.PROVISIONED_BY in volume.metadata.annotations or names.DATA in volume.metadata.finalizers
    return made or volume.spec.persistent_volume_reclaim_policy == "Recycle"


class Volumes:
    """The room of provisioned volumes: the data of those that live, the removal of those released."""

    name = "volume"

    def __init__(self, node: str, root: str | Path) -> None:
        self.node = node
        self.root = Path(root)

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        states = [] if event is None else [o for o in event if isinstance(o, PersistentVolume)]
        if states and not any(map(_concerns, states)):
            return ()
        return volume_scopes(self.name, event, snapshot)

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        volume = snapshot.get(PersistentVolume, "", scope.name.removeprefix("volume/"))
        if volume is None or names.LOST in volume.metadata.annotations:
            return []
        claimed = holds(owner(volume, snapshot), volume)
        if recyclable(volume, claimed):
            return self._recycled(volume, snapshot)
        if not is_ours(volume, self.root) or not self._here(volume, snapshot):
            return []
        if released(volume, claimed):
            if sources.copied_to(volume, snapshot):
                return []
            path = f"{names.FILESYSTEM_DIR}/{volume.name}"
            return [Erase(path=path, volume=volume.name, uid=volume.metadata.uid)]
        return [] if volume.deleting else [data_of(volume)]

    def _here(self, volume: PersistentVolume, snapshot: Snapshot) -> bool:
        return fits_node(volume.spec.node_affinity, self.node, snapshot)

    def _recycled(self, volume: PersistentVolume, snapshot: Snapshot) -> Facts:
        source, (_, never) = volume.spec.host_path, impossible(volume, snapshot)
        if source is None or never or users_of(volume, snapshot) or not self._here(volume, snapshot):
            return []
        return [Scrub(path=source.path, volume=volume.name, uid=volume.metadata.uid)]


class VolumeData:
    """The driver of `Data`, `Erase` and `Scrub`.

    ``in_use(path)`` names who has the data published here, or ""; ``timed`` measures what takes long;
    ``grace``: seconds for which deleted data stays in the trash. It
    observes nothing on purpose: what is observed and wanted by nobody is swept, and data never is.
    """

    name = "volumes"
    accepts: tuple[type[Fact], ...] = (Data, Erase, Scrub)
    parallel = False

    def __init__(
        self,
        root: str | Path,
        store: Writer,
        in_use: Callable[[str], str],
        timed: Timed | None = None,
        grace: float = 0.0,
    ) -> None:
        self.root = Path(root)
        self.trash = Trash(self.root, TRASH, grace)
        self.store = store
        self.in_use = in_use
        self.timed: Timed = timed or (lambda *_: nullcontext())
        self._copies = Copies(self.root, store, self.trash, self.timed)

    def observe(self) -> Mapping[FactKey, Mark]:
        return {}

    def apply(self, plan: Plan) -> None:
        """Raises Unavailable while a volume is published, Conflict (decide again), KernelError."""
        facts = (*plan.add, *plan.change)
        patience = PATIENCE if len(facts) == 1 else 0
        copying = [fact for fact in facts if not self._copies.done(fact, patience)]
        for fact in facts:
            if fact not in copying:
                self._do(fact)
        if copying and len(facts) > 1:
            raise Conflict("some of these volumes are being copied, to be looked at one by one")
        if copying:
            raise Unavailable(f"{copying[0].path}: being copied from {copying[0].source}")

    def _do(self, fact: Data | Erase | Scrub) -> None:
        if isinstance(fact, Data) and not fact.source:
            self.grow(fact)
        elif isinstance(fact, Erase):
            self._erase(fact)
        elif isinstance(fact, Scrub):
            self._scrub(fact)

    # --- growth, removal ------------------------------------------------------------------------------

    def grow(self, fact: Data) -> None:
        """Make the data or let it grow, and note when the file system in it has the size."""
        key, told = Key(PersistentVolume.KIND, "", os.path.basename(fact.path)), []

        def tell(work: progress.Work) -> None:
            told.append(work)
            say(self.store, key, "Provisioning", f"{work.program}: {work}")

        with self.timed("volume_provision", fact.backend), progress.telling(0, tell):
            done = growth.ensure(self.root, fact)
        if told:
            say(self.store, key, "ProvisioningSucceeded", f"Successfully provisioned volume {key.name}")
        if fact.backend != "image" or not done:
            return
        volume = self.store.get(key)
        if not isinstance(volume, PersistentVolume):
            return
        if int(volume.metadata.annotations.get(names.GROWN, "0")) < fact.size:
            self.store.put(annotated(volume, {names.GROWN: str(fact.size)}), expect=volume.revision)

    def _scrub(self, fact: Scrub) -> None:
        volume = self.store.get(Key(PersistentVolume.KIND, "", fact.volume))
        if not isinstance(volume, PersistentVolume) or volume.metadata.uid != fact.uid:
            return
        if not recyclable(volume, self._claimed_now(volume)):
            raise Conflict(f"PersistentVolume {fact.volume} is not released any more; its data stays")
        user = self.in_use(fact.path)
        if user:
            raise Unavailable(f"PersistentVolume {fact.volume}: in use by {user}; unpublish it first")
        try:
            with self.timed("volume_recycle", "hostPath"):
                tree.scrub(fact.path, str(self.root))
        except NetplaneError as exc:
            failed = phased(volume, "Failed", str(exc), "VolumeFailedRecycle")
            self.store.put(failed, expect=volume.revision)
            raise
        self.store.put(events.told(volume, "reclaim", ("VolumeRecycled", "Volume recycled")))
        self.store.put(phased(unbound(volume), "Available"), expect=volume.revision)

    def _erase(self, fact: Erase) -> None:
        volume = self.store.get(Key(PersistentVolume.KIND, "", fact.volume))
        if not isinstance(volume, PersistentVolume) or volume.metadata.uid != fact.uid:
            return
        if not self._released_now(volume):
            raise Conflict(f"PersistentVolume {fact.volume} is not released any more; its data stays")
        user = self.in_use(str(self.root / fact.path))
        if user:
            raise Unavailable(f"PersistentVolume {fact.volume}: in use by {user}; unpublish it first")
        if self._copies.busy(fact.path, PATIENCE):
            raise Unavailable(f"PersistentVolume {fact.volume}: it is still being copied; it goes after that")
        try:
            with self.timed("volume_delete", backend_of(volume)):
                self.trash.take(fact.path, lambda: codec.encode(volume).decode())
        except KernelError as exc:
            failed = phased(volume, "Failed", str(exc), "VolumeFailedDelete")
            self.store.put(failed, expect=volume.revision)
            raise
        self._forget(volume)

    def _released_now(self, volume: PersistentVolume) -> bool:
        """The recheck on live objects."""
        return is_ours(volume, self.root) and released(volume, self._claimed_now(volume))

    def _claimed_now(self, volume: PersistentVolume) -> bool:
        """By the claim that is meant; another of that name is not the volume's."""
        ref = volume.spec.claim_ref
        claim = self.store.get(Key("PersistentVolumeClaim", ref.namespace, ref.name)) if ref else None
        return holds(claim, volume)

    def _forget(self, volume: PersistentVolume) -> None:
        """Delete the object, whose data is gone; the binder may be taking its own finalizer off now."""
        for _ in range(TRIES):
            fresh = self.store.get(volume.key)
            if fresh is None or fresh.metadata.uid != volume.metadata.uid:
                return
            try:
                if fresh.deleting:
                    self.store.put(without(fresh, names.DATA, names.PV_PROTECTION), expect=fresh.revision)
                else:
                    self.store.delete(fresh.key, expect=fresh.revision)
            except Conflict:
                continue
        raise Unavailable(f"{volume.key}: its data is removed, but others keep writing to the object")

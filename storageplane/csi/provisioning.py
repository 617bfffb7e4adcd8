"""The driver of `Provision`, `Withdraw`, `Grow`: volumes made, deleted and grown at CSI drivers; and of
`Capture` and `Discard`, snapshots taken and deleted there (`snapshotting`).

Rule 1: the intent first (`intents`), then CreateVolume, then the PersistentVolume, then the intent goes.
        What is observed at start is the intents: one that a claim still wants is carried on with, any
        other is taken back once the store is synced: the volume is deleted at its driver.
Rule 2: a volume is deleted only after the live object was read again, and not while it is published here.
Rule 3: every call is made again after a crash, so it rests on CSI's idempotency and on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from netplane.model.base import Key, amend
from netplane.model.errors import Conflict, Invalid, NetplaneError, NotFound, Unavailable
from netplane.model.facts import Fact, FactKey, Mark, Plan
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim, StorageClass
from netplane.model.storage_facts import Capture, Discard, Grow, Provision, Withdraw

from .. import names
from ..claims import events
from ..claims.reclaim import holds, released
from ..claims.steps import phased, without
from ..claims.writer import Writer
from . import shape
from .attach import Attachments
from .client import Client, Clients
from .intents import Intent, Intents
from .origin import origin
from .snapshotting import Snapshotting

TRIES = 10
UNFINISHED = "unfinished"


class CsiProvisioning:
    name = "csi"
    accepts: tuple[type[Fact], ...] = (Provision, Withdraw, Grow, Capture, Discard)
    parallel = False

    def __init__(self, root: Path, node: str, store: Writer, clients: Clients | None = None) -> None:
        self._node = node
        self._store = store
        self._clients = clients or Clients(root)
        self._intents = Intents(root)
        self._attached = Attachments(root, self._clients)
        self._snapshots = Snapshotting(root, store, self._clients)

    def observe(self) -> Mapping[FactKey, Mark]:
        volumes: dict[FactKey, Mark] = {
            ("provision", intent.name): UNFINISHED for intent in self._intents.all()
        }
        return volumes | {("capture", name): UNFINISHED for name in self._snapshots.unfinished()}

    def apply(self, plan: Plan) -> None:
        """Everything is tried; the first error is raised. Invalid, Conflict, Unavailable, KernelError."""
        failed: list[NetplaneError] = []
        for one in (*plan.remove, *plan.add, *plan.change):
            try:
                self._do(one)
            except NetplaneError as exc:
                failed.append(exc)
        if failed:
            raise failed[0]

    def _do(self, one: Any) -> None:
        if isinstance(one, Provision):
            self._told(one)
        elif isinstance(one, Withdraw):
            self._withdraw(one)
        elif isinstance(one, Grow):
            self._grow(one)
        elif isinstance(one, Capture):
            self._snapshots.capture(one.content, one.uid)
        elif isinstance(one, Discard):
            self._snapshots.discard(one.content, one.uid)
        elif one[0] == "provision":
            self._take_back(str(one[1]))
        elif one[0] == "capture":
            self._snapshots.take_back(str(one[1]))

    # --- make -------------------------------------------------------------------------------------

    def _told(self, fact: Provision) -> None:
        """Provision, and tell whoever looks at the claim what came of it."""
        try:
            self._provision(fact)
        except NetplaneError as exc:
            self._say(fact, ("ProvisioningFailed", str(exc)))
            raise
        self._say(fact, ("ProvisioningSucceeded", f"Successfully provisioned volume {fact.key[1]}"))

    def _say(self, fact: Provision, said: events.Said) -> None:
        claim = self._store.get(Key("PersistentVolumeClaim", fact.namespace, fact.claim))
        if claim is None or claim.metadata.uid != fact.uid:
            return
        events.tell(self._store, claim, "provision", said)

    def _provision(self, fact: Provision) -> None:
        claim = self._store.get(Key("PersistentVolumeClaim", fact.namespace, fact.claim))
        if not isinstance(claim, PersistentVolumeClaim) or claim.metadata.uid != fact.uid:
            return
        cls = self._store.get(Key("StorageClass", "", claim.spec.storage_class_name or ""))
        if not isinstance(cls, StorageClass):
            raise Unavailable(f"{claim.key}: its StorageClass is gone")
        client = self._clients.get(fact.driver)
        intent = self._intents.get(str(fact.key[1]))
        if intent is None:
            intent = self._intents.write(shape.intent(claim, cls, origin(claim, cls, self._store)))
        made = self._created(client, intent)
        intent = self._intents.write(msgspec.structs.replace(intent, handle=made.volume_id))
        volume = shape.volume(claim, cls, made, (self._hostname(), client))
        if self._recorded(volume):
            self._intents.remove(intent.name)
        else:
            self._take_back(intent.name)

    def _created(self, client: Client, intent: Intent) -> Any:
        """CSI's Volume. A final refusal leaves nothing there, so the intent goes too."""
        try:
            answer = client.call("CreateVolume", **shape.request(intent, client, self._secret(intent.secret)))
        except Invalid:
            self._intents.remove(intent.name)
            raise
        return answer.volume

    def _recorded(self, volume: PersistentVolume) -> bool:
        """Whether this volume is the one that stands in the store; another agent may have been first."""
        with suppress(Conflict):
            self._store.put(volume, expect=0)
            return True
        known = self._store.get(volume.key)
        return isinstance(known, PersistentVolume) and _same(known, volume)

    def _take_back(self, name: str) -> None:
        """An intent that nobody wants: its volume goes, unless the store knows it."""
        intent = self._intents.get(name)
        if intent is None:
            return
        known = self._store.get(Key(PersistentVolume.KIND, "", name))
        source = known.spec.csi if isinstance(known, PersistentVolume) else None
        client = self._clients.get(intent.driver)
        handle = intent.handle or self._learned(client, intent)
        if handle and not (source and source.volume_handle == handle and self._ours(known)):
            self._delete(client, handle, intent.secret)
        self._intents.remove(name)

    def _learned(self, client: Client, intent: Intent) -> str:
        """The handle that a call cut off by a crash would have answered: by asking again."""
        try:
            return str(self._created(client, intent).volume_id)
        except Invalid:
            return ""

    def _ours(self, volume: Any) -> bool:
        affinity = volume.spec.node_affinity
        return affinity is None or affinity == shape.on_node(self._hostname())

    # --- delete and grow ----------------------------------------------------------------------------

    def _withdraw(self, fact: Withdraw) -> None:
        volume = self._live(fact.volume, fact.uid)
        if volume is None or volume.spec.csi is None:
            return
        ref = volume.spec.claim_ref
        claim = self._store.get(Key("PersistentVolumeClaim", ref.namespace, ref.name)) if ref else None
        if not released(volume, holds(claim, volume)):
            raise Conflict(f"{volume.key} is not released any more; its data stays")
        handle = volume.spec.csi.volume_handle
        _, target = self._attached.places(fact.driver, handle)
        if target:
            raise Unavailable(f"{volume.key}: published at {target}; unpublish it first")
        try:
            self._delete(self._clients.get(fact.driver), handle, shape.secret_of(volume, "provisioner"))
        except Invalid as exc:
            self._store.put(phased(volume, "Failed", str(exc)), expect=volume.revision)
            raise
        self._forget(volume)

    def _delete(self, client: Client, handle: str, secret: tuple[str, str]) -> None:
        with suppress(NotFound):
            client.call("DeleteVolume", volume_id=handle, secrets=self._secret(secret))

    def _grow(self, fact: Grow) -> None:
        volume = self._live(fact.volume, fact.uid)
        if volume is None or volume.spec.csi is None:
            return
        client, handle = self._clients.get(fact.driver), volume.spec.csi.volume_handle
        size, onward = fact.size, True
        if client.can("Controller", "EXPAND_VOLUME"):
            secrets = self._secret(shape.secret_of(volume, "controller-expand"))
            more = {
                "capacity_range": {"required_bytes": fact.size},
                "secrets": secrets,
                "volume_capability": shape.capability_of(volume, client),
            }
            answer = client.call("ControllerExpandVolume", volume_id=handle, **more)
            size, onward = answer.capacity_bytes, answer.node_expansion_required
        elif not client.can("Node", "EXPAND_VOLUME"):
            raise Invalid(f"{volume.key}: driver {fact.driver} cannot expand volumes; make a larger one")
        if onward:
            self._grow_here(client, volume, size)
        self._note_size(volume, size, onward)

    def _grow_here(self, client: Client, volume: PersistentVolume, size: int) -> None:
        """Where it is published; else its next publication does it."""
        assert volume.spec.csi is not None
        handle = volume.spec.csi.volume_handle
        staging, target = self._attached.places(client.name, handle)
        if target and client.can("Node", "EXPAND_VOLUME"):
            client.call(
                "NodeExpandVolume",
                volume_id=handle,
                volume_path=target,
                staging_target_path=staging if client.can("Node", "STAGE_UNSTAGE_VOLUME") else "",
                capacity_range={"required_bytes": size},
                volume_capability=shape.capability_of(volume, client),
                secrets=self._secret(shape.secret_of(volume, "node-expand")),
            )

    def _note_size(self, volume: PersistentVolume, size: int, onward: bool) -> None:
        """The claim first: while the volume says less than the claim asks, all of this is done again."""
        ref = volume.spec.claim_ref
        claim = self._store.get(Key("PersistentVolumeClaim", ref.namespace, ref.name)) if ref else None
        have = {"storage": str(size)}
        if isinstance(claim, PersistentVolumeClaim) and holds(claim, volume):
            self._store.put(amend(claim, status=amend(claim.status, capacity=have)), expect=claim.revision)
        notes = {names.NODE_EXPAND: str(size)} if onward else {}
        meta = amend(volume.metadata, annotations={**volume.metadata.annotations, **notes})
        larger = amend(volume, metadata=meta, spec=amend(volume.spec, capacity=have))
        self._store.put(larger, expect=volume.revision)

    # --- helpers ------------------------------------------------------------------------------------

    def _live(self, name: str, uid: str) -> PersistentVolume | None:
        found = self._store.get(Key(PersistentVolume.KIND, "", name))
        return found if isinstance(found, PersistentVolume) and found.metadata.uid == uid else None

    def _forget(self, volume: PersistentVolume) -> None:
        """Delete the object; the binder may be taking its own finalizer off at this moment."""
        for _ in range(TRIES):
            fresh = self._live(volume.name, volume.metadata.uid)
            if fresh is None:
                return
            with suppress(Conflict):
                if fresh.deleting:
                    self._store.put(without(fresh, names.DATA, names.PV_PROTECTION), expect=fresh.revision)
                else:
                    self._store.delete(fresh.key, expect=fresh.revision)
        raise Unavailable(f"{volume.key}: deleted at its driver, but others keep writing to the object")

    def _hostname(self) -> str:
        found = self._store.get(Key("Node", "", self._node))
        return found.metadata.labels.get(names.HOSTNAME, self._node) if found else self._node

    def _secret(self, named: tuple[str, str]) -> dict[str, str]:
        if not named[1]:
            return {}
        return shape.opened(self._store.get(Key("Secret", *named)), named)


def _same(known: PersistentVolume, mine: PersistentVolume) -> bool:
    have, want = known.spec.csi, mine.spec.csi
    return (
        have is not None
        and want is not None
        and (have.driver, have.volume_handle) == (want.driver, want.volume_handle)
        and known.spec.node_affinity == mine.spec.node_affinity
    )

"""Claims and volumes of CSI drivers into facts: what is to be made, grown and deleted there. Pure.

Rule 1: the same claims are served as by any provisioner: unbound, unmatched, of this node's consumer.
Rule 2: a volume is deleted at its driver only when it is released, its policy is Delete, and it was
        provisioned by that driver; `csi.provisioning` reads it again before it does.
"""

from __future__ import annotations

from collections.abc import Iterable

from netplane.model.changes import Event
from netplane.model.facts import Facts, Scope
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim, StorageClass
from netplane.model.storage_facts import Grow, Provision, Withdraw
from netplane.model.volumesnapshots import VolumeSnapshotContent

from .. import names
from ..claims import match
from ..claims.capture import content_scopes, due
from ..claims.reclaim import holds, released
from ..claims.scopes import claim_scopes, volume_scopes
from ..claims.steps import owner


class CsiVolumes:
    """The room of volumes that other drivers make. ``drivers``: the names of those that are here."""

    name = "csi"

    def __init__(self, node: str, drivers: tuple[str, ...]) -> None:
        self.node = node
        self.drivers = drivers

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        contents = content_scopes(self.name, event, snapshot)
        claims = claim_scopes(self.name, event, snapshot)
        return {*claims, *volume_scopes(self.name, event, snapshot), *contents}

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        kind, _, name = scope.name.partition("/")
        if kind == "claim":
            namespace, _, name = name.partition("/")
            claim = snapshot.get(PersistentVolumeClaim, namespace, name)
            return self._wanted(claim, snapshot) if claim else []
        if kind == "content":
            content = snapshot.get(VolumeSnapshotContent, "", name)
            return self._snapshot(content, snapshot) if content else []
        volume = snapshot.get(PersistentVolume, "", name)
        return self._due(volume, snapshot) if volume else []

    def _wanted(self, claim: PersistentVolumeClaim, snapshot: Snapshot) -> Facts:
        cls = match.class_of(claim, snapshot)
        if cls is None or cls.provisioner not in self.drivers or claim.deleting or claim.spec.volume_name:
            return []
        if not claim.metadata.uid or match.find(claim, snapshot) is not None:
            return []
        place = match.consumer_node(claim, snapshot)
        if place != self.node and (place or match.waits(claim, snapshot)):
            return []
        uid = claim.metadata.uid
        return [Provision(namespace=claim.namespace, claim=claim.name, uid=uid, driver=cls.provisioner)]

    def _due(self, volume: PersistentVolume, snapshot: Snapshot) -> Facts:
        driver = self.driver_of(volume)
        if not driver or not match.fits_node(volume.spec.node_affinity, self.node, snapshot):
            return []
        claim = owner(volume, snapshot)
        if released(volume, holds(claim, volume)):
            return [Withdraw(volume=volume.name, uid=volume.metadata.uid, driver=driver)]
        size = asked(volume, claim, snapshot)
        if volume.deleting or size <= match.capacity(volume):
            return []
        return [Grow(volume=volume.name, uid=volume.metadata.uid, driver=driver, size=size)]

    def _snapshot(self, content: VolumeSnapshotContent, snapshot: Snapshot) -> Facts:
        host = content.metadata.annotations.get(names.SNAPSHOT_HOST)
        elsewhere = host is not None and host != match.hostname(self.node, snapshot)
        return [] if content.spec.driver not in self.drivers or elsewhere else due(content, snapshot)

    def driver_of(self, volume: PersistentVolume) -> str:
        """The driver that made it, if it is one of ours to call."""
        source = volume.spec.csi
        made = volume.metadata.annotations.get(names.PROVISIONED_BY)
        return source.driver if source and source.driver == made and made in self.drivers else ""


def asked(volume: PersistentVolume, claim: PersistentVolumeClaim | None, snapshot: Snapshot) -> int:
    """Bytes that the bound claim asks for, where its class lets it grow; else 0."""
    if claim is None or claim.spec.volume_name != volume.name:
        return 0
    cls = snapshot.get(StorageClass, "", volume.spec.storage_class_name)
    return match.requested(claim) if cls is not None and cls.allow_volume_expansion else 0

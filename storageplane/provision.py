"""Dynamic provisioning on directories: a claim and its class into a PersistentVolume. Pure.

Rule 1: the volume object is the intent and is written first, under the name pvc-<claim UID>, so two
        agents or a crash can never make two. Its directory is a fact of that object (`Data`), so it
        follows whatever happens in between.
Rule 2: a directory does not enforce its size; the volume says so in an annotation.
Rule 3: a volume lies on one node, and its affinity says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from netplane.model.base import ObjectMeta
from netplane.model.changes import Event, Put, Write
from netplane.model.facts import Scope
from netplane.model.nodes import Node
from netplane.model.snapshot import Snapshot
from netplane.model.storage import (
    LocalSource,
    NodeSelector,
    NodeSelectorRequirement,
    NodeSelectorTerm,
    PersistentVolume,
    PersistentVolumeClaim,
    PersistentVolumeSpec,
    StorageClass,
    VolumeNodeAffinity,
)

from . import match, names
from .events import note
from .scopes import claim_scopes
from .steps import annotated, reference


def volume_name(claim: PersistentVolumeClaim) -> str:
    return f"pvc-{claim.metadata.uid}"


class Provisioner:
    """Makes volumes for the claims of this node. ``provisioners``: the class names it answers to."""

    name = "provision"

    def __init__(self, node: str, root: str | Path, provisioners: tuple[str, ...] = (names.DIRECTORY,)):
        self.node = node
        self.root = Path(root)
        self.provisioners = provisioners

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        return claim_scopes(self.name, event, snapshot)

    def decide(self, scope: Scope, snapshot: Snapshot) -> Iterable[Write]:
        namespace, _, name = scope.name.removeprefix("claim/").partition("/")
        claim = snapshot.get(PersistentVolumeClaim, namespace, name)
        cls = match.class_of(claim, snapshot) if claim else None
        if claim is None or cls is None or not self._wanted(claim, cls, snapshot):
            return []
        refusal = refused(claim, cls)
        if refusal:
            return list(note(claim, "provision", ("ProvisioningFailed", refusal), snapshot))
        return [step for step in (next(self._steps(claim, cls, snapshot), None),) if step is not None]

    def _wanted(self, claim: PersistentVolumeClaim, cls: StorageClass, snapshot: Snapshot) -> bool:
        if cls.provisioner not in self.provisioners or claim.deleting or claim.spec.volume_name:
            return False
        if not claim.metadata.uid or match.find(claim, snapshot) is not None:
            return False
        place = match.consumer_node(claim, snapshot)
        return place == self.node or (not place and not match.waits(claim, snapshot))

    def _steps(self, claim: PersistentVolumeClaim, cls: StorageClass, snapshot: Snapshot) -> Iterator[Write]:
        if claim.metadata.annotations.get(names.STORAGE_PROVISIONER) != cls.provisioner:
            asked = annotated(claim, {names.STORAGE_PROVISIONER: cls.provisioner})
            yield Put(asked, claim.revision)
        yield from note(claim, "provision", None, snapshot)
        if snapshot.get(PersistentVolume, "", volume_name(claim)) is None:
            yield Put(self.volume(claim, cls, self._hostname(snapshot)), 0)

    def _hostname(self, snapshot: Snapshot) -> str:
        found = snapshot.get(Node, "", self.node)
        return found.labels.get(names.HOSTNAME, self.node) if found else self.node

    def volume(self, claim: PersistentVolumeClaim, cls: StorageClass, hostname: str) -> PersistentVolume:
        """The volume of a claim, already prebound to it."""
        name = volume_name(claim)
        asked = claim.spec.resources.requests["storage"]
        meta = ObjectMeta(
            name=name,
            annotations={
                names.PROVISIONED_BY: cls.provisioner,
                names.BOUND_BY_CONTROLLER: "yes",
                names.SIZE_ENFORCED: "false",
            },
            finalizers=(names.PV_PROTECTION, names.DATA),
        )
        spec = PersistentVolumeSpec(
            capacity={"storage": asked},
            access_modes=claim.spec.access_modes,
            persistent_volume_reclaim_policy=cls.reclaim_policy,
            storage_class_name=cls.name,
            mount_options=cls.mount_options,
            claim_ref=reference(claim),
            local=LocalSource(path=str(self.root / names.FILESYSTEM_DIR / name)),
            node_affinity=on_host(hostname),
        )
        return PersistentVolume(metadata=meta, spec=spec)


def on_host(hostname: str) -> VolumeNodeAffinity:
    need = NodeSelectorRequirement(key=names.HOSTNAME, operator="In", values=(hostname,))
    term = NodeSelectorTerm(match_expressions=(need,))
    return VolumeNodeAffinity(required=NodeSelector(node_selector_terms=(term,)))


def refused(claim: PersistentVolumeClaim, cls: StorageClass) -> str:
    """Why the directory backend cannot serve this claim; "" when it can."""
    if claim.spec.volume_mode == "Block":
        return "spec.volumeMode Block: a directory is not a block device; use Filesystem"
    if claim.spec.selector is not None:
        return "spec.selector: dynamic provisioning knows no selectors; remove it or bind statically"
    if claim.spec.data_source is not None or claim.spec.data_source_ref is not None:
        return "spec.dataSource: directories cannot be cloned or restored yet; remove it"
    if claim.spec.volume_attributes_class_name:
        return "spec.volumeAttributesClassName: a directory has no attributes to modify; remove it"
    if cls.parameters:
        return f"StorageClass {cls.name}: unknown parameters {', '.join(sorted(cls.parameters))}"
    if cls.allowed_topologies:
        return f"StorageClass {cls.name}: allowedTopologies is not supported; use WaitForFirstConsumer"
    if cls.mount_options:
        return f"StorageClass {cls.name}: mountOptions do not apply to a directory; remove them"
    return ""


def is_ours(volume: PersistentVolume, root: str | Path) -> bool:
    """Whether the volume's data is a directory that this root holds, exactly at its name."""
    local = volume.spec.local
    expected = str(Path(root) / names.FILESYSTEM_DIR / volume.name)
    made = names.DATA in volume.metadata.finalizers or names.PROVISIONED_BY in volume.metadata.annotations
    return made and local is not None and local.path == expected and "/" not in volume.name

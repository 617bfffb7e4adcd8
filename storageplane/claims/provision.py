"""Dynamic provisioning on this node: a claim and its class into a PersistentVolume. Pure but for `Site`.

Rule 1: the volume object is the intent and is written first, under the name pvc-<claim UID>, so two
        agents or a crash can never make two. Its data is a fact of that object (`Data`), so it
        follows whatever happens in between.
Rule 2: what does not enforce its size says so in an annotation. What does is admitted only if there is
        room for all of it, promised volumes counted, unless its class overcommits.
Rule 3: a volume lies on one node, and its affinity says which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from netplane.model.base import ObjectMeta
from netplane.model.changes import Event, Put, Write
from netplane.model.errors import Invalid, Unavailable
from netplane.model.facts import Scope
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
from netplane.model.storage_facts import Data

from .. import backends, names
from . import match, sources, steps
from .events import note
from .scopes import claim_scopes, static
from .steps import annotated, reference


def volume_name(claim: PersistentVolumeClaim) -> str:
    return f"pvc-{claim.metadata.uid}"


class Wish(NamedTuple):
    """What is to be made for a claim; ``source``: as a copy of what."""

    choice: backends.Choice
    source: sources.Source | None = None


class Site(Protocol):
    """What the provisioner asks of the machine."""

    def machine(self) -> backends.Machine: ...

    def made(self, volume: str) -> bool:
        """Whether the data of a volume stands, so that `machine` has counted it."""
        ...


class Here:
    """The machine beneath a root."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def machine(self) -> backends.Machine:
        return backends.look(self.root)

    def made(self, volume: str) -> bool:
        return (self.root / names.FILESYSTEM_DIR / volume).exists()


def _served(claim: PersistentVolumeClaim) -> bool:
    """Whether it has a volume, and not by a provisioner: then there is nothing to do or to say."""
    return bool(claim.spec.volume_name) and names.STORAGE_PROVISIONER not in claim.metadata.annotations


class Provisioner:
    """Makes volumes for the claims of this node. ``provisioners``: the class names it answers to."""

    name = "provision"
    together = True

    def __init__(
        self,
        node: str,
        root: str | Path,
        provisioners: tuple[str, ...] = (names.DIRECTORY, names.LOCAL),
        site: Site | None = None,
    ):
        self.node = node
        self.root = Path(root)
        self.provisioners = provisioners
        self.site = site or Here(root)

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        """A volume that went may have left room: then all claims that wait."""
        if event is not None and event.new is None and isinstance(event.old, PersistentVolume):
            waiting = snapshot.by(PersistentVolumeClaim, "volume", "")
            return {Scope(self.name, f"claim/{match.claim_key(c)}") for c in waiting}
        claim = event.new if event is not None else None
        if static(event) or (isinstance(claim, PersistentVolumeClaim) and _served(claim)):
            return ()
        return claim_scopes(self.name, event, snapshot)

    def decide(self, scope: Scope, snapshot: Snapshot) -> list[Write]:
        namespace, _, name = scope.name.removeprefix("claim/").partition("/")
        claim = snapshot.get(PersistentVolumeClaim, namespace, name)
        if claim is None:
            return []
        volume = snapshot.get(PersistentVolume, "", volume_name(claim))
        if volume is not None and self._made(volume, claim):
            done = f"Successfully provisioned volume {volume_name(claim)}"
            said = note(claim, "provision", ("ProvisioningSucceeded", done), snapshot)
            return list(said) if sources.whole(volume) else []
        cls = match.class_of(claim, snapshot)
        if cls is None or not self._wanted(claim, cls, snapshot):
            return []
        try:
            wish = self._wish(claim, cls, snapshot)
        except (Invalid, Unavailable) as exc:
            return list(note(claim, "provision", ("ProvisioningFailed", str(exc)), snapshot))
        return steps.together(self._steps(claim, cls, wish, snapshot)) if wish else []

    def _made(self, volume: PersistentVolume, claim: PersistentVolumeClaim) -> bool:
        return is_ours(volume, self.root) and match.refers(volume.spec.claim_ref, claim)

    def _wish(self, claim: PersistentVolumeClaim, cls: StorageClass, snapshot: Snapshot) -> Wish | None:
        """What is to be made; None when it is another node's to make. Raises Invalid, Unavailable."""
        refusal = refused(claim, cls)
        if refusal:
            raise Invalid(refusal)
        source = sources.find(claim, snapshot)
        if source is not None and source.host not in ("", match.hostname(self.node, snapshot)):
            if match.consumer_node(claim, snapshot) == self.node:
                raise Invalid(f"{source.words} lies on node {source.host}, its pod is on {self.node}")
            return None
        choice = self._choice(cls, claim.spec.volume_mode == "Block", source)
        lacks = self._room(claim, choice, snapshot)
        if lacks:
            raise Unavailable(lacks)
        return Wish(choice, source)

    def _wanted(self, claim: PersistentVolumeClaim, cls: StorageClass, snapshot: Snapshot) -> bool:
        if cls.provisioner not in self.provisioners or claim.deleting or claim.spec.volume_name:
            return False
        if not claim.metadata.uid or match.find(claim, snapshot) is not None:
            return False
        place = match.consumer_node(claim, snapshot)
        return place == self.node or (not place and not match.waits(claim, snapshot))

    def _choice(self, cls: StorageClass, block: bool, source: sources.Source | None) -> backends.Choice:
        """The backend of a class. Raises Invalid for parameters that are wrong or cannot be had here."""
        default = "" if cls.provisioner == names.LOCAL else "directory"
        asked = source.fstype if source else ""
        if source is not None:
            default = source.backend
            for key, have in (("backend", source.backend), ("fsType", source.fstype)):
                if cls.parameters.get(key, have) != have:
                    what = f"{source.words} is {have or 'without one'}; use a class that says so, or nothing"
                    raise Invalid(f"StorageClass {cls.name}: parameters[{key}]: {what}")
        if default == "directory" and not (cls.parameters or block):
            return backends.Choice(default, "", False)
        try:
            return backends.choose(cls.parameters, block, self.site.machine(), asked, default)
        except Invalid as exc:
            raise Invalid(f"StorageClass {cls.name}: {exc}") from None

    def _room(self, claim: PersistentVolumeClaim, choice: backends.Choice, snapshot: Snapshot) -> str:
        """Why the claim's size cannot be had, or ""."""
        size = match.requested(claim)
        if choice.enforced and size < choice.least():
            what = choice.fstype or choice.backend
            return f"{size} bytes are too few for {what}: ask for at least {choice.least()}"
        if not choice.enforced:
            return ""
        coming = [v for v in snapshot.list(PersistentVolume) if self._promised(v, choice.backend)]
        lacks = backends.admit(
            choice, backends.rounded(size), self.site.machine(), sum(match.capacity(v) for v in coming)
        )
        return f"ResourceExhausted: {lacks}; free some, or set overcommit in the class" if lacks else ""

    def _promised(self, volume: PersistentVolume, backend: str) -> bool:
        """Whether it is to be here and draws on the same, and `Site.machine` has not seen it yet."""
        notes = volume.metadata.annotations
        mine = is_ours(volume, self.root) and volume.spec.node_affinity == on_host(self.node)
        if not mine or names.OVERCOMMIT in notes or self.site.made(volume.name):
            return False
        draws = backends.BACKENDS[backend_of(volume)].draws
        return draws == backends.BACKENDS[backend].draws

    def _steps(
        self, claim: PersistentVolumeClaim, cls: StorageClass, wish: Wish, snapshot: Snapshot
    ) -> Iterator[Write]:
        asked = {names.STORAGE_PROVISIONER: cls.provisioner}
        if match.waits(claim, snapshot):
            asked[names.SELECTED_NODE] = self.node
        if not asked.items() <= claim.metadata.annotations.items():
            yield steps.put(annotated(claim, asked))
        yield Put(self.volume(claim, cls, wish, match.hostname(self.node, snapshot)), 0)

    def volume(
        self, claim: PersistentVolumeClaim, cls: StorageClass, wish: Wish, hostname: str
    ) -> PersistentVolume:
        """The volume of a claim, already prebound to it."""
        name, (choice, source) = volume_name(claim), wish
        asked, size = claim.spec.resources.requests["storage"], match.requested(claim)
        whole = backends.rounded(size)
        notes = {
            names.PROVISIONED_BY: cls.provisioner,
            names.BOUND_BY_CONTROLLER: "yes",
            names.SIZE_ENFORCED: str(choice.enforced).lower(),
            names.BACKEND: choice.backend,
        }
        if choice.backend == "image":
            notes[names.GROWN] = str(source.size if source else whole)
        if source is not None:
            notes[names.SOURCE] = source.path
        if choice.overcommit:
            notes[names.OVERCOMMIT] = "true"
        meta = ObjectMeta(name=name, annotations=notes, finalizers=(names.PV_PROTECTION, names.DATA))
        spec = PersistentVolumeSpec(
            capacity={"storage": str(whole) if choice.enforced and whole != size else asked},
            access_modes=claim.spec.access_modes,
            volume_mode=claim.spec.volume_mode,
            persistent_volume_reclaim_policy=cls.reclaim_policy,
            storage_class_name=cls.name,
            mount_options=cls.mount_options,
            claim_ref=reference(claim),
            local=LocalSource(path=str(self.root / names.FILESYSTEM_DIR / name), fs_type=choice.fstype),
            node_affinity=on_host(hostname),
        )
        return PersistentVolume(metadata=meta, spec=spec)


def backend_of(volume: PersistentVolume) -> str:
    return volume.metadata.annotations.get(names.BACKEND, "directory")


def data_of(volume: PersistentVolume) -> Data:
    """The data that one of our volumes is to have."""
    path, backend = f"{names.FILESYSTEM_DIR}/{volume.name}", backend_of(volume)
    source = "" if sources.whole(volume) else volume.metadata.annotations[names.SOURCE]
    over = names.OVERCOMMIT in volume.metadata.annotations
    if backend == "directory":
        return Data(path=path, source=source, overcommit=over and bool(source))
    return Data(
        path=path,
        backend=backend,
        size=backends.rounded(match.capacity(volume)),
        fstype=volume.spec.local.fs_type if volume.spec.local else "",
        block=volume.spec.volume_mode == "Block",
        source=source,
        overcommit=over,
    )


def on_host(hostname: str) -> VolumeNodeAffinity:
    need = NodeSelectorRequirement(key=names.HOSTNAME, operator="In", values=(hostname,))
    term = NodeSelectorTerm(match_expressions=(need,))
    return VolumeNodeAffinity(required=NodeSelector(node_selector_terms=(term,)))


def refused(claim: PersistentVolumeClaim, cls: StorageClass) -> str:
    """Why no volume of ours can be what this claim asks for, or ""."""
    if claim.spec.selector is not None:
        return "spec.selector: dynamic provisioning knows no selectors; remove it or bind statically"
    if claim.spec.volume_attributes_class_name:
        return "spec.volumeAttributesClassName: these volumes have no attributes to modify; remove it"
    if cls.allowed_topologies:
        return f"StorageClass {cls.name}: allowedTopologies is not supported; use WaitForFirstConsumer"
    if cls.mount_options:
        return f"StorageClass {cls.name}: mountOptions do not apply to these volumes; remove them"
    return ""


def is_ours(volume: PersistentVolume, root: str | Path) -> bool:
    """Whether the volume's data is a directory that this root holds, exactly at its name."""
    local = volume.spec.local
    expected = str(Path(root) / names.FILESYSTEM_DIR / volume.name)
    made = names.DATA in volume.metadata.finalizers or names.PROVISIONED_BY in volume.metadata.annotations
    return made and local is not None and local.path == expected and "/" not in volume.name

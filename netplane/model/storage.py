"""PersistentVolume, PersistentVolumeClaim, StorageClass, ConfigMap, Secret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from msgspec import field

from . import checks
from .base import Fault, Object, Struct
from .nodes import Condition
from .selectors import LabelSelector
from .services import ObjectReference
from .volumes import CephFSSource, GlusterfsSource, HostPathSource, NFSSource, check_host_path

ACCESS_MODES = ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")
VOLUME_MODES = ("Filesystem", "Block")
RECLAIM_POLICIES = ("Retain", "Delete", "Recycle")
Resources = dict[str, str | int | float]


class NodeSelectorRequirement(Struct, frozen=True, kw_only=True):
    key: str
    operator: str  # In, NotIn, Exists, DoesNotExist, Gt, Lt
    values: tuple[str, ...] = ()


class NodeSelectorTerm(Struct, frozen=True, kw_only=True):
    match_expressions: tuple[NodeSelectorRequirement, ...] = ()
    match_fields: tuple[NodeSelectorRequirement, ...] = ()


class NodeSelector(Struct, frozen=True, kw_only=True):
    node_selector_terms: tuple[NodeSelectorTerm, ...]


class VolumeNodeAffinity(Struct, frozen=True, kw_only=True):
    required: NodeSelector | None = None


class LocalSource(Struct, frozen=True, kw_only=True):
    path: str
    fs_type: str = ""


class CSIVolumeSource(Struct, frozen=True, kw_only=True):
    driver: str
    volume_handle: str
    read_only: bool = False
    fs_type: str = ""
    volume_attributes: dict[str, str] = {}
    controller_publish_secret_ref: Any = None
    node_stage_secret_ref: Any = None
    node_publish_secret_ref: Any = None
    controller_expand_secret_ref: Any = None
    node_expand_secret_ref: Any = None


class PersistentVolumeSpec(Struct, frozen=True, kw_only=True):
    capacity: Resources = {}
    access_modes: tuple[str, ...] = ()
    volume_mode: str = "Filesystem"
    persistent_volume_reclaim_policy: str = "Retain"
    storage_class_name: str = ""
    claim_ref: ObjectReference | None = None
    mount_options: tuple[str, ...] = ()
    node_affinity: VolumeNodeAffinity | None = None
    volume_attributes_class_name: str = ""
    host_path: HostPathSource | None = None
    local: LocalSource | None = None
    nfs: NFSSource | None = None
    csi: CSIVolumeSource | None = None
    cephfs: CephFSSource | None = None
    glusterfs: GlusterfsSource | None = None
    iscsi: dict[str, Any] | None = None
    fc: dict[str, Any] | None = None
    rbd: dict[str, Any] | None = None


class PersistentVolumeStatus(Struct, frozen=True, kw_only=True):
    phase: str = ""  # "" or Pending, Available, Bound, Released, Failed
    message: str = ""
    reason: str = ""
    last_phase_transition_time: str = ""


class PersistentVolume(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "PersistentVolume"
    NAMESPACED: ClassVar[bool] = False

    spec: PersistentVolumeSpec = field(default_factory=PersistentVolumeSpec)
    status: PersistentVolumeStatus = field(default_factory=PersistentVolumeStatus)

    SOURCES: ClassVar[tuple[str, ...]] = (
        "host_path", "local", "nfs", "csi", "cephfs", "glusterfs", "iscsi", "fc", "rbd",
    )  # fmt: skip

    @property
    def source(self) -> str:
        """The field name of the source that is set, or ""."""
        return next((s for s in self.SOURCES if getattr(self.spec, s) is not None), "")

    def check(self) -> Iterator[Fault]:
        spec = self.spec
        yield from checks.dns_subdomain("metadata.name", self.name)
        if "storage" not in spec.capacity:
            yield "spec.capacity.storage", "required"
        else:
            yield from checks.quantity("spec.capacity.storage", spec.capacity["storage"])
        yield from check_modes("spec", spec.access_modes, spec.volume_mode)
        policy = spec.persistent_volume_reclaim_policy
        yield from checks.one_of("spec.persistentVolumeReclaimPolicy", policy, RECLAIM_POLICIES)
        have = [s for s in self.SOURCES if getattr(spec, s) is not None]
        if len(have) != 1:
            yield "spec", f"a volume has exactly one source; this one has {', '.join(have) or 'none'}"
        if spec.host_path:
            yield from check_host_path("spec.hostPath", spec.host_path)
        if spec.local and not (spec.node_affinity and spec.node_affinity.required):
            yield "spec.nodeAffinity", "required for a local volume"


class ClaimSpec(Struct, frozen=True, kw_only=True):
    access_modes: tuple[str, ...] = ()
    resources: ClaimResources = field(default_factory=lambda: ClaimResources())
    storage_class_name: str | None = None  # None: the default class; "": no class
    volume_name: str = ""
    volume_mode: str = "Filesystem"
    selector: LabelSelector | None = None
    data_source: Any = None
    data_source_ref: Any = None
    volume_attributes_class_name: str = ""


class ClaimResources(Struct, frozen=True, kw_only=True):
    requests: Resources = {}
    limits: Resources = {}


class ClaimStatus(Struct, frozen=True, kw_only=True):
    phase: str = ""  # "" or Pending, Bound, Lost
    access_modes: tuple[str, ...] = ()
    capacity: Resources = {}
    conditions: tuple[Condition, ...] = ()
    allocated_resources: Resources = {}
    allocated_resource_statuses: dict[str, str] = {}
    current_volume_attributes_class_name: str = ""
    modify_volume_status: Any = None


class PersistentVolumeClaim(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "PersistentVolumeClaim"

    spec: ClaimSpec = field(default_factory=ClaimSpec)
    status: ClaimStatus = field(default_factory=ClaimStatus)

    def check(self) -> Iterator[Fault]:
        spec = self.spec
        yield from checks.dns_subdomain("metadata.name", self.name)
        if "storage" not in spec.resources.requests:
            yield "spec.resources.requests.storage", "required"
        else:
            size = spec.resources.requests["storage"]
            yield from checks.quantity("spec.resources.requests.storage", size)
        yield from check_modes("spec", spec.access_modes, spec.volume_mode)
        if spec.selector:
            yield from spec.selector.check("spec.selector")


class StorageClass(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "StorageClass"
    API_VERSION: ClassVar[str] = "storage.k8s.io/v1"
    NAMESPACED: ClassVar[bool] = False

    DEFAULT: ClassVar[str] = "storageclass.kubernetes.io/is-default-class"

    provisioner: str
    parameters: dict[str, str] = {}
    reclaim_policy: str = "Delete"
    volume_binding_mode: str = "Immediate"
    allow_volume_expansion: bool = False
    mount_options: tuple[str, ...] = ()
    allowed_topologies: Any = None

    @property
    def is_default(self) -> bool:
        return self.metadata.annotations.get(self.DEFAULT) == "true"

    def check(self) -> Iterator[Fault]:
        yield from checks.dns_subdomain("metadata.name", self.name)
        yield from checks.one_of("reclaimPolicy", self.reclaim_policy, ("Retain", "Delete"))
        modes = ("Immediate", "WaitForFirstConsumer")
        yield from checks.one_of("volumeBindingMode", self.volume_binding_mode, modes)


class ConfigMap(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "ConfigMap"

    data: dict[str, str] = {}
    binary_data: dict[str, str] = {}  # base64
    immutable: bool = False

    def check(self) -> Iterator[Fault]:
        yield from checks.data_keys("data", self.data)
        yield from checks.data_keys("binaryData", self.binary_data)
        yield from checks.base64_values("binaryData", self.binary_data)
        for key in self.data.keys() & self.binary_data.keys():
            yield f"binaryData[{key}]", "the key stands in data too"


class Secret(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "Secret"

    data: dict[str, str] = {}  # base64
    string_data: dict[str, str] = {}
    type: str = "Opaque"
    immutable: bool = False

    def check(self) -> Iterator[Fault]:
        yield from checks.data_keys("data", self.data)
        yield from checks.data_keys("stringData", self.string_data)
        yield from checks.base64_values("data", self.data)


def check_modes(path: str, access: tuple[str, ...], mode: str) -> Iterator[Fault]:
    if not access:
        yield f"{path}.accessModes", "at least one access mode is required"
    for i, value in enumerate(access):
        yield from checks.one_of(f"{path}.accessModes[{i}]", value, ACCESS_MODES)
    if "ReadWriteOncePod" in access and len(access) > 1:
        yield f"{path}.accessModes", "ReadWriteOncePod stands alone"
    yield from checks.one_of(f"{path}.volumeMode", mode, VOLUME_MODES)

"""VolumeSnapshotClass, VolumeSnapshot and VolumeSnapshotContent (snapshot.storage.k8s.io/v1).

Source: kubernetes-csi/external-snapshotter, client/apis/volumesnapshot/v1/types.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from msgspec import field

from . import checks
from .base import Fault, Object, Struct
from .services import ObjectReference

GROUP = "snapshot.storage.k8s.io"
DELETION_POLICIES = ("Delete", "Retain")


class VolumeSnapshotClass(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "VolumeSnapshotClass"
    API_VERSION: ClassVar[str] = f"{GROUP}/v1"
    NAMESPACED: ClassVar[bool] = False

    DEFAULT: ClassVar[str] = "snapshot.storage.kubernetes.io/is-default-class"

    driver: str
    deletion_policy: str
    parameters: dict[str, str] = {}

    @property
    def is_default(self) -> bool:
        return self.metadata.annotations.get(self.DEFAULT) == "true"

    def check(self) -> Iterator[Fault]:
        if not self.driver:
            yield "driver", "required"
        yield from checks.one_of("deletionPolicy", self.deletion_policy, DELETION_POLICIES)


class SnapshotError(Struct, frozen=True, kw_only=True):
    time: str = ""
    message: str = ""


class SnapshotSource(Struct, frozen=True, kw_only=True):
    persistent_volume_claim_name: str = ""
    volume_snapshot_content_name: str = ""


class SnapshotSpec(Struct, frozen=True, kw_only=True):
    source: SnapshotSource
    volume_snapshot_class_name: str | None = None  # None: the default class of the volume's driver


class SnapshotStatus(Struct, frozen=True, kw_only=True):
    bound_volume_snapshot_content_name: str = ""
    creation_time: str = ""
    ready_to_use: bool = False
    restore_size: str | int | float = ""  # a quantity
    error: SnapshotError | None = None
    volume_group_snapshot_name: str = ""


class VolumeSnapshot(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "VolumeSnapshot"
    API_VERSION: ClassVar[str] = f"{GROUP}/v1"

    spec: SnapshotSpec
    status: SnapshotStatus = field(default_factory=SnapshotStatus)

    def check(self) -> Iterator[Fault]:
        source = self.spec.source
        if bool(source.persistent_volume_claim_name) == bool(source.volume_snapshot_content_name):
            yield "spec.source", "name one: persistentVolumeClaimName or volumeSnapshotContentName"
        if self.spec.volume_snapshot_class_name == "":
            yield "spec.volumeSnapshotClassName", "leave it out for the default class; it may not be empty"


class ContentSource(Struct, frozen=True, kw_only=True):
    volume_handle: str = ""
    snapshot_handle: str = ""


class ContentSpec(Struct, frozen=True, kw_only=True):
    deletion_policy: str
    driver: str
    source: ContentSource
    volume_snapshot_ref: ObjectReference
    source_volume_mode: str = ""
    volume_snapshot_class_name: str = ""


class ContentStatus(Struct, frozen=True, kw_only=True):
    creation_time: int = 0  # nanoseconds since the epoch
    ready_to_use: bool = False
    restore_size: int = 0  # bytes
    snapshot_handle: str = ""
    error: SnapshotError | None = None
    volume_group_snapshot_handle: str = ""


class VolumeSnapshotContent(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "VolumeSnapshotContent"
    API_VERSION: ClassVar[str] = f"{GROUP}/v1"
    NAMESPACED: ClassVar[bool] = False

    spec: ContentSpec
    status: ContentStatus = field(default_factory=ContentStatus)

    def check(self) -> Iterator[Fault]:
        spec = self.spec
        yield from checks.one_of("spec.deletionPolicy", spec.deletion_policy, DELETION_POLICIES)
        if not spec.driver:
            yield "spec.driver", "required"
        if bool(spec.source.volume_handle) == bool(spec.source.snapshot_handle):
            yield "spec.source", "name one: volumeHandle or snapshotHandle"
        ref = spec.volume_snapshot_ref
        if not (ref.name and ref.namespace):
            yield "spec.volumeSnapshotRef", "namespace and name are required"

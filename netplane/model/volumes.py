"""The volumes of a Pod (v1 Volume): exactly one source each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import field

from . import checks, volume_checks
from .base import Fault, ObjectMeta, Struct

HOST_PATH_TYPES = (
    "", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice",
)  # fmt: skip


class HostPathSource(Struct, frozen=True, kw_only=True):
    path: str
    type: str = ""


class EmptyDirSource(Struct, frozen=True, kw_only=True):
    medium: str = ""  # "" (disk), Memory, HugePages, HugePages-<size>
    size_limit: str | int | float | None = None


class ClaimSource(Struct, frozen=True, kw_only=True):
    claim_name: str
    read_only: bool = False


class KeyToPath(Struct, frozen=True, kw_only=True):
    key: str
    path: str
    mode: int | None = None


class ConfigMapSource(Struct, frozen=True, kw_only=True):
    name: str = ""
    items: tuple[KeyToPath, ...] = ()
    default_mode: int | None = None
    optional: bool = False


class SecretSource(Struct, frozen=True, kw_only=True):
    secret_name: str = ""
    items: tuple[KeyToPath, ...] = ()
    default_mode: int | None = None
    optional: bool = False


class ObjectFieldSelector(Struct, frozen=True, kw_only=True):
    api_version: str = "v1"
    field_path: str


class ResourceFieldSelector(Struct, frozen=True, kw_only=True):
    container_name: str = ""
    resource: str
    divisor: str | int | float = "0"


class DownwardAPIFile(Struct, frozen=True, kw_only=True):
    path: str
    field_ref: ObjectFieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    mode: int | None = None


class DownwardAPISource(Struct, frozen=True, kw_only=True):
    items: tuple[DownwardAPIFile, ...] = ()
    default_mode: int | None = None


class Projection(Struct, frozen=True, kw_only=True):
    """A ConfigMap or Secret among the sources of a projected volume."""

    name: str = ""
    items: tuple[KeyToPath, ...] = ()
    optional: bool = False


class DownwardAPIProjection(Struct, frozen=True, kw_only=True):
    items: tuple[DownwardAPIFile, ...] = ()


class ServiceAccountTokenProjection(Struct, frozen=True, kw_only=True):
    path: str
    audience: str = ""
    expiration_seconds: int = 3600


class VolumeProjection(Struct, frozen=True, kw_only=True):
    config_map: Projection | None = None
    secret: Projection | None = None
    downward_api: DownwardAPIProjection | None = field(default=None, name="downwardAPI")
    service_account_token: ServiceAccountTokenProjection | None = None
    cluster_trust_bundle: Any = None
    pod_certificate: Any = None


class ProjectedSource(Struct, frozen=True, kw_only=True):
    sources: tuple[VolumeProjection, ...] = ()
    default_mode: int | None = None


class SecretReference(Struct, frozen=True, kw_only=True):
    name: str = ""
    namespace: str = ""  # of a PersistentVolume's; a pod's is in the pod's own


class CephFSSource(Struct, frozen=True, kw_only=True):
    monitors: tuple[str, ...]
    path: str = "/"
    user: str = "admin"
    secret_file: str = "/etc/ceph/user.secret"
    secret_ref: SecretReference | None = None
    read_only: bool = False


class GlusterfsSource(Struct, frozen=True, kw_only=True):
    endpoints: str
    path: str
    read_only: bool = False
    endpoints_namespace: str = ""  # of a PersistentVolume's; default: the claim's


class VolumeClaimTemplate(Struct, frozen=True, kw_only=True):
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: dict[str, Any] = {}


class EphemeralSource(Struct, frozen=True, kw_only=True):
    volume_claim_template: VolumeClaimTemplate


class NFSSource(Struct, frozen=True, kw_only=True):
    server: str
    path: str
    read_only: bool = False


class CSISource(Struct, frozen=True, kw_only=True):
    driver: str
    volume_attributes: dict[str, str] = {}
    fs_type: str = ""
    read_only: bool = False
    node_publish_secret_ref: Any = None


class Volume(Struct, frozen=True, kw_only=True):
    name: str
    host_path: HostPathSource | None = None
    empty_dir: EmptyDirSource | None = None
    persistent_volume_claim: ClaimSource | None = None
    config_map: ConfigMapSource | None = None
    secret: SecretSource | None = None
    downward_api: DownwardAPISource | None = field(default=None, name="downwardAPI")
    projected: ProjectedSource | None = None
    ephemeral: EphemeralSource | None = None
    nfs: NFSSource | None = None
    csi: CSISource | None = None
    cephfs: CephFSSource | None = None
    glusterfs: GlusterfsSource | None = None
    image: dict[str, Any] | None = None
    iscsi: dict[str, Any] | None = None
    fc: dict[str, Any] | None = None
    rbd: dict[str, Any] | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The names (as on the wire) of the sources that are set."""
        wire = dict(zip(self.__struct_fields__, self.__struct_encode_fields__, strict=True))
        return tuple(wire[f] for f in wire if f != "name" and getattr(self, f) is not None)

    def check(self, path: str) -> Iterator[Fault]:
        yield from checks.dns_label(f"{path}.name", self.name)
        if len(self.sources) != 1:
            have = ", ".join(self.sources) or "none"
            yield path, f"a volume has exactly one source; this one has {have}"
        if self.host_path:
            yield from check_host_path(f"{path}.hostPath", self.host_path)
        if self.empty_dir and self.empty_dir.size_limit is not None:
            yield from checks.quantity(f"{path}.emptyDir.sizeLimit", self.empty_dir.size_limit)
        if self.empty_dir and not self.empty_dir.medium.startswith("HugePages"):
            yield from checks.one_of(f"{path}.emptyDir.medium", self.empty_dir.medium, ("", "Memory"))
        yield from self._check_payload(path)

    def _check_payload(self, path: str) -> Iterator[Fault]:
        """The kinds that show objects as files."""
        if self.config_map:
            yield from volume_checks.payload(f"{path}.configMap", self.config_map)
            if not self.config_map.name:
                yield f"{path}.configMap.name", "required"
        if self.secret:
            yield from volume_checks.payload(f"{path}.secret", self.secret)
            if not self.secret.secret_name:
                yield f"{path}.secret.secretName", "required"
        if self.downward_api:
            yield from volume_checks.payload(f"{path}.downwardAPI", self.downward_api)
        if self.projected:
            yield from volume_checks.projected(f"{path}.projected", self.projected)


def check_host_path(path: str, source: HostPathSource) -> Iterator[Fault]:
    if not source.path.startswith("/") or ".." in source.path.split("/"):
        yield f"{path}.path", f"{source.path!r} must be an absolute path without '..'"
    yield from checks.one_of(f"{path}.type", source.type, HOST_PATH_TYPES)

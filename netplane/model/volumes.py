"""The volumes of a Pod (v1 Volume): exactly one source each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import field

from . import checks
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
    downward_api: dict[str, Any] | None = field(default=None, name="downwardAPI")
    projected: dict[str, Any] | None = None
    ephemeral: EphemeralSource | None = None
    nfs: NFSSource | None = None
    csi: CSISource | None = None
    cephfs: dict[str, Any] | None = None
    glusterfs: dict[str, Any] | None = None
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


def check_host_path(path: str, source: HostPathSource) -> Iterator[Fault]:
    if not source.path.startswith("/") or ".." in source.path.split("/"):
        yield f"{path}.path", f"{source.path!r} must be an absolute path without '..'"
    yield from checks.one_of(f"{path}.type", source.type, HOST_PATH_TYPES)

"""Field rules of the volumes that show objects as files (Kubernetes pkg/apis/core/validation).

The arguments are duck-typed: this module is imported by the structs that it checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import checks
from .base import Fault

POD_FIELDS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "metadata.labels",
    "metadata.annotations",
)
RESOURCES = ("cpu", "memory", "ephemeral-storage")
NAME_MAX, PATH_MAX = 255, 4096  # bytes (limits.h)


def relative(path: str, value: str) -> Iterator[Fault]:
    """The path of a file that a volume shows: as `inside`, and not of the volume's own names."""
    if value.startswith("..") and ".." not in value.split("/"):
        yield path, f"{value!r} must not begin with '..': such names belong to the volume itself"
    else:
        yield from inside(path, value)


def inside(path: str, value: str) -> Iterator[Fault]:
    """A path beneath a volume: relative, of names that Linux takes, none of them ".."."""
    parts = value.split("/")
    if not value or value.startswith("/") or ".." in parts or "\0" in value:
        yield path, f"{value!r} must be a relative path without '..'"
    elif any(len(part.encode()) > NAME_MAX for part in parts) or len(value.encode()) > PATH_MAX:
        yield path, f"a name is at most {NAME_MAX} bytes and a path {PATH_MAX}; this one is longer"


def mode(path: str, value: int | None) -> Iterator[Fault]:
    if value is not None and not 0 <= value <= 0o777:
        yield path, f"{value} is not a file mode: it must be 0 to 0777 (511)"


def payload(path: str, source: Any) -> Iterator[Fault]:
    """A configMap, secret, downwardAPI or projected source, or a part of the last."""
    yield from mode(f"{path}.defaultMode", getattr(source, "default_mode", None))
    for i, item in enumerate(getattr(source, "items", ())):
        where = f"{path}.items[{i}]"
        yield from relative(f"{where}.path", item.path)
        yield from mode(f"{where}.mode", item.mode)
        if not hasattr(item, "key"):
            yield from _field(where, item)


def _field(path: str, item: Any) -> Iterator[Fault]:
    if (item.field_ref is None) == (item.resource_field_ref is None):
        yield path, "needs exactly one of fieldRef and resourceFieldRef"
    elif item.field_ref is not None:
        name, _, subscript = item.field_ref.field_path.partition("[")
        allowed = POD_FIELDS if not subscript else POD_FIELDS[3:]
        if name not in allowed or (subscript and not subscript.endswith("']")):
            have = item.field_ref.field_path
            yield (
                f"{path}.fieldRef.fieldPath",
                f"{have!r} is not supported; use one of {', '.join(POD_FIELDS)}",
            )
    else:
        yield from resource(f"{path}.resourceFieldRef", item.resource_field_ref, True)


def resource(path: str, ref: Any, named: bool) -> Iterator[Fault]:
    """``named``: the container must be named (in a volume; in an env it is the container itself)."""
    if named and not ref.container_name:
        yield f"{path}.containerName", "required"
    which, _, what = ref.resource.partition(".")
    if which not in ("limits", "requests") or not (what in RESOURCES or what.startswith("hugepages-")):
        yield (
            f"{path}.resource",
            f"{ref.resource!r} is not supported; use limits. or requests.{{{','.join(RESOURCES)}}}",
        )
    yield from checks.quantity(f"{path}.divisor", ref.divisor)


def projected(path: str, source: Any) -> Iterator[Fault]:
    yield from mode(f"{path}.defaultMode", source.default_mode)
    for i, part in enumerate(source.sources):
        where = f"{path}.sources[{i}]"
        have = [f for f in part.__struct_fields__ if getattr(part, f) is not None]
        if len(have) != 1:
            yield where, f"a source is exactly one thing; this one has {', '.join(have) or 'none'}"
            continue
        one = getattr(part, have[0])
        if have[0] in ("config_map", "secret", "downward_api"):
            yield from payload(where, one)
        if have[0] in ("config_map", "secret") and not one.name:
            yield f"{where}.name", "required"
        if have[0] == "service_account_token":
            yield from relative(f"{where}.serviceAccountToken.path", one.path)
            if not 600 <= one.expiration_seconds <= 1 << 32:
                yield f"{where}.serviceAccountToken.expirationSeconds", "600 (ten minutes) to 2^32"


def recursive_read_only(path: str, mount: Any) -> Iterator[Fault]:
    wanted = mount.recursive_read_only
    yield from checks.one_of(path, wanted, ("", "Disabled", "IfPossible", "Enabled"))
    if wanted not in ("IfPossible", "Enabled"):
        return
    if not mount.read_only:
        yield path, f"{wanted} needs readOnly: true"
    if mount.mount_propagation != "None":
        yield path, f"{wanted} needs mountPropagation None"

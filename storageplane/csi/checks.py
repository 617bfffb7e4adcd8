"""What every request must be before anything looks at it (CSI specification, "Size Limits" and fields)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from .protocol import word
from .refusal import CODE, Refused, invalid

STRING, MAP = 128, 4096  # bytes; paths are exempt
LARGEST = (1 << 63) - 4096  # bytes; rounded up it is still a number of CSI's
MODE = "VolumeCapability.AccessMode.Mode"
_PATHS = {"staging_target_path", "target_path", "volume_path", "mount_flags"}
_SEVERAL = {
    "SINGLE_NODE_MULTI_WRITER",
    "MULTI_NODE_READER_ONLY",
    "MULTI_NODE_SINGLE_WRITER",
    "MULTI_NODE_MULTI_WRITER",
}
_READERS = {"SINGLE_NODE_READER_ONLY", "MULTI_NODE_READER_ONLY"}


def sizes(request: Any) -> None:
    """Raises Refused(INVALID_ARGUMENT) for a string or map that is too long; values are not quoted.

    Of what is as short as one string may be, without the paths, nothing need be looked at.
    """
    short = STRING
    for name in _paths(request.DESCRIPTOR):
        short += len(getattr(request, name))
    if request.ByteSize() > short:
        _sizes(request, "")


@cache
def _paths(kind: Any) -> tuple[str, ...]:
    """The fields of a request that are one path."""
    return tuple(f.name for f in kind.fields if f.name in _PATHS and not _repeated(f))


def _sizes(message: Any, where: str) -> None:
    for field, value in message.ListFields():
        kind = _KINDS.get(field) or _KINDS.setdefault(field, _kind(field))
        if kind == _PLAIN:
            continue
        path = f"{where}{field.name}"
        if kind == _TABLE:
            if sum(len(str(k).encode()) + len(str(v).encode()) for k, v in value.items()) > MAP:
                raise invalid(f"{path}: a map has at most {MAP} bytes")
            continue
        for one in value if _repeated(field) else (value,):
            if kind == _PART:
                _sizes(one, f"{path}.")
            elif len(one.encode()) > STRING:
                raise invalid(f"{path}: {len(one.encode())} bytes; at most {STRING} are allowed")


_PLAIN, _TABLE, _PART, _TEXT = "plain", "table", "part", "text"
_KINDS: dict[Any, str] = {}  # by field of csi.proto


def _kind(field: Any) -> str:
    if field.message_type is not None:
        return _TABLE if field.message_type.GetOptions().map_entry else _PART
    return _TEXT if field.type == field.TYPE_STRING and field.name not in _PATHS else _PLAIN


def _repeated(field: Any) -> bool:
    return bool(getattr(field, "is_repeated", None) or getattr(field, "label", 0) == 3)


def required(request: Any, *fields: str) -> None:
    """Raises Refused(INVALID_ARGUMENT) for the first field that is empty."""
    for name in fields:
        value = getattr(request, name)
        present = request.HasField(name) if hasattr(value, "ListFields") else bool(value)
        if not present:
            raise invalid(f"{name}: required")


def path(name: str, value: str) -> str:
    """The path as mountinfo shows it. Raises Refused."""
    parts = value.split("/")
    if not value.startswith("/") or ".." in parts or "\0" in value or len(value) > 4096:
        raise invalid(f"{name}: {value!r:.80} must be an absolute path without '..'")
    return clean(value)


def clean(value: str) -> str:
    """Without the slashes and dots that mean nothing."""
    return "/" + "/".join(part for part in value.split("/") if part not in ("", "."))


def capability(found: Any, where: str = "volume_capability") -> None:
    """An access type and an access mode that a volume of one node can have. Raises Refused."""
    if not found.WhichOneof("access_type"):
        raise invalid(f"{where}: access type mount or block is required")
    mode = word(MODE, found.access_mode.mode)
    if mode == "UNKNOWN":
        raise invalid(f"{where}.access_mode: required")
    if mode.isdigit():
        raise invalid(f"{where}.access_mode: {mode} is none that CSI has")


def capabilities(found: Iterable[Any]) -> bool:
    """Check several; whether they ask for a block device. Raises Refused when they ask for both."""
    kinds = set()
    for i, one in enumerate(found):
        capability(one, f"volume_capabilities[{i}]")
        kinds.add(one.WhichOneof("access_type"))
    if not kinds:
        raise invalid("volume_capabilities: at least one is required")
    if len(kinds) > 1:
        raise invalid("volume_capabilities: a volume is a block device or a file system, not both")
    return kinds == {"block"}


def several(found: Any) -> bool:
    """Whether the access mode lets more than one target have the volume."""
    return word(MODE, found.access_mode.mode) in _SEVERAL


def reads_only(found: Any) -> bool:
    return word(MODE, found.access_mode.mode) in _READERS


def capacity(found: Any) -> tuple[int, int]:
    """(required, limit) of a CapacityRange; 0: none. Raises Refused(OUT_OF_RANGE)."""
    need, limit = found.required_bytes, found.limit_bytes
    if need > LARGEST:
        raise Refused(CODE.OUT_OF_RANGE, f"capacity_range.required_bytes {need}: no volume is as large")
    if need < 0 or limit < 0 or (limit and limit < need):
        raise Refused(
            CODE.OUT_OF_RANGE,
            f"capacity_range: required {need} and limit {limit}; neither negative, the limit not below",
        )
    return need, limit

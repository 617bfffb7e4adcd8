"""CSI's messages and services, from the specification's own csi.proto (1.13.0, Apache-2.0).

``spec/csi.desc`` is csi.proto compiled to a descriptor set (`protoc --descriptor_set_out`); the classes
are made from it at run time, so that no generated code is kept and any protobuf runtime serves.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    timestamp_pb2,  # noqa: F401 - csi.proto builds on them
    wrappers_pb2,  # noqa: F401
)

PACKAGE = "csi.v1"
_SET = Path(__file__).parent / "spec" / "csi.desc"


@cache
def _file() -> Any:
    found = descriptor_pb2.FileDescriptorSet.FromString(_SET.read_bytes())
    return descriptor_pool.Default().AddSerializedFile(found.file[0].SerializeToString())


@cache
def message(name: str) -> Any:
    """The class of a message: message("CreateVolumeRequest"), message("Volume")."""
    _file()
    return message_factory.GetMessageClass(
        descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.{name}")
    )


@cache
def methods(service: str) -> dict[str, tuple[Any, Any]]:
    """{method: (request class, response class)} of a service ("Identity", "Controller", …)."""
    _file()
    found = descriptor_pool.Default().FindServiceByName(f"{PACKAGE}.{service}")
    return {
        method.name: (
            message_factory.GetMessageClass(method.input_type),
            message_factory.GetMessageClass(method.output_type),
        )
        for method in found.methods
    }


@cache
def number(enum: str, name: str) -> int:
    """A value of an enum: number("VolumeCapability.AccessMode.Mode", "SINGLE_NODE_WRITER")."""
    _file()
    found: int = descriptor_pool.Default().FindEnumTypeByName(f"{PACKAGE}.{enum}").values_by_name[name].number
    return found


@cache
def word(enum: str, value: int) -> str:
    _file()
    known = descriptor_pool.Default().FindEnumTypeByName(f"{PACKAGE}.{enum}").values_by_number
    return known[value].name if value in known else str(value)


def is_secret(field: Any) -> bool:
    """Whether a field is marked csi_secret: never logged, never in an error."""
    return bool(field.name == "secrets")

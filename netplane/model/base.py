"""What every declared object has: a kind, a name, a revision, and a strict shape.

Rule 1: objects are immutable; a change is a new object (`msgspec.structs.replace`).
Rule 2: field names are Kubernetes' own, snake_case here and camelCase on the wire.
Rule 3: a kind knows its own field rules (`check`); nothing else is validated elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import msgspec
from msgspec import field

Fault = tuple[str, str]  # (field path such as "spec.ports[0].port", reason)


class Key(NamedTuple):
    """The identity of an object in a store; ``namespace`` is "" for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {where}"


class Struct(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    rename="camel",
    gc=False,
):
    """The base of every part of an object: frozen, strict, small (no cycles, hence gc=False)."""


class OwnerReference(Struct, frozen=True, kw_only=True):
    api_version: str = ""
    kind: str
    name: str
    uid: str = ""
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(Struct, frozen=True, kw_only=True):
    """Kubernetes' ObjectMeta (meta/v1); fields that nothing here reads are kept for round trips."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    generate_name: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()
    managed_fields: Any = None
    self_link: str = ""


class Object(Struct, frozen=True, kw_only=True):
    """A declared thing. Subclasses set KIND, API_VERSION and NAMESPACED and add spec, status, …"""

    KIND: ClassVar[str] = ""
    API_VERSION: ClassVar[str] = "v1"
    NAMESPACED: ClassVar[bool] = True

    metadata: ObjectMeta = field(default_factory=ObjectMeta)

    @property
    def key(self) -> Key:
        return Key(self.KIND, self.metadata.namespace, self.metadata.name)

    @property
    def revision(self) -> int:
        """The store's revision of this object; 0 for one that no store has seen."""
        return int(self.metadata.resource_version or 0)

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def namespace(self) -> str:
        return self.metadata.namespace

    @property
    def labels(self) -> dict[str, str]:
        return self.metadata.labels

    @property
    def deleting(self) -> bool:
        return bool(self.metadata.deletion_timestamp)

    def check(self) -> Iterator[Fault]:
        """Yield the (path, reason) of every field that breaks a rule of this kind."""
        return iter(())


def amend(obj: Any, **changes: Any) -> Any:
    """A copy of a frozen struct with some fields changed."""
    return msgspec.structs.replace(obj, **changes)

"""Manifests and objects: YAML or JSON in, strict objects out, and back.

Rule 1: what the API would refuse is refused here, with kind, name, field path and reason.
Rule 2: null means absent, as in Kubernetes; a duplicate YAML key is an error, not the last word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml

from . import checks
from .base import Object
from .clusterpolicies import ClusterNetworkPolicy
from .documents import documents
from .errors import Invalid
from .nodes import Event, Lease, Namespace, Node
from .own import Allocation, Attachment
from .pods import Pod
from .policies import NetworkPolicy
from .services import EndpointSlice, Service
from .storage import ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, StorageClass
from .volumesnapshots import VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent

__all__ = [
    "KINDS", "decode", "documents", "encode", "parse", "parse_all", "to_dict", "to_yaml", "validate",
    "without_null",
]  # fmt: skip

KINDS: dict[str, type[Object]] = {
    cls.KIND: cls
    for cls in (
        Pod, Service, EndpointSlice, Node, Namespace, Lease, Event, NetworkPolicy, ClusterNetworkPolicy,
        PersistentVolume, PersistentVolumeClaim, StorageClass, ConfigMap, Secret,
        VolumeSnapshotClass, VolumeSnapshot, VolumeSnapshotContent,
        Allocation, Attachment,
    )
}  # fmt: skip


def parse_all(text: str | bytes, source: str = "-") -> list[Object]:
    """All objects of a manifest file. Raises Invalid naming source, kind, name, field and reason."""
    objects = []
    for doc in documents(text, source):
        try:
            objects.append(parse(doc))
        except Invalid as exc:
            raise Invalid(f"{source}: {exc}") from None
    return objects


def parse(doc: dict[str, Any], default_namespace: str = "default") -> Object:
    """One manifest as a strict object. Raises Invalid with every fault found."""
    if not isinstance(doc, dict):
        raise Invalid(f"a manifest is a mapping with apiVersion and kind, not a {type(doc).__name__}")
    doc = dict(doc)
    kind, version = doc.pop("kind", None), doc.pop("apiVersion", None)
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise Invalid(f"kind {kind!r} is not known; use one of {', '.join(sorted(KINDS))}")
    meta = doc.get("metadata")
    name = meta.get("name", "") if isinstance(meta, dict) else ""
    if version != cls.API_VERSION:
        raise Invalid(f"{kind} {name}: apiVersion {version!r} is not known; use {cls.API_VERSION!r}")
    try:
        doc = without_null(doc)
        obj = msgspec.convert(doc, cls)
    except msgspec.ValidationError as exc:
        raise Invalid(f"{kind} {name}: {_reason(exc, doc)}") from None
    except RecursionError:
        raise Invalid(f"{kind} {name}: nested too deeply") from None
    return validate(obj, default_namespace)


def validate(obj: Object, default_namespace: str = "default") -> Object:
    """Default the namespace, then hold the object to its kind's rules. Raises Invalid."""
    meta = obj.metadata
    faults = list(_check_meta(obj))
    if obj.NAMESPACED and not meta.namespace:
        meta = msgspec.structs.replace(meta, namespace=default_namespace)
        obj = msgspec.structs.replace(obj, metadata=meta)
    faults += obj.check()
    if not meta.name:
        faults = [f for f in faults if f[0] != "metadata.name"]
        faults.insert(0, ("metadata.name", "required"))
    elif all(path != "metadata.name" for path, _ in faults):
        faults += checks.dns_subdomain("metadata.name", meta.name)
    if faults:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in faults)
        raise Invalid(f"{obj.key}: {reasons}")
    return obj


def _check_meta(obj: Object) -> Iterator[tuple[str, str]]:
    meta = obj.metadata
    if meta.namespace and not obj.NAMESPACED:
        yield "metadata.namespace", f"not allowed: {obj.KIND} is cluster-scoped"
    elif meta.namespace:
        yield from checks.dns_label("metadata.namespace", meta.namespace)
    if meta.resource_version and not (meta.resource_version.isascii() and meta.resource_version.isdigit()):
        yield "metadata.resourceVersion", f"{meta.resource_version!r} is not a revision (digits)"
    yield from checks.label_map("metadata.labels", meta.labels)
    yield from checks.label_map("metadata.annotations", {k.lower(): "" for k in meta.annotations})


_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`(?: - at `(.*)`)?")


def _reason(exc: msgspec.ValidationError, doc: dict[str, Any]) -> str:
    """msgspec's message as "field.path: reason"."""
    text = str(exc)
    unknown = _UNKNOWN.fullmatch(text)
    if unknown:
        base = (unknown[2] or "$").removeprefix("$").removeprefix(".")
        return f"{base + '.' if base else ''}{unknown[1]}: unknown field"
    reason, _, path = text.rpartition(" - at `")
    if not reason:
        return text
    path = path.rstrip("`").removeprefix("$.")
    return f"{_keyed(path, doc)}: {reason[0].lower()}{reason[1:]}"


def _keyed(path: str, doc: Any) -> str:
    """A path with the map's key in place of msgspec's "[...]": the first whose value is not text."""
    head, found, tail = path.partition("[...]")
    if not found:
        return path
    for name, index in re.findall(r"([^.\[\]]+)|\[([0-9]+)\]", head):
        doc = doc[int(index)] if index else doc[name]
    if not isinstance(doc, dict):
        return path
    wrong = next((k for k, v in doc.items() if not isinstance(v, str)), "...")
    return f"{head}[{wrong}]{tail}"


def without_null(value: Any) -> Any:
    """A manifest with every null left out, at every depth (rule 2)."""
    if isinstance(value, dict):
        return {k: without_null(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_null(v) for v in value]
    return value


def to_dict(obj: Object) -> dict[str, Any]:
    """The manifest of an object: apiVersion, kind, metadata and the rest, defaults left out."""
    return {"apiVersion": obj.API_VERSION, "kind": obj.KIND, **msgspec.to_builtins(obj)}


def to_yaml(obj: Object) -> str:
    return yaml.safe_dump(to_dict(obj), sort_keys=False, default_flow_style=False)


def encode(obj: Object) -> bytes:
    """The body that stores keep (JSON without apiVersion and kind)."""
    return _encoder.encode(obj)


def decode(kind: str, body: bytes) -> Object:
    """The reverse of `encode`; for what a store of ours wrote, so no field rules again."""
    try:
        return _decoders[kind].decode(body)
    except (KeyError, msgspec.ValidationError, msgspec.DecodeError) as exc:
        raise Invalid(f"stored {kind} cannot be read: {exc}") from exc


_encoder = msgspec.json.Encoder()
_decoders: dict[str, msgspec.json.Decoder[Object]] = {
    kind: msgspec.json.Decoder(cls) for kind, cls in KINDS.items()
}

"""Manifests and objects: YAML or JSON in, strict objects out, and back.

Rule 1: what the API would refuse is refused here, with kind, name, field path and reason.
Rule 2: null means absent, as in Kubernetes; a duplicate YAML key is an error, not the last word.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from typing import Any

import msgspec
import yaml

from . import checks
from .base import Object
from .errors import Invalid
from .nodes import Event, Lease, Namespace, Node
from .own import Allocation, Attachment
from .pods import Pod
from .policies import NetworkPolicy
from .services import EndpointSlice, Service
from .storage import ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, StorageClass

KINDS: dict[str, type[Object]] = {
    cls.KIND: cls
    for cls in (
        Pod, Service, EndpointSlice, Node, Namespace, Lease, Event, NetworkPolicy,
        PersistentVolume, PersistentVolumeClaim, StorageClass, ConfigMap, Secret,
        Allocation, Attachment,
    )
}  # fmt: skip


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe, with timestamps left as text and duplicate keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                raise Invalid(f"line {line}: the key {key.value!r} stands twice in one mapping")
            seen.add(key.value)
        result: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return result


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in pairs if tag != "tag:yaml.org,2002:timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def documents(text: str | bytes, source: str = "-") -> list[dict[str, Any]]:
    """The YAML (or JSON) documents of one file as dicts; Lists are opened. Raises Invalid."""
    try:
        raw = [d for d in yaml.load_all(text, Loader=_Loader) if d is not None]
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        reason = getattr(exc, "problem", None) or str(exc)
        raise Invalid(f"{source}:{where} not YAML: {reason}") from exc
    except Invalid as exc:
        raise Invalid(f"{source}: {exc}") from None
    found: list[dict[str, Any]] = []
    for doc in raw:
        if not isinstance(doc, dict):
            raise Invalid(f"{source}: a manifest is a mapping with apiVersion and kind, not {doc!r:.40}")
        found.extend(doc.get("items") or () if str(doc.get("kind", "")).endswith("List") else [doc])
    return found


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
        raise Invalid(f"a manifest is a mapping with apiVersion and kind, not {doc!r:.40}")
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
        obj = msgspec.convert(without_null(doc), cls)
    except msgspec.ValidationError as exc:
        raise Invalid(f"{kind} {name}: {_reason(exc)}") from None
    return validate(obj, default_namespace)


def validate(obj: Object, default_namespace: str = "default") -> Object:
    """Default the namespace, then hold the object to its kind's rules. Raises Invalid."""
    meta = obj.metadata
    faults = list(_check_meta(obj))
    if obj.NAMESPACED and not meta.namespace:
        meta = msgspec.structs.replace(meta, namespace=default_namespace)
        obj = msgspec.structs.replace(obj, metadata=meta)
    faults += obj.check()
    if faults:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in faults)
        raise Invalid(f"{obj.key}: {reasons}")
    return obj


def _check_meta(obj: Object) -> Iterator[tuple[str, str]]:
    meta = obj.metadata
    if not meta.name:
        yield "metadata.name", "required"
    if meta.namespace and not obj.NAMESPACED:
        yield "metadata.namespace", f"not allowed: {obj.KIND} is cluster-scoped"
    elif meta.namespace:
        yield from checks.dns_label("metadata.namespace", meta.namespace)
    if meta.resource_version and not meta.resource_version.isdigit():
        yield "metadata.resourceVersion", f"{meta.resource_version!r} is not a revision (digits)"
    yield from checks.label_map("metadata.labels", meta.labels)


_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`(?: - at `(.*)`)?")


def _reason(exc: msgspec.ValidationError) -> str:
    """msgspec's message as "field.path: reason"."""
    text = str(exc)
    unknown = _UNKNOWN.fullmatch(text)
    if unknown:
        base = (unknown[2] or "$").removeprefix("$").removeprefix(".")
        return f"{base + '.' if base else ''}{unknown[1]}: unknown field"
    reason, _, path = text.rpartition(" - at `")
    if not reason:
        return text
    return f"{path.rstrip('`').removeprefix('$.')}: {reason[0].lower()}{reason[1:]}"


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

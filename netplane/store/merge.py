"""A manifest laid onto the object that is stored: what apply and the directory store mean by it. Pure.

Rule 1: a field that the manifest names is the manifest's; maps merge by key, lists are taken whole.
Rule 2: a field that an earlier manifest named and this one does not is dropped. Which those were is
        kept as Kubernetes keeps it, in metadata.managedFields (names of fields, never values).
Rule 3: everything else stays as controllers wrote it: status, clusterIP, nodePort, podCIDR,
        volumeName, claimRef, finalizers, annotations of their own.
Rule 4: what is chosen once (IMMUTABLE) cannot be changed by a manifest, and a claim never asks for less
        than it has.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from ..model import codec
from ..model.base import Object, amend
from ..model.checks import parse_quantity
from ..model.errors import Invalid
from ..model.services import Service
from ..model.storage import PersistentVolumeClaim

Manifest = dict[str, Any]
MANAGER = "netplane-apply"
SERVER_FIELDS = (
    "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "generation",
    "deletionGracePeriodSeconds", "selfLink", "managedFields",
)  # fmt: skip
NOT_OWNED = ("apiVersion", "kind", "status")

# kind -> fields (attribute paths) that keep their first value
IMMUTABLE: dict[str, tuple[str, ...]] = {
    "Service": ("spec.cluster_ip",),
    "Node": ("spec.pod_cidr", "spec.pod_cidrs"),
    "PersistentVolumeClaim": (
        "spec.volume_name", "spec.storage_class_name", "spec.access_modes", "spec.volume_mode",
        "spec.selector", "spec.data_source", "spec.data_source_ref",
    ),
    "PersistentVolume": ("spec.claim_ref.name", "spec.claim_ref.namespace", "spec.volume_mode"),
    "StorageClass": ("provisioner", "parameters", "reclaim_policy", "volume_binding_mode"),
    "VolumeSnapshot": ("spec.source",),
    "VolumeSnapshotContent": ("spec.source", "spec.driver", "spec.source_volume_mode"),
}  # fmt: skip


def onto(live: Object | None, manifest: Manifest, status: bool = True) -> Object:
    """The object that results when ``manifest`` (valid, raw) is laid onto ``live``. Raises Invalid.

    ``status`` False leaves a status in the manifest aside: it was a start, and is a controller's now.
    """
    new = _declared(manifest)
    if not status and live is not None:
        new.pop("status", None)
    new["metadata"]["managedFields"] = _managed(new)
    if live is None:
        return codec.parse(new)
    was = codec.to_dict(live)
    merged = _merge(was, new, _owned(live))
    asked = () if live.deleting else new["metadata"].get("finalizers", ())
    merged["metadata"]["finalizers"] = list(dict.fromkeys([*live.metadata.finalizers, *asked]))
    if live.KIND == Service.KIND:
        _carry_service(was, merged)
    _hold_immutable(live, merged)
    return codec.parse(merged)


def _declared(manifest: Manifest) -> Manifest:
    """The manifest without nulls and without what only a store sets."""
    new: Manifest = codec.without_null(manifest)
    metadata = new.get("metadata") or {}
    if new.get("kind") == "Secret" and "stringData" in new:  # write-only in the API: it becomes data
        plain = new.pop("stringData")
        data = {k: base64.b64encode(v.encode()).decode() for k, v in plain.items()}
        new["data"] = {**new.get("data", {}), **data}
    new["metadata"] = {k: v for k, v in metadata.items() if k not in SERVER_FIELDS}
    return new


def _merge(live: Manifest, new: Manifest, owned: Manifest) -> Manifest:
    out = dict(live)
    for field, below in owned.items():
        name = field.removeprefix("f:")
        if name in new or name not in out:
            continue
        rest = _merge(out[name], {}, below) if below and isinstance(out[name], dict) else None
        if rest:
            out[name] = rest
        else:
            del out[name]
    for name, value in new.items():
        if isinstance(value, dict) and isinstance(out.get(name), dict):
            out[name] = _merge(out[name], value, owned.get("f:" + name, {}))
        else:
            out[name] = value
    return out


def _managed(manifest: Manifest) -> list[Manifest]:
    fields = _fields({k: v for k, v in manifest.items() if k not in NOT_OWNED})
    for fixed in ("f:name", "f:namespace", "f:finalizers"):
        fields.get("f:metadata", {}).pop(fixed, None)
    return [
        {
            "manager": MANAGER,
            "operation": "Apply",
            "apiVersion": manifest.get("apiVersion", ""),
            "fieldsType": "FieldsV1",
            "fieldsV1": fields,
        }
    ]


def _fields(value: Any) -> Manifest:
    """The names in a manifest as FieldsV1 writes them; a list is one field."""
    return {f"f:{k}": _fields(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _owned(live: Object) -> Manifest:
    for entry in live.metadata.managed_fields or ():
        if isinstance(entry, dict) and entry.get("manager") == MANAGER:
            fields: Manifest = entry.get("fieldsV1") or {}
            return fields
    return {}


def _carry_service(was: Manifest, merged: Manifest) -> None:
    """Keep allocated node ports by (protocol, port), and drop what the new type does not have."""
    spec = merged.get("spec", {})
    kind = spec.get("type", "ClusterIP")
    if kind in ("NodePort", "LoadBalancer"):
        ports = was.get("spec", {}).get("ports", ())
        taken = {(p.get("protocol", "TCP"), p["port"]): p.get("nodePort", 0) for p in ports}
        for i, port in enumerate(spec.get("ports", ())):
            number = taken.get((port.get("protocol", "TCP"), port["port"]), 0)
            if number and not port.get("nodePort"):
                spec["ports"][i] = {**port, "nodePort": number}
    if kind != "LoadBalancer":
        spec.pop("healthCheckNodePort", None)
    if kind == "ExternalName":
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            spec.pop(name, None)


def _hold_immutable(live: Object, merged: Manifest) -> None:
    """Before the field rules: that a chosen field changes says more than what then no longer fits."""
    try:
        body = {k: v for k, v in merged.items() if k not in ("apiVersion", "kind")}
        obj = msgspec.convert(body, type(live))
    except msgspec.ValidationError:
        return  # parse says it better
    freed = isinstance(obj, Service) and obj.spec.type == "ExternalName"
    for path in () if freed else IMMUTABLE.get(live.KIND, ()):
        was, now = _at(live, path), _at(obj, path)
        if was and now != was:
            label = _wire(live, path)
            raise Invalid(
                f"{live.key}: {label}: {_show(was)} is set and cannot change to {_show(now)}; "
                f"leave {label} out, or delete the {live.KIND} first"
            )
    _hold_size(live, obj)
    if getattr(live, "immutable", False) and amend(live, metadata=obj.metadata) != obj:
        raise Invalid(f"{live.key}: immutable: true, so its data cannot change; delete the {live.KIND} first")


def _hold_size(live: Object, obj: Object) -> None:
    if not (isinstance(live, PersistentVolumeClaim) and isinstance(obj, PersistentVolumeClaim)):
        return
    was, asks = (parse_quantity(c.spec.resources.requests.get("storage", 0)) for c in (live, obj))
    have = live.status.capacity.get("storage", 0)
    if asks < min(was, parse_quantity(have)):
        raise Invalid(
            f"{live.key}: spec.resources.requests.storage: less than the {have} that it has; "
            "a volume never shrinks"
        )


def _at(obj: Any, path: str) -> Any:
    for name in path.split("."):
        obj = getattr(obj, name, None)
    return obj


def _wire(obj: Any, path: str) -> str:
    words = []
    for name in path.split("."):
        wire = dict(zip(obj.__struct_fields__, obj.__struct_encode_fields__, strict=True))
        words.append(wire[name])
        obj = getattr(obj, name)
    return ".".join(words)


def _show(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else repr(value)

"""Between Kubernetes' objects and CSI's messages. Pure.

StorageClass parameters that begin with ``csi.storage.k8s.io/`` are ours to read (fstype, the names of
secrets); the others go to the driver as they are. Source: kubernetes-csi/external-provisioner.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from netplane.model.base import ObjectMeta
from netplane.model.errors import Invalid, Unavailable
from netplane.model.storage import (
    CSIVolumeSource,
    NodeSelector,
    NodeSelectorRequirement,
    NodeSelectorTerm,
    PersistentVolume,
    PersistentVolumeClaim,
    PersistentVolumeSpec,
    Secret,
    StorageClass,
    VolumeNodeAffinity,
)

from .. import names
from ..claims import match
from ..claims.steps import reference
from .client import Client
from .intents import Intent

PREFIX = "csi.storage.k8s.io/"
_REFS = {
    "controller_publish_secret_ref": "controller-publish",
    "node_stage_secret_ref": "node-stage",
    "node_publish_secret_ref": "node-publish",
    "controller_expand_secret_ref": "controller-expand",
    "node_expand_secret_ref": "node-expand",
}
_MODES = {
    "ReadWriteOnce": "SINGLE_NODE_MULTI_WRITER",
    "ReadWriteOncePod": "SINGLE_NODE_SINGLE_WRITER",
    "ReadOnlyMany": "MULTI_NODE_READER_ONLY",
    "ReadWriteMany": "MULTI_NODE_MULTI_WRITER",
}


def capability(
    client: Client, mode: str, block: bool = False, fstype: str = "", flags: Sequence[str] = ()
) -> dict[str, Any]:
    """How a volume is used, as CSI's VolumeCapability. ``mode``: Kubernetes' access mode."""
    kind: dict[str, Any] = {"block": {}} if block else {"mount": {"fs_type": fstype, "mount_flags": flags}}
    return {**kind, "access_mode": {"mode": _access_mode(mode, client)}}


def capability_of(volume: PersistentVolume, client: Client) -> dict[str, Any]:
    spec, fstype = volume.spec, volume.spec.csi.fs_type if volume.spec.csi else ""
    block = spec.volume_mode == "Block"
    return capability(client, spec.access_modes[0], block, fstype, spec.mount_options)


def _access_mode(mode: str, client: Client) -> str:
    """CSI's word for an access mode; drivers before CSI 1.5 know only SINGLE_NODE_WRITER."""
    if mode not in ("ReadWriteOnce", "ReadWriteOncePod") or client.can("Node", "SINGLE_NODE_MULTI_WRITER"):
        return _MODES[mode]
    return "SINGLE_NODE_WRITER"


def intent(claim: PersistentVolumeClaim, cls: StorageClass, source: tuple[str, str]) -> Intent:
    """What CreateVolume is to be asked. Raises Invalid for what no driver can be asked."""
    if claim.spec.selector is not None:
        raise Invalid(f"{claim.key}: spec.selector: dynamic provisioning knows no selectors; remove it")
    return Intent(
        name=f"pvc-{claim.metadata.uid}",
        driver=cls.provisioner,
        size=match.requested(claim),
        parameters={k: v for k, v in cls.parameters.items() if not k.startswith(PREFIX)},
        mode=claim.spec.access_modes[0],
        fstype=cls.parameters.get(f"{PREFIX}fstype", ""),
        block=claim.spec.volume_mode == "Block",
        source=source,
        secret=_named(claim, cls, "provisioner"),
    )


def request(intent: Intent, client: Client, secrets: dict[str, str]) -> dict[str, Any]:
    """The fields of CreateVolumeRequest."""
    fields: dict[str, Any] = {
        "name": intent.name,
        "capacity_range": {"required_bytes": intent.size},
        "volume_capabilities": [capability(client, intent.mode, intent.block, intent.fstype)],
        "parameters": intent.parameters,
        "secrets": secrets,
    }
    if client.can("Identity", "VOLUME_ACCESSIBILITY_CONSTRAINTS"):
        here = [client.node.accessible_topology]
        fields["accessibility_requirements"] = {"requisite": here, "preferred": here}
    source, handle = intent.source
    if source:
        fields["volume_content_source"] = {source: {f"{source}_id": handle}}
    return fields


def volume(
    claim: PersistentVolumeClaim, cls: StorageClass, made: Any, place: tuple[str, Client]
) -> PersistentVolume:
    """The PersistentVolume of what a driver made. ``place``: (this node's host name, the driver)."""
    host, client = place
    secret = _named(claim, cls, "provisioner")
    notes = {names.PROVISIONED_BY: cls.provisioner, names.BOUND_BY_CONTROLLER: "yes"}
    if secret[1]:
        notes |= {f"{names.DELETION_SECRET}-name": secret[1], f"{names.DELETION_SECRET}-namespace": secret[0]}
    source = CSIVolumeSource(
        driver=cls.provisioner,
        volume_handle=made.volume_id,
        fs_type=cls.parameters.get(f"{PREFIX}fstype", ""),
        volume_attributes=dict(made.volume_context),
        **_references(claim, cls),
    )
    local = client.can("Identity", "VOLUME_ACCESSIBILITY_CONSTRAINTS") and made.accessible_topology
    spec = PersistentVolumeSpec(
        capacity={"storage": str(made.capacity_bytes or match.requested(claim))},
        access_modes=claim.spec.access_modes,
        volume_mode=claim.spec.volume_mode,
        persistent_volume_reclaim_policy=cls.reclaim_policy,
        storage_class_name=cls.name,
        mount_options=cls.mount_options,
        claim_ref=reference(claim),
        csi=source,
        node_affinity=on_node(host) if local else None,
    )
    meta = ObjectMeta(
        name=f"pvc-{claim.metadata.uid}",
        annotations=notes,
        finalizers=(names.PV_PROTECTION, names.DATA),
    )
    return PersistentVolume(metadata=meta, spec=spec)


def on_node(host: str) -> VolumeNodeAffinity:
    """A driver's topology segment means the node it was made on, which Node objects know by its name."""
    need = NodeSelectorRequirement(key=names.HOSTNAME, operator="In", values=(host,))
    return VolumeNodeAffinity(
        required=NodeSelector(node_selector_terms=(NodeSelectorTerm(match_expressions=(need,)),))
    )


# --- secrets ----------------------------------------------------------------------------------------


def _named(claim: PersistentVolumeClaim, cls: StorageClass, what: str) -> tuple[str, str]:
    """(namespace, name) of the class's secret for a call; ("", "") for none."""
    words = {"${pv.name}": f"pvc-{claim.metadata.uid}", "${pvc.namespace}": claim.namespace,
             "${pvc.name}": claim.name}  # fmt: skip
    found = []
    for part in ("namespace", "name"):
        value = cls.parameters.get(f"{PREFIX}{what}-secret-{part}", "")
        for word, text in words.items():
            value = value.replace(word, text)
        found.append(value)
    if bool(found[0]) != bool(found[1]):
        raise Invalid(f"StorageClass {cls.name}: {PREFIX}{what}-secret-name and -namespace go together")
    return (found[0], found[1])


def _references(claim: PersistentVolumeClaim, cls: StorageClass) -> dict[str, Any]:
    named = {field: _named(claim, cls, what) for field, what in _REFS.items()}
    return {field: {"namespace": at, "name": name} for field, (at, name) in named.items() if name}


def secret_of(volume: PersistentVolume, what: str) -> tuple[str, str]:
    """(namespace, name) of the secret that a volume names for a call; ("", "") for none."""
    if what == "provisioner":
        notes = volume.metadata.annotations
        name = notes.get(f"{names.DELETION_SECRET}-name", "")
        return (notes.get(f"{names.DELETION_SECRET}-namespace", ""), name)
    field = next(f for f, w in _REFS.items() if w == what)
    ref = getattr(volume.spec.csi, field, None) or {}
    return (ref.get("namespace", ""), ref.get("name", ""))


def opened(secret: Any, named: tuple[str, str]) -> dict[str, str]:
    """A Secret's values as a driver takes them. Raises Unavailable while it is not there."""
    if not isinstance(secret, Secret):
        raise Unavailable(f"Secret {named[0]}/{named[1]} does not exist; create it")
    plain = {k: base64.b64decode(v).decode("utf-8", "replace") for k, v in secret.data.items()}
    return {**plain, **secret.string_data}

"""csi: a volume of a CSI driver, of a PersistentVolume or of the pod's own (ephemeral). Pure.

What a driver is told at a publish is kubelet's: the volume's attributes, and for an ephemeral volume
which pod it is for (csi.storage.k8s.io/…). Secrets that the volume names are read from the snapshot and
never shown. Source: kubernetes pkg/volume/csi.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from netplane.model.errors import Unavailable
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, Secret
from netplane.model.storage_facts import CsiVolume, Veiled
from netplane.model.volumes import Volume

from .. import names
from .base import Context, Prepared, owned, volume_dir

Secrets = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
_CALLS = {
    "ControllerPublishVolume": "controller_publish_secret_ref",
    "NodeStageVolume": "node_stage_secret_ref",
    "NodePublishVolume": "node_publish_secret_ref",
    "NodeExpandVolume": "node_expand_secret_ref",
}


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    """An ephemeral volume: its driver makes it with the pod's publication and removes it after."""
    source = volume.csi
    assert source is not None
    handle = hashlib.sha256(f"{pod.metadata.uid}/{volume.name}".encode()).hexdigest()
    about = {
        **source.volume_attributes,
        "csi.storage.k8s.io/ephemeral": "true",
        "csi.storage.k8s.io/pod.name": pod.name,
        "csi.storage.k8s.io/pod.namespace": pod.namespace,
        "csi.storage.k8s.io/pod.uid": pod.metadata.uid,
        "csi.storage.k8s.io/serviceAccount.name": pod.spec.service_account_name or "default",
    }
    named = source.node_publish_secret_ref
    ref = {**named, "namespace": pod.namespace} if named else {}
    fact = CsiVolume(
        target=f"{volume_dir(pod, 'csi', volume.name)}/mount",
        driver=source.driver,
        handle=f"csi-{handle}",
        context=tuple(sorted(about.items())),
        fstype=source.fs_type,
        read_only=source.read_only,
        ephemeral=True,
        secrets=_values({"NodePublishVolume": ref}, context.snapshot),
    )
    return Prepared((fact,), fact.target, source.read_only, recursive=True)


def persistent(found: PersistentVolume, read_only: bool, place: tuple[Pod, Volume, Context]) -> Prepared:
    """A PersistentVolume with a csi source, published for this volume of this pod."""
    pod, volume, context = place
    source = found.spec.csi
    assert source is not None
    read_only = read_only or source.read_only
    refs = {call: getattr(source, field) or {} for call, field in _CALLS.items()}
    fact = CsiVolume(
        target=f"{volume_dir(pod, 'csi', volume.name)}/mount",
        driver=source.driver,
        handle=source.volume_handle,
        context=tuple(sorted(source.volume_attributes.items())),
        fstype=source.fs_type,
        flags=found.spec.mount_options,
        mode=found.spec.access_modes[0],
        block=found.spec.volume_mode == "Block",
        read_only=read_only,
        grown=int(found.metadata.annotations.get(names.NODE_EXPAND, "0")),
        secrets=_values(refs, context.snapshot),
    )
    given = owned(pod, fact.target, lasting=True) if _ours_to_give(found, read_only) else ()
    return Prepared((fact, *given), fact.target, read_only, recursive=True, block=fact.block)


def _ours_to_give(found: PersistentVolume, read_only: bool) -> bool:
    """Whether fsGroup applies: ReadWriteOnceWithFSType, the default of CSIDriver.fsGroupPolicy."""
    spec = found.spec
    one = "ReadWriteOnce" in spec.access_modes or "ReadWriteOncePod" in spec.access_modes
    return bool(spec.csi and spec.csi.fs_type) and one and not read_only and spec.volume_mode != "Block"


def _values(refs: dict[str, Any], snapshot: Snapshot) -> Secrets:
    """The values of the secrets that each call takes. Raises Unavailable for one that is not there."""
    found = []
    for call, ref in refs.items():
        if not ref:
            continue
        secret = snapshot.get(Secret, ref.get("namespace", ""), ref.get("name", ""))
        if secret is None:
            where = f"{ref.get('namespace', '')}/{ref.get('name', '')}"
            raise Unavailable(f"Secret {where} does not exist; create it")
        plain = {k: base64.b64decode(v).decode("utf-8", "replace") for k, v in secret.data.items()}
        pairs = {**plain, **secret.string_data}
        found.append((call, tuple((k, Veiled(v)) for k, v in sorted(pairs.items()))))
    return tuple(found)

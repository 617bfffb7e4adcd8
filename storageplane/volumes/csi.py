"""csi: a volume of a CSI driver: inline in the pod, or a PersistentVolume's.

The fact says everything; the driver of facts hands it to the client of csi/ (mounts.CsiPublisher), which
talks to the socket.
"""

from __future__ import annotations

from typing import Any

from netplane.model.pods import Pod
from netplane.model.storage import PersistentVolume
from netplane.model.storage_facts import CsiVolume, Directory
from netplane.model.volumes import Volume

from . import fields, secret
from .base import Context, Prepared, fs_group, volume_dir

POD = "csi.storage.k8s.io"


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    """An inline volume: it lives and goes with its pod."""
    source = volume.csi
    assert source is not None
    home = volume_dir(pod, "csi", volume.name)
    fact = CsiVolume(
        target=f"{home}/mount",
        driver=source.driver,
        fstype=source.fs_type,
        read_only=source.read_only,
        attributes=tuple(sorted(source.volume_attributes.items())),
        pod=_told(pod, True),
        gid=fs_group(pod),
        secrets=_secrets(source.node_publish_secret_ref, pod.namespace, context),
    )
    return Prepared((Directory(path=home, mode=0o750), fact), fact.target, source.read_only)


def persistent(pod: Pod, volume: PersistentVolume, read_only: bool, context: Context) -> Prepared:
    source = volume.spec.csi
    assert source is not None
    home, block = volume_dir(pod, "csi", volume.name), volume.spec.volume_mode == "Block"
    fact = CsiVolume(
        target=f"{home}/mount",
        driver=source.driver,
        handle=source.volume_handle,
        fstype=source.fs_type,
        read_only=read_only or source.read_only,
        block=block,
        attributes=tuple(sorted(source.volume_attributes.items())),
        pod=_told(pod, False),
        access_modes=volume.spec.access_modes,
        mount_options=volume.spec.mount_options,
        gid=fs_group(pod),
        secrets=_secrets(source.node_publish_secret_ref, "", context),
    )
    facts = (Directory(path=home, mode=0o750), fact)
    return Prepared(facts, fact.target, fact.read_only, block=block)


def _told(pod: Pod, ephemeral: bool) -> tuple[tuple[str, str], ...]:
    """What kubelet tells drivers whose CSIDriver has podInfoOnMount."""
    told = {
        f"{POD}/ephemeral": str(ephemeral).lower(),
        f"{POD}/pod.name": pod.name,
        f"{POD}/pod.namespace": pod.namespace,
        f"{POD}/pod.uid": pod.metadata.uid,
        f"{POD}/serviceAccount.name": fields.account(pod),
    }
    return tuple(sorted(told.items()))


def _secrets(ref: Any, namespace: str, context: Context) -> tuple[tuple[str, bytes], ...]:
    if not isinstance(ref, dict) or not ref.get("name"):
        return ()
    space = str(ref.get("namespace") or namespace)
    return tuple(sorted(secret.content(space, str(ref["name"]), False, context.snapshot).items()))

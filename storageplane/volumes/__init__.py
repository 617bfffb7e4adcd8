"""One file per kind of volume: objects into facts."""

from __future__ import annotations

from netplane.model.errors import Invalid, Unavailable
from netplane.model.pods import Pod
from netplane.model.volumes import Volume

from . import (
    cephfs,
    claim,
    config_map,
    csi,
    downward_api,
    empty_dir,
    ephemeral,
    glusterfs,
    host_path,
    nfs,
    projected,
    secret,
)
from .base import Context, Prepared, Renderer

RENDERERS: dict[str, Renderer] = {
    "hostPath": host_path.render,
    "emptyDir": empty_dir.render,
    "persistentVolumeClaim": claim.render,
    "ephemeral": ephemeral.render,
    "configMap": config_map.render,
    "secret": secret.render,
    "downwardAPI": downward_api.render,
    "projected": projected.render,
    "nfs": nfs.render,
    "cephfs": cephfs.render,
    "glusterfs": glusterfs.render,
    "csi": csi.render,
}
LIVE = ("configMap", "secret", "downwardAPI", "projected")  # they follow their objects


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    """The facts of one volume of a pod. Raises Invalid, Unavailable (not yet), naming pod and volume."""
    kind = volume.sources[0] if volume.sources else "none"
    if kind not in RENDERERS:
        known = ", ".join(sorted(RENDERERS))
        raise Invalid(f"{pod.key}: volume {volume.name}: {kind} is not supported; supported: {known}")
    try:
        return RENDERERS[kind](pod, volume, context)
    except Unavailable as exc:
        if kind not in LIVE or str(exc).startswith(str(pod.key)):
            raise
        raise Unavailable(f"{pod.key}: volume {volume.name}: {exc}") from None


__all__ = ["LIVE", "RENDERERS", "Context", "Prepared", "render"]

"""One file per kind of volume: objects into facts."""

from __future__ import annotations

from netplane.model.errors import Invalid
from netplane.model.pods import Pod
from netplane.model.volumes import Volume

from . import claim, csi, empty_dir, host_path
from .base import Context, Prepared, Renderer

RENDERERS: dict[str, Renderer] = {
    "hostPath": host_path.render,
    "emptyDir": empty_dir.render,
    "persistentVolumeClaim": claim.render,
    "csi": csi.render,
}


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    """The facts of one volume of a pod. Raises Invalid, Unavailable (not yet), naming pod and volume."""
    kind = volume.sources[0] if volume.sources else "none"
    if kind not in RENDERERS:
        known = ", ".join(sorted(RENDERERS))
        raise Invalid(f"{pod.key}: volume {volume.name}: {kind} is not supported yet; supported: {known}")
    return RENDERERS[kind](pod, volume, context)


__all__ = ["RENDERERS", "Context", "Prepared", "render"]

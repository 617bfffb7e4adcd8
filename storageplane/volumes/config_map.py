"""configMap: the keys of a ConfigMap as files. On disk, as with kubelet."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import ConfigMap
from netplane.model.volumes import Volume

from . import payload
from .base import Context, Prepared


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    source = volume.config_map
    assert source is not None
    data = content(pod.namespace, source.name, source.optional, context.snapshot)
    what = f"ConfigMap {pod.namespace}/{source.name}"
    return payload.of_object((pod, volume), "configmap", what, source, data)


def content(namespace: str, name: str, optional: bool, snapshot: Snapshot) -> Mapping[str, bytes]:
    """key → bytes. Raises Unavailable when there is no such object and it is not optional."""
    found = snapshot.get(ConfigMap, namespace, name)
    if found is None:
        return payload.missing(f"ConfigMap {namespace}/{name}", optional)
    binary = {k: base64.b64decode(v.replace("\n", "")) for k, v in found.binary_data.items()}
    return {**{k: v.encode() for k, v in found.data.items()}, **binary}

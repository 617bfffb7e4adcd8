"""projected: several sources in one directory, on tmpfs. serviceAccountToken: see `token`."""

from __future__ import annotations

from collections.abc import Sequence

from netplane.model.errors import Invalid
from netplane.model.pods import Pod
from netplane.model.storage_facts import File
from netplane.model.volumes import Volume, VolumeProjection

from . import config_map, downward_api, payload, secret, token
from .base import Context, Prepared


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    source = volume.projected
    assert source is not None
    found = [f for part in source.sources for f in _files(pod, volume, part, context)]
    return payload.prepared(pod, volume, "projected", found)


def _files(pod: Pod, volume: Volume, part: VolumeProjection, context: Context) -> Sequence[File]:
    assert volume.projected is not None
    default, where = volume.projected.default_mode, f"{pod.key}: volume {volume.name}"
    space, snapshot = pod.namespace, context.snapshot
    if part.config_map is not None:
        data = config_map.content(space, part.config_map.name, part.config_map.optional, snapshot)
        what = f"ConfigMap {space}/{part.config_map.name}"
        return payload.files(data, part.config_map, default, what, where)
    if part.secret is not None:
        data = secret.content(space, part.secret.name, part.secret.optional, snapshot)
        return payload.files(data, part.secret, default, f"Secret {space}/{part.secret.name}", where)
    if part.downward_api is not None:
        return downward_api.files(pod, volume.name, part.downward_api.items, default, context)
    if part.service_account_token is not None:
        wanted = part.service_account_token
        mode = payload.MODE if default is None else default
        return [File(wanted.path, mode, token.find(pod, where, wanted, snapshot))]
    kind = "clusterTrustBundle" if part.cluster_trust_bundle is not None else "podCertificate"
    raise Invalid(f"{where}: {kind} is not supported: only a cluster's API server issues it")

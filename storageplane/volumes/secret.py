"""secret: the keys of a Secret as files, on tmpfs only."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import Secret
from netplane.model.volumes import Volume

from . import payload
from .base import Context, Prepared


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    source = volume.secret
    assert source is not None
    data = content(pod.namespace, source.secret_name, source.optional, context.snapshot)
    what = f"Secret {pod.namespace}/{source.secret_name}"
    return payload.of_object((pod, volume), "secret", what, source, data)


def content(namespace: str, name: str, optional: bool, snapshot: Snapshot) -> Mapping[str, bytes]:
    """key → bytes; stringData goes over data. Raises Unavailable without the object, unless optional."""
    found = snapshot.get(Secret, namespace, name)
    if found is None:
        return payload.missing(f"Secret {namespace}/{name}", optional)
    return decoded(found)


def decoded(secret: Secret) -> Mapping[str, bytes]:
    data = {k: base64.b64decode(v.replace("\n", "")) for k, v in secret.data.items()}
    return {**data, **{k: v.encode() for k, v in secret.string_data.items()}}

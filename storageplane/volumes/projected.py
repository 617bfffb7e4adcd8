"""projected: several sources in one directory, on tmpfs.

serviceAccountToken: nobody issues tokens where there is no API server, so the token of a Secret is shown
that belongs to the pod's service account (type kubernetes.io/service-account-token, as Kubernetes itself
fills them). It is valid for as long as whoever made it says: expirationSeconds is not its own. A token for
another audience cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence

from netplane.model.errors import Invalid, Unavailable
from netplane.model.pods import Pod
from netplane.model.storage import Secret
from netplane.model.storage_facts import File
from netplane.model.volumes import ServiceAccountTokenProjection, Volume, VolumeProjection

from . import config_map, downward_api, fields, payload, secret
from .base import Context, Prepared

TOKEN_TYPE = "kubernetes.io/service-account-token"
ACCOUNT = "kubernetes.io/service-account.name"


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
        return [_token(pod, where, part.service_account_token, default, context)]
    kind = "clusterTrustBundle" if part.cluster_trust_bundle is not None else "podCertificate"
    raise Invalid(f"{where}: {kind} is not supported: only a cluster's API server issues it")


def _token(
    pod: Pod, where: str, wanted: ServiceAccountTokenProjection, default: int | None, context: Context
) -> File:
    if wanted.audience:
        raise Invalid(
            f"{where}: serviceAccountToken for the audience {wanted.audience!r}: only an API server "
            "issues such a token; leave audience out to be shown the account's Secret"
        )
    name = fields.account(pod)
    for found in sorted(context.snapshot.list(Secret, pod.namespace), key=lambda s: s.name):
        if found.type == TOKEN_TYPE and found.metadata.annotations.get(ACCOUNT) == name:
            token = secret.decoded(found).get("token")
            if token:
                return File(wanted.path, payload.MODE if default is None else default, token)
    raise Unavailable(
        f"{where}: no token for the service account {name}: without an API server it is taken from a Secret "
        f"of type {TOKEN_TYPE} with the annotation {ACCOUNT}: {name} and the key token"
    )

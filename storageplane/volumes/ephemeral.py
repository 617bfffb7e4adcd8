"""ephemeral: a claim of the pod's own, POD-VOLUME, made from a template by a controller.

Rule 1: a claim of that name that is not this pod's is never used, whoever made it: the pod's UID must
        stand in its ownerReferences.
Source: kubernetes staging/src/k8s.io/component-helpers/storage/ephemeral.
"""

from __future__ import annotations

from netplane.model.errors import Invalid, Unavailable
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolumeClaim
from netplane.model.volumes import Volume

from . import claim
from .base import Context, Prepared


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    """Raises Unavailable until the claim is there and bound, Invalid when it is somebody else's."""
    name = claim_name(pod, volume)
    check(pod, volume, context.snapshot)
    return claim.shown((pod, volume, context), name, False)


def claim_name(pod: Pod, volume: Volume) -> str:
    return f"{pod.name}-{volume.name}"


def check(pod: Pod, volume: Volume, snapshot: Snapshot) -> None:
    where, name = f"{pod.key}: volume {volume.name}", claim_name(pod, volume)
    found = snapshot.get(PersistentVolumeClaim, pod.namespace, name)
    if found is None:
        raise Unavailable(f"{where}: PersistentVolumeClaim {pod.namespace}/{name} is not made yet")
    owners = found.metadata.owner_references
    if not any(o.kind == "Pod" and o.uid == pod.metadata.uid and o.controller for o in owners):
        raise Invalid(
            f"{where}: {found.key} was not created for this pod (the pod is not its owner); "
            "delete it, or rename the volume"
        )

"""Generic ephemeral volumes: the claim POD-VOLUME of a pod, made from its template and gone with it. Pure.

Rule 1: the pod owns its claim by UID (ownerReferences, controller). A claim of that name that it does not
        own is never used and never deleted; the pod is told.
Rule 2: a claim whose pod is gone is deleted; pvc-protection and the reclaim policy do the rest.
Source: kubernetes pkg/controller/volume/ephemeral, and its garbage collector for the second rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from netplane.model import codec
from netplane.model.base import Object, OwnerReference, amend
from netplane.model.changes import Delete, Event, Put, Write
from netplane.model.errors import Invalid
from netplane.model.facts import Scope
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolumeClaim
from netplane.model.volumes import Volume

from . import events, match, steps


class Ephemerals:
    """The controller of pods' own claims. Scope: "pod/NAMESPACE/NAME"."""

    name = "ephemeral"

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        if event is None:
            objects: Iterable[Object | None] = (
                *snapshot.list(Pod), *snapshot.list(PersistentVolumeClaim),
            )  # fmt: skip
        else:
            objects = (event.old, event.new, *_in_the_way_of(event, snapshot))
        return {Scope(self.name, f"pod/{key}") for o in objects if o is not None for key in _pods_of(o)}

    def decide(self, scope: Scope, snapshot: Snapshot) -> list[Write]:
        namespace, _, name = scope.name.removeprefix("pod/").partition("/")
        pod = snapshot.get(Pod, namespace, name)
        writes = list(_orphans(namespace, name, pod, snapshot))
        if pod is None:
            writes += events.forget(namespace, name, ("ephemeral",), snapshot)
        elif not pod.deleting and not pod.finished:
            writes += _claims(pod, snapshot)
        return steps.together(writes)


def claim_of(pod: Pod, volume: Volume) -> PersistentVolumeClaim:
    """The claim that the volume's template asks for. Raises Invalid."""
    assert volume.ephemeral is not None
    template = volume.ephemeral.volume_claim_template
    manifest = {
        "apiVersion": "v1",
        "kind": PersistentVolumeClaim.KIND,
        "metadata": {"name": f"{pod.name}-{volume.name}", "namespace": pod.namespace},
        "spec": template.spec,
    }
    claim = codec.parse(manifest)
    owner = OwnerReference(
        api_version="v1", kind=Pod.KIND, name=pod.name, uid=pod.metadata.uid,
        controller=True, block_owner_deletion=True,
    )  # fmt: skip
    wanted = template.metadata
    meta = amend(
        claim.metadata, labels=wanted.labels, annotations=wanted.annotations, owner_references=(owner,)
    )
    assert isinstance(claim, PersistentVolumeClaim)
    made: PersistentVolumeClaim = amend(claim, metadata=meta)
    return made


def _pods_of(obj: Object) -> Iterator[str]:
    if isinstance(obj, Pod) and any(v.ephemeral for v in obj.spec.volumes):
        yield f"{obj.namespace}/{obj.name}"
    elif isinstance(obj, PersistentVolumeClaim):
        yield from (f"{obj.namespace}/{r.name}" for r in obj.metadata.owner_references if r.kind == Pod.KIND)


def _in_the_way_of(event: Event, snapshot: Snapshot) -> Iterable[Pod]:
    """The pods that want a claim of this name for their own, whoever owns it: one that goes makes room."""
    obj = event.object
    return snapshot.by(Pod, "claim", match.claim_key(obj)) if isinstance(obj, PersistentVolumeClaim) else ()


def _claims(pod: Pod, snapshot: Snapshot) -> Iterator[Write]:
    wrong: list[str] = []
    for volume in pod.spec.volumes:
        if volume.ephemeral is None:
            continue
        have = snapshot.get(PersistentVolumeClaim, pod.namespace, f"{pod.name}-{volume.name}")
        if have is not None and not steps.owned(have, pod):
            wrong.append(f'PVC "{have.name}" was not created for pod "{pod.name}" (pod is not owner)')
        elif have is None:
            try:
                yield Put(claim_of(pod, volume), 0)
            except Invalid as exc:
                wrong.append(f"volume {volume.name}: {exc}")
    yield from events.note(pod, "ephemeral", ("FailedMount", "; ".join(wrong)) if wrong else None, snapshot)


def _orphans(namespace: str, name: str, pod: Pod | None, snapshot: Snapshot) -> Iterator[Write]:
    """The claims of a pod of this name that is gone, or that another took the name of."""
    for claim in snapshot.by(PersistentVolumeClaim, "pod", f"{namespace}/{name}"):
        if not claim.deleting and (pod is None or not steps.owned(claim, pod)):
            yield Delete(claim.key, claim.revision)

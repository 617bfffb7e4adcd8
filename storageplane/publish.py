"""Publishing: every volume of a pod prepared on this node, and taken away again.

Rule 1: facts are a pure function of the pod and the snapshot (`facts_of`); the journal knows their
        keys before the first is made.
Rule 2: a publication is whole, or leaves nothing: a failure undoes what was begun.
Rule 3: publishing again is a repair, unpublishing again is nothing; neither needs the other's success.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Protocol

from netplane.model.errors import Invalid, NetplaneError, Unavailable
from netplane.model.facts import Fact, FactKey, Plan
from netplane.model.pods import Container, Pod, VolumeMount
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim
from netplane.model.storage_facts import Data, Directory, HostPath, Mount, Point

from . import volumes
from .journal import Journal, Record
from .volumes.base import Prepared, pod_dir

PROPAGATIONS = {"None": "private", "HostToContainer": "rslave", "Bidirectional": "rshared"}
_KEPT = (Data, HostPath)


class Applier(Protocol):
    """The mounts driver, as publishing needs it."""

    root: Path

    def apply(self, plan: Plan) -> None: ...
    def where(self, path: str) -> str: ...


class Publication(NamedTuple):
    """``paths``: volume name → absolute path on this node that shows it."""

    pod: Pod
    target: str
    paths: dict[str, str]
    read_only: frozenset[str]


def publish(pod: Pod, snapshot: Snapshot, node: str, driver: Applier, target: str = "") -> Publication:
    """Prepare every volume; bind each at TARGET/<volume> when a target is given.

    Raises Invalid (wrong or impossible), Unavailable (a claim is not bound yet), KernelError.
    """
    target = _real(target, driver.root)
    journal = Journal(driver.root)
    check_pod(pod, node)
    prepared = prepare(pod, snapshot, node, str(driver.root))
    with journal.locked():
        old = journal.read(pod.metadata.uid)
        if old is not None and old.target != target:
            raise Invalid(f"{pod.key} is published at {old.target or 'no target'}; unpublish it there first")
        record = _record(pod, snapshot, node, target)
        facts = facts_of(pod, prepared, target)
        _check_exclusive(record, journal)
        sources = tuple(os.path.realpath(driver.where(p.source)) for p in prepared.values())
        keys = _ours(facts, old)
        merged = _merge(old.keys if old else (), keys)
        journal.write(_with(record, merged, sources))
        try:
            driver.apply(Plan(add=tuple(facts)))
        except NetplaneError:
            if old is None:
                _undo(journal, driver, _with(record, merged, sources))
            raise
    shown = {n: f"{target}/{n}" if target else driver.where(p.source) for n, p in prepared.items()}
    return Publication(pod, target, shown, frozenset(n for n, p in prepared.items() if p.read_only))


def _real(target: str, root: Path) -> str:
    """The target without links, once and for all. Raises Invalid for one inside our own root."""
    real = os.path.realpath(target) if target else ""
    if real and (Path(real) == root or root in Path(real).parents):
        raise Invalid(f"--target {target} lies in the root {root}; choose a place outside")
    return real


def unpublish(namespace: str, name: str, driver: Applier, target: str = "") -> int:
    """Take away what was published for the pod, by the journal; returns how many publications.

    Raises Invalid when it is published at another target, KernelError(EBUSY) while it is in use.
    """
    target = os.path.realpath(target) if target else ""
    journal = Journal(driver.root)
    with journal.locked():
        records = [r for r in journal.records() if (r.namespace, r.name) == (namespace, name)]
        damaged = journal.damaged()
        if damaged and not records:
            raise Invalid(f"Pod {namespace}/{name}: its record may be this one: {damaged[0]}")
        chosen = [r for r in records if not target or r.target == target]
        if records and not chosen:
            where = records[0].target or "no target"
            raise Invalid(f"Pod {namespace}/{name} is published at {where}, not at {target}")
        for record in chosen:
            _undo(journal, driver, record)
        return len(chosen)


def _undo(journal: Journal, driver: Applier, record: Record) -> None:
    driver.apply(Plan(remove=tuple(record.keys)))
    journal.remove(record.uid)


# --- what a pod needs, pure ---------------------------------------------------------------------


def check_pod(pod: Pod, node: str) -> None:
    """Raises Invalid for what cannot be published here."""
    if pod.spec.node_name not in ("", node):
        raise Invalid(f"{pod.key} belongs to node {pod.spec.node_name} (spec.nodeName), this is {node}")
    if not pod.metadata.uid:
        raise Invalid(f"{pod.key} has no metadata.uid: take it from a store")
    if pod.deleting:
        raise Invalid(f"{pod.key} is being deleted")
    for container in all_containers(pod):
        if container.volume_devices:
            raise Invalid(f"{pod.key}: container {container.name}: volumeDevices are not supported yet")
        for mount in container.volume_mounts:
            if mount.sub_path or mount.sub_path_expr:
                where = f"{pod.key}: container {container.name}: {mount.mount_path}"
                raise Invalid(f"{where}: subPath and subPathExpr are not supported yet")


def all_containers(pod: Pod) -> tuple[Container, ...]:
    return (*pod.spec.init_containers, *pod.spec.containers)


def prepare(pod: Pod, snapshot: Snapshot, node: str, root: str) -> dict[str, Prepared]:
    """Volume name → what prepares it. Raises Invalid, Unavailable."""
    context = volumes.Context(node, root, snapshot)
    return {v.name: volumes.render(pod, v, context) for v in pod.spec.volumes}


def facts_of(pod: Pod, prepared: dict[str, Prepared], target: str) -> list[Fact]:
    """All facts of a publication, in the order in which they can be made."""
    facts: list[Fact] = [Directory(path=pod_dir(pod), mode=0o750)]
    for source in prepared.values():
        facts.extend(source.facts)
    if target:
        facts.extend(Directory(path=p) for p in _ancestors(target))
        for name, source in prepared.items():
            facts.extend(_shown(f"{target}/{name}", source, propagation(pod, name)))
    return facts


def _shown(place: str, source: Prepared, how: str) -> list[Fact]:
    mount = Mount(
        target=place,
        source=source.source,
        read_only=source.read_only,
        propagation=how,
        recursive=source.recursive,
        follow=source.follow,
    )
    return [Point(path=place, source=source.source), mount]


def propagation(pod: Pod, volume: str) -> str:
    """The widest propagation that any container asks of a volume."""
    order = tuple(PROPAGATIONS)
    wanted = [m.mount_propagation for c in all_containers(pod) for m in c.volume_mounts if m.name == volume]
    return PROPAGATIONS[max(wanted, key=order.index, default="None")]


def _ancestors(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[: i + 1]) for i in range(len(parts))]


# --- the record ---------------------------------------------------------------------------------


def _record(pod: Pod, snapshot: Snapshot, node: str, target: str) -> Record:
    meta = pod.metadata
    alone = tuple(sorted(_exclusive(pod, snapshot)))
    return Record(
        uid=meta.uid, namespace=pod.namespace, name=pod.name, node=node, target=target, exclusive=alone
    )


def _exclusive(pod: Pod, snapshot: Snapshot) -> set[str]:
    found = set()
    for volume in pod.spec.volumes:
        source = volume.persistent_volume_claim
        claim = snapshot.get(PersistentVolumeClaim, pod.namespace, source.claim_name) if source else None
        held = snapshot.get(PersistentVolume, "", claim.spec.volume_name) if claim else None
        if held is not None and "ReadWriteOncePod" in held.spec.access_modes:
            found.add(held.name)
    return found


def _check_exclusive(record: Record, journal: Journal) -> None:
    for other in journal.records():
        shared = set(other.exclusive) & set(record.exclusive)
        if shared and other.uid != record.uid:
            who = f"pod {other.namespace}/{other.name}"
            raise Unavailable(f"{min(shared)} is ReadWriteOncePod and published for {who}")


def _with(record: Record, keys: tuple[tuple[str, str], ...], sources: tuple[str, ...]) -> Record:
    return Record(
        uid=record.uid, namespace=record.namespace, name=record.name, node=record.node,
        target=record.target, keys=keys, sources=sources, exclusive=record.exclusive,
    )  # fmt: skip


def _ours(facts: list[Fact], old: Record | None) -> list[FactKey]:
    """The keys that unpublishing removes: not what a user keeps, not a place that was there before."""
    before = set(old.keys) if old else set()
    keys = []
    for fact in facts:
        absolute = str(fact.key[1]).startswith("/")
        placed = isinstance(fact, (Directory, Point)) and absolute
        stood = placed and fact.key not in before and os.path.lexists(str(fact.key[1]))
        if not isinstance(fact, _KEPT) and not stood:
            keys.append(fact.key)
    return keys


def _merge(old: tuple[tuple[str, str], ...], new: list[FactKey]) -> tuple[tuple[str, str], ...]:
    fresh = [(str(k[0]), str(k[1])) for k in new]
    return (*old, *(k for k in fresh if k not in old))


# --- what containers are told -------------------------------------------------------------------


def mounts_of(container: Container, publication: Publication) -> list[dict[str, object]]:
    """The container's mounts as the OCI runtime specification writes them."""
    return [_oci(mount, publication) for mount in container.volume_mounts]


def _oci(mount: VolumeMount, publication: Publication) -> dict[str, object]:
    read_only = mount.read_only or mount.name in publication.read_only
    share = {"None": "rprivate"}.get(mount.mount_propagation, PROPAGATIONS[mount.mount_propagation])
    return {
        "destination": mount.mount_path,
        "type": "bind",
        "source": publication.paths[mount.name],
        "options": ["rbind", "ro" if read_only else "rw", share],
    }


def as_json(publication: Publication) -> dict[str, object]:
    pod = publication.pod
    return {
        "pod": pod.name,
        "namespace": pod.namespace,
        "uid": pod.metadata.uid,
        "target": publication.target,
        "volumes": publication.paths,
        "containers": {c.name: mounts_of(c, publication) for c in all_containers(pod)},
    }

"""What a pod wants of its node: the facts of its volumes, and where each container finds them. Pure.

Rule 1: volumes are apart from each other, so that one that fails need not stop the others.
Rule 2: a container gets a mount of its own (a view) where what it asks for is not the volume as it is: a
        subPath, or everything read-only to the last mount in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple

from netplane.model import volume_checks
from netplane.model.errors import Invalid, Unavailable
from netplane.model.facts import Fact
from netplane.model.pods import Container, Pod, VolumeMount
from netplane.model.storage_facts import (
    CsiVolume,
    Directory,
    Mount,
    NetworkMount,
    Payload,
    Point,
    SubPath,
)
from netplane.model.volumes import Volume

from .. import volumes
from ..volumes import environment
from ..volumes.base import Context, Prepared, pod_dir

PROPAGATIONS = {"None": "private", "HostToContainer": "rslave", "Bidirectional": "rshared"}
Place = tuple[str, int]  # (container's name, index in its volumeMounts)


class Wanted(NamedTuple):
    """One volume. ``facts`` in the order in which they can be made; ``views``: containers' own mounts."""

    prepared: Prepared
    facts: tuple[Fact, ...]
    views: dict[Place, str]


def check(pod: Pod, node: str) -> None:
    """Raises Invalid for what cannot be published here."""
    if pod.spec.node_name not in ("", node):
        raise Invalid(f"{pod.key} belongs to node {pod.spec.node_name} (spec.nodeName), this is {node}")
    if not pod.metadata.uid:
        raise Invalid(f"{pod.key} has no metadata.uid: take it from a store")
    if pod.deleting:
        raise Invalid(f"{pod.key} is being deleted")


def all_containers(pod: Pod) -> tuple[Container, ...]:
    return (*pod.spec.init_containers, *pod.spec.containers, *pod.spec.ephemeral_containers)


def base(pod: Pod, target: str) -> list[Fact]:
    """What comes before any volume."""
    mine = Directory(path=pod_dir(pod), mode=0o750)
    return [mine, *(Directory(path=p) for p in (_ancestors(target) if target else ()))]


def every(pod: Pod, target: str, context: Context) -> dict[str, Wanted]:
    """Volume name → what it takes. Raises Invalid, Unavailable."""
    return {v.name: volume(pod, v, target, context) for v in pod.spec.volumes}


def volume(pod: Pod, source: Volume, target: str, context: Context) -> Wanted:
    """One volume, shown at TARGET/<name> when there is a target. Raises Invalid, Unavailable."""
    prepared = volumes.render(pod, source, context)
    facts, views = [*prepared.facts], {}
    if target:
        facts += _shown(f"{target}/{source.name}", prepared, propagation(pod, source.name))
    for container in all_containers(pod):
        _fitting(pod, container, source.name, prepared.block)
        for index, mount in enumerate(container.volume_mounts):
            if mount.name != source.name:
                continue
            sub = _sub_path(pod, container, mount, context)
            _among_shown(pod, source.name, sub, prepared)
            if sub or _all_read_only(mount):
                place = f"{pod_dir(pod)}/volume-subpaths/{source.name}/{container.name}/{index}"
                facts += _view(place, sub, mount, prepared)
                views[container.name, index] = place
    return Wanted(prepared, tuple(facts), views)


def digest(wanted: Iterable[Wanted]) -> str:
    """The same for as long as nothing of it changes; tells nothing of what it holds."""
    marks = [(fact.key, _mark(fact)) for one in wanted for fact in one.facts]
    return hashlib.sha256(repr(marks).encode()).hexdigest()


def _mark(fact: Fact) -> Hashable:
    return fact.mark if isinstance(fact, (Payload, NetworkMount, CsiVolume)) else repr(fact)


def _shown(place: str, source: Prepared, how: str) -> Iterator[Fact]:
    yield Point(path=place, source=source.source, follow=source.follow)
    yield Mount(
        target=place,
        source=source.source,
        read_only=source.read_only,
        propagation=how,
        recursive=source.recursive,
        follow=source.follow,
    )


def propagation(pod: Pod, volume: str) -> str:
    """The widest propagation that any container asks of a volume."""
    order = tuple(PROPAGATIONS)
    wanted = [m.mount_propagation for c in all_containers(pod) for m in c.volume_mounts if m.name == volume]
    return PROPAGATIONS[max(wanted, key=order.index, default="None")]


def _ancestors(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[: i + 1]) for i in range(len(parts))]


# --- views ----------------------------------------------------------------------------------------


def _fitting(pod: Pod, container: Container, name: str, block: bool) -> None:
    """Raises Invalid for a device that is mounted, or a directory that is asked for as a device."""
    where = f"{pod.key}: container {container.name}: volume {name}"
    if block and any(m.name == name for m in container.volume_mounts):
        raise Invalid(f"{where} is a block device; use volumeDevices for it")
    if not block and any(d.name == name for d in container.volume_devices):
        raise Invalid(f"{where} has a file system; use volumeMounts for it")


def _sub_path(pod: Pod, container: Container, mount: VolumeMount, context: Context) -> str:
    """The path in the volume, "" for all of it."""
    sub = mount.sub_path
    if mount.sub_path_expr:
        sub = environment.sub_path(mount.sub_path_expr, pod, container, context)
    plain = "/".join(part for part in sub.split("/") if part not in ("", "."))
    where = f"{pod.key}: container {container.name}: {mount.mount_path}: subPath"
    if sub.startswith("/"):
        raise Invalid(f"{where}: {sub!r} must be relative to the volume")
    for _, reason in volume_checks.inside("", plain) if plain else ():
        raise Invalid(f"{where}: {reason}")
    return plain


def _among_shown(pod: Pod, volume: str, sub: str, prepared: Prepared) -> None:
    """Raises Unavailable for a file that no object gives; kubelet would make a directory in its place."""
    shown = [f.path for p in prepared.facts if isinstance(p, Payload) for f in p.files]
    if sub and prepared.fixed and not any(p == sub or p.startswith(f"{sub}/") for p in shown):
        have = ", ".join(shown) or "nothing"
        raise Unavailable(f"{pod.key}: subPath: volume {volume} shows no {sub!r}; it shows {have}")


def _all_read_only(mount: VolumeMount) -> bool:
    """IfPossible is always possible: Linux 5.12 can, and we need that anyway."""
    return mount.recursive_read_only in ("IfPossible", "Enabled")


def _view(place: str, sub: str, mount: VolumeMount, source: Prepared) -> Iterator[Fact]:
    yield Directory(path=place.rpartition("/")[0], mode=0o750)
    if sub and not source.fixed:
        yield SubPath(source=source.source, path=sub, follow=source.follow)
    yield Point(path=place, source=source.source, sub=sub, follow=source.follow)
    yield Mount(
        target=place,
        source=source.source,
        read_only=mount.read_only or source.read_only,
        propagation=PROPAGATIONS[mount.mount_propagation],
        recursive=source.recursive,
        follow=source.follow,
        sub=sub,
        all_read_only=_all_read_only(mount),
    )

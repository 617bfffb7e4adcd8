"""downwardAPI: what the Pod says of itself, as files on tmpfs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from netplane.model.errors import Invalid
from netplane.model.nodes import Node
from netplane.model.pods import Container, Pod
from netplane.model.storage_facts import File
from netplane.model.volumes import DownwardAPIFile, Volume

from . import fields, payload
from .base import Context, Prepared


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    source = volume.downward_api
    assert source is not None
    found = files(pod, volume.name, source.items, source.default_mode, context)
    return payload.prepared(pod, volume, "downward-api", found)


def files(
    pod: Pod, volume: str, items: Iterable[DownwardAPIFile], default: int | None, context: Context
) -> Sequence[File]:
    """Raises Invalid for a field or a container that is not there."""
    return [payload.text(item.path, item.mode, default, _value(pod, volume, item, context)) for item in items]


def _value(pod: Pod, volume: str, item: DownwardAPIFile, context: Context) -> str:
    if item.field_ref is not None:
        return fields.field(pod, item.field_ref.field_path)
    ref = item.resource_field_ref
    assert ref is not None
    node = context.snapshot.get(Node, "", context.node)
    allocatable = node.status.allocatable if node else {}
    container = _container(pod, volume, ref.container_name)
    return fields.resource(container, ref.resource, ref.divisor, allocatable)


def _container(pod: Pod, volume: str, name: str) -> Container:
    for container in (*pod.spec.init_containers, *pod.spec.containers):
        if container.name == name:
            return container
    raise Invalid(f"{pod.key}: volume {volume}: resourceFieldRef names no container of the pod: {name!r}")

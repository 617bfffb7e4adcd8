"""emptyDir: a directory that lives as long as its pod. 0777 whatever the umask.

Memory: a tmpfs whose size is the least of sizeLimit, the pod's memory limit (when every container
has one) and the node's allocatable memory. On disk a sizeLimit is not enforced (upstream evicts).
Source: kubernetes pkg/volume/emptydir/empty_dir.go.
"""

from __future__ import annotations

from netplane.model.checks import parse_quantity
from netplane.model.errors import Invalid
from netplane.model.nodes import Node
from netplane.model.pods import Pod
from netplane.model.storage_facts import Directory, Mount
from netplane.model.volumes import Volume

from .base import Context, Prepared, volume_dir


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    assert volume.empty_dir is not None
    medium = volume.empty_dir.medium
    path = volume_dir(pod, "empty-dir", volume)
    place = Directory(path=path, mode=0o777)
    if medium == "":
        return Prepared((place,), path)
    if medium != "Memory":
        raise Invalid(f"volume {volume.name}: emptyDir.medium {medium!r} is not supported yet; use Memory")
    size = size_of(pod, volume, context)
    options = ("mode=0777", *((f"size={size}",) if size else ()))
    return Prepared((place, Mount(target=path, source="tmpfs", fstype="tmpfs", options=options)), path)


def size_of(pod: Pod, volume: Volume, context: Context) -> int:
    """Bytes of a Memory volume; 0 when nothing limits it (the kernel's default, half of memory)."""
    limits: list[int] = []
    if volume.empty_dir and volume.empty_dir.size_limit is not None:
        limits.append(parse_quantity(volume.empty_dir.size_limit))
    memory = [c.resources.limits.get("memory") for c in pod.spec.containers]
    if memory and all(m is not None for m in memory):
        limits.append(sum(parse_quantity(m) for m in memory if m is not None))
    node = context.snapshot.get(Node, "", context.node)
    if node is not None and "memory" in node.status.allocatable:
        limits.append(parse_quantity(node.status.allocatable["memory"]))
    return min((n for n in limits if n > 0), default=0)

"""emptyDir: a directory that lives as long as its pod. 0777 whatever the umask.

On disk a sizeLimit is the size of a file system of its own (ext4 in a sparse image): a write beyond it gets
ENOSPC, where kubelet evicts the pod some time later. Memory: a tmpfs whose size is the least of sizeLimit,
the pod's memory limit (when every container has one) and the node's allocatable memory. HugePages: a
hugetlbfs of the page size that the medium or the containers' resources name, sized in the same way.
Source: kubernetes pkg/volume/emptydir/empty_dir.go.
"""

from __future__ import annotations

from netplane.model.checks import parse_quantity
from netplane.model.errors import Invalid
from netplane.model.facts import Fact
from netplane.model.nodes import Node
from netplane.model.pods import Pod
from netplane.model.storage_facts import Directory, Image, Mount
from netplane.model.volumes import Volume

from .base import Context, Prepared, owned, plugin_dir, volume_dir

IMAGE_OPTIONS = ("discard", "noinit_itable")  # what is deleted is given back; a new image is zeroes already
HUGE = "hugepages-"


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    assert volume.empty_dir is not None
    medium = volume.empty_dir.medium
    path = volume_dir(pod, "empty-dir", volume.name)
    facts: list[Fact] = [Directory(path=path, mode=0o777)]
    if medium == "":
        facts += _limited(pod, volume, path)
    elif medium == "Memory":
        facts.append(_memory(path, "tmpfs", size_of(pod, volume, context)))
    else:
        page = page_of(pod, volume)
        size = _least(_limits(pod, volume, f"{HUGE}{page}"))
        facts.append(_memory(path, "hugetlbfs", size, f"pagesize={parse_quantity(page)}"))
    return Prepared((*facts, *owned(pod, path)), path)


def _limited(pod: Pod, volume: Volume, path: str) -> list[Fact]:
    """Of a size: an image beside the pod's volumes. Of none: the directory alone."""
    assert volume.empty_dir is not None
    size = _least(_own(volume))
    if not size:
        return []
    home = plugin_dir(pod, "empty-dir", volume.name)
    image = f"{home}/image"
    mount = Mount(target=path, source=image, fstype="ext4", options=IMAGE_OPTIONS, emptied=True)
    return [Directory(path=home, mode=0o700), Image(path=image, size=size), mount]


def _memory(path: str, fstype: str, size: int, *options: str) -> Mount:
    sized = (f"size={size}",) if size else ()
    return Mount(target=path, source=fstype, fstype=fstype, options=("mode=0777", *sized, *options))


def size_of(pod: Pod, volume: Volume, context: Context) -> int:
    """Bytes of a Memory volume; 0 when nothing limits it (the kernel's default, half of memory)."""
    limits = _limits(pod, volume, "memory")
    node = context.snapshot.get(Node, "", context.node)
    if node is not None and "memory" in node.status.allocatable:
        limits.append(parse_quantity(node.status.allocatable["memory"]))
    return _least(limits)


def _own(volume: Volume) -> list[int]:
    source = volume.empty_dir
    return [parse_quantity(source.size_limit)] if source and source.size_limit is not None else []


def _limits(pod: Pod, volume: Volume, resource: str) -> list[int]:
    """The volume's own limit, and the sum of the containers' when each of them has one."""
    each = [c.resources.limits.get(resource) for c in pod.spec.containers]
    given = [parse_quantity(m) for m in each if m is not None]
    all_have = bool(given) and (len(given) == len(each) or resource.startswith(HUGE))
    return [*_own(volume), *([sum(given)] if all_have else [])]


def _least(limits: list[int]) -> int:
    return min((n for n in limits if n > 0), default=0)


def page_of(pod: Pod, volume: Volume) -> str:
    """The page size of a HugePages volume, such as "2Mi". Raises Invalid when it is not to be known."""
    assert volume.empty_dir is not None
    medium = volume.empty_dir.medium
    where = f"{pod.key}: volume {volume.name}: emptyDir.medium {medium!r}"
    every = (*pod.spec.init_containers, *pod.spec.containers)
    named = {k for c in every for k in (*c.resources.limits, *c.resources.requests) if k.startswith(HUGE)}
    sizes = sorted(k.removeprefix(HUGE) for k in named)
    asked = medium.removeprefix("HugePages").removeprefix("-")
    if asked and asked not in sizes:
        raise Invalid(f"{where}: no container of the pod has a limit of {HUGE}{asked}")
    if not asked and len(sizes) != 1:
        have = ", ".join(sizes) or "none"
        raise Invalid(f"{where}: the containers' limits must name exactly one page size; they name {have}")
    return asked or sizes[0]

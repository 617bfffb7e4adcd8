"""What configMap, secret, downwardAPI and projected have in common: objects shown as files.

Rule 1: a path is relative, without "..", and of names that the atomic writer does not need itself.
Rule 2: what is missing is an error that waiting may cure, unless it is optional.
Rule 3: all but configMap lie on tmpfs; containers never write to any of them, as with kubelet.
Rule 4: messages name objects and keys, never content.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from netplane.model import volume_checks
from netplane.model.errors import Invalid, Unavailable
from netplane.model.facts import Fact
from netplane.model.pods import Pod
from netplane.model.storage_facts import Directory, File, Mount, Payload
from netplane.model.volumes import KeyToPath, Volume

from .base import Prepared, fs_group, volume_dir

LIMIT = 1 << 20  # bytes of one object's data (Kubernetes' MaxSecretSize)
MODE = 0o644
TMPFS = ("mode=0777", "noswap")


def prepared(pod: Pod, volume: Volume, plugin: str, files: Iterable[File]) -> Prepared:
    """The volume that shows these files; of two with one path the later."""
    chosen = {f.path: f for f in files}
    _check(pod, volume, chosen)
    path, memory = volume_dir(pod, plugin, volume.name), plugin != "configmap"
    facts: list[Fact] = [Directory(path=path, mode=0o777)]
    if memory:
        facts.append(Mount(target=path, source="tmpfs", fstype="tmpfs", options=TMPFS))
    shown = tuple(chosen[p] for p in sorted(chosen))
    facts.append(Payload(path=path, files=shown, gid=fs_group(pod), memory=memory))
    return Prepared(tuple(facts), path, read_only=True, fixed=True)


def of_object(
    place: tuple[Pod, Volume], plugin: str, what: str, source: Any, data: Mapping[str, bytes]
) -> Prepared:
    """The volume that shows one object; ``what``: its kind and name, for messages. Raises as `files`."""
    pod, volume = place
    found = files(data, source, source.default_mode, what, f"{pod.key}: volume {volume.name}")
    return prepared(pod, volume, plugin, found)


def _check(pod: Pod, volume: Volume, files: Mapping[str, File]) -> None:
    where = f"{pod.key}: volume {volume.name}"
    for path in files:
        for _, reason in volume_checks.relative("", path):
            raise Invalid(f"{where}: {reason}")
        parts = path.split("/")
        for i in range(1, len(parts)):
            if "/".join(parts[:i]) in files:
                raise Invalid(f"{where}: {'/'.join(parts[:i])} cannot be a file and the directory of {path}")


def missing(what: str, optional: bool) -> Mapping[str, bytes]:
    """No data, where that is allowed. Raises Unavailable: what is missing may still come."""
    if optional:
        return {}
    raise Unavailable(f"{what} does not exist; create it, or mark it optional")


def files(
    data: Mapping[str, bytes], source: Any, default: int | None, what: str, where: str
) -> Sequence[File]:
    """The files of one object: all keys, or the ``items`` of the source. Raises Unavailable, Invalid."""
    if sum(map(len, data.values())) > LIMIT:
        raise Invalid(f"{where}: {what} has more than {LIMIT} bytes, which is the most that a volume shows")
    items: Sequence[KeyToPath] = source.items or [KeyToPath(key=k, path=k) for k in sorted(data)]
    found = []
    for item in items:
        if item.key in data:
            found.append(File(item.path, _mode(item.mode, default), data[item.key]))
        elif not source.optional:
            raise Unavailable(f"{where}: {what} has no key {item.key!r}; it has {', '.join(data) or 'none'}")
    return found


def _mode(own: int | None, default: int | None) -> int:
    return next((m for m in (own, default) if m is not None), MODE)


def text(path: str, mode: int | None, default: int | None, content: str) -> File:
    return File(path, _mode(mode, default), content.encode())

"""What every kind of volume gives: the facts that prepare it, and the path that shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from netplane.model.facts import Fact
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.volumes import Volume


class Context(NamedTuple):
    """What a volume may depend on. ``root`` is absolute and real."""

    node: str
    root: str
    snapshot: Snapshot


class Prepared(NamedTuple):
    """``source``: relative to the root, or absolute. ``follow``: links in it are the user's own."""

    facts: tuple[Fact, ...]
    source: str
    read_only: bool = False
    recursive: bool = False
    follow: bool = False


Renderer = Callable[[Pod, Volume, Context], Prepared]


def pod_dir(pod: Pod) -> str:
    """kubelet's layout, beneath our root."""
    return f"pods/{pod.metadata.uid}"


def volume_dir(pod: Pod, plugin: str, volume: Volume) -> str:
    return f"{pod_dir(pod)}/volumes/kubernetes.io~{plugin}/{volume.name}"

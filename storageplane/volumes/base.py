"""What every kind of volume gives: the facts that prepare it, and the path that shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from netplane.model.facts import Fact
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage_facts import Ownership
from netplane.model.volumes import Volume


class Context(NamedTuple):
    """What a volume may depend on. ``root`` is absolute and real."""

    node: str
    root: str
    snapshot: Snapshot


class Prepared(NamedTuple):
    """``source``: relative to the root, or absolute. ``follow``: links in it are the user's own.

    ``block``: the source is a device, for volumeDevices. ``fixed``: its files are exactly what an object
    says, so a subPath that is missing is a mistake and not made. ``home``: where its data lies, when that is
    not the source; it too is in use.
    """

    facts: tuple[Fact, ...]
    source: str
    read_only: bool = False
    recursive: bool = False
    follow: bool = False
    block: bool = False
    fixed: bool = False
    home: str = ""


Renderer = Callable[[Pod, Volume, Context], Prepared]


def pod_dir(pod: Pod) -> str:
    """kubelet's layout, beneath our root."""
    return f"pods/{pod.metadata.uid}"


def volume_dir(pod: Pod, plugin: str, name: str) -> str:
    return f"{pod_dir(pod)}/volumes/kubernetes.io~{plugin}/{name}"


def plugin_dir(pod: Pod, plugin: str, name: str) -> str:
    """Where a volume keeps what its user does not see."""
    return f"{pod_dir(pod)}/plugins/kubernetes.io~{plugin}/{name}"


def fs_group(pod: Pod) -> int | None:
    return pod.spec.security_context.fs_group if pod.spec.security_context else None


def owned(pod: Pod, path: str, lasting: bool = False) -> tuple[Ownership, ...]:
    """fsGroup on a volume. ``lasting``: it outlives the pod, so fsGroupChangePolicy counts."""
    gid, context = fs_group(pod), pod.spec.security_context
    if gid is None or context is None:
        return ()
    spared = lasting and context.fs_group_change_policy == "OnRootMismatch"
    return (Ownership(path=path, gid=gid, always=not spared),)

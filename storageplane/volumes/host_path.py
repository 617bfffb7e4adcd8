"""hostPath: a path of the node itself, checked or made by its type; never removed."""

from __future__ import annotations

from netplane.model.pods import Pod
from netplane.model.storage_facts import HostPath
from netplane.model.volumes import HostPathSource, Volume

from .base import Context, Prepared


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    del pod, context
    assert volume.host_path is not None
    return prepared(volume.host_path)


def prepared(source: HostPathSource, read_only: bool = False) -> Prepared:
    """Also for a PersistentVolume with a hostPath source."""
    fact = HostPath(path=source.path, type=source.type)
    return Prepared((fact,), source.path, read_only, recursive=True, follow=True)

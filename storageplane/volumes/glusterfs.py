"""glusterfs: mounted by mount.glusterfs from the first server of its endpoints; the others are its backup."""

from __future__ import annotations

from netplane.model.errors import Unavailable
from netplane.model.pods import Pod
from netplane.model.services import EndpointSlice
from netplane.model.snapshot import Snapshot
from netplane.model.volumes import GlusterfsSource, Volume

from .base import Context, Prepared, volume_dir
from .nfs import network


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    assert volume.glusterfs is not None
    path = volume_dir(pod, "glusterfs", volume.name)
    return prepared(volume.glusterfs, path, (), volume.glusterfs.read_only, (pod.namespace, context))


def prepared(
    source: GlusterfsSource, path: str, options: tuple[str, ...], read_only: bool, where: tuple[str, Context]
) -> Prepared:
    """Also for a PersistentVolume. Raises Unavailable while no EndpointSlice tells a server."""
    namespace, context = where
    space = source.endpoints_namespace or namespace
    servers = _servers(space, source.endpoints, context.snapshot)
    if not servers:
        raise Unavailable(f"glusterfs: no EndpointSlice of {space}/{source.endpoints} has an address")
    backup = (f"backup-volfile-servers={':'.join(servers)}",) if len(servers) > 1 else ()
    shown = f"{servers[0]}:/{source.path.lstrip('/')}"
    return network(path, shown, "glusterfs", ("log-level=ERROR", *backup, *options), read_only)


def _servers(namespace: str, name: str, snapshot: Snapshot) -> list[str]:
    slices = snapshot.by(EndpointSlice, "service", f"{namespace}/{name}")
    return sorted({a for s in slices for e in s.endpoints for a in e.addresses})

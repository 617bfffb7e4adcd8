"""nfs: an export, mounted by mount.nfs."""

from __future__ import annotations

from netplane.model.pods import Pod
from netplane.model.storage_facts import Directory, NetworkMount
from netplane.model.volumes import NFSSource, Volume

from .base import Context, Prepared, volume_dir


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    del context
    assert volume.nfs is not None
    return prepared(volume.nfs, volume_dir(pod, "nfs", volume.name), (), volume.nfs.read_only)


def prepared(source: NFSSource, path: str, options: tuple[str, ...], read_only: bool) -> Prepared:
    """Also for a PersistentVolume. An IPv6 address stands in brackets (nfs(5))."""
    server = f"[{source.server}]" if ":" in source.server else source.server
    return network(path, f"{server}:{source.path}", "nfs", options, read_only)


def network(
    path: str, source: str, fstype: str, options: tuple[str, ...], read_only: bool, secret: bytes = b""
) -> Prepared:
    """A volume of the network; ``read_only`` is the mount's own option."""
    every = (*options, *(("ro",) if read_only else ()))
    mount = NetworkMount(target=path, source=source, fstype=fstype, options=every, secret=secret)
    return Prepared((Directory(path=path, mode=0o750), mount), path, read_only)

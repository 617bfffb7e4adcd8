"""cephfs: by mount.ceph or ceph-fuse, which get the key in a file of its own, never on their command line."""

from __future__ import annotations

from netplane.model.errors import Unavailable
from netplane.model.pods import Pod
from netplane.model.volumes import CephFSSource, Volume

from . import secret
from .base import Context, Prepared, volume_dir
from .nfs import network


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    assert volume.cephfs is not None
    path = volume_dir(pod, "cephfs", volume.name)
    return prepared(volume.cephfs, path, (), volume.cephfs.read_only, (pod.namespace, context))


def prepared(
    source: CephFSSource, path: str, options: tuple[str, ...], read_only: bool, where: tuple[str, Context]
) -> Prepared:
    """Also for a PersistentVolume. ``where``: the namespace of its Secret, unless it names one."""
    monitors = ",".join(f"[{m}]" if m.count(":") > 1 and m[0] != "[" else m for m in source.monitors)
    shown, key = f"{monitors}:/{source.path.lstrip('/')}", _key(source, *where)
    file = () if key else (f"secretfile={source.secret_file}",)
    return network(path, shown, "ceph", (f"name={source.user}", *file, *options), read_only, key)


def _key(source: CephFSSource, namespace: str, context: Context) -> bytes:
    """The key of its Secret: under "key", or else whatever it holds (kubelet takes the last)."""
    ref = source.secret_ref
    if ref is None:
        return b""
    space = ref.namespace or namespace
    data = secret.content(space, ref.name, False, context.snapshot)
    if not data:
        raise Unavailable(f"Secret {space}/{ref.name} holds nothing; CephFS needs its key under key")
    return data["key"] if "key" in data else data[max(data)]

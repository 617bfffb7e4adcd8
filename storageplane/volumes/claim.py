"""persistentVolumeClaim: the volume that the claim is bound to, shown by its own source."""

from __future__ import annotations

from collections.abc import Iterable

from netplane.model.errors import Invalid, Unavailable
from netplane.model.nodes import Event
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim
from netplane.model.storage_facts import Data, Device, HostPath, Ownership
from netplane.model.volumes import HostPathSource, Volume

from .. import backends, names
from ..claims import access, match
from ..claims.provision import data_of, is_ours
from . import cephfs, csi, glusterfs, host_path, nfs
from .base import Context, Prepared, owned, pod_dir, volume_dir


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    """Raises Unavailable while the claim is not bound, Invalid when its volume cannot be used here."""
    assert volume.persistent_volume_claim is not None
    source = volume.persistent_volume_claim
    return shown((pod, volume, context), source.claim_name, source.read_only)


def shown(place: tuple[Pod, Volume, Context], name: str, read_only: bool) -> Prepared:
    """What the pod's claim of this name is bound to."""
    pod, _, context = place
    claim = bound(pod.namespace, name, context.snapshot)
    found = context.snapshot.get(PersistentVolume, "", claim.spec.volume_name)
    if found is None or not match.refers(found.spec.claim_ref, claim):
        raise Unavailable(f"{claim.key}: its {claim.spec.volume_name!r} is gone or another claim's")
    if not match.fits_node(found.spec.node_affinity, context.node, context.snapshot):
        raise Invalid(f"{found.key}: not reachable from node {context.node} (spec.nodeAffinity)")
    busy = access.obstacle(pod, claim, context.node, context.snapshot)
    if busy:
        raise Unavailable(busy)
    read_only = read_only or access.mode_of(pod, claim) == "ReadOnlyMany"
    if found.spec.csi is not None:
        return csi.persistent(found, read_only, place)
    if found.spec.volume_mode == "Block":
        return _block(pod, found, read_only, context)
    return _filesystem(pod, found, read_only, context)


def _filesystem(pod: Pod, volume: PersistentVolume, read_only: bool, context: Context) -> Prepared:
    spec = volume.spec
    if is_ours(volume, context.root):
        data = _data(volume)
        facts, path = backends.shown(data, volume_dir(pod, "local-volume", volume.name))
        return Prepared((*facts, *_owned(pod, path, read_only)), path, read_only, home=data.path)
    if spec.host_path is not None:
        return host_path.prepared(_typed(spec.host_path), read_only)
    if spec.local is not None:
        path = spec.local.path
        facts = (HostPath(path=path, type="Directory"), *_owned(pod, path, read_only))
        return Prepared(facts, path, read_only, True, True)
    return _network(pod, volume, read_only, context)


def _data(volume: PersistentVolume) -> Data:
    """Raises Unavailable while it is being copied from somewhere."""
    data = data_of(volume)
    if data.source:
        raise Unavailable(f"{volume.key} is being copied from {data.source}: its node's agent does that")
    return data


def _owned(pod: Pod, path: str, read_only: bool) -> tuple[Ownership, ...]:
    return () if read_only else owned(pod, path, lasting=True)


def _network(pod: Pod, volume: PersistentVolume, read_only: bool, context: Context) -> Prepared:
    """By a mount helper; fsGroup is not applied: whose files these are, the server says."""
    spec, options = volume.spec, volume.spec.mount_options
    ref = spec.claim_ref
    where = (ref.namespace if ref else pod.namespace, context)
    if spec.nfs is not None:
        path = volume_dir(pod, "nfs", volume.name)
        return nfs.prepared(spec.nfs, path, options, read_only or spec.nfs.read_only)
    if spec.cephfs is not None:
        path = volume_dir(pod, "cephfs", volume.name)
        return cephfs.prepared(spec.cephfs, path, options, read_only or spec.cephfs.read_only, where)
    if spec.glusterfs is not None:
        path = volume_dir(pod, "glusterfs", volume.name)
        return glusterfs.prepared(spec.glusterfs, path, options, read_only or spec.glusterfs.read_only, where)
    known = "csi, local, nfs, cephfs, glusterfs or hostPath"
    raise Invalid(f"{volume.key}: a {volume.source} volume is not supported; use {known}")


def _block(pod: Pod, volume: PersistentVolume, read_only: bool, context: Context) -> Prepared:
    """A device of the node, or the loop device of an image of ours, for volumeDevices."""
    if is_ours(volume, context.root):
        data = _data(volume)
        path = f"{pod_dir(pod)}/volumeDevices/kubernetes.io~local-volume/{volume.name}"
        device = Device(path=path, image=f"{data.path}/image")
        return Prepared((data, device), path, read_only, block=True, home=data.path)
    if volume.spec.local is None:
        raise Invalid(f"{volume.key}: volumeMode Block needs a local or csi source, not {volume.source}")
    path = volume.spec.local.path
    facts = (HostPath(path=path, type="BlockDevice"),)
    return Prepared(facts, path, read_only, follow=True, block=True)


def _typed(source: HostPathSource) -> HostPathSource:
    """A persistent volume must be there before data is written: "" would show a typo as success."""
    return source if source.type else HostPathSource(path=source.path, type="DirectoryOrCreate")


def bound(namespace: str, name: str, snapshot: Snapshot) -> PersistentVolumeClaim:
    """The claim, bound. Raises Unavailable with the reason why it is not (yet)."""
    claim = snapshot.get(PersistentVolumeClaim, namespace, name)
    if claim is None:
        raise Unavailable(f"PersistentVolumeClaim {namespace}/{name} does not exist")
    if claim.deleting:
        raise Invalid(f"{claim.key} is being deleted; create it anew under another name")
    if claim.status.phase == "Bound" and names.BIND_COMPLETED in claim.metadata.annotations:
        return claim
    raise Unavailable(f"{claim.key} is {claim.status.phase or 'Pending'}: {reason(claim, snapshot)}")


def reason(claim: PersistentVolumeClaim, snapshot: Snapshot) -> str:
    """Why it is not bound, in one line: what the controllers say, then a reason per volume."""
    slots = ("provision", "binding")
    notes = [snapshot.get(Event, claim.namespace, f"{claim.name}.{slot}") for slot in slots]
    said = next((f"{n.reason}: {n.message}" for n in notes if n is not None), "no controller has seen it yet")
    return said + _volumes(match.why(claim, snapshot))


def _volumes(reasons: Iterable[tuple[str, str]], at_most: int = 5) -> str:
    listed = [f"{name} {text}" for name, text in reasons if text]
    more = f" and {len(listed) - at_most} more" if len(listed) > at_most else ""
    return f" ({'; '.join(listed[:at_most])}{more})" if listed else ""

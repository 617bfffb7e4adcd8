"""persistentVolumeClaim: the volume that the claim is bound to, shown by its own source."""

from __future__ import annotations

from collections.abc import Iterable

from netplane.model.errors import Invalid, Unavailable
from netplane.model.nodes import Event
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim
from netplane.model.storage_facts import Data, HostPath
from netplane.model.volumes import HostPathSource, Volume

from .. import match, names
from ..provision import is_ours
from . import csi, host_path
from .base import Context, Prepared


def render(pod: Pod, volume: Volume, context: Context) -> Prepared:
    """Raises Unavailable while the claim is not bound, Invalid when its volume cannot be used here."""
    assert volume.persistent_volume_claim is not None
    source = volume.persistent_volume_claim
    claim = bound(pod.namespace, source.claim_name, context.snapshot)
    found = context.snapshot.get(PersistentVolume, "", claim.spec.volume_name)
    if found is None or not match.refers(found.spec.claim_ref, claim):
        raise Unavailable(f"{claim.key}: its {claim.spec.volume_name!r} is gone or another claim's")
    if not match.fits_node(found.spec.node_affinity, context.node, context.snapshot):
        raise Invalid(f"{found.key}: not reachable from node {context.node} (spec.nodeAffinity)")
    if found.spec.csi is not None:
        only_read = source.read_only or set(found.spec.access_modes) == {"ReadOnlyMany"}
        return csi.persistent(found, only_read, (pod, volume, context))
    if found.spec.volume_mode != "Filesystem":
        raise Invalid(f"{found.key}: volumeMode {found.spec.volume_mode} is not supported yet")
    return persistent(found, source.read_only, context)


def persistent(volume: PersistentVolume, read_only: bool, context: Context) -> Prepared:
    read_only = read_only or set(volume.spec.access_modes) == {"ReadOnlyMany"}
    if is_ours(volume, context.root):
        path = f"{names.FILESYSTEM_DIR}/{volume.name}"
        return Prepared((Data(path=path),), path, read_only)
    if volume.spec.host_path is not None:
        return host_path.prepared(_typed(volume.spec.host_path), read_only)
    if volume.spec.local is not None:
        path = volume.spec.local.path
        return Prepared((HostPath(path=path, type="Directory"),), path, read_only, True, True)
    raise Invalid(f"{volume.key}: a {volume.source} volume is not supported yet; use hostPath or local")


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

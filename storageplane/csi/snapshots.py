"""Snapshots of volumes, alone and in groups: independent copies, reflinked where the disk can."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from netplane.model.base import amend
from netplane.model.errors import NetplaneError

from . import checks
from .controller import paged, refuse_elsewhere
from .depot import Depot, Group, Snapshot, id_of, now
from .freeze import frozen
from .identity import TOPOLOGY
from .protocol import message, number
from .refusal import CODE, Refused, invalid, missing
from .volumes import Volume


class Snapshots:
    """The snapshot calls of the Controller service, and the GroupController service."""

    def __init__(self, depot: Depot, node: str) -> None:
        self._depot = depot
        self._node = node

    def CreateSnapshot(self, request: Any) -> Any:
        checks.required(request, "source_volume_id", "name")
        _no_parameters(request)
        refuse_elsewhere(request.accessibility_requirements, self._node)
        name = id_of("snap", request.name)
        with self._depot.alone(name, request.source_volume_id):
            known = self._depot.peek(self._depot.snapshots, name)
            if known is not None and known.phase == "removing":  # a deletion that was cut off: finished
                self._remove(known)
                known = None
            if known is not None and known.volume != request.source_volume_id:
                message_ = f"a snapshot named {request.name!r} exists of {known.volume}; use another name"
                raise Refused(CODE.ALREADY_EXISTS, message_)
            if known is None or known.phase != "ready":
                volume = self._depot.volume(request.source_volume_id)
                if known is not None and not self._depot.content(known).exists():
                    known = None  # cut off before it was copied: instant and size are this call's
                with frozen(self._depot, [volume]), self._depot.copying([volume] if known is None else []):
                    known = known or self._record(name, request.name, volume)
                    known = self._copied(known, volume)
        made = self._shown(known)
        if request.HasField("accessibility_requirements"):
            del made["accessible_topology"]  # the caller knows; csi-test 5.6 compares it by its internals
        return message("CreateSnapshotResponse")(snapshot=made)

    def _record(self, name: str, called: str, volume: Volume, group: str = "") -> Snapshot:
        """Written before anything is copied."""
        fresh = Snapshot(
            id=name, name=called, volume=volume.id, size=volume.size, backend=volume.backend,
            fstype=volume.fstype, block=volume.block, group=group, created=now(),
        )  # fmt: skip
        self._depot.snapshots.put(name, fresh)
        return fresh

    def _copied(self, snapshot: Snapshot, volume: Volume) -> Snapshot:
        try:
            self._depot.fill(snapshot, volume)
        except NetplaneError:
            with suppress(NetplaneError):
                self._remove(snapshot)
            raise
        return self._ready(snapshot)

    def _ready(self, snapshot: Snapshot) -> Snapshot:
        ready: Snapshot = amend(snapshot, phase="ready")
        self._depot.snapshots.put(snapshot.id, ready)
        return ready

    def DeleteSnapshot(self, request: Any) -> Any:
        checks.required(request, "snapshot_id")
        with self._depot.alone(request.snapshot_id):
            known = self._depot.peek(self._depot.snapshots, request.snapshot_id)
            if known is not None and known.group:
                raise invalid(f"{known.id} belongs to {known.group}; delete the group")
            if known is not None:
                self._remove(known)
        return message("DeleteSnapshotResponse")()

    def _remove(self, snapshot: Snapshot) -> None:
        self._depot.less(self._depot.snapshots, amend(snapshot, phase="removing"))
        self._depot.drop(snapshot.id, snapshot.phase != "making")
        self._depot.snapshots.remove(snapshot.id)

    def ListSnapshots(self, request: Any) -> Any:
        found = [s for s in self._depot.snapshots.all() if s.phase == "ready"]
        if request.snapshot_id:
            found = [s for s in found if s.id == request.snapshot_id]
        if request.source_volume_id:
            found = [s for s in found if s.volume == request.source_volume_id]
        page, following = paged(found, request)
        entries = [{"snapshot": self._shown(s)} for s in page]
        return message("ListSnapshotsResponse")(entries=entries, next_token=following)

    def GetSnapshot(self, request: Any) -> Any:
        checks.required(request, "snapshot_id")
        return message("GetSnapshotResponse")(snapshot=self._shown(self._depot.snapshot(request.snapshot_id)))

    def _shown(self, snapshot: Snapshot) -> dict[str, Any]:
        return {
            "snapshot_id": snapshot.id,
            "source_volume_id": snapshot.volume,
            "size_bytes": snapshot.size,
            "creation_time": _time(snapshot.created),
            "ready_to_use": True,
            "group_snapshot_id": snapshot.group,
            "accessible_topology": [{"segments": {TOPOLOGY: self._node}}],
        }

    # --- groups ---------------------------------------------------------------------------------

    def GroupControllerGetCapabilities(self, _request: Any) -> Any:
        enum = "GroupControllerServiceCapability.RPC.Type"
        kind = number(enum, "CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT")
        return message("GroupControllerGetCapabilitiesResponse")(capabilities=[{"rpc": {"type": kind}}])

    def CreateVolumeGroupSnapshot(self, request: Any) -> Any:
        checks.required(request, "name", "source_volume_ids")
        _no_parameters(request)
        name, volumes = id_of("group", request.name), tuple(sorted(set(request.source_volume_ids)))
        snapshots = tuple(id_of("snap", f"{name}/{volume}") for volume in volumes)
        with self._depot.alone(name, *snapshots, *volumes):
            known = self._depot.peek(self._depot.groups, name)
            if known is not None and known.volumes != volumes:
                message_ = (
                    f"a group snapshot named {request.name!r} exists of other volumes; use another name"
                )
                raise Refused(CODE.ALREADY_EXISTS, message_)
            if known is None or known.phase != "ready":
                known = self._make_group(request.name, volumes, snapshots)
        return message("CreateVolumeGroupSnapshotResponse")(group_snapshot=self._shown_group(known))

    def _make_group(self, called: str, volumes: Sequence[str], snapshots: Sequence[str]) -> Group:
        """All members of one instant: what a call that was cut off has copied is of another, and goes."""
        sources = [self._depot.volume(volume) for volume in volumes]
        for name in snapshots:
            left = self._depot.peek(self._depot.snapshots, name)
            if left is not None:
                self._remove(left)
        group = Group(
            id=id_of("group", called), name=called, volumes=tuple(v.id for v in sources),
            snapshots=tuple(snapshots), created=now(),
        )  # fmt: skip
        with frozen(self._depot, sources), self._depot.copying(sources):
            try:
                return self._copy_group(group, sources)
            except NetplaneError:
                with suppress(NetplaneError):
                    self._remove_group(group)
                raise

    def _copy_group(self, group: Group, sources: Sequence[Volume]) -> Group:
        self._depot.groups.put(group.id, group)
        made = []
        for name, volume in zip(group.snapshots, sources, strict=True):
            made.append(self._record(name, f"{group.name}/{volume.name}", volume, group.id))
            self._depot.fill(made[-1], volume)
        for snapshot in made:  # none is shown before all are there
            self._ready(snapshot)
        ready: Group = amend(group, phase="ready")
        self._depot.groups.put(group.id, ready)
        return ready

    def DeleteVolumeGroupSnapshot(self, request: Any) -> Any:
        checks.required(request, "group_snapshot_id")
        with self._depot.alone(request.group_snapshot_id):
            group = self._depot.peek(self._depot.groups, request.group_snapshot_id)
            if group is not None:
                _refuse_others(group, request.snapshot_ids)
                with self._depot.alone(*group.snapshots):  # a volume may be made from one
                    self._remove_group(group)
        return message("DeleteVolumeGroupSnapshotResponse")()

    def _remove_group(self, group: Group) -> None:
        self._depot.less(self._depot.groups, amend(group, phase="removing"))
        for name in group.snapshots:
            snapshot = self._depot.peek(self._depot.snapshots, name)
            if snapshot is not None:
                self._remove(snapshot)
        self._depot.groups.remove(group.id)

    def GetVolumeGroupSnapshot(self, request: Any) -> Any:
        checks.required(request, "group_snapshot_id")
        group = self._depot.peek(self._depot.groups, request.group_snapshot_id)
        if group is None or group.phase != "ready":
            raise missing("group snapshot", request.group_snapshot_id)
        _refuse_others(group, request.snapshot_ids)
        return message("GetVolumeGroupSnapshotResponse")(group_snapshot=self._shown_group(group))

    def _shown_group(self, group: Group) -> dict[str, Any]:
        snapshots = [self._shown(self._depot.snapshot(name)) for name in group.snapshots]
        return {
            "group_snapshot_id": group.id,
            "snapshots": snapshots,
            "creation_time": _time(group.created),
            "ready_to_use": True,
        }


def _time(seconds: float) -> dict[str, int]:
    return {"seconds": int(seconds), "nanos": int(seconds % 1 * 1e9)}


def _refuse_others(group: Group, named: Sequence[str]) -> None:
    strangers = set(named) - set(group.snapshots)
    if named and (strangers or set(named) != set(group.snapshots)):
        raise invalid(f"snapshot_ids: {group.id} has {len(group.snapshots)} snapshots, not these")


def _no_parameters(request: Any) -> None:
    for key in request.parameters:
        if not key.startswith("csi.storage.k8s.io/"):
            raise invalid(f"parameters[{key}]: not known; a snapshot has none")

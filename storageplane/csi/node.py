"""The Node service: staging mounts a volume once, publishing shows it at targets.

Rule 1: the record says what ought to be mounted, mountinfo what is; a repeated call mends the
        difference (after a reboot nothing is mounted, whatever the record says).
Rule 2: targets are made and removed by descriptor; a link in a target's path is refused.
Rule 3: an image's loop device comes with its stage and goes with it.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import Any

from netplane.model.base import amend
from netplane.model.errors import KernelError, NetplaneError
from netplane.model.facts import Fact, Plan
from netplane.model.storage_facts import Directory, Mount, Point

from ..backends import BACKENDS
from ..host import binds, loops, mountinfo, syscalls
from ..host.corrupt import replaced
from ..host.journal import boot
from ..host.mounts import Mounts
from ..host.tree import translated
from . import checks
from .depot import Depot
from .identity import TOPOLOGY
from .protocol import message, number
from .refusal import CODE, Refused, in_use, invalid, missing
from .volumes import Stage, Target, Volume

_CAPABILITIES = (
    "STAGE_UNSTAGE_VOLUME", "GET_VOLUME_STATS", "EXPAND_VOLUME", "GET_VOLUME_HEALTH",
    "GET_STORAGE_HEALTH", "SINGLE_NODE_MULTI_WRITER",
)  # fmt: skip
_GENERIC = {"", "rw", "defaults", "_netdev", "nofail"}  # what mount(8) keeps to itself


class Node:
    """``most``: how many volumes the node takes; 0 is no limit."""

    def __init__(self, depot: Depot, node: str, most: int = 0) -> None:
        self._depot = depot
        self._node = node
        self._most = most
        self._mounts = Mounts(depot.root, local=True)

    def NodeGetCapabilities(self, _request: Any) -> Any:
        enum = "NodeServiceCapability.RPC.Type"
        found = [{"rpc": {"type": number(enum, name)}} for name in _CAPABILITIES]
        return message("NodeGetCapabilitiesResponse")(capabilities=found)

    def NodeGetInfo(self, _request: Any) -> Any:
        return message("NodeGetInfoResponse")(
            node_id=self._node,
            max_volumes_per_node=self._most,
            accessible_topology={"segments": {TOPOLOGY: self._node}},
        )

    # --- stage ------------------------------------------------------------------------------------

    def NodeStageVolume(self, request: Any) -> Any:
        checks.required(request, "volume_id", "staging_target_path", "volume_capability")
        path = checks.path("staging_target_path", request.staging_target_path)
        checks.capability(request.volume_capability)
        with self._depot.alone(request.volume_id):
            volume = self._depot.volume(request.volume_id)
            _refuse_kind(volume, request.volume_capability)
            options = _flags(volume, request.volume_capability)
            stage = Stage(path, str(request.volume_capability), options, boot())
            self._refuse_other_stage(volume, stage)
            free = syscalls.mount_root(path) is False
            staged = self._depot.keep(amend(volume, stage=stage))
            try:
                self.bring_up(staged)
            except NetplaneError:
                if volume.stage is None:  # kubelet takes it for not staged, and never unstages it
                    self._forget(volume, path if free else "")
                raise
        return message("NodeStageVolumeResponse")()

    def _forget(self, before: Volume, path: str = "") -> None:
        """The record as it was before a call that failed, without what that has mounted at a path."""
        with suppress(NetplaneError):
            if path and mounted(path):
                self._remove(("mount", path))
            self._depot.less(self._depot.volumes, before)

    def _refuse_other_stage(self, volume: Volume, stage: Stage) -> None:
        have = volume.stage
        if have is None or have.same(stage):
            return
        if not volume.block and not mounted(have.path):
            return  # a reboot, or somebody's umount: nothing stands in the way
        if have.path == stage.path:
            message_ = f"{volume.id} is staged at {have.path} with other arguments; unstage it first"
            raise Refused(CODE.ALREADY_EXISTS, message_)
        raise in_use(f"{volume.id} is staged at {have.path}; unstage it there first")

    def bring_up(self, volume: Volume) -> None:
        """Mount what the record says is staged, unless it is; a dead mount there is replaced."""
        assert volume.stage is not None
        path, options = volume.stage.path, volume.stage.options
        if self._depot.bound(volume, path):
            return
        content = self._depot.content(volume)
        if not content.exists():
            raise Refused(CODE.INTERNAL, f"{volume.id}: its data is missing; restore it from a snapshot")
        if volume.block:
            loops.attach(content)
            return
        backend, place = BACKENDS[volume.backend], self._depot.place(volume)
        replaced(path)
        if not mounted(path):
            self._apply(Directory(path=path, mode=0o750), backend.mount(place, path, options))
        if not backend.filled(place):
            backend.grow_shown(place, path)

    def NodeUnstageVolume(self, request: Any) -> Any:
        checks.required(request, "volume_id", "staging_target_path")
        path = checks.path("staging_target_path", request.staging_target_path)
        with self._depot.alone(request.volume_id):
            volume = self._depot.volume(request.volume_id)
            if volume.stage is not None and volume.stage.path == path:
                if any(mounted(t.path) for t in volume.targets):
                    raise in_use(f"{volume.id} is published at {volume.targets[0].path}; unpublish it first")
                if volume.block or not binds.unbound(path, point=False):
                    self._remove(("mount", path))
                if volume.block:
                    loops.detach(self._depot.content(volume))
                self._depot.less(self._depot.volumes, amend(volume, stage=None, targets=()))
        return message("NodeUnstageVolumeResponse")()

    # --- publish ----------------------------------------------------------------------------------

    def NodePublishVolume(self, request: Any) -> Any:
        checks.required(request, "volume_id", "target_path", "volume_capability")
        path = checks.path("target_path", request.target_path)
        checks.capability(request.volume_capability)
        if not request.staging_target_path:
            raise in_use("staging_target_path: required; this driver stages volumes first")
        with self._depot.alone(request.volume_id):
            volume = self._depot.volume(request.volume_id)
            _refuse_kind(volume, request.volume_capability)
            stage = volume.stage
            if stage is None or stage.path != checks.clean(request.staging_target_path):
                raise in_use(f"{volume.id} is not staged at {request.staging_target_path}; stage it first")
            read_only = request.readonly or checks.reads_only(request.volume_capability)
            target = Target(path, read_only, str(request.volume_capability))
            self._refuse_other_target(volume, target, checks.several(request.volume_capability))
            rest = tuple(t for t in volume.targets if t.path != target.path)
            shown = self._depot.keep(amend(volume, targets=(*rest, target)))
            try:
                self.show(shown, target)
            except NetplaneError:
                if not mounted(target.path):
                    self._forget(volume)
                raise
        return message("NodePublishVolumeResponse")()

    def show(self, volume: Volume, target: Target) -> None:
        """Bind what is staged at a target, unless it is; a dead mount there is replaced.

        Where nothing is staged any more (somebody's umount) it is staged again: the directory below it is not
        the volume.
        """
        assert volume.stage is not None
        if not volume.block and syscalls.mount_root(volume.stage.path) is False:
            self.bring_up(volume)
        if not volume.block and binds.pointed(volume.stage.path, target.path, target.read_only):
            return
        replaced(target.path)
        source = loops.attach(self._depot.content(volume)) if volume.block else volume.stage.path
        self._apply(
            Point(path=target.path, source=source),
            Mount(target=target.path, source=source, read_only=target.read_only),
        )

    def _refuse_other_target(self, volume: Volume, target: Target, several: bool) -> None:
        for have in volume.targets:
            if have == target or not mounted(have.path):
                continue
            if have.path == target.path:
                message_ = f"{volume.id} is published at {have.path} with other arguments; unpublish it first"
                raise Refused(CODE.ALREADY_EXISTS, message_)
            if not several:
                raise in_use(
                    f"{volume.id} is published at {have.path}, and its access mode allows one target;"
                    " unpublish it there first"
                )

    def NodeUnpublishVolume(self, request: Any) -> Any:
        checks.required(request, "volume_id", "target_path")
        path = checks.path("target_path", request.target_path)
        with self._depot.alone(request.volume_id):
            volume = self._depot.volume(request.volume_id)
            if any(t.path == path for t in volume.targets):
                if volume.block or not binds.unbound(path, point=True):
                    self._remove(("mount", path))
                    self._remove_point(path)
                rest = tuple(t for t in volume.targets if t.path != path)
                self._depot.less(self._depot.volumes, amend(volume, targets=rest))
        return message("NodeUnpublishVolumeResponse")()

    # --- look and grow ----------------------------------------------------------------------------

    def NodeGetVolumeStats(self, request: Any) -> Any:
        checks.required(request, "volume_id", "volume_path")
        volume = self._shown_at(request.volume_id, request.volume_path)
        answer = message("NodeGetVolumeStatsResponse")
        size_unit, inode_unit = (number("VolumeUsage.Unit", u) for u in ("BYTES", "INODES"))
        known = BACKENDS[volume.backend].usage(self._depot.place(volume))
        size = {"unit": size_unit}
        if known:
            size |= {"total": known.total, "used": known.used, "available": known.total - known.used}
        if volume.block:
            return answer(usage=[size])
        if not mounted(checks.clean(request.volume_path)):
            raise Refused(CODE.NOT_FOUND, f"nothing is mounted at {request.volume_path}; publish it again")
        with translated(f"measure {request.volume_path}"):
            blocks, inodes = _usage(request.volume_path, size_unit, inode_unit)
        return answer(usage=[size if known else blocks, inodes])

    def NodeExpandVolume(self, request: Any) -> Any:
        checks.required(request, "volume_id", "volume_path")
        need, limit = checks.capacity(request.capacity_range)
        with self._depot.alone(request.volume_id):
            volume = self._shown_at(request.volume_id, request.volume_path)
            if need > volume.size or (limit and limit < volume.size):
                message_ = f"capacity_range: {volume.id} has {volume.size} bytes; expand it at the controller"
                raise Refused(CODE.OUT_OF_RANGE, message_)
            BACKENDS[volume.backend].grow_shown(self._depot.place(volume), request.volume_path)
        return message("NodeExpandVolumeResponse")(capacity_bytes=volume.size)

    def _shown_at(self, name: str, path: str) -> Volume:
        volume = self._depot.volume(name)
        places = {t.path for t in volume.targets} | ({volume.stage.path} if volume.stage else set())
        if checks.clean(path) not in places:
            raise missing(f"a place of {name}:", path)
        return volume

    def _apply(self, *facts: Fact) -> None:
        """All of them, or none: what was made before a failure is taken back."""
        made: list[Fact] = []
        try:
            for fact in facts:
                self._mounts.apply(Plan(add=(fact,)))
                made.append(fact)
        except NetplaneError as exc:
            self._mounts.apply(Plan(remove=tuple(f.key for f in made if isinstance(f, Mount | Point))))
            if isinstance(exc, KernelError) and exc.errno == errno.ELOOP:
                raise invalid(f"{exc}; use the real path, for kubelet by its --root-dir") from exc
            raise

    def _remove_point(self, path: str) -> None:
        try:
            self._remove(("point", path))
        except KernelError as exc:
            if exc.errno != errno.ELOOP:  # a link in its path: nothing of ours was made behind it
                raise

    def _remove(self, *keys: tuple[str, str]) -> None:
        self._mounts.apply(Plan(remove=keys))


def _refuse_kind(volume: Volume, capability: Any) -> None:
    block = capability.WhichOneof("access_type") == "block"
    if block != volume.block:
        raise invalid(f"volume_capability: {volume.id} is a {'block' if volume.block else 'mount'} volume")
    asked = capability.mount.fs_type
    if asked and asked != volume.fstype:
        raise in_use(f"{volume.id} holds {volume.fstype or 'a directory'}, not {asked}")


def _flags(volume: Volume, capability: Any) -> tuple[str, ...]:
    """Mount flags for the file system, one or several in each; a directory is shown as it is, without."""
    given = [flag for flags in capability.mount.mount_flags for flag in flags.split(",")]
    flags = tuple(flag for flag in given if flag not in _GENERIC)
    if flags and not BACKENDS[volume.backend].images:
        raise invalid(f"mount_flags {', '.join(flags)}: a {volume.backend} takes none; use backend image")
    return flags


def mounted(path: str) -> bool:
    return syscalls.mount_root(path) is not False and any(m.point == path for m in mountinfo.read())


def _usage(path: str, size_unit: int, inode_unit: int) -> list[dict[str, int]]:
    found = os.statvfs(path)
    return [
        {
            "unit": size_unit,
            "total": found.f_blocks * found.f_frsize,
            "available": found.f_bavail * found.f_frsize,
            "used": (found.f_blocks - found.f_bfree) * found.f_frsize,
        },
        {
            "unit": inode_unit,
            "total": found.f_files,
            "available": found.f_favail,
            "used": found.f_files - found.f_ffree,
        },
    ]

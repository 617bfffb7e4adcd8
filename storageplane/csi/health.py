"""The health calls of CSI 1.13: what is wrong with a volume, from its controller and from its node.

A volume whose data is gone is DATA_LOSS; one that is recorded as staged or published but is not mounted,
or whose mount does not answer, is INACCESSIBLE on this node; one that has become read-only is DEGRADED, as a
root that is nearly full is.
"""

from __future__ import annotations

import os
from typing import Any

from ..host import mountinfo
from . import checks
from .controller import paged
from .depot import INLINE, Depot
from .protocol import message, number
from .volumes import Volume

FULL = 0.95  # of the root's blocks or inodes
_KIND = "VolumeHealthErrorType"


class Health:
    """Calls of the Controller and of the Node service."""

    def __init__(self, depot: Depot) -> None:
        self._depot = depot

    def ControllerGetVolumeHealth(self, request: Any) -> Any:
        checks.required(request, "volume_id")
        volume = self._depot.volume(request.volume_id)
        return message("ControllerGetVolumeHealthResponse")(
            volume_health=self._shown(volume, self._data(volume))
        )

    def ControllerListVolumeHealth(self, request: Any) -> Any:
        every = self._depot.volumes.all()
        shown = (v for v in every if v.phase == "ready" and not v.id.startswith(INLINE))
        page, following = paged(shown, request)
        entries = [self._shown(v, self._data(v)) for v in page]
        return message("ControllerListVolumeHealthResponse")(entries=entries, next_token=following)

    def NodeGetVolumeHealth(self, request: Any) -> Any:
        checks.required(request, "volume_id")
        volume = self._depot.volume(request.volume_id)
        found = self._data(volume) or self._mounts(volume)
        return message("NodeGetVolumeHealthResponse")(volume_health=self._shown(volume, found))

    def NodeGetStorageHealth(self, _request: Any) -> Any:
        answer = message("NodeGetStorageHealthResponse")
        try:
            found = os.statvfs(self._depot.root)
        except OSError as exc:
            kind = number("StorageHealthErrorType", "STORAGE_UNREACHABLE")
            why = f"{self._depot.root}: {exc.strerror}"
            return answer(backend_health=[{"status": kind, "reason": "RootUnreachable", "message": why}])
        blocks = 1 - found.f_bavail / max(1, found.f_blocks)
        inodes = 1 - found.f_favail / max(1, found.f_files) if found.f_files else 0.0
        if max(blocks, inodes) < FULL:
            return answer()
        kind = number("StorageHealthErrorType", "STORAGE_DEGRADED")
        why = f"{self._depot.root}: {blocks:.0%} of its blocks and {inodes:.0%} of its inodes are in use"
        return answer(backend_health=[{"status": kind, "reason": "NearlyFull", "message": why}])

    def _data(self, volume: Volume) -> tuple[str, str, str] | None:
        content = self._depot.content(volume)
        if content.exists():
            return None
        return ("DATA_LOSS", "DataMissing", f"{volume.id}: its data is missing; restore it from a snapshot")

    def _mounts(self, volume: Volume) -> tuple[str, str, str] | None:
        """Whether everything that the record says is mounted is there, and answers."""
        there = {m.point for m in mountinfo.read()}
        places = [t.path for t in volume.targets]
        if volume.stage and not volume.block:
            places.append(volume.stage.path)
        for path in places:
            if path not in there:
                why = f"{path}: nothing is mounted there (a reboot?); stage and publish it again"
                return ("INACCESSIBLE", "NotMounted", why)
            try:
                found = os.statvfs(path)
            except OSError as exc:
                why = f"{path}: {exc.strerror}; unpublish and publish it again"
                return ("INACCESSIBLE", "MountCorrupted", why)
            stage = volume.stage
            writable = stage is not None and stage.path == path and "ro" not in stage.options
            if writable and found.f_flag & os.ST_RDONLY:
                why = f"{path} has become read-only (an I/O error?): see the kernel's log, and stage it anew"
                return ("DEGRADED", "ReadOnly", why)
        return None

    def _shown(self, volume: Volume, found: tuple[str, str, str] | None) -> dict[str, Any]:
        if found is None:
            return {"volume_id": volume.id}
        kind, reason, why = found
        statuses = [{"status": number(_KIND, kind), "reason": reason, "message": why}]
        return {"volume_id": volume.id, "health_statuses": statuses}

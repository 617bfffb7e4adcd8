"""Volumes of a pod itself (Kubernetes' CSI ephemeral inline volumes): they come and go with a publication.

The orchestrator chooses such a volume's id, and says so: volume_context[csi.storage.k8s.io/ephemeral] is
"true". It is a volume like any other, with an id that follows from that one (`inline-…`), staged beneath the
root; so crashes, reboots and full disks are met as for others.

Rule 1: a publication that fails takes back what it made; one that was there before stays.
Rule 2: with its last target goes the volume. What a crash left of it goes with the next call; a call that is
        made again finds nothing, and that is fine: kubelet makes it until it is answered.
Rule 3: no list of volumes shows it, and no call from outside finds it by its id in here (`named`): nobody
        but its pod has it.
Source: kubernetes-csi docs, "CSI ephemeral inline volumes"; kubernetes pkg/volume/csi.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from netplane.model.checks import parse_quantity
from netplane.model.errors import NetplaneError

from ..host import tree
from . import checks
from .controller import Controller
from .depot import INLINE, Depot, id_of
from .health import Health
from .node import Node
from .protocol import message
from .refusal import Refused, invalid
from .volumes import Volume

EPHEMERAL = "csi.storage.k8s.io/ephemeral"
_FOREIGN = "csi.storage.k8s.io/"  # what kubelet says of the pod
_FOLDER = "csi/inline"  # beneath the root: where they are staged
MOST = 1 << 63  # bytes that CSI has numbers for


class Inline:
    """Those calls of the Node service that may be about such a volume; all others are the node's."""

    def __init__(self, depot: Depot, controller: Controller, node: Node, health: Health) -> None:
        self._depot, self._controller, self._node, self._health = depot, controller, node, health

    def NodePublishVolume(self, request: Any) -> Any:
        if request.volume_context.get(EPHEMERAL) != "true":
            return self._node.NodePublishVolume(request)
        checks.required(request, "volume_id", "target_path", "volume_capability")
        checks.path("target_path", request.target_path)
        create = _asked(request)
        name = id_of(INLINE, request.volume_id)
        fresh = self._depot.peek(self._depot.volumes, name) is None
        try:
            self._published(name, create, request)
        except NetplaneError as exc:
            if fresh and not _busy(exc):
                with suppress(NetplaneError):
                    self._gone(name, request.target_path)
            raise
        return message("NodePublishVolumeResponse")()

    def _published(self, name: str, create: Any, request: Any) -> None:
        self._controller.made(name, create)
        tree.make(self._depot.root, _FOLDER, 0o700)
        here = {
            "volume_id": name,
            "staging_target_path": self._staging(name),
            "volume_capability": request.volume_capability,
        }
        self._node.NodeStageVolume(message("NodeStageVolumeRequest")(**here))
        more = {"target_path": request.target_path, "readonly": request.readonly}
        self._node.NodePublishVolume(message("NodePublishVolumeRequest")(**here, **more))

    def NodeUnpublishVolume(self, request: Any) -> Any:
        volume = self._known(request.volume_id)
        if volume is None and (not request.volume_id or self._depot.ours(request.volume_id)):
            return self._node.NodeUnpublishVolume(request)
        checks.required(request, "target_path")
        checks.path("target_path", request.target_path)
        if volume is not None:  # else it went with this call, made before
            self._gone(volume.id, request.target_path)
        return message("NodeUnpublishVolumeResponse")()

    def _gone(self, name: str, target: str) -> None:
        volume = self._depot.peek(self._depot.volumes, name)
        if volume is None:
            return
        if volume.phase == "ready":
            asked = {"volume_id": name, "target_path": target}
            self._node.NodeUnpublishVolume(message("NodeUnpublishVolumeRequest")(**asked))
            if self._depot.volume(name).targets:
                return
            asked = {"volume_id": name, "staging_target_path": self._staging(name)}
            self._node.NodeUnstageVolume(message("NodeUnstageVolumeRequest")(**asked))
        with tree.translated(f"remove {self._staging(name)}"), suppress(FileNotFoundError):
            os.rmdir(self._staging(name))
        self._controller.DeleteVolume(message("DeleteVolumeRequest")(volume_id=name))

    def NodeGetVolumeStats(self, request: Any) -> Any:
        volume = self._known(request.volume_id)
        if volume is not None:
            more = {"volume_path": request.volume_path}
            request = message("NodeGetVolumeStatsRequest")(volume_id=volume.id, **more)
        return self._node.NodeGetVolumeStats(request)

    def NodeGetVolumeHealth(self, request: Any) -> Any:
        volume = self._known(request.volume_id)
        if volume is None:
            return self._health.NodeGetVolumeHealth(request)
        answer = self._health.NodeGetVolumeHealth(message("NodeGetVolumeHealthRequest")(volume_id=volume.id))
        answer.volume_health.volume_id = request.volume_id
        return answer

    def named(self, request: Any) -> str:
        """The id in here of such a volume, where a call from outside says it; else ""."""
        own = (i for i in _ids(request) if i.startswith(f"{INLINE}-"))
        return next((i for i in own if self._depot.peek(self._depot.volumes, i) is not None), "")

    def _known(self, handle: str) -> Volume | None:
        """By the orchestrator's id."""
        return self._depot.peek(self._depot.volumes, id_of(INLINE, handle))

    def _staging(self, name: str) -> str:
        return f"{self._depot.root}/{_FOLDER}/{name}"


def _ids(request: Any) -> Iterator[str]:
    """The ids of volumes that a request says."""
    fields = request.DESCRIPTOR.fields_by_name
    for name in ("volume_id", "source_volume_id"):
        if name in fields:
            yield getattr(request, name)
    if "source_volume_ids" in fields:
        yield from request.source_volume_ids
    if "volume_content_source" in fields:
        yield request.volume_content_source.volume.volume_id


def _asked(request: Any) -> Any:
    """What CreateVolume would be asked: size, and what a StorageClass has as parameters. Raises Refused."""
    if request.volume_capability.WhichOneof("access_type") == "block":
        raise invalid("volume_capability: a volume of a pod itself is a file system, not a block device")
    given = {k: v for k, v in request.volume_context.items() if not k.startswith(_FOREIGN)}
    size = given.pop("size", "")
    try:
        wanted = parse_quantity(size) if size else 0
    except ValueError:
        wanted = -1
    if wanted not in range(MOST) or (size and not wanted):
        raise invalid(f"volumeAttributes.size: {size!r} is no size; write it as 64Mi or 1Gi")
    return message("CreateVolumeRequest")(
        name=request.volume_id,
        capacity_range={"required_bytes": wanted} if wanted else None,
        volume_capabilities=[request.volume_capability],
        parameters=given,
    )


def _busy(exc: NetplaneError) -> bool:
    """Whether another call is at work on it."""
    return isinstance(exc, Refused) and exc.code.name == "ABORTED"

"""The Controller service: volumes are made, attached, grown and removed; nothing is mounted here.

Every call is idempotent: it compares what it is asked with the record, and goes on where an earlier,
cut-off call stopped. The codes are those of the specification's tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from netplane.model.base import amend
from netplane.model.errors import NetplaneError

from .. import backends
from ..backends import BACKENDS, Choice
from ..host import images
from . import checks, wish
from .depot import INLINE, Depot, Snapshot, id_of, now
from .freeze import frozen
from .identity import TOPOLOGY
from .protocol import message, number
from .refusal import CODE, Refused, in_use, invalid, missing
from .volumes import Volume

_CAPABILITIES = (
    "CREATE_DELETE_VOLUME", "PUBLISH_UNPUBLISH_VOLUME", "LIST_VOLUMES", "GET_CAPACITY",
    "CREATE_DELETE_SNAPSHOT", "LIST_SNAPSHOTS", "CLONE_VOLUME", "PUBLISH_READONLY", "EXPAND_VOLUME",
    "LIST_VOLUMES_PUBLISHED_NODES", "GET_VOLUME", "GET_VOLUME_HEALTH", "LIST_VOLUME_HEALTH",
    "SINGLE_NODE_MULTI_WRITER", "MODIFY_VOLUME", "GET_SNAPSHOT",
)  # fmt: skip


class Controller:
    """``node``: the one node whose disk this driver has; every volume is accessible there only."""

    def __init__(self, depot: Depot, node: str, most: int = 0) -> None:
        self._depot = depot
        self._node = node
        self._most = most

    def ControllerGetCapabilities(self, _request: Any) -> Any:
        enum = "ControllerServiceCapability.RPC.Type"
        found = [{"rpc": {"type": number(enum, name)}} for name in _CAPABILITIES]
        return message("ControllerGetCapabilitiesResponse")(capabilities=found)

    # --- create and delete ---------------------------------------------------------------------

    def CreateVolume(self, request: Any) -> Any:
        checks.required(request, "name", "volume_capabilities")
        volume = self.made(id_of("vol", request.name), request)
        return message("CreateVolumeResponse")(volume=self._shown(volume))

    def made(self, name: str, request: Any) -> Volume:
        """The volume with this id that CreateVolume asks for, made unless it is there. Raises Refused."""
        want = wish.read(request, self._depot.machine())
        refuse_elsewhere(request.accessibility_requirements, self._node)
        source_id = _source(request.volume_content_source)
        with self._depot.alone(name, source_id[1]):
            source = self._find_source(source_id)
            volume = self._depot.peek(self._depot.volumes, name)
            if volume is not None and volume.phase == "removing":  # a deletion that was cut off: finished
                self._depot.discard(volume)
                volume = None
            fresh = volume is None or volume.phase == "making"
            if volume is None:
                volume = self._admit((name, request.name), want, source_id, source)
            self._refuse_other(volume, want, source_id)
            try:
                if volume.phase == "making":
                    volume = self._whole(volume, source)
                self._provision(volume)
            except NetplaneError:
                if fresh:  # whoever asked may ask another node now, and never for its end here
                    with suppress(NetplaneError):
                        self._depot.discard(amend(volume, phase="making"))
                raise
        return volume

    def _whole(self, volume: Volume, source: Volume | Snapshot | None) -> Volume:
        if volume.plain:
            return self._depot.found(volume)
        with frozen(self._depot, [source] if isinstance(source, Volume) else []), self._room(volume, source):
            self._depot.keep(volume)
            self._depot.fill(volume, source)
        return self._depot.keep(amend(volume, phase="ready"))

    def _room(self, volume: Volume, source: Volume | Snapshot | None) -> AbstractContextManager[None]:
        """What is copied, for a directory: its size is no promise. Others have theirs by their record."""
        if source is None or BACKENDS[volume.backend].draws or self._depot.content(volume).exists():
            return nullcontext()
        return self._depot.copying([source], self._depot.place(volume).overcommit)

    def _admit(
        self,
        called: tuple[str, str],
        want: wish.Wish,
        source_id: tuple[str, str],
        source: Volume | Snapshot | None,
    ) -> Volume:
        """Kept, once there is room for what it promises; a directory, which promises nothing, is kept later.

        ``called``: its id and its name. Raises Refused(RESOURCE_EXHAUSTED).
        """
        choice, least = want.choice, want.choice.least()
        if source is not None:
            if source.backend != choice.backend and "backend" in want.parameters:
                asked = f"parameters[backend] is {choice.backend}"
                raise invalid(f"volume_content_source: it is a {source.backend}, {asked}")
            if source.block != want.block:
                raise invalid(
                    "volume_content_source: a block volume and a file system cannot be copied into each other"
                )
            choice = choice._replace(backend=source.backend, fstype=source.fstype)
            least = source.size
        size = want.size(least)
        volume = Volume(
            id=called[0], name=called[1], size=size, backend=choice.backend, fstype=choice.fstype,
            block=want.block, parameters=want.parameters, mutable=want.mutable, source=source_id,
            created=now(),
        )  # fmt: skip
        if not BACKENDS[choice.backend].draws:
            return volume
        with self._depot.admission():
            self._refuse_full(choice, size, CODE.RESOURCE_EXHAUSTED)
            return self._depot.keep(volume)

    def _refuse_full(self, choice: Choice, size: int, code: Any) -> None:
        draws = BACKENDS[choice.backend].draws
        if draws and not choice.overcommit:
            machine = self._depot.machine()._replace(free={draws: self._depot.free(draws)})
            reason = backends.admit(choice, size, machine)
            if reason:
                raise Refused(code, f"{reason} on node {self._node}; remove something, or overcommit")

    def _refuse_other(self, volume: Volume, want: wish.Wish, source: tuple[str, str]) -> None:
        """The name is taken by a volume that is not what is asked for."""
        different = [
            what
            for what, same in (
                (f"another capacity {volume.size}", want.fits(volume.size)),
                ("another content source", volume.source == source),
                (f"other parameters {_told(volume.parameters)}", volume.parameters == want.parameters),
                ("another access type", volume.block == want.block),
                (f"another file system {volume.fstype}", source[1] or volume.fstype == want.choice.fstype),
            )
            if not same
        ]
        if different:
            message_ = f"a volume named {volume.name!r} exists with {different[0]}; use another name"
            raise Refused(CODE.ALREADY_EXISTS, message_)

    def DeleteVolume(self, request: Any) -> Any:
        checks.required(request, "volume_id")
        with self._depot.alone(request.volume_id):
            volume = self._depot.peek(self._depot.volumes, request.volume_id)
            if volume is not None:
                _refuse_used(volume)
                self._depot.discard(volume)
        return message("DeleteVolumeResponse")()

    # --- attach ----------------------------------------------------------------------------------

    def ControllerPublishVolume(self, request: Any) -> Any:
        checks.required(request, "volume_id", "node_id", "volume_capability")
        checks.capability(request.volume_capability)
        with self._depot.alone(request.volume_id):
            volume = self._depot.volume(request.volume_id)
            if request.node_id != self._node:
                raise missing("node", request.node_id)
            self._refuse_kind(volume, request.volume_capability)
            asked = (str(request.volume_capability), request.readonly)
            if volume.attached is None:
                self._attach(volume, asked)
            elif volume.attached != asked:
                message_ = (
                    f"{volume.id} is published to {self._node} with other arguments; unpublish it first"
                )
                raise Refused(CODE.ALREADY_EXISTS, message_)
        return message("ControllerPublishVolumeResponse")()

    def _attach(self, volume: Volume, asked: tuple[str, bool]) -> None:
        with self._depot.admission():
            attached = sum(1 for v in self._depot.volumes.all() if v.attached)
            if self._most and attached >= self._most:
                message_ = f"node {self._node} takes {self._most} volumes and has {attached}; unpublish one"
                raise Refused(CODE.RESOURCE_EXHAUSTED, message_)
            self._depot.keep(amend(volume, attached=asked))

    def ControllerUnpublishVolume(self, request: Any) -> Any:
        checks.required(request, "volume_id")
        with self._depot.alone(request.volume_id):
            volume = self._depot.peek(self._depot.volumes, request.volume_id)
            if volume is not None and request.node_id in ("", self._node) and volume.attached:
                if volume.stage or volume.targets:
                    raise in_use(f"{volume.id} is still staged on {self._node}; unstage it first")
                self._depot.less(self._depot.volumes, amend(volume, attached=None))
        return message("ControllerUnpublishVolumeResponse")()

    def ValidateVolumeCapabilities(self, request: Any) -> Any:
        checks.required(request, "volume_id", "volume_capabilities")
        block = checks.capabilities(request.volume_capabilities)
        volume = self._depot.volume(request.volume_id)
        answer = message("ValidateVolumeCapabilitiesResponse")
        types = {c.mount.fs_type for c in request.volume_capabilities if c.mount.fs_type}
        if block != volume.block:
            return answer(message=f"it is a {'block' if volume.block else 'mount'} volume")
        if types - {volume.fstype}:
            return answer(message=f"its file system is {volume.fstype or volume.backend}")
        unlike = [k for k, v in request.parameters.items() if volume.parameters.get(k) != v]
        if unlike:
            return answer(message=f"parameters[{unlike[0]}] was not what it was made with")
        return answer(
            confirmed={
                "volume_context": request.volume_context,
                "volume_capabilities": request.volume_capabilities,
                "parameters": request.parameters,
            }
        )

    # --- look -------------------------------------------------------------------------------------

    def ListVolumes(self, request: Any) -> Any:
        every = self._depot.volumes.all()
        volumes = [v for v in every if v.phase == "ready" and not v.id.startswith(INLINE)]
        page, following = paged(volumes, request)
        entries = [{"volume": self._shown(v), "status": self._status(v)} for v in page]
        return message("ListVolumesResponse")(entries=entries, next_token=following)

    def ControllerGetVolume(self, request: Any) -> Any:
        checks.required(request, "volume_id")
        volume = self._depot.volume(request.volume_id)
        return message("ControllerGetVolumeResponse")(volume=self._shown(volume), status=self._status(volume))

    def GetCapacity(self, request: Any) -> Any:
        answer = message("GetCapacityResponse")
        segments = dict(request.accessible_topology.segments)
        if segments and segments.get(TOPOLOGY) != self._node:
            return answer(available_capacity=0)
        known = {k: v for k, v in request.parameters.items() if k in backends.PARAMETERS}
        block = any(c.WhichOneof("access_type") == "block" for c in request.volume_capabilities)
        choice = backends.choose(known, block, self._depot.machine())
        free = self._depot.free(BACKENDS[choice.backend].draws or "disk")
        return answer(available_capacity=free, maximum_volume_size={"value": free})

    # --- change -----------------------------------------------------------------------------------

    def ControllerExpandVolume(self, request: Any) -> Any:
        checks.required(request, "volume_id", "capacity_range")
        need, limit = checks.capacity(request.capacity_range)
        with self._depot.alone(request.volume_id):
            volume = self._depot.volume(request.volume_id)
            size = volume.size if need <= volume.size else self._larger(volume, need, limit)
            if limit and size > limit:
                message_ = f"capacity_range.limit_bytes {limit}: {volume.id} has {size}; volumes only grow"
                raise Refused(CODE.OUT_OF_RANGE, message_)
            volume = self._grown(volume, size)
        onward = BACKENDS[volume.backend].images and (volume.stage is not None or not volume.block)
        return message("ControllerExpandVolumeResponse")(
            capacity_bytes=volume.size, node_expansion_required=onward
        )

    @staticmethod
    def _larger(volume: Volume, need: int, limit: int) -> int:
        whole = backends.rounded(need)
        return need if limit and whole > limit and wish.exact(volume.backend, need) else whole

    def _grown(self, volume: Volume, size: int) -> Volume:
        if size == volume.size:
            return volume
        with self._depot.admission():
            over = volume.parameters.get("overcommit") == "true"
            choice = Choice(volume.backend, volume.fstype, over)
            self._refuse_full(choice, size - volume.size, CODE.OUT_OF_RANGE)
            larger: Volume = amend(volume, size=size)
            BACKENDS[volume.backend].grow(self._depot.place(larger))
            return self._depot.keep(larger)

    def ControllerModifyVolume(self, request: Any) -> Any:
        checks.required(request, "volume_id", "mutable_parameters")
        changes = wish.mutable(request.mutable_parameters)
        with self._depot.alone(request.volume_id):
            volume = self._depot.volume(request.volume_id)
            volume = self._depot.keep(amend(volume, mutable={**volume.mutable, **changes}))
            self._provision(volume)
        return message("ControllerModifyVolumeResponse")()

    def _provision(self, volume: Volume) -> None:
        """Thick: every block of the image is taken now, so that a write never finds the disk full."""
        if volume.backend == "image" and volume.mutable.get("provisioning") == "thick":
            images.thicken(self._depot.content(volume))

    # --- helpers ----------------------------------------------------------------------------------

    def _find_source(self, source: tuple[str, str]) -> Volume | Snapshot | None:
        kind, name = source
        if not kind:
            return None
        return self._depot.snapshot(name) if kind == "snapshot" else self._depot.volume(name)

    def _refuse_kind(self, volume: Volume, capability: Any) -> None:
        if (capability.WhichOneof("access_type") == "block") != volume.block:
            kind = "block" if volume.block else "mount"
            raise invalid(f"volume_capability: {volume.id} is a {kind} volume")

    def _shown(self, volume: Volume) -> dict[str, Any]:
        enforced = "true" if BACKENDS[volume.backend].enforced else "false"
        shown: dict[str, Any] = {
            "volume_id": volume.id,
            "capacity_bytes": volume.size,
            "volume_context": {"backend": volume.backend, "sizeEnforced": enforced},
            "accessible_topology": [{"segments": {TOPOLOGY: self._node}}],
        }
        kind, name = volume.source
        if kind:
            shown["content_source"] = {kind: {f"{kind}_id": name}}
        return shown

    def _status(self, volume: Volume) -> dict[str, Any]:
        return {"published_node_ids": [self._node] if volume.attached or volume.stage else []}


def refuse_elsewhere(wanted: Any, node: str) -> None:
    """What is made must be allowed on this node. Raises Refused(RESOURCE_EXHAUSTED)."""
    requisite = [dict(t.segments) for t in wanted.requisite]
    if requisite and all(s.get(TOPOLOGY) != node for s in requisite if s):
        message_ = (
            f"accessibility_requirements: this driver's disk is on {TOPOLOGY}={node} only; ask for that"
        )
        raise Refused(CODE.RESOURCE_EXHAUSTED, message_)


def _told(parameters: dict[str, str]) -> str:
    return f"({', '.join(f'{k}={v}' for k, v in sorted(parameters.items())) or 'none'})"


def _source(given: Any) -> tuple[str, str]:
    kind = given.WhichOneof("type")
    if not kind:
        return ("", "")
    name = given.snapshot.snapshot_id if kind == "snapshot" else given.volume.volume_id
    if not name:
        raise invalid(f"volume_content_source.{kind}: an id is required")
    return (kind, name)


def _refuse_used(volume: Volume) -> None:
    if volume.targets:
        raise in_use(f"{volume.id} is published at {volume.targets[0].path}; unpublish it first")
    if volume.stage:
        raise in_use(f"{volume.id} is staged at {volume.stage.path}; unstage it first")
    if volume.attached:
        raise in_use(f"{volume.id} is published to its node; call ControllerUnpublishVolume first")


def paged(found: Iterable[Any], request: Any) -> tuple[list[Any], str]:
    """One page by name, and the token of the next. A token is the id that it begins with."""
    if request.max_entries < 0:
        raise invalid("max_entries: must not be negative")
    rows = sorted(found, key=lambda one: str(one.id))
    begin = request.starting_token
    if begin and not any(one.id == begin for one in rows):
        raise Refused(CODE.ABORTED, "starting_token: not known (any more); begin again without it")
    rows = [one for one in rows if one.id >= begin]
    most = request.max_entries or len(rows)
    return rows[:most], rows[most].id if len(rows) > most else ""

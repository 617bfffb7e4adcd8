"""csi-check: what csi-sanity does not ask, for anybody's driver: one line per check.

Each check makes its own volumes, and what it made is taken away after it, whatever came out. Needs root,
and the driver's mount namespace. A driver that lacks a capability is not asked for it (skip).

Rule 1: a check fails only on what the specification forbids, or on data that is lost, leaked or unlimited.
Rule 2: a message names the call, what came, and what was right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from netplane.model.errors import NetplaneError

from ...host import mountinfo
from ..client import Client

WRITER = "SINGLE_NODE_WRITER"
MIB = 1 << 20


class Failed(Exception):
    """The driver did what it must not; the message says what."""


class Skip(Exception):
    """The driver does not offer what this check is about."""


class Outcome(NamedTuple):
    word: str  # ok, FAIL, skip
    name: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.word:4} {self.name}{': ' if self.why else ''}{self.why}"


class Bed:
    """A driver, a directory to publish in, and what is to be undone after a check."""

    def __init__(self, client: Client, folder: Path, parameters: dict[str, str], size: int) -> None:
        self.client, self.folder, self.parameters, self.size = client, folder, parameters, size
        self._undo: list[tuple[str, dict[str, Any]]] = []
        self._count = 0

    # --- calls ----------------------------------------------------------------------------------

    def call(self, method: str, **fields: Any) -> Any:
        """The response. Raises Failed when the driver refuses."""
        try:
            return self.client.raw(method, **fields)
        except grpc.RpcError as exc:
            raise Failed(f"{method} is refused: {exc.code().name}: {exc.details()}") from None

    def refused(self, method: str, *codes: str, **fields: Any) -> str:
        """The message of a call that must be refused with one of these codes. Raises Failed."""
        try:
            self.client.raw(method, **fields)
        except grpc.RpcError as exc:
            if exc.code().name not in codes:
                right = " or ".join(codes)
                raise Failed(f"{method}: {exc.code().name} ({exc.details()}); {right} is right") from None
            return exc.details() or ""
        raise Failed(f"{method}: OK; {' or '.join(codes)} is right")

    def later(self, method: str, **fields: Any) -> None:
        self._undo.append((method, fields))

    def undo(self) -> None:
        while self._undo:
            method, fields = self._undo.pop()
            with suppress(grpc.RpcError):
                self.client.raw(method, **fields)

    def undoing(self) -> list[tuple[str, dict[str, Any]]]:
        """What is to be undone, the last first; it stays on the list, since undoing twice is fine."""
        return list(reversed(self._undo))

    # --- a volume's life ------------------------------------------------------------------------

    def name(self) -> str:
        self._count += 1
        return f"csi-check-{os.getpid()}-{self._count}"

    def asked(self, name: str = "", **fields: Any) -> dict[str, Any]:
        """The fields of a CreateVolume that the driver takes."""
        here: dict[str, Any] = {
            "name": name or self.name(),
            "capacity_range": {"required_bytes": self.size},
            "volume_capabilities": [capability()],
            "parameters": self.parameters,
        }
        return {**here, **fields}

    def create(self, **fields: Any) -> Any:
        made = self.call("CreateVolume", **self.asked(**fields)).volume
        self.later("DeleteVolume", volume_id=made.volume_id)
        return made

    def stage(self, volume: Any, mode: str = WRITER) -> dict[str, Any]:
        """Attach and stage; the fields that a NodePublish goes on with."""
        fields: dict[str, Any] = {
            "volume_id": volume.volume_id,
            "volume_capability": capability(mode),
            "volume_context": dict(volume.volume_context),
        }
        if self.client.can("Controller", "PUBLISH_UNPUBLISH_VOLUME"):
            node = self.client.node.node_id
            answer = self.call("ControllerPublishVolume", **fields, node_id=node)
            self.later("ControllerUnpublishVolume", volume_id=volume.volume_id, node_id=node)
            fields["publish_context"] = dict(answer.publish_context)
        if self.client.can("Node", "STAGE_UNSTAGE_VOLUME"):
            place = self.folder / f"stage-{self.name()}"
            place.mkdir()
            fields["staging_target_path"] = str(place)
            self.call("NodeStageVolume", **fields)
            self.later("NodeUnstageVolume", volume_id=volume.volume_id, staging_target_path=str(place))
        return fields

    def target(self) -> Path:
        return self.folder / f"target-{self.name()}"

    def publish(self, staged: dict[str, Any], **fields: Any) -> Path:
        place = self.target()
        self.call("NodePublishVolume", **staged, target_path=str(place), **fields)
        self.later("NodeUnpublishVolume", volume_id=staged["volume_id"], target_path=str(place))
        return place

    def shown(self, volume: Any) -> Path:
        return self.publish(self.stage(volume))

    def needs(self, service: str, word: str) -> None:
        if not self.client.can(service, word):
            raise Skip(f"the driver does not say {word}")

    def mounts(self) -> list[str]:
        return [m.point for m in mountinfo.beneath(str(self.folder))]


def capability(mode: str = WRITER) -> dict[str, Any]:
    return {"mount": {}, "access_mode": {"mode": mode}}


Check = Callable[[Bed], None]


def run(bed: Bed, checks: dict[str, Check]) -> Iterator[Outcome]:
    """Each check's outcome as it comes. What it made is taken away; a mount that stays is a failure."""
    for name, check in checks.items():
        outcome = Outcome("ok", name)
        try:
            with _undone(bed):
                check(bed)
        except Failed as exc:
            outcome = Outcome("FAIL", name, str(exc))
        except Skip as exc:
            outcome = Outcome("skip", name, str(exc))
        except (NetplaneError, OSError) as exc:
            outcome = Outcome("FAIL", name, f"{type(exc).__name__}: {exc}")
        left = bed.mounts()
        if left and outcome.word != "FAIL":
            outcome = Outcome("FAIL", name, f"still mounted after everything was undone: {left[0]}")
        yield outcome
        _unmount(left)


@contextmanager
def _undone(bed: Bed) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(bed.undo)
        yield


def _unmount(points: list[str]) -> None:
    from ...host import syscalls

    for point in reversed(points):
        with suppress(NetplaneError):
            syscalls.umount(point, syscalls.MNT_DETACH)

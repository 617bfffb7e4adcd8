"""Our driver with one fault, each of them what a check of csi-check is there to find.

python -m tests.csi.faulty FAULT csi --endpoint …
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

from netplane.model.base import amend
from netplane.model.errors import NetplaneError
from storageplane import cli
from storageplane.csi import checks, controller
from storageplane.csi.controller import Controller
from storageplane.csi.depot import Depot, Snapshot
from storageplane.csi.node import Node
from storageplane.csi.refusal import Refused, code_of, in_use
from storageplane.csi.snapshots import Snapshots
from storageplane.host import images


def wrapped(owner: Any, name: str, fault: Callable[..., Any]) -> None:
    """``fault`` gets the real function first, then what it is called with."""
    real = getattr(owner, name)
    setattr(owner, name, lambda *args: fault(real, *args))


def read_only() -> None:
    """readonly is overlooked."""
    wrapped(Node, "show", lambda real, *a: real(*a[:-1], amend(a[-1], read_only=False)))


def unstage_loses_data() -> None:
    def fault(real: Any, self: Node, request: Any) -> Any:
        answer = real(self, request)
        for path in self._depot.content(self._depot.volume(request.volume_id)).iterdir():
            path.unlink()
        return answer

    wrapped(Node, "NodeUnstageVolume", fault)


def snapshots_of_now() -> None:
    """What is restored is what the volume holds by then."""

    def fault(real: Any, self: Depot, new: Any, source: Any) -> Any:
        return real(self, new, self.volume(source.volume) if isinstance(source, Snapshot) else source)

    wrapped(Depot, "fill", fault)


def clones_of_links() -> None:
    """A copy has hard links to its source's files."""
    images.copy_tree = lambda source, target: images.run("cp", "-al", f"{source}/.", f"{target}/")  # type: ignore[assignment,return-value]


def not_twice() -> None:
    def fault(real: Any, self: Node, request: Any) -> Any:
        if self._depot.volume(request.volume_id).stage is None:
            raise in_use("it is not staged")
        return real(self, request)

    wrapped(Node, "NodeUnstageVolume", fault)


def ids_by_chance() -> None:
    """Every CreateVolume makes another volume."""
    turns = itertools.count()
    wrapped(controller, "id_of", lambda real, kind, name: real(kind, f"{name}/{next(turns)}"))


def ids_are_paths() -> None:
    def fault(real: Any, self: Controller, request: Any) -> Any:
        if os.path.isabs(request.volume_id):
            shutil.rmtree(request.volume_id)
        return real(self, request)

    wrapped(Controller, "DeleteVolume", fault)


def links_are_followed() -> None:
    def fault(real: Any, self: Node, request: Any) -> Any:
        request.target_path = os.path.realpath(request.target_path)
        return real(self, request)

    wrapped(Node, "NodePublishVolume", fault)


def secrets_are_told() -> None:
    def fault(real: Any, self: Controller, request: Any) -> Any:
        try:
            return real(self, request)
        except NetplaneError as exc:
            raise Refused(code_of(exc), f"{exc} in {request}") from None

    wrapped(Controller, "CreateVolume", fault)


def volumes_shrink() -> None:
    def fault(_real: Any, _self: Controller, request: Any) -> Any:
        less = request.capacity_range.required_bytes
        return controller.message("ControllerExpandVolumeResponse")(capacity_bytes=less)

    wrapped(Controller, "ControllerExpandVolume", fault)


def volumes_are_elsewhere() -> None:
    place = [{"segments": {controller.TOPOLOGY: "n2"}}]
    wrapped(Controller, "_shown", lambda real, *a: {**real(*a), "accessible_topology": place})


def topology_is_overlooked() -> None:
    controller.refuse_elsewhere = lambda *_: None


def members_go_alone() -> None:
    def fault(real: Any, self: Snapshots, request: Any) -> Any:
        known = self._depot.snapshot(request.snapshot_id)
        self._depot.snapshots.put(known.id, amend(known, group=""))
        return real(self, request)

    wrapped(Snapshots, "DeleteSnapshot", fault)


def one_target_only() -> None:
    checks.several = lambda _: False


if __name__ == "__main__":
    globals()[sys.argv.pop(1)]()
    cli.main()

"""Our driver with the faults that green drivers were found to have (docs/csi.md): for judging the judge.

python -m tests.csi.sloppy csi --endpoint …
"""

from __future__ import annotations

from typing import Any

from netplane.model.base import amend
from storageplane import cli
from storageplane.csi import checks, controller, node, wish
from storageplane.csi.controller import Controller
from storageplane.csi.node import Node


def _delete(self: Controller, request: Any) -> Any:
    """The record goes, its mounts stay."""
    known = self._depot.peek(self._depot.volumes, request.volume_id)
    if known is not None:
        for path in self._depot.content(known).parent.rglob("*"):
            path.unlink(missing_ok=True)
        self._depot.keep(amend(known, phase="removing"))
        self._depot.volumes.remove(known.id)
    return controller.message("DeleteVolumeResponse")()


def _read(request: Any, machine: Any, real: Any = wish.read) -> Any:
    """A parameter that is not known is overlooked."""
    request.parameters.pop("csi-check", None)
    return real(request, machine)


if __name__ == "__main__":
    Controller.DeleteVolume = _delete  # type: ignore[method-assign]
    wish.read = _read
    Controller._refuse_other = lambda *_: None  # type: ignore[assignment,method-assign]
    Node._refuse_other_target = lambda *_: None  # type: ignore[assignment,method-assign]
    node.Mounts._same = lambda *_: True  # type: ignore[attr-defined]
    checks.STRING, checks.MAP = 1 << 20, 1 << 20
    cli.main()

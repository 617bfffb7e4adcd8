"""One node's controllers, room and driver over a world, with the real directories beneath a root."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from netplane.model.errors import NetplaneError
from netplane.model.facts import Plan
from storageplane.claims.bind import Binder
from storageplane.claims.ephemeral import Ephemerals
from storageplane.claims.provision import Provisioner
from storageplane.claims.reclaim import Reclaimer, VolumeData, Volumes
from storageplane.claims.resize import Resizer

from .storage_world import World


class Node:
    """``busy``: who has data published. ``refused``: what the driver would not do in the last `run`."""

    def __init__(self, world: World, root: Path, name: str = "n1") -> None:
        self.world, self.root, self.busy = world, root, ""
        root.mkdir(exist_ok=True)
        self.deciders: tuple[Any, ...] = (
            Binder(), Provisioner(name, root), Reclaimer(), Ephemerals(), Resizer(name, root),
        )  # fmt: skip
        self.room = Volumes(name, root)
        self.driver = VolumeData(root, world, lambda _: self.busy)
        self.refused: list[str] = []

    def run(self, order: Any = sorted) -> Node:
        """To the fixpoint of decisions and facts."""
        while True:
            before = len(self.world.writes)
            self.world.settle(*self.deciders, order=order)
            snapshot = self.world.snapshot()
            self.refused = []
            for scope in order(list(self.room.scopes(None, snapshot))):
                try:
                    self.driver.apply(Plan(add=tuple(self.room.render(scope, snapshot))))
                except NetplaneError as exc:
                    self.refused.append(str(exc))
            if len(self.world.writes) == before:
                return self

    def directories(self) -> list[str]:
        folder = self.root / "volumes"
        return sorted(p.name for p in folder.iterdir()) if folder.exists() else []

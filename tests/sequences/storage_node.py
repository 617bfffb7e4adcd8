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
    """``busy``: who has data published. ``refused``: what drivers would not do in the last `run`."""

    def __init__(self, world: World, root: Path, name: str = "n1") -> None:
        self.world, self.root, self.busy = world, root, ""
        root.mkdir(exist_ok=True)
        self.deciders: tuple[Any, ...] = (
            Binder(), Provisioner(name, root), Reclaimer(), Ephemerals(), Resizer(name, root),
        )  # fmt: skip
        self.room = Volumes(name, root)
        self.driver = VolumeData(root, world, lambda _: self.busy)
        self.refused: dict[Any, str] = {}

    def run(self, order: Any = sorted) -> Node:
        """To the fixpoint of decisions and facts."""
        while True:
            before = len(self.world.writes)
            self.world.settle(*self.deciders, order=order)
            self.bring_about(self.room, self.driver, order)
            if len(self.world.writes) == before:
                return self

    def bring_about(self, room: Any, driver: Any, order: Any) -> None:
        """The facts of what a room must look at, what failed before among it."""
        snapshot, failed = self.world.snapshot(), {s for s in self.refused if s.room == room.name}
        self.refused = {s: why for s, why in self.refused.items() if s not in failed}
        for scope in order(self.world.due(room, failed)):
            try:
                driver.apply(Plan(add=tuple(room.render(scope, snapshot))))
            except NetplaneError as exc:
                self.refused[scope] = str(exc)

    def directories(self) -> list[str]:
        folder = self.root / "volumes"
        return sorted(p.name for p in folder.iterdir()) if folder.exists() else []

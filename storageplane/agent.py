"""The wiring of storageplane: controllers, volumes and the upkeep of what is published, on one node."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from netplane.model.base import Key, Object
from netplane.model.errors import KernelError
from netplane.model.facts import Driver
from netplane.model.snapshot import Snapshot
from netplane.reconcile.base import Controller, Room
from netplane.reconcile.core import Core
from netplane.store.base import Store

from . import names
from .bind import Binder
from .journal import Journal
from .mounts import Mounts
from .provision import Provisioner
from .reclaim import Reclaimer, VolumeData, Volumes
from .upkeep import Keeper, Pods


class Config(NamedTuple):
    """``root`` is absolute and real; ``provisioners``: the StorageClass names that this node serves.

    ``csi_drivers``: other people's, whose sockets are in ROOT/plugins.
    """

    node: str
    root: Path
    provisioners: tuple[str, ...] = (names.DIRECTORY,)
    csi_drivers: tuple[str, ...] = ()


def prepare_root(path: Path) -> Path:
    """Make the root (0755) where absent; its real path. Raises KernelError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise KernelError(exc.errno or 5, f"make the root {path}") from exc
    return Path(os.path.realpath(path))


def controllers(config: Config) -> tuple[Controller, ...]:
    """Everything that decides; the same in the agent and in a single `publish`."""
    return Binder(), Provisioner(config.node, config.root, config.provisioners), Reclaimer()


class _Late:
    """The core as the data driver's store: made after the driver, which the core is made of."""

    core: Core

    def get(self, key: Key) -> Object | None:
        return self.core.get(key)

    def put(self, obj: Object, expect: int | None = None) -> Object:
        return self.core.put(obj, expect)

    def delete(self, key: Key, expect: int | None = None) -> Object:
        return self.core.delete(key, expect)


def build(store: Store, config: Config, rank: Callable[[Snapshot], int] | None = None) -> Core:
    """A core that is ready to start."""
    late = _Late()
    driver = VolumeData(config.root, late, Journal(config.root).user_of)
    keeper = Keeper(config.node, Mounts(config.root), lambda: late.core.snapshot())
    rooms: list[tuple[Room, list[Driver]]] = [
        (Volumes(config.node, config.root), [driver]),
        (Pods(config.node, str(config.root)), [keeper]),
    ]
    if config.csi_drivers:
        from .csi.claims import CsiVolumes  # gRPC costs memory: for nodes that have drivers
        from .csi.provisioning import CsiProvisioning

        made = CsiProvisioning(config.root, config.node, late)
        rooms.append((CsiVolumes(config.node, config.csi_drivers), [made]))
    deciding = () if store.allocates else (Binder(), Reclaimer())
    provisioner = Provisioner(config.node, config.root, config.provisioners)
    late.core = Core(store, rooms, [*deciding, provisioner], rank)
    return late.core

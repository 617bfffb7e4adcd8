"""The wiring of storageplane: controllers, volumes and the upkeep of what is published, on one node."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry

from netplane.model.base import Key, Object
from netplane.model.errors import KernelError
from netplane.model.facts import Driver
from netplane.model.nodes import Lease
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume
from netplane.reconcile.base import Controller, Observer, Room
from netplane.reconcile.core import Core
from netplane.store.base import Store

from . import names
from .claims import match, pulse, sources
from .claims.bind import Binder
from .claims.capture import OwnSnapshots, SnapshotData
from .claims.ephemeral import Ephemerals
from .claims.provision import Provisioner, data_of, is_ours
from .claims.pulse import Pulse
from .claims.reclaim import Reclaimer, VolumeData, Volumes
from .claims.resize import Resizer, file_system_lags
from .claims.snapshots import Snapshotter
from .host.mounts import Mounts
from .metrics import Operations, VolumeStats
from .pods import holds
from .pods.journal import Journal
from .pods.upkeep import Keeper, Pods

log = logging.getLogger(__name__)

PATIENCE = 3.0  # seconds that a beat waits for the store's first list
AGAIN = 60.0  # seconds: what a publication that was killed meanwhile may have left is looked for


class Config(NamedTuple):
    """``root`` is absolute and real; ``provisioners``: the StorageClass names that this node serves.

    ``csi_drivers``: other people's, whose sockets are in ROOT/plugins. ``trash``: seconds for which deleted
    data is kept.
    """

    node: str
    root: Path
    provisioners: tuple[str, ...] = (names.DIRECTORY, names.LOCAL)
    csi_drivers: tuple[str, ...] = ()
    trash: float = 0.0


def prepare_root(path: Path) -> Path:
    """Make the root (0755) where absent; its real path. Raises KernelError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise KernelError(exc.errno or 5, f"make the root {path}") from exc
    return Path(os.path.realpath(path))


def controllers(config: Config) -> tuple[Controller, ...]:
    """Everything that decides; the same in the agent and in a single `publish`."""
    return *cluster_wide(), *of_node(config)


def cluster_wide() -> tuple[Controller, ...]:
    """What a Kubernetes control plane does itself, where there is one."""
    return Binder(), Reclaimer(), Ephemerals(), Snapshotter()


def of_node(config: Config) -> tuple[Controller, ...]:
    node, root = config.node, config.root
    return Provisioner(node, root, config.provisioners), Resizer(node, root)


class _Late:
    """The core as the data driver's store: made after the driver, which the core is made of."""

    core: Core

    def get(self, key: Key) -> Object | None:
        return self.core.get(key)

    def put(self, obj: Object, expect: int | None = None) -> Object:
        return self.core.put(obj, expect)

    def delete(self, key: Key, expect: int | None = None) -> Object:
        return self.core.delete(key, expect)


class Agent:
    """The core with what lives beside it: the node's pulse, and metrics in ``registry``."""

    def __init__(self, store: Store, config: Config, registry: CollectorRegistry) -> None:
        self.config = config
        operations = Operations(registry)
        self.core, self._data = _built(store, config, operations=operations)
        self._followed: tuple[object, int, float] = (None, 0, 0.0)  # volumes, journal, when
        self._pulse = Pulse(self.core, config.node, self.look_again)
        registry.register(VolumeStats(self.core.snapshot, config.node, config.root))

    def start(self) -> None:
        self.core.start()
        self._pulse.start()

    def stop(self) -> None:
        self._pulse.stop()
        self.core.stop()

    def look_again(self) -> None:
        """Not before the store's list is in: half of one says nothing of who needs what."""
        self.core.wait_synced(PATIENCE)  # the first beat is as early as the list
        if not self.core.snapshot().synced:
            return
        self.empty_the_trash()
        try:
            self.follow_the_journal()
        finally:
            self.grow_what_waits()

    def empty_the_trash(self) -> None:
        """Of what has lain there for long enough, and what nobody takes back."""
        volumes = self.core.snapshot().list(PersistentVolume)
        wanted = {v.metadata.annotations[names.SOURCE] for v in volumes if not sources.whole(v)}
        trash = self._data.trash
        for line in trash.empty(lambda t: trash.over(t) and f"{trash.folder}/{t.item}" not in wanted):
            log.info("%s", line)

    def follow_the_journal(self) -> None:
        """What volumes say of this node's use of them, as its records have it, where either has changed."""
        snapshot, where = self.core.snapshot(), (self.config.node, self.config.root)
        folder = Journal(self.config.root).folder
        state = (snapshot.version(PersistentVolume), folder.stat().st_mtime_ns if folder.exists() else 0)
        same = state[0] is self._followed[0] and state[1] == self._followed[1]
        if not same or time.monotonic() - self._followed[2] >= AGAIN:
            holds.followed(self.core, snapshot, snapshot.list(PersistentVolume), where)
            self._followed = (*state, time.monotonic())

    def grow_what_waits(self) -> None:
        """File systems that could not grow while they were mounted: perhaps they can now."""
        snapshot = self.core.snapshot()
        for volume in snapshot.list(PersistentVolume):
            mine = is_ours(volume, self.config.root) and not volume.deleting
            if mine and file_system_lags(volume) and self._here(volume, snapshot):
                self._data.grow(data_of(volume))

    def _here(self, volume: PersistentVolume, snapshot: Snapshot) -> bool:
        return match.fits_node(volume.spec.node_affinity, self.config.node, snapshot)


def build(store: Store, config: Config, observer: Observer | None = None) -> Core:
    """A core that is ready to start."""
    return _built(store, config, observer)[0]


def _built(
    store: Store, config: Config, observer: Observer | None = None, operations: Operations | None = None
) -> tuple[Core, VolumeData]:
    late = _Late()
    driver = VolumeData(
        config.root,
        late,
        Journal(config.root).user_of,
        operations.timed if operations else None,
        config.trash,
    )
    keeper = Keeper(config.node, Mounts(config.root), lambda: late.core.snapshot())
    rooms: list[tuple[Room, list[Driver]]] = [
        (Volumes(config.node, config.root), [driver]),
        (Pods(config.node, str(config.root)), [keeper]),
        (OwnSnapshots(config.node, config.provisioners), [SnapshotData(config.root, late, driver.timed)]),
    ]
    if config.csi_drivers:
        from .csi.claims import CsiVolumes  # gRPC costs memory: for nodes that have drivers
        from .csi.client import Clients
        from .csi.provisioning import CsiProvisioning

        clients = Clients(config.root, operations.called if operations else None)
        made = CsiProvisioning(config.root, config.node, late, clients)
        rooms.append((CsiVolumes(config.node, config.csi_drivers), [made]))
    deciding = () if store.allocates else cluster_wide()
    late.core = Core(store, rooms, [*deciding, *of_node(config)], _rank(config.node), observer)
    return late.core, driver


def _rank(node: str) -> Callable[[Snapshot], int]:
    """How many live nodes decide before this one; the same on every node."""

    def rank(snapshot: Snapshot) -> int:
        now = time.time()
        leases = snapshot.list(Lease, pulse.NAMESPACE)
        return sum(1 for lease in leases if lease.name < node and pulse.expires(lease) > now)

    return rank

"""Prometheus metrics under the names that kubelet, the controller manager and CSI sidecars use.

    kubelet_volume_stats_{capacity,available,used}_bytes, _inodes, _inodes_free, _inodes_used,
    kubelet_volume_stats_health_status_abnormal        by namespace and persistentvolumeclaim
    pv_collector_{bound,unbound}_{pv,pvc}_count, pv_collector_total_pv_count
    storage_operation_duration_seconds                  by operation_name, volume_plugin, status
    csi_operations_seconds                              by driver_name, method_name, grpc_status_code
    storageplane_running_{written_bytes,total_bytes,seconds}    by program and object: what takes long, now

Rule 1: stats are looked at when somebody scrapes; a volume that does not answer costs its own line only.
Rule 2: a directory has no size of its own: its stats are those of the file system that it is on.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from netplane.model.errors import NetplaneError
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim

from . import backends
from .claims.match import fits_node
from .claims.provision import backend_of, data_of, is_ours
from .claims.steps import owner
from .host import loops, mountinfo, progress

BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 25, 50, 120, 300, 600)  # kubelet's
LABELS = ("program", "object")
SECONDS = "storage_operation_duration_seconds"


class Stats(NamedTuple):
    """Of a volume's file system: bytes and inodes."""

    capacity: int
    available: int
    used: int
    inodes: int
    inodes_free: int
    inodes_used: int


class Operations:
    """How long operations take and whether they fail; `timed` is what `reclaim.VolumeData` measures by."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("operation_name", "volume_plugin", "status", "migrated")
        self._seconds = Histogram(SECONDS, "Storage operations", labels, buckets=BUCKETS, registry=registry)

        told = ("driver_name", "method_name", "grpc_status_code", "migrated")
        self._calls = Histogram(
            "csi_operations_seconds", "Calls of CSI drivers", told, buckets=BUCKETS, registry=registry
        )

    def called(self, driver: str, method: str, code: str, seconds: float) -> None:
        """One call of a CSI driver: what csi.client tells."""
        self._calls.labels(driver, method, code, "false").observe(seconds)

    @contextmanager
    def timed(self, operation: str, plugin: str) -> Iterator[None]:
        begin, status = time.perf_counter(), "fail-unknown"
        try:
            yield
            status = "success"
        finally:
            self._seconds.labels(operation, plugin, status, "false").observe(time.perf_counter() - begin)


class VolumeStats:
    """A collector: the volumes of claims that this node holds."""

    def __init__(self, snapshot: Callable[[], Snapshot], node: str, root: Path) -> None:
        self._snapshot, self._node, self._root = snapshot, node, root

    def collect(self) -> Iterator[Metric]:
        words = {
            "capacity_bytes": "Capacity in bytes of the volume",
            "available_bytes": "Number of available bytes in the volume",
            "used_bytes": "Number of used bytes in the volume",
            "inodes": "Maximum number of inodes in the volume",
            "inodes_free": "Number of free inodes in the volume",
            "inodes_used": "Number of used inodes in the volume",
            "health_status_abnormal": "Abnormal volume health status: 1 when the volume cannot be read",
        }
        labels = ("namespace", "persistentvolumeclaim")
        found = {
            n: GaugeMetricFamily(f"kubelet_volume_stats_{n}", t, labels=labels) for n, t in words.items()
        }
        for claim, volume in self._volumes():
            where = [claim.namespace, claim.name]
            try:
                stats = stats_of(self._root, volume)
            except (OSError, NetplaneError):
                found["health_status_abnormal"].add_metric(where, 1)
                continue
            found["health_status_abnormal"].add_metric(where, 0)
            for name, value in zip(list(words)[:-1], stats, strict=True) if stats else ():
                found[name].add_metric(where, value)
        yield from found.values()
        yield from _counts(self._snapshot())
        yield from _running()

    def _volumes(self) -> Iterator[tuple[PersistentVolumeClaim, PersistentVolume]]:
        snapshot = self._snapshot()
        for volume in snapshot.list(PersistentVolume):
            if is_ours(volume, self._root) and fits_node(volume.spec.node_affinity, self._node, snapshot):
                claim = owner(volume, snapshot)
                if claim is not None:
                    yield claim, volume


def stats_of(root: Path, volume: PersistentVolume) -> Stats | None:
    """None for an image that is mounted nowhere: nothing tells what is in it. Raises OSError, KernelError."""
    data, backend = data_of(volume), backend_of(volume)
    where = root / data.path
    if data.block:
        found = backends.BACKENDS[backend].usage(backends.place(root, data))
        return Stats(found.total, found.total - found.used, found.used, 0, 0, 0) if found else None
    if backend == "image":
        points = _mounted(where / "image")
        if not points:
            return None
        where = Path(points[0])
    elif backend != "directory":
        where = where / "tree"
    space = os.statvfs(where)
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    used = total - space.f_bfree * space.f_frsize
    own = backends.BACKENDS[backend].usage(backends.place(root, data)) if backend == "btrfs" else None
    if own is not None:
        total, used, free = own.total, own.used, max(0, own.total - own.used)
    return Stats(total, free, used, space.f_files, space.f_favail, space.f_files - space.f_ffree)


def _mounted(image: Path) -> list[str]:
    os.stat(image)  # an image that is gone is an abnormal volume, not one that nobody uses
    device = loops.find(image)
    number = os.stat(device).st_rdev if device else 0
    where = f"{os.major(number)}:{os.minor(number)}"
    return [m.point for m in mountinfo.read() if device and m.device == where]


def _running() -> Iterator[Metric]:
    """Copies and formats that are at work."""
    words = {"written_bytes": "Bytes written", "total_bytes": "Bytes to write, 0: unknown", "seconds": "Age"}
    found = {
        n: GaugeMetricFamily(f"storageplane_running_{n}", f"{t}, of a long copy or format", labels=LABELS)
        for n, t in words.items()
    }
    for work in progress.running():
        for name, value in zip(found, (work.written, work.total, work.seconds), strict=True):
            found[name].add_metric([work.program, work.object], value)
    yield from found.values()


def _counts(snapshot: Snapshot) -> Iterator[Metric]:
    """kube-controller-manager's pv_collector."""
    bound, unbound, total = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    for volume in snapshot.list(PersistentVolume):
        (bound if volume.status.phase == "Bound" else unbound)[volume.spec.storage_class_name] += 1
        total[volume.source, volume.spec.volume_mode] += 1
    held, waiting = Counter[str](), Counter[str]()
    for claim in snapshot.list(PersistentVolumeClaim):
        (held if claim.status.phase == "Bound" else waiting)[claim.namespace] += 1
    rows = (
        ("bound_pv_count", "storage_class", bound), ("unbound_pv_count", "storage_class", unbound),
        ("bound_pvc_count", "namespace", held), ("unbound_pvc_count", "namespace", waiting),
    )  # fmt: skip
    for name, label, counted in rows:
        family = GaugeMetricFamily(f"pv_collector_{name}", f"By {label}", labels=[label])
        for value, number in counted.items():
            family.add_metric([value], number)
        yield family
    family = GaugeMetricFamily(
        "pv_collector_total_pv_count", "Volumes", labels=["plugin_name", "volume_mode"]
    )
    for (source, mode), number in total.items():
        family.add_metric([source, mode], number)
    yield family

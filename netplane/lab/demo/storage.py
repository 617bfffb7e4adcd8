"""The checks of volumes: one pod writes, goes, another comes; then the claims go."""

from __future__ import annotations

import errno
from pathlib import Path

from .job import Check, Job, expect

WRITTEN = b"42 coffees\n" * 1000
SIZE_LIMIT = 4 << 20  # of the memory volume in storage.yaml


def bound(job: Job) -> str:
    took = job.volumes.up()
    size = job.volumes.volume_of("ledger")["spec"]["capacity"]["storage"]
    expect(str(size) == "1Gi", f"claim ledger is bound to a volume of {size}, not 1Gi")
    made = job.volumes.volume_of("cache")
    expect(made["spec"]["persistentVolumeReclaimPolicy"] == "Delete", f"cache has {made['spec']}")
    return f"static 1Gi Retain, dynamic 64Mi Delete, in {took:.1f} s"


def survives(job: Job) -> str:
    volumes = job.volumes
    first = volumes.publish("ledger-1")
    for path in ("/data", "/cache", "/logs", "/work", "/dev/shm"):
        (first[path] / "file").write_bytes(WRITTEN)
    volumes.unpublish("ledger-1")
    left = volumes.left_of("ledger-1")
    expect(not left, f"unpublish left {left[:3]}")
    volumes.delete("pod", "ledger-1")
    second = volumes.publish("ledger-2")
    for path in ("/data", "/cache", "/logs"):
        data = (second[path] / "file").read_bytes()
        expect(data == WRITTEN, f"{path} of the next pod holds {len(data)} other bytes")
    for path in ("/work", "/dev/shm"):
        found = [p.name for p in second[path].iterdir()]
        expect(not found, f"the next pod's emptyDir {path} holds {found}")
    return f"{3 * len(WRITTEN)} bytes in 2 claims and a hostPath; emptyDirs came new"


def limited(job: Job) -> str:
    """Goes on with the pod that `survives` published."""
    shm = job.volumes.publish("ledger-2")["/dev/shm"]  # again: the same, for it is idempotent
    written = _fill(shm / "full")
    expect(written <= SIZE_LIMIT, f"{written} bytes fitted into 4Mi of memory")
    mode = shm.stat().st_mode & 0o777
    expect(mode == 0o777, f"an emptyDir has mode {mode:o}, not 777")
    return f"no space after {written >> 10} KiB of 4 MiB"


def _fill(path: Path) -> int:
    block = b"\0" * (1 << 16)
    with path.open("wb", buffering=0) as file:
        while file.tell() <= 2 * SIZE_LIMIT:
            try:
                file.write(block)
            except OSError as exc:
                expect(exc.errno == errno.ENOSPC, f"writing {path}: {exc}")
                break
        return file.tell()


def reclaimed(job: Job) -> str:
    volumes = job.volumes
    cache = volumes.publish("ledger-2")["/cache"]
    made = volumes.volume_of("cache")["metadata"]["name"]
    device = (cache.stat().st_dev, cache.stat().st_ino)
    volumes.unpublish("ledger-2")
    expect(not volumes.left_of("ledger-2"), f"unpublish left {volumes.left_of('ledger-2')[:3]}")
    volumes.delete("pod", "ledger-2")
    for claim in ("cache", "ledger"):
        volumes.delete("persistentvolumeclaim", claim)
    volumes.wait(f"{made} gone and ledger Released", lambda: volumes.volumes() == {"ledger": "Released"})
    kept = (volumes.host / "ledger" / "file").read_bytes()
    expect(kept == WRITTEN, f"the Retain volume holds {len(kept)} other bytes")
    rest = [str(p) for p in volumes.root.rglob("*") if (p.stat().st_dev, p.stat().st_ino) == device]
    expect(not rest, f"the Delete volume's directory is still there: {rest}")
    return f"{made[:12]}… gone with its directory; ledger Released, {len(kept)} bytes kept"


CHECKS = [
    Check("claims bound", bound),
    Check("data survives its pod", survives),
    Check("emptyDir in memory is limited", limited),
    Check("Delete goes, Retain stays", reclaimed),
]

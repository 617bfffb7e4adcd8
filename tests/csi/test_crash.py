"""The driver killed with -9 in the middle of calls: the same calls again finish, and nothing leaks."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from pathlib import Path

import grpc
import pytest

from .conftest import MIB, Driver, loops, mounts

pytestmark = pytest.mark.root


def cycle(driver: Driver, name: str) -> None:
    """A volume's whole life; every call may have been made before."""
    volume = driver.create(name, 16 * MIB)
    target = driver.publish(volume, name)
    (target / "word").write_text(name)
    snapshot = driver.call("CreateSnapshot", source_volume_id=volume, name=f"s-{name}").snapshot
    clone = driver.create(
        f"c-{name}", 16 * MIB, volume_content_source={"snapshot": {"snapshot_id": snapshot.snapshot_id}}
    )
    driver.call("DeleteVolume", volume_id=clone)
    driver.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)
    driver.withdraw(volume, name)
    driver.call("DeleteVolume", volume_id=volume)


@pytest.mark.timeout(180)
def test_killed_at_any_moment_it_converges_and_leaks_nothing(driver: Driver, tmp_path: Path) -> None:
    begin = time.monotonic()
    cycle(driver, "measure")
    whole = time.monotonic() - begin
    chance = random.Random(7)
    for turn in range(16):
        name = f"v{turn}"
        killer = threading.Timer(whole * chance.random(), driver.process.kill)
        killer.start()
        with contextlib.suppress(grpc.RpcError, OSError):
            cycle(driver, name)
        killer.join()
        driver.kill()
        driver.start()
        cycle(driver, name)
    assert mounts(tmp_path) == [] and loops(tmp_path) == []
    for folder in ("data", "volumes", "snapshots", "groups"):
        assert list((driver.root / "csi" / folder).iterdir()) == [], folder


def test_a_volume_frozen_by_a_driver_that_died_thaws(driver: Driver) -> None:
    target = driver.publish(driver.create())
    driver.kill()
    subprocess.run(["fsfreeze", "--freeze", str(target)], check=True)
    writer = subprocess.Popen(["touch", str(target / "late")])
    driver.start()
    assert writer.wait(10) == 0


def test_a_damaged_record_is_named_and_the_others_are_served(driver: Driver) -> None:
    driver.create("good")
    bad = driver.create("bad")
    driver.settled()
    record = driver.root / "csi" / "volumes" / f"{bad}.json"
    record.write_bytes(b"")
    driver.start()
    assert not driver.call("Probe").ready.value
    assert len(driver.call("ListVolumes").entries) == 1
    code, why = driver.refused("NodeGetVolumeHealth", volume_id=bad)
    assert code == "INVALID_ARGUMENT" and str(record) in why and "damaged" in why
    driver.kill()
    record.write_text('{"version": 99, "sha256": "", "record": {}}')
    driver.start()
    assert "upgrade" in driver.refused("NodeGetVolumeHealth", volume_id=bad)[1]


def test_a_full_disk_refuses_and_changes_nothing(driver: Driver, tmp_path: Path) -> None:
    driver.kill()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", str(driver.root)], check=True)
    driver.start()
    free = os.statvfs(driver.root).f_bavail * os.statvfs(driver.root).f_frsize
    (driver.root / "filler").write_bytes(bytes(free))
    thick = {"mutable_parameters": {"provisioning": "thick"}, "parameters": {"overcommit": "true"}}
    code, _ = driver.refused(
        "CreateVolume",
        name="thick",
        capacity_range={"required_bytes": 8 * MIB},
        volume_capabilities=[{"block": {}, "access_mode": {"mode": 1}}],
        **thick,
    )
    assert code == "RESOURCE_EXHAUSTED"
    (driver.root / "filler").unlink()
    for entry in driver.call("ListVolumes").entries:
        driver.call("DeleteVolume", volume_id=entry.volume.volume_id)
    assert list((driver.root / "csi" / "data").iterdir()) == []
    driver.kill()
    subprocess.run(["umount", str(driver.root)], check=True)
    driver.start()
    assert mounts(tmp_path) == []

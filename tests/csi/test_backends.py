"""Four backends, one behaviour: made, filled to the brim, measured, grown, copied, removed.

tmp/root (plain, or btrfs on a loop) ── storageplane csi ── volume ── stage ── target
"""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from netplane.model.errors import KernelError
from netplane.model.facts import Plan
from netplane.model.storage_facts import Data
from storageplane import backends
from storageplane.host.mounts import Mounts

from .conftest import MIB, WRITER, Driver, loops, mounts, qgroups, running

pytestmark = pytest.mark.root


@pytest.fixture(params=["image", "tmpfs", "btrfs"])
def enforced(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Driver, str]]:
    """A driver, and the backend to ask it for."""
    home = request.getfixturevalue("on_btrfs") if request.param == "btrfs" else tmp_path
    with running(home) as driver:
        yield driver, request.param


def fill(target: Path, size: int) -> int:
    """The errno of writing ``size`` bytes; 0 when they fit."""
    try:
        with open(target / "filler", "wb") as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
                file.flush()
                os.fdatasync(file.fileno())
    except OSError as exc:
        return exc.errno or -1
    return 0


def total(driver: Driver, volume: str, target: Path) -> int:
    usage = driver.call("NodeGetVolumeStats", volume_id=volume, volume_path=str(target)).usage
    return int(usage[0].total)


def test_a_size_is_a_wall_and_is_told_truthfully(enforced: tuple[Driver, str]) -> None:
    driver, backend = enforced
    volume = driver.create(size=16 * MIB, parameters={"backend": backend})
    target = driver.publish(volume)
    assert fill(target, 24 * MIB) in (errno.ENOSPC, errno.EDQUOT)
    assert 12 * MIB < total(driver, volume, target) <= 16 * MIB
    if backend == "image":
        return  # how images grow is told elsewhere: ext4 when it is next staged
    more = {"volume_id": volume, "capacity_range": {"required_bytes": 48 * MIB}}
    assert not driver.call("ControllerExpandVolume", **more).node_expansion_required
    driver.call("NodeExpandVolume", **more, volume_path=str(target))
    assert total(driver, volume, target) == 48 * MIB
    assert fill(target, 24 * MIB) == 0


def test_a_copy_is_the_same_and_apart(enforced: tuple[Driver, str]) -> None:
    driver, backend = enforced
    kind = {"parameters": {"backend": backend}}
    volume = driver.create("v", 16 * MIB, **kind)
    source = driver.publish(volume, "source")
    payload = os.urandom(3 * MIB)
    (source / "data").write_bytes(payload)
    snapshot = driver.call("CreateSnapshot", source_volume_id=volume, name="s").snapshot.snapshot_id
    (source / "data").write_text("changed after")
    restored = driver.create("r", 16 * MIB, volume_content_source={"snapshot": {"snapshot_id": snapshot}})
    target = driver.publish(restored, "restored")
    assert (target / "data").read_bytes() == payload
    assert fill(target, 24 * MIB) in (errno.ENOSPC, errno.EDQUOT)
    for name, place in ((volume, "source"), (restored, "restored")):
        driver.withdraw(name, place)
        driver.call("DeleteVolume", volume_id=name)
    driver.call("DeleteSnapshot", snapshot_id=snapshot)
    assert list((driver.root / "csi" / "data").iterdir()) == []
    assert mounts(driver.home) == [] and loops(driver.home) == []
    if backend == "btrfs":
        give_up = time.monotonic() + 20
        while len(qgroups(driver.home)) > 1 + 1:  # the toplevel's, and the last one's that was just removed
            assert time.monotonic() < give_up
            driver.call("DeleteVolume", volume_id=driver.create("w", MIB, **kind))


def test_what_a_reboot_took_from_memory_is_not_copied_as_if_it_were_empty(driver: Driver) -> None:
    kind = {"parameters": {"backend": "tmpfs"}}
    volume = driver.create("v", 16 * MIB, **kind)
    snapshot = driver.call("CreateSnapshot", source_volume_id=volume, name="s").snapshot.snapshot_id
    for name in (volume, snapshot):
        subprocess.run(["umount", str(driver.root / "csi" / "data" / name / "tree")], check=True)
    asked = {"capacity_range": {"required_bytes": 16 * MIB}, "volume_capabilities": [WRITER]}
    source = {"snapshot": {"snapshot_id": snapshot}}
    code, why = driver.refused("CreateVolume", name="r", volume_content_source=source, **asked, **kind)
    assert code == "INTERNAL" and "went with a reboot" in why
    driver.publish(volume)
    again = {"volume": {"volume_id": volume}}
    driver.call("CreateVolume", name="c", volume_content_source=again, **asked, **kind)


def test_nothing_is_promised_twice(enforced: tuple[Driver, str]) -> None:
    driver, backend = enforced
    kind = {"parameters": {"backend": backend}}
    free = driver.call("GetCapacity", **kind).available_capacity
    part = free * 6 // 10
    driver.create("one", part, **kind)
    asked = {
        "name": "two",
        "capacity_range": {"required_bytes": part},
        "volume_capabilities": [{"mount": {}, "access_mode": {"mode": 1}}],
    }
    code, why = driver.refused("CreateVolume", **asked, **kind)
    assert code == "RESOURCE_EXHAUSTED" and "not promised yet" in why
    driver.call("CreateVolume", **asked, parameters={"backend": backend, "overcommit": "true"})
    for entry in driver.call("ListVolumes").entries:
        driver.call("DeleteVolume", volume_id=entry.volume.volume_id)
    assert driver.call("GetCapacity", **kind).available_capacity > part * 1.3


def test_btrfs_is_refused_where_the_root_is_none(driver: Driver) -> None:
    asked = {"name": "v", "volume_capabilities": [{"mount": {}, "access_mode": {"mode": 1}}]}
    code, why = driver.refused("CreateVolume", **asked, parameters={"backend": "btrfs"})
    assert code == "INVALID_ARGUMENT" and "not on btrfs" in why


# --- the same backends for a store's volumes ---------------------------------------------------------


@pytest.mark.parametrize("backend", ["directory", "image", "tmpfs"])
def test_the_data_of_a_volume_is_a_fact(tmp_path: Path, backend: str) -> None:
    fstype = "ext4" if backend == "image" else ""
    data = Data(path="volumes/v", backend=backend, size=16 * MIB, fstype=fstype)
    driver = Mounts(tmp_path)
    facts, source = backends.shown(data, "pods/p/v")
    driver.apply(Plan(add=facts))
    driver.apply(Plan(add=facts))
    place = tmp_path / source
    (place / "word").write_text("kept")
    if backend != "directory":
        assert fill(place, 24 * MIB) == errno.ENOSPC
        (place / "filler").unlink()
        assert backends.room(tmp_path) >= 0
    driver.apply(Plan(remove=tuple(f.key for f in facts)))
    assert loops(tmp_path) == []
    driver.apply(Plan(add=facts))
    assert (place / "word").read_text() == "kept"
    if backend == "image":
        with pytest.raises(KernelError) as caught:
            backends.erase(tmp_path, "volumes/v")
        assert caught.value.errno == errno.EBUSY
    driver.apply(Plan(remove=tuple(f.key for f in facts)))
    backends.erase(tmp_path, "volumes/v")
    backends.erase(tmp_path, "volumes/v")
    assert not (tmp_path / "volumes" / "v").exists()
    assert mounts(tmp_path) == [] and loops(tmp_path) == []


def test_an_image_grows_when_it_is_next_shown(tmp_path: Path) -> None:
    small = Data(path="volumes/v", backend="image", size=16 * MIB, fstype="ext4")
    large = Data(path="volumes/v", backend="image", size=64 * MIB, fstype="ext4")
    driver = Mounts(tmp_path)
    for data in (small, large):
        facts, source = backends.shown(data, "pods/p/v")
        driver.apply(Plan(add=facts))
        space = os.statvfs(tmp_path / source)
        driver.apply(Plan(remove=tuple(f.key for f in facts)))
    assert space.f_blocks * space.f_frsize > 50 * MIB


def test_an_image_is_cached_once_by_the_file_system_in_it(driver: Driver) -> None:
    probe = driver.root / "csi" / "spare"
    try:
        os.close(os.open(probe, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("no direct I/O on the file system of the test's directory")
    driver.publish(driver.create(parameters={"backend": "image"}))
    (device,) = loops(driver.home)
    assert Path("/sys/block", Path(device).name, "loop/dio").read_text() == "1\n"

"""What a start finds: adopted, repaired, replaced, forgotten or removed. And the trash.

driver ── killed ── something happens to its mounts and records ── driver again
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netplane.model.base import amend
from storageplane.csi.depot import Depot
from storageplane.host import corrupt, loops, mountinfo

from ..programs import program
from .conftest import MIB, Driver, mounts
from .conftest import loops as attached

pytestmark = pytest.mark.root


def dead_fuse(path: Path) -> None:
    """A FUSE mount at ``path`` whose server is gone: whoever looks gets ENOTCONN."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no FUSE in this kernel")
    server = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    assert libc.mount(b"dead", os.fsencode(path), b"fuse", 0, options) == 0, os.strerror(ctypes.get_errno())
    os.close(server)
    with pytest.raises(OSError, match="not connected") as caught:
        os.statvfs(path)
    assert caught.value.errno == errno.ENOTCONN


@contextmanager
def broken(path: Path, code: int) -> Iterator[None]:
    """A FUSE mount at ``path`` whose server is there and answers everything with this errno."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no FUSE in this kernel")
    with program(sys.executable, "-m", "tests.mounts.fuse_server", path, str(code)) as server:
        assert server.stdout and server.stdout.readline() == "ready\n"
        os.statvfs(path)
        server.send_signal(signal.SIGUSR1)
        assert server.stdout.readline() == "broken\n"
        with pytest.raises(OSError, match=os.strerror(code)):
            os.statvfs(path)
        yield


def ids(home: Path) -> list[int]:
    return [m.id for m in mountinfo.beneath(str(home))]


def unmount(*paths: Path) -> None:
    for path in paths:
        subprocess.run(["umount", str(path)], check=True)


def rewrite(driver: Driver, volume: str, **changes: Any) -> None:
    """The volume's record with something else in it, its checksum right."""
    depot = Depot(driver.root)
    depot.keep(amend(depot.volumes.get(volume), **changes))
    depot.close()


def test_what_is_mounted_is_adopted_untouched(driver: Driver) -> None:
    target = driver.publish(driver.create())
    with open(target / "held", "w") as held:
        before = ids(driver.home)
        driver.kill()
        driver.start()
        assert ids(driver.home) == before
        held.write("and goes on")
    assert (target / "held").read_text() == "and goes on"


@pytest.mark.parametrize("backend", ["image", "directory"])
def test_what_lost_its_mounts_is_repaired(driver: Driver, backend: str) -> None:
    volume = driver.create(parameters={"backend": backend})
    target = driver.publish(volume)
    (target / "word").write_text("kept")
    driver.withdraw(volume)
    target = driver.publish(volume, readonly=True)
    driver.kill()
    unmount(target, driver.home / f"stage-{volume}")
    driver.start()
    assert (target / "word").read_text() == "kept"
    with pytest.raises(OSError, match="Read-only"):
        (target / "word").write_text("no")
    driver.withdraw(volume)
    assert mounts(driver.home) == [] and attached(driver.home) == []


def test_what_was_mounted_before_this_boot_is_forgotten(driver: Driver) -> None:
    volume = driver.create()
    target = driver.publish(volume)
    driver.kill()
    unmount(target, driver.home / f"stage-{volume}")
    depot = Depot(driver.root)
    stage = depot.volume(volume).stage
    depot.close()
    assert stage is not None
    rewrite(driver, volume, stage=amend(stage, boot="another"))
    driver.start()
    assert mounts(driver.home) == []
    driver.call("DeleteVolume", volume_id=volume)  # not in use any more


@pytest.mark.parametrize("at", ["start", "call"])
def test_a_dead_mount_is_replaced(driver: Driver, at: str) -> None:
    volume = driver.create(parameters={"backend": "directory"})
    target = driver.publish(volume)
    (target / "word").write_text("kept")
    if at == "start":
        driver.kill()
    unmount(target)
    dead_fuse(target)
    if at == "start":
        driver.start()
    else:
        driver.publish(volume)
    assert (target / "word").read_text() == "kept"
    assert len([m for m in mounts(driver.home) if m == str(target)]) == 1


@pytest.mark.parametrize("at", ["start", "call"])
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_mount_whose_server_answers_with_errors_is_replaced(driver: Driver, code: int, at: str) -> None:
    volume = driver.create(parameters={"backend": "directory"})
    target = driver.publish(volume)
    (target / "word").write_text("kept")
    if at == "start":
        driver.kill()
    unmount(target)
    with broken(target, code):
        if at == "start":
            driver.start()
        else:
            (found,) = driver.call("NodeGetVolumeHealth", volume_id=volume).volume_health.health_statuses
            assert found.reason == "MountCorrupted" and os.strerror(code) in found.message
            driver.publish(volume)
        assert (target / "word").read_text() == "kept"
    assert len([m for m in mounts(driver.home) if m == str(target)]) == 1


def test_a_mount_whose_server_answers_with_another_error_stays(driver: Driver) -> None:
    volume = driver.create(parameters={"backend": "directory"})
    target = driver.publish(volume)
    driver.kill()
    unmount(target)
    with broken(target, errno.ENOMEM):
        driver.start()
        assert mounts(driver.home)[-1] == str(target)
        assert not corrupt.replaced(str(target))
        unmount(target)


def test_only_a_dead_mount_is_taken_away(tmp_path: Path) -> None:
    plain, live = tmp_path / "plain", tmp_path / "live"
    plain.mkdir()
    live.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(live)], check=True)
    try:
        assert not corrupt.replaced(str(plain)) and not corrupt.replaced(str(live))
        assert not corrupt.replaced(str(tmp_path / "absent"))
        assert mounts(tmp_path) == [str(live)]
        dead_fuse(plain)
        assert corrupt.replaced(str(plain)) and mounts(tmp_path) == [str(live)]
    finally:
        unmount(live)


def test_a_removal_that_was_cut_off_is_finished(driver: Driver) -> None:
    volume = driver.create()
    driver.kill()
    rewrite(driver, volume, phase="removing")
    driver.start()
    assert list((driver.root / "csi" / "data").iterdir()) == []
    assert list((driver.root / "csi" / "volumes").iterdir()) == []


@pytest.mark.parametrize("backend", ["directory", "image"])
def test_a_volume_of_that_name_is_made_anew_after_a_removal_that_was_refused(
    driver: Driver, backend: str
) -> None:
    volume = driver.create(parameters={"backend": backend})
    home = driver.root / "csi" / "data" / volume
    old, held = home / "old", home / "held"
    old.write_text("of the volume before")
    held.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(held)], check=True)
    try:
        assert driver.refused("DeleteVolume", volume_id=volume)[0] == "FAILED_PRECONDITION"
        assert driver.refused("NodeGetVolumeStats", volume_id=volume, volume_path="/x")[0] == "NOT_FOUND"
    finally:
        unmount(held)
    old.write_text("of the volume before")
    assert driver.create(parameters={"backend": backend}) == volume
    assert not old.exists() and not held.exists()
    driver.call("DeleteVolume", volume_id=volume)


def test_a_stray_loop_device_goes_and_another_s_stays(driver: Driver, tmp_path: Path) -> None:
    volume = driver.create()
    foreign = tmp_path / "foreign.img"
    foreign.write_bytes(bytes(MIB))
    driver.kill()
    stray = loops.attach(driver.root / "csi" / "data" / volume / "image")
    other = loops.attach(foreign)
    try:
        driver.start()
        assert attached(driver.root) == [] and stray != other
        assert loops.find(foreign) == other
    finally:
        loops.detach(foreign)


# --- the trash --------------------------------------------------------------------------------------


def test_deleted_data_lies_in_the_trash_and_can_be_taken_back(tmp_path: Path) -> None:
    driver = Driver(tmp_path, "--trash", "600")
    try:
        volume = driver.create("v")
        (driver.publish(volume) / "word").write_text("kept")
        code, _ = driver.refused("DeleteVolume", volume_id=volume)
        assert code == "FAILED_PRECONDITION"
        driver.withdraw(volume)
        driver.call("DeleteVolume", volume_id=volume)
        driver.call("DeleteVolume", volume_id=volume)
        assert driver.refused("ControllerGetVolume", volume_id=volume)[0] == "NOT_FOUND"
        (thrown,) = (driver.root / "csi" / "trash").iterdir()
        thrown.rename(driver.root / "csi" / "data" / volume)
        driver.create("v")
        assert (driver.publish(volume) / "word").read_text() == "kept"
        driver.withdraw(volume)
    finally:
        driver.kill()


def test_the_trash_is_emptied_when_its_time_is_over(tmp_path: Path) -> None:
    driver = Driver(tmp_path, "--trash", "1")
    try:
        trash = driver.root / "csi" / "trash"
        driver.call("DeleteVolume", volume_id=driver.create("v"))
        assert len(list(trash.iterdir())) == 1
        give_up = time.monotonic() + 10
        while list(trash.iterdir()):
            assert time.monotonic() < give_up
            time.sleep(0.05)
        memory = driver.create("m", MIB, parameters={"backend": "tmpfs"})
        driver.call("DeleteVolume", volume_id=memory)
        assert mounts(tmp_path) == []
    finally:
        driver.kill()


def test_a_mount_in_another_namespace_holds_the_data(driver: Driver) -> None:
    """The driver's own record says unpublished; a container's namespace still has the image mounted."""
    volume = driver.create()
    target = driver.publish(volume)
    (target / "word").write_text("kept")
    with program("unshare", "-m", "sh", "-c", "echo; exec sleep 60") as holder:
        assert holder.stdout and holder.stdout.readline()
        driver.withdraw(volume)
        code, why = driver.refused("DeleteVolume", volume_id=volume)
        assert code == "FAILED_PRECONDITION" and "mounted" in why
    driver.call("DeleteVolume", volume_id=volume)
    assert attached(driver.home) == []

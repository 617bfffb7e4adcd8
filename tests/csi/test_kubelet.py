"""What kubelet and the sidecars do where a call fails, and what operators do beside them.

Kubelet takes a call that was refused for good as never made: it does not unstage what it could not stage. The
external provisioner takes a volume that was refused as not there, and may ask another node for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .conftest import MIB, WRITER, Driver, loops, mounts, running
from .foreign import volumes

pytestmark = pytest.mark.root
ALL = [{"backend": backend} for backend in ("image", "directory", "tmpfs")]


@pytest.mark.parametrize("why", ["a mount option that is none", "data that is gone"])
def test_what_could_not_be_staged_can_be_detached_and_deleted(driver: Driver, why: str) -> None:
    volume, staging = driver.create(parameters=ALL[0]), str(driver.home / "stage")
    flags = [] if "gone" in why else ["nonsense"]
    wanted = {"mount": {"mount_flags": flags}, "access_mode": {"mode": 1}}
    driver.call("ControllerPublishVolume", volume_id=volume, node_id="n1", volume_capability=wanted)
    if "gone" in why:
        (driver.root / "csi/data" / volume / "image").unlink()
    asked = {"volume_id": volume, "staging_target_path": staging, "volume_capability": wanted}
    assert driver.refused("NodeStageVolume", **asked)[0] == "INTERNAL"
    assert mounts(driver.home) == loops(driver.home) == []
    driver.call("ControllerUnpublishVolume", volume_id=volume, node_id="n1")
    driver.call("DeleteVolume", volume_id=volume)
    assert os.listdir(driver.root / "csi/data") == []


def test_mount_options_are_those_of_mount(driver: Driver) -> None:
    """As a StorageClass has them; those of a mount are its stage's, and so of every pod's."""
    given = ["noatime", "nodev,nosuid", "noexec", "errors=remount-ro", "_netdev", "defaults"]
    volume = driver.create(parameters=ALL[0])
    wanted = {"mount": {"mount_flags": given}, "access_mode": {"mode": 1}}
    for place in (driver.publish(volume, capability=wanted), driver.home / f"stage-{volume}"):
        shown = subprocess.run(
            ["findmnt", "-no", "OPTIONS", place], capture_output=True, text=True, check=True
        )
        have = set(shown.stdout.strip().split(","))
        assert have >= {"rw", "noatime", "nodev", "nosuid", "noexec", "errors=remount-ro"}


def test_a_kubelet_whose_directory_is_a_link_is_told_what_to_do(driver: Driver) -> None:
    (driver.home / "real").mkdir()
    (driver.home / "kubelet").symlink_to("real")
    volume, linked = driver.create(parameters=ALL[1]), f"{driver.home}/kubelet/place"
    able = {"volume_id": volume, "volume_capability": WRITER}
    staging = str(driver.stage(volume))
    where = {"staging_target_path": staging, "target_path": linked}
    code, words = driver.refused("NodePublishVolume", **able, **where)
    assert code == "INVALID_ARGUMENT" and "kubelet: Too many levels" in words and "--root-dir" in words
    driver.call("NodeUnstageVolume", volume_id=volume, staging_target_path=staging)
    code, words = driver.refused("NodeStageVolume", **able, staging_target_path=linked)
    assert code == "INVALID_ARGUMENT" and "--root-dir" in words


def test_what_could_not_be_published_is_not_published_by_the_next_start(driver: Driver) -> None:
    volume = driver.create(parameters=ALL[1])
    staging, target = str(driver.stage(volume)), driver.home / "pod/mount"
    asked = {"volume_id": volume, "staging_target_path": staging, "target_path": str(target)}
    driver.refused("NodePublishVolume", **asked, volume_capability=WRITER)  # there is no parent
    target.parent.mkdir()
    driver.kill()
    driver.start()
    assert mounts(driver.home) == [staging] and not target.exists()


@pytest.mark.parametrize("parameters", ALL[:2], ids=lambda p: p["backend"])
@pytest.mark.parametrize("size", [(1 << 63) - 1, (1 << 63) - 4095])
def test_a_size_that_is_no_number_once_rounded_is_refused(
    driver: Driver, parameters: dict[str, str], size: int
) -> None:
    """A claim of 8Ei is asked for as 2^63 - 1. Before, no list of volumes was answered any more."""
    asked = {"capacity_range": {"required_bytes": size}}
    more = {"name": "v", "volume_capabilities": [WRITER], "parameters": parameters}
    assert driver.refused("CreateVolume", **asked, **more)[0] == "OUT_OF_RANGE"
    volume = driver.create("small", parameters=parameters)
    assert driver.refused("ControllerExpandVolume", volume_id=volume, **asked)[0] == "OUT_OF_RANGE"
    assert volumes(driver) == [volume]


def test_a_device_is_as_large_as_is_said(driver: Driver) -> None:
    """It has whole sectors: what is between two of them cannot be had, and is not said to be."""
    block = {"block": {}, "access_mode": {"mode": 1}}
    for size, odd in ((4608, False), (5000, True)):
        limits = {"capacity_range": {"required_bytes": size, "limit_bytes": size}}
        more = {"name": f"v{size}", "volume_capabilities": [block], "parameters": ALL[0]}
        if odd:
            assert driver.refused("CreateVolume", **limits, **more)[0] == "OUT_OF_RANGE"
            continue
        made = driver.call("CreateVolume", **limits, **more).volume
        with open(driver.publish(made.volume_id, capability=block), "rb") as device:
            assert device.seek(0, os.SEEK_END) == made.capacity_bytes == size


def test_a_volume_that_is_large_enough_is_not_grown(driver: Driver) -> None:
    exact, few = ({"required_bytes": size, "limit_bytes": 5000} for size in (5000, 1))
    more = {"name": "v", "volume_capabilities": [WRITER], "parameters": ALL[1]}
    volume = driver.call("CreateVolume", **more, capacity_range=exact).volume.volume_id
    for asked in (exact, few):
        grown = driver.call("ControllerExpandVolume", volume_id=volume, capacity_range=asked)
        assert grown.capacity_bytes == 5000


def test_an_access_mode_that_there_is_not_is_refused(driver: Driver) -> None:
    wanted = {"mount": {}, "access_mode": {"mode": 99}}
    assert driver.refused("CreateVolume", name="v", volume_capabilities=[wanted])[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("path", ["a//b", "a/./b", "./a/b/", "/a/b/."])
def test_a_path_that_is_written_otherwise_is_the_same(driver: Driver, path: str) -> None:
    """It is mounted once, whoever asks how often, and seen by who asks for another target."""
    (driver.home / "a").mkdir()
    volume = driver.create(parameters=ALL[1])
    staging = str(driver.stage(volume))
    asked: dict[str, Any] = {
        "volume_id": volume,
        "staging_target_path": f"{staging}/.",
        "volume_capability": WRITER,
    }
    for target in (path, path, "a/b"):
        driver.call("NodePublishVolume", **asked, target_path=f"{driver.home}/{target}")
        assert mounts(driver.home) == [staging, f"{driver.home}/a/b"]
    other = driver.refused("NodePublishVolume", **asked, target_path=f"{driver.home}/a/c")
    assert other[0] == "FAILED_PRECONDITION"
    assert driver.call("NodeGetVolumeStats", volume_id=volume, volume_path=f"{driver.home}/{path}").usage
    driver.call("NodeUnpublishVolume", volume_id=volume, target_path=f"{driver.home}/{path}")
    assert mounts(driver.home) == [staging] and not (driver.home / "a/b").exists()


@pytest.mark.parametrize("options", [(), ("--trash", "600")], ids=["", "trash"])
def test_what_could_not_be_made_takes_no_room(tmp_path: Path, options: tuple[str, ...]) -> None:
    """A disk of 48 MiB, filled by others beside what was admitted: nothing is left of any call."""
    over = {"backend": "image", "overcommit": "true"}
    with running(tmp_path, *options, disk=48) as driver:
        source = driver.create("source", 30 * MIB, parameters=over)
        (driver.publish(source) / "data").write_bytes(os.urandom(22 * MIB))
        os.sync()
        (driver.root / "others").write_bytes(bytes(12 * MIB))
        left = shutil.disk_usage(driver.root).free
        copy = {"volume_content_source": {"volume": {"volume_id": source}}, "parameters": over}
        more = {"name": "v", "volume_capabilities": [WRITER]}
        large, thick = {"required_bytes": 100 * MIB}, {"provisioning": "thick"}
        calls: list[tuple[str, dict[str, Any]]] = [
            ("CreateSnapshot", {"name": "s", "source_volume_id": source}),
            ("CreateVolumeGroupSnapshot", {"name": "g", "source_volume_ids": [source]}),
            ("CreateVolume", {**more, **copy}),
            (
                "CreateVolume",
                {**more, "parameters": over, "capacity_range": large, "mutable_parameters": thick},
            ),
        ]
        for method, fields in calls:
            code, words = driver.refused(method, **fields)
            assert code == "RESOURCE_EXHAUSTED" and "No space left" in words
            assert volumes(driver) == os.listdir(driver.root / "csi/data") == [source]
            assert os.listdir(driver.root / "csi/snapshots") == os.listdir(driver.root / "csi/groups") == []
            assert shutil.disk_usage(driver.root).free > left - MIB
        (driver.root / "others").unlink()
        driver.call("CreateSnapshot", name="s", source_volume_id=source)


@pytest.mark.parametrize("parameters", ALL, ids=lambda p: p["backend"])
def test_what_somebody_unmounted_is_staged_again_by_the_next_publication(
    driver: Driver, parameters: dict[str, str]
) -> None:
    """Else the pod would write to the directory that the volume was mounted on."""
    volume = driver.create(parameters=parameters)
    staging = driver.stage(volume)
    subprocess.run(["umount", str(staging)], check=True)
    target = driver.publish_only(volume)
    (target / "word").write_text("x")
    assert (staging / "word").read_text() == "x" and str(staging) in mounts(driver.home)
    driver.withdraw(volume)
    driver.call("DeleteVolume", volume_id=volume)
    assert os.listdir(staging) == [] and mounts(driver.home) == loops(driver.home) == []


@pytest.mark.parametrize("flags", [[], ["ro"]])
def test_what_has_become_read_only_is_degraded(driver: Driver, flags: list[str]) -> None:
    """As ext4 does after an I/O error; not what was asked for so."""
    wanted = {"mount": {"mount_flags": flags}, "access_mode": {"mode": 1}}
    volume = driver.create(parameters=ALL[0])
    driver.publish(volume, capability=wanted)
    subprocess.run(["mount", "-o", "remount,ro", str(driver.home / f"stage-{volume}")], check=True)
    found = driver.call("NodeGetVolumeHealth", volume_id=volume).volume_health.health_statuses
    assert [status.reason for status in found] == ([] if flags else ["ReadOnly"])
    assert flags or "read-only" in found[0].message


@pytest.mark.parametrize("parameters", ALL, ids=lambda p: p["backend"])
def test_what_is_not_mounted_is_not_measured(driver: Driver, parameters: dict[str, str]) -> None:
    """The figures would be those of the disk below."""
    volume = driver.create(parameters=parameters)
    where: dict[str, Any] = {"volume_id": volume, "volume_path": str(driver.publish(volume))}
    assert driver.call("NodeGetVolumeStats", **where).usage
    subprocess.run(["umount", where["volume_path"]], check=True)
    code, words = driver.refused("NodeGetVolumeStats", **where)
    assert code == "NOT_FOUND" and "nothing is mounted at" in words

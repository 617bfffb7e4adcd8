"""What the suite does not ask: the failures that green drivers have, each one here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc
import pytest

from storageplane.csi import protocol

from .conftest import MIB, WRITER, Driver, grows_ext4, loops, mounts

pytestmark = pytest.mark.root
BLOCK = {"block": {}, "access_mode": {"mode": 1}}
SEVERAL = {"mount": {}, "access_mode": {"mode": 7}}  # SINGLE_NODE_MULTI_WRITER


def test_a_published_volume_is_not_deleted(driver: Driver) -> None:
    volume = driver.create()
    target = driver.publish(volume)
    (target / "precious").write_text("data")
    code, why = driver.refused("DeleteVolume", volume_id=volume)
    assert code == "FAILED_PRECONDITION" and str(target) in why
    assert (target / "precious").read_text() == "data"
    driver.withdraw(volume)
    driver.call("DeleteVolume", volume_id=volume)
    assert mounts(driver.home) == [] and loops(driver.home) == []
    assert list((driver.root / "csi" / "data").iterdir()) == []


def test_a_second_publish_with_other_arguments_is_refused(driver: Driver) -> None:
    volume = driver.create()
    target = driver.publish(volume)
    again = {
        "volume_id": volume,
        "staging_target_path": str(driver.home / f"stage-{volume}"),
        "target_path": str(target),
        "volume_capability": WRITER,
    }
    driver.call("NodePublishVolume", **again)
    assert driver.refused("NodePublishVolume", **again, readonly=True)[0] == "ALREADY_EXISTS"
    elsewhere = {**again, "target_path": str(driver.home / "other")}
    code, why = driver.refused("NodePublishVolume", **elsewhere)
    assert code == "FAILED_PRECONDITION" and "one target" in why
    assert not (driver.home / "other").exists()


def test_several_writers_on_one_node_share_a_volume(driver: Driver) -> None:
    volume = driver.create(capability=SEVERAL)
    one = driver.publish(volume, "one", SEVERAL)
    two = driver.publish(volume, "two", SEVERAL, readonly=True)
    (one / "word").write_text("shared")
    assert (two / "word").read_text() == "shared"
    with pytest.raises(OSError, match="Read-only"):
        (two / "word").write_text("no")


@pytest.mark.parametrize(
    ("change", "code", "words"),  # what is wrong, and what to do
    [
        (
            {"parameters": {"backend": "directory"}},
            "ALREADY_EXISTS",
            ["'v'", "other parameters (none)", "use another name"],
        ),
        (
            {"capacity_range": {"required_bytes": 128 * MIB}},
            "ALREADY_EXISTS",
            ["another capacity 67108864", "use another name"],
        ),
        ({"volume_capabilities": [BLOCK]}, "ALREADY_EXISTS", ["another access type", "use another name"]),
        ({"name": "n" * 200}, "INVALID_ARGUMENT", ["name: 200 bytes", "at most 128"]),
        (
            {"parameters": {"sice": "1"}},
            "INVALID_ARGUMENT",
            ["parameters[sice]", "there are backend, fsType"],
        ),
        ({"parameters": {"x" * 100: "y" * 5000}}, "INVALID_ARGUMENT", ["parameters", "at most 4096 bytes"]),
        (
            {"capacity_range": {"required_bytes": 2, "limit_bytes": 1}},
            "OUT_OF_RANGE",
            ["capacity_range", "required 2 and limit 1", "the limit not below"],
        ),
        (
            {"capacity_range": {"required_bytes": 1 << 60}},
            "ALREADY_EXISTS",
            ["another capacity 67108864", "use another name"],
        ),
        (
            {"name": "huge", "capacity_range": {"required_bytes": 1 << 60}},
            "RESOURCE_EXHAUSTED",
            [f"{1 << 60} bytes", "not promised yet on node n1", "remove something, or overcommit"],
        ),
        (
            {"name": "tiny", "capacity_range": {"limit_bytes": 1000}},
            "OUT_OF_RANGE",
            ["capacity_range.limit_bytes 1000", "ext4 volume needs 1048576 bytes", "raise it"],
        ),
        (
            {
                "accessibility_requirements": {
                    "requisite": [{"segments": {"topology.storageplane.io/node": "n2"}}]
                }
            },
            "RESOURCE_EXHAUSTED",
            ["accessibility_requirements", "topology.storageplane.io/node=n1 only", "ask for that"],
        ),
        (
            {"volume_content_source": {"snapshot": {"snapshot_id": "snap-0"}}},
            "NOT_FOUND",
            ["snapshot 'snap-0' is not known", "list what there is"],
        ),
    ],
)
def test_a_volume_that_is_not_what_the_name_holds_is_refused(
    driver: Driver, change: dict[str, Any], code: str, words: list[str]
) -> None:
    asked = {
        "name": "v",
        "capacity_range": {"required_bytes": 64 * MIB},
        "volume_capabilities": [WRITER],
    }
    made = driver.call("CreateVolume", **asked).volume.volume_id
    assert driver.call("CreateVolume", **asked).volume.volume_id == made
    found, why = driver.refused("CreateVolume", **{**asked, **change})
    assert found == code and [word for word in words if word not in why] == [], why
    assert len(list((driver.root / "csi" / "data").iterdir())) == 1


def test_the_size_is_enforced_and_df_tells_the_truth(driver: Driver) -> None:
    volume = driver.create(size=32 * MIB)
    target = driver.publish(volume)
    with pytest.raises(OSError, match="No space left"):
        (target / "big").write_bytes(bytes(64 * MIB))
    total = os.statvfs(target)
    assert total.f_blocks * total.f_frsize <= 32 * MIB
    stats = driver.call("NodeGetVolumeStats", volume_id=volume, volume_path=str(target))
    usage = {u.unit: u for u in stats.usage}
    assert usage[1].total <= 32 * MIB and usage[1].available < MIB


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_a_clone_and_a_restored_snapshot_hold_the_data(driver: Driver, fstype: str) -> None:
    capability = {"mount": {"fs_type": fstype}, "access_mode": {"mode": 1}}
    size = 320 * MIB if fstype == "xfs" else 128 * MIB
    source = driver.create("source", size, capability)
    target = driver.publish(source, "source", capability)
    payload = os.urandom(3 * MIB)
    (target / "data").write_bytes(payload)
    snapshot = driver.call("CreateSnapshot", source_volume_id=source, name="s").snapshot.snapshot_id
    (target / "data").write_bytes(b"changed")
    restored = driver.create(
        "restored", size, capability, volume_content_source={"snapshot": {"snapshot_id": snapshot}}
    )
    clone = driver.create(
        "clone", 2 * size, capability, volume_content_source={"volume": {"volume_id": source}}
    )
    assert (driver.publish(restored, "restored", capability) / "data").read_bytes() == payload
    cloned = driver.publish(clone, "clone", capability)
    assert (cloned / "data").read_bytes() == b"changed"
    space = os.statvfs(cloned)
    assert space.f_blocks * space.f_frsize > 1.5 * size, "a larger clone has a larger file system"


def test_a_directory_volume_is_copied_with_modes_and_links(driver: Driver) -> None:
    source = driver.create("source", parameters={"backend": "directory"})
    target = driver.publish(source, "source")
    (target / "script").write_text("#!/bin/sh\n")
    (target / "script").chmod(0o751)
    (target / "link").symlink_to("/etc/passwd")
    clone = driver.create(
        "clone",
        parameters={"backend": "directory"},
        volume_content_source={"volume": {"volume_id": source}},
    )
    cloned = driver.publish(clone, "clone")
    assert (cloned / "script").stat().st_mode & 0o777 == 0o751
    assert os.readlink(cloned / "link") == "/etc/passwd"


def test_growth_is_seen_online_by_xfs_and_offline_by_ext4(driver: Driver) -> None:
    for fstype, size, online in (("xfs", 320 * MIB, True), ("ext4", 32 * MIB, False)):
        capability = {"mount": {"fs_type": fstype}, "access_mode": {"mode": 1}}
        volume = driver.create(fstype, size, capability)
        if online:
            target = driver.publish(volume, fstype, capability)
        more = {"volume_id": volume, "capacity_range": {"required_bytes": 2 * size}}
        answer = driver.call("ControllerExpandVolume", **more)
        assert answer.capacity_bytes == 2 * size and answer.node_expansion_required
        if online:
            driver.call("NodeExpandVolume", **more, volume_path=str(target))
        else:
            target = driver.publish(volume, fstype, capability)
        space = os.statvfs(target)
        assert space.f_blocks * space.f_frsize > 1.5 * size
        smaller = {"volume_id": volume, "capacity_range": {"required_bytes": 1, "limit_bytes": size}}
        assert driver.refused("ControllerExpandVolume", **smaller)[0] == "OUT_OF_RANGE"


def test_growth_is_seen_online_by_ext4(driver: Driver) -> None:
    if not grows_ext4():
        pytest.skip("a mounted ext4 grows only with CAP_SYS_RESOURCE")
    volume = driver.create("v", 32 * MIB)
    target = driver.publish(volume)
    more = {"volume_id": volume, "capacity_range": {"required_bytes": 96 * MIB}}
    with open(target / "held", "w") as held:
        assert driver.call("ControllerExpandVolume", **more).node_expansion_required
        driver.call("NodeExpandVolume", **more, volume_path=str(target))
        space = os.statvfs(target)
        assert space.f_blocks * space.f_frsize > 80 * MIB
        held.write("and goes on")
    (target / "large").write_bytes(bytes(64 * MIB))
    assert (target / "held").read_text() == "and goes on"


def test_a_block_volume_is_a_device_of_its_size(driver: Driver) -> None:
    volume = driver.create(capability=BLOCK)
    target = driver.publish(volume, "device", BLOCK)
    with open(target, "r+b", buffering=0) as device:
        assert device.seek(0, os.SEEK_END) == 64 * MIB
        device.seek(0)
        device.write(b"x" * 4096)
    driver.withdraw(volume, "device")
    assert not target.exists()
    assert loops(driver.home) == []


def test_links_and_strange_ids_lead_nowhere(driver: Driver) -> None:
    volume = driver.create()
    staging = driver.stage(volume)
    (driver.home / "away").mkdir()
    (driver.home / "link").symlink_to(driver.home / "away")
    ask = {"volume_id": volume, "staging_target_path": str(staging), "volume_capability": WRITER}
    assert driver.refused("NodePublishVolume", **ask, target_path=str(driver.home / "link" / "t"))[0] != "OK"
    assert (
        driver.refused("NodePublishVolume", **ask, target_path=f"{driver.home}/../x")[0] == "INVALID_ARGUMENT"
    )
    assert list((driver.home / "away").iterdir()) == []
    for strange in ("../../etc", "vol-" + "/" * 32, "a\0b", "é" * 30):
        driver.call("DeleteVolume", volume_id=strange)
        assert driver.refused("NodeGetVolumeStats", volume_id=strange, volume_path="/x")[0] == "NOT_FOUND"


def test_a_secret_is_in_no_log_and_no_error(driver: Driver) -> None:
    driver.call(
        "CreateVolume",
        name="v",
        capacity_range={"required_bytes": 64 * MIB},
        volume_capabilities=[WRITER],
        secrets={"password": "hunter2-hunter2"},
    )
    for fields in ({"secrets": {"password": "hunter2-hunter2" * 500}}, {"parameters": {"x": "y"}}):
        _, why = driver.refused(
            "CreateVolume",
            name="w",
            volume_capabilities=[WRITER],
            **{"secrets": {"password": "hunter2-hunter2"}, **fields},
        )
        assert "hunter2" not in why
    assert "hunter2" not in driver.log()
    for record in (driver.root / "csi").rglob("*.json"):
        assert "hunter2" not in record.read_text()


def test_a_group_snapshot_goes_as_a_group(driver: Driver) -> None:
    volumes = [driver.create(f"v{i}", 16 * MIB) for i in range(3)]
    made = driver.call("CreateVolumeGroupSnapshot", name="g", source_volume_ids=volumes).group_snapshot
    assert len(made.snapshots) == 3 and made.ready_to_use
    one = made.snapshots[0].snapshot_id
    assert driver.refused("DeleteSnapshot", snapshot_id=one)[0] == "INVALID_ARGUMENT"
    driver.call("DeleteVolumeGroupSnapshot", group_snapshot_id=made.group_snapshot_id)
    assert not driver.call("ListSnapshots").entries


@pytest.mark.parametrize("method", ["GetMetadataAllocated", "GetMetadataDelta"])
def test_snapshot_metadata_is_said_not_to_be_served(driver: Driver, method: str) -> None:
    channel = grpc.insecure_channel(f"unix:{driver.socket}")
    with channel, pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream(f"/csi.v1.SnapshotMetadata/{method}")(b"", timeout=10))
    assert caught.value.code().name == "UNIMPLEMENTED"
    services = [c.service.type for c in driver.call("GetPluginCapabilities").capabilities]
    assert protocol.number("PluginCapability.Service.Type", "SNAPSHOT_METADATA_SERVICE") not in services


def test_a_directory_says_that_its_size_is_not_enforced(driver: Driver) -> None:
    made = driver.call(
        "CreateVolume",
        name="d",
        capacity_range={"required_bytes": MIB},
        volume_capabilities=[WRITER],
        parameters={"backend": "directory"},
    )
    assert made.volume.volume_context["sizeEnforced"] == "false"
    block = {"name": "b", "volume_capabilities": [BLOCK], "parameters": {"backend": "directory"}}
    assert driver.refused("CreateVolume", **block)[0] == "INVALID_ARGUMENT"


def test_images_are_never_promised_more_room_than_there_is(driver: Driver) -> None:
    free = driver.call("GetCapacity").available_capacity
    half = free * 6 // 10 // 4096 * 4096
    driver.create("one", half)
    assert (
        driver.refused(
            "CreateVolume",
            name="two",
            capacity_range={"required_bytes": half},
            volume_capabilities=[WRITER],
        )[0]
        == "RESOURCE_EXHAUSTED"
    )
    driver.create("three", half, parameters={"overcommit": "true"})
    assert driver.call("GetCapacity").available_capacity < free // 2


def test_health_names_what_is_lost(driver: Driver) -> None:
    volume = driver.create()
    target = driver.publish(volume)
    assert not driver.call("NodeGetVolumeHealth", volume_id=volume).volume_health.health_statuses
    os.system(f"umount {target}")
    found = driver.call("NodeGetVolumeHealth", volume_id=volume).volume_health.health_statuses
    assert [s.reason for s in found] == ["NotMounted"] and str(target) in found[0].message
    driver.publish(volume)  # mends it
    assert not driver.call("NodeGetVolumeHealth", volume_id=volume).volume_health.health_statuses
    lost = driver.create("lost")
    next((driver.root / "csi" / "data" / lost).iterdir()).unlink()
    found = driver.call("ControllerGetVolumeHealth", volume_id=lost).volume_health.health_statuses
    assert [s.reason for s in found] == ["DataMissing"]


def test_thirty_two_clients_at_once(driver: Driver, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def cycle(number: int) -> None:
        volume = driver.create(f"c{number}", 8 * MIB)
        target = driver.publish(volume, f"t{number}")
        (target / "mine").write_text(str(number))
        driver.withdraw(volume, f"t{number}")
        driver.call("DeleteVolume", volume_id=volume)

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(cycle, range(32)))
    assert mounts(tmp_path) == [] and loops(tmp_path) == []
    assert list((driver.root / "csi" / "volumes").iterdir()) == []

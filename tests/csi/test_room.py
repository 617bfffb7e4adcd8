"""Room that was promised is there: copies take none of it, and blocks that are shared are reserved twice.

tmp/root (tmpfs of 48 MiB, or btrfs of 400 MiB) ── storageplane csi ── volumes, snapshots, groups
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from storageplane.host import extents, images

from .conftest import MIB, WRITER, Driver, running

pytestmark = pytest.mark.root
BLOCK = {"block": {}, "access_mode": {"mode": 1}}
SEVERAL = ("CreateSnapshot", "CreateVolumeGroupSnapshot")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Driver]:
    """A driver whose root is a disk of 48 MiB that shares no blocks."""
    with running(tmp_path, disk=48) as driver:
        yield driver


@pytest.fixture
def sharing(on_btrfs: Path) -> Iterator[Driver]:
    """A driver whose root is a btrfs of 400 MiB."""
    with running(on_btrfs) as driver:
        yield driver


def write(path: Path, size: int) -> None:
    """Something that nothing compresses, at the front of a device or file, and on the disk."""
    noise = os.urandom(MIB)
    with open(path, "r+b" if path.exists() else "wb", buffering=0) as file:
        for _ in range(size // MIB):
            file.write(noise)
        os.fsync(file.fileno())


def capacity(driver: Driver, **parameters: str) -> int:
    return int(driver.call("GetCapacity", parameters=parameters).available_capacity)


def snapshot_of(driver: Driver, method: str, *volumes: str) -> Any:
    if method == "CreateSnapshot":
        return driver.call(method, name="s", source_volume_id=volumes[0])
    return driver.call(method, name="g", source_volume_ids=volumes)


@pytest.mark.parametrize("backend", ["image", "directory"])
@pytest.mark.parametrize("method", SEVERAL)
def test_a_snapshot_takes_no_room_that_others_were_promised(small: Driver, method: str, backend: str) -> None:
    one = small.create("one", 12 * MIB, parameters={"backend": backend})
    write(small.publish(one, "one") / "data", 9 * MIB)
    big = small.create("big", (capacity(small) - 2 * MIB) // 4096 * 4096, BLOCK)
    device = small.publish(big, "big", BLOCK)
    with pytest.raises(grpc.RpcError) as caught:
        snapshot_of(small, method, one)
    why = str(caught.value.details())
    assert caught.value.code().name == "RESOURCE_EXHAUSTED"
    assert "of disk are not promised yet" in why and "remove something" in why and "overcommit" in why
    assert not small.call("ListSnapshots").entries
    assert not list((small.root / "csi" / "snapshots").iterdir())
    assert not list((small.root / "csi" / "groups").iterdir())
    (small.home / "one" / "thawed").write_text("writes go on")
    with open(device, "rb") as file:
        size = file.seek(0, os.SEEK_END)
    write(device, size)  # every byte that was promised
    small.withdraw(big, "big")
    small.call("DeleteVolume", volume_id=big)
    snapshot_of(small, method, one)


def test_a_group_asks_for_all_its_members(small: Driver) -> None:
    names = [small.create(f"v{n}", 8 * MIB, BLOCK) for n in range(2)]
    for name in names:
        write(small.publish(name, name, BLOCK), 8 * MIB)
    small.create("big", (capacity(small) - 12 * MIB) // 4096 * 4096, BLOCK)  # room for one of them
    asked = {"name": "g", "source_volume_ids": names}
    assert small.refused("CreateVolumeGroupSnapshot", **asked)[0] == "RESOURCE_EXHAUSTED"
    snapshot_of(small, "CreateSnapshot", names[0])


@pytest.mark.parametrize("source", ["volume", "snapshot"])
def test_a_copy_of_a_directory_takes_no_room_that_others_were_promised(small: Driver, source: str) -> None:
    kind = {"backend": "directory"}
    found = small.create("one", MIB, parameters=kind)
    write(small.publish(found, "one") / "data", 9 * MIB)
    if source == "snapshot":
        found = snapshot_of(small, "CreateSnapshot", found).snapshot.snapshot_id
    small.create("big", (capacity(small) - 2 * MIB) // 4096 * 4096)
    asked = {
        "name": "copy",
        "volume_capabilities": [WRITER],
        "volume_content_source": {source: {f"{source}_id": found}},
    }
    code, why = small.refused("CreateVolume", **asked, parameters=kind)
    assert code == "RESOURCE_EXHAUSTED" and "overcommit" in why
    assert len(small.call("ListVolumes").entries) == 2
    small.call("CreateVolume", **asked, parameters={**kind, "overcommit": "true"})


def test_where_the_class_overcommits_a_snapshot_is_taken(small: Driver) -> None:
    one = small.create("one", 12 * MIB, parameters={"overcommit": "true"})
    write(small.publish(one, "one") / "data", 9 * MIB)
    small.create("big", (capacity(small) - 2 * MIB) // 4096 * 4096)
    assert snapshot_of(small, "CreateSnapshot", one).snapshot.ready_to_use


@pytest.mark.parametrize(("backend", "size"), [("image", 100 * MIB), ("btrfs", 40 * MIB)])
@pytest.mark.parametrize("method", SEVERAL)
def test_a_source_whose_blocks_are_shared_can_be_written_again(
    sharing: Driver, method: str, backend: str, size: int
) -> None:
    kind, shown = {"backend": backend}, BLOCK if backend == "image" else WRITER
    source = sharing.create("source", 100 * MIB, shown, parameters=kind)
    place = sharing.publish(source, "source", shown)
    data = place if backend == "image" else place / "data"
    write(data, size)
    before = capacity(sharing, **kind)
    snapshot_of(sharing, method, source)
    after = capacity(sharing, **kind)
    assert before - size - 4 * MIB < after < before - size + 6 * MIB
    other = sharing.create("other", after // MIB * MIB, BLOCK)
    write(data, size)
    assert capacity(sharing, **kind) < 8 * MIB
    write(sharing.publish(other, "other", BLOCK), after // MIB * MIB)


@pytest.mark.parametrize("backend", ["image", "btrfs"])
def test_a_snapshot_that_leaves_no_room_to_write_its_source_is_refused(sharing: Driver, backend: str) -> None:
    one = sharing.create("one", 64 * MIB, parameters={"backend": backend})
    write(sharing.publish(one, "one") / "data", 48 * MIB)
    sharing.create("big", (capacity(sharing) - 16 * MIB) // 4096 * 4096, parameters={"backend": "image"})
    code, why = sharing.refused("CreateSnapshot", name="s", source_volume_id=one)
    assert code == "RESOURCE_EXHAUSTED" and "of disk are not promised yet" in why


def test_a_deleted_snapshot_gives_the_room_back(sharing: Driver) -> None:
    source = sharing.create("source", 64 * MIB, BLOCK)
    write(sharing.publish(source, "source", BLOCK), 64 * MIB)
    before = capacity(sharing)
    made = snapshot_of(sharing, "CreateSnapshot", source).snapshot.snapshot_id
    assert capacity(sharing) < before - 60 * MIB
    sharing.call("DeleteSnapshot", snapshot_id=made)
    assert abs(capacity(sharing) - before) < 4 * MIB


def test_what_a_file_shares_is_counted(on_btrfs: Path) -> None:
    one, two = on_btrfs / "one", on_btrfs / "two"
    write(one, 12 * MIB)
    assert extents.shared(one) == 0
    images.run("cp", "--reflink=always", str(one), str(two))
    assert extents.shared(one) == 12 * MIB == extents.shared(two)
    with open(one, "r+b", buffering=0) as file:  # 3072 extents: they are asked for in several turns
        for at in range(0, 12 * MIB, 8192):
            file.seek(at)
            file.write(os.urandom(4096))
        os.fsync(file.fileno())
    assert extents.shared(one) == 6 * MIB
    two.unlink()
    os.sync()
    assert extents.shared(one) == 0 == extents.shared(Path("/dev/null"))

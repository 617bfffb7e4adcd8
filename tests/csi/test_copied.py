"""While something is copied: its source stays, and its room is nobody else's."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.model.base import amend
from storageplane import backends
from storageplane.csi.controller import Controller
from storageplane.csi.depot import Depot, Snapshot, id_of
from storageplane.csi.protocol import message
from storageplane.csi.refusal import CODE, Refused
from storageplane.csi.snapshots import Snapshots
from storageplane.csi.volumes import Stage
from storageplane.host import freeze, images, syscalls

from .conftest import MIB, WRITER

pytestmark = pytest.mark.root
SIZE = 4 * MIB


@pytest.fixture
def depot(tmp_path: Path) -> Iterator[Depot]:
    made = Depot(tmp_path / "root")
    yield made
    made.close()


def create(depot: Depot, name: str, source: str = "") -> Any:
    """A directory, or the copy of one."""
    given = {"volume_content_source": {"volume": {"volume_id": source}}} if source else {}
    return Controller(depot, "n1").CreateVolume(
        message("CreateVolumeRequest")(
            name=name, volume_capabilities=[WRITER], parameters={"backend": "directory"}, **given
        )
    ).volume.volume_id  # fmt: skip


def test_a_group_is_not_deleted_while_a_volume_is_made_from_a_member(depot: Depot) -> None:
    volumes = [create(depot, name) for name in ("one", "two")]
    asked = message("CreateVolumeGroupSnapshotRequest")(name="g", source_volume_ids=volumes)
    driver = Snapshots(depot, "n1")
    group = driver.CreateVolumeGroupSnapshot(asked).group_snapshot
    last = group.snapshots[-1].snapshot_id
    gone = message("DeleteVolumeGroupSnapshotRequest")(group_snapshot_id=group.group_snapshot_id)
    with depot.alone("vol-x", last):  # as CreateVolume has it while it copies
        with pytest.raises(Refused, match=f"an operation on {last} is in progress") as caught:
            driver.DeleteVolumeGroupSnapshot(gone)
        assert caught.value.code == CODE.ABORTED
        assert [s.phase for s in depot.snapshots.all()] == ["ready", "ready"]
    driver.DeleteVolumeGroupSnapshot(gone)
    assert depot.snapshots.all() == []


def test_a_snapshot_that_was_cut_off_is_of_the_instant_and_size_of_the_repeat(depot: Depot) -> None:
    volume = depot.volumes.get(create(depot, "v"))
    assert volume is not None
    left = Snapshot(
        id=id_of("snap", "s"), name="s", volume=volume.id, size=1, backend="directory", created=7.0
    )
    depot.snapshots.put(left.id, left)  # before anything was copied; the volume has grown since
    asked = message("CreateSnapshotRequest")(name="s", source_volume_id=volume.id)
    made = Snapshots(depot, "n1").CreateSnapshot(asked).snapshot
    assert made.size_bytes == volume.size and made.creation_time.seconds > time.time() - 60


def test_what_is_left_of_a_snapshot_that_was_to_go_is_not_the_next_ones(depot: Depot) -> None:
    volume = create(depot, "v")
    word = depot.home(volume) / "tree" / "word"
    word.write_text("old")
    driver = Snapshots(depot, "n1")
    asked = message("CreateSnapshotRequest")(name="s", source_volume_id=volume)
    name = driver.CreateSnapshot(asked).snapshot.snapshot_id
    depot.snapshots.put(name, amend(depot.snapshot(name), phase="removing"))  # and then the disk failed
    word.write_text("new")
    assert driver.CreateSnapshot(asked).snapshot.snapshot_id == name
    assert (depot.home(name) / "tree" / "word").read_text() == "new"


def nobody_elses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced, where a sync of all the machine would not come back."""
    synced: list[str] = []
    real = syscalls.syncfs
    monkeypatch.setattr(os, "sync", lambda: pytest.fail("a disk that never answers"))
    monkeypatch.setattr(syscalls, "syncfs", lambda path: (synced.append(path), real(path)))
    return synced


def test_a_directory_in_use_is_copied_without_other_disks(
    depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = depot.volumes.get(create(depot, "v"))
    assert volume is not None
    depot.keep(amend(volume, stage=Stage("/where", "")))
    synced = nobody_elses(monkeypatch)
    asked = message("CreateSnapshotRequest")(name="s", source_volume_id=volume.id)
    assert Snapshots(depot, "n1").CreateSnapshot(asked).snapshot.ready_to_use
    assert str(depot.root) in synced


def test_a_directory_of_a_store_is_copied_without_other_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = nobody_elses(monkeypatch)
    with freeze.still(tmp_path / "image"):
        assert synced == [str(tmp_path)]
    with freeze.still(tmp_path / "gone" / "image"):  # who copies will say so
        pass


def test_the_room_of_a_directory_that_is_copied_is_promised_to_nobody_else(
    depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = create(depot, "source")
    (depot.home(source) / "tree" / "data").write_bytes(bytes(SIZE))
    monkeypatch.setattr(images, "shares_blocks", lambda _: False)
    monkeypatch.setattr(backends, "room", lambda root: 100 * MIB - backends.promised(root, "disk"))
    during: list[int] = []
    real = images.copy_tree
    monkeypatch.setattr(images, "copy_tree", lambda *a: (during.append(depot.free()), real(*a)))
    copy = create(depot, "copy", source)
    assert depot.free() == 100 * MIB
    assert 0 <= 100 * MIB - SIZE - during[0] < MIB  # and its directories
    assert (depot.home(copy) / "tree" / "data").read_bytes() == bytes(SIZE)

    monkeypatch.setattr(backends, "room", lambda _: MIB)
    with pytest.raises(Refused, match="are not promised yet") as caught:
        create(depot, "another", source)
    assert caught.value.code == CODE.RESOURCE_EXHAUSTED
    assert {v.id for v in depot.volumes.all()} == {source, copy}, "what is refused leaves nothing"


def test_memory_that_overcommits_is_promised_to_nobody(depot: Depot) -> None:
    for name, over, promised in (("over", "true", 0), ("kept", "false", SIZE)):
        Controller(depot, "n1").CreateVolume(
            message("CreateVolumeRequest")(
                name=name, volume_capabilities=[WRITER], capacity_range={"required_bytes": SIZE},
                parameters={"backend": "tmpfs", "overcommit": over},
            )
        )  # fmt: skip
        assert backends.promised(depot.root, "memory") == promised
    for volume in depot.volumes.all():
        depot.discard(volume)

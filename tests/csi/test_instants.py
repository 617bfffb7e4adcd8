"""What a snapshot holds: every write before it, none after it, and all members of a group at one instant.

volumes, written ── snapshot or group (killed at some step, and asked for again) ── restored, compared
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import MIB, WRITER, Driver, running
from .test_kill_steps import STEPS, Mortal

pytestmark = pytest.mark.root
BLOCK = {"block": {}, "access_mode": {"mode": 1}}


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Mortal]:
    with running(tmp_path, kind=Mortal) as driver:
        yield driver


def restored(driver: Driver, snapshot: str, name: str, capability: Any = WRITER) -> Path:
    """What a snapshot holds, at a target."""
    source = {"snapshot": {"snapshot_id": snapshot}}
    return driver.publish(
        driver.create(name, 8 * MIB, capability, volume_content_source=source), name, capability
    )


@pytest.mark.parametrize(
    ("backend", "stride"),
    [
        ("directory", 3),
        ("image", 8),
        *(pytest.param(backend, 1, marks=pytest.mark.slow) for backend in ("directory", "image")),
    ],
)
def test_a_group_that_was_cut_off_is_of_the_repeat_s_instant(
    mortal: Mortal, backend: str, stride: int
) -> None:
    kind = {"parameters": {"backend": backend}}
    volumes = [mortal.create(f"v{n}", 8 * MIB, **kind) for n in range(2)]
    places = [mortal.publish(volume, volume) for volume in volumes]
    step, died, deaths = 1, True, 0
    while died:
        assert step < STEPS
        for place in places:
            (place / "word").write_text("one")
        died = mortal.dies(step, ("CreateVolumeGroupSnapshot", {"name": "g", "source_volume_ids": volumes}))
        for place in places if died else []:
            (place / "word").write_text("two")
        made = mortal.call("CreateVolumeGroupSnapshot", name="g", source_volume_ids=volumes).group_snapshot
        assert made.ready_to_use and [s.source_volume_id for s in made.snapshots] == sorted(volumes)
        found = []
        for number, snapshot in enumerate(made.snapshots):
            source = {"snapshot": {"snapshot_id": snapshot.snapshot_id}}
            copy = mortal.create(f"r{number}", 8 * MIB, volume_content_source=source)
            found.append((mortal.publish(copy, f"r{number}") / "word").read_text())
            mortal.withdraw(copy, f"r{number}")
            mortal.call("DeleteVolume", volume_id=copy)
        assert found in (["one", "one"], ["two", "two"]), f"killed at step {step}"
        assert died or found == ["one", "one"]
        mortal.call("DeleteVolumeGroupSnapshot", group_snapshot_id=made.group_snapshot_id)
        step, deaths = step + stride, deaths + died
    assert deaths > 5


@pytest.mark.parametrize("backend", ["image", "directory"])
def test_each_member_of_a_group_holds_its_own_volume(driver: Driver, backend: str) -> None:
    volumes = [driver.create(f"v{n}", 8 * MIB, parameters={"backend": backend}) for n in range(3)]
    for volume in volumes:
        (driver.publish(volume, volume) / "word").write_text(f"of {volume}")
    made = driver.call("CreateVolumeGroupSnapshot", name="g", source_volume_ids=volumes).group_snapshot
    for volume in volumes:
        (driver.home / volume / "word").write_text("changed after")
    for number, one in enumerate(made.snapshots):
        word = (restored(driver, one.snapshot_id, f"r{number}") / "word").read_text()
        assert word == f"of {one.source_volume_id}"
    assert {s.source_volume_id for s in made.snapshots} == set(volumes)


def test_a_group_is_known_by_its_id_and_its_members(driver: Driver) -> None:
    volumes = [driver.create(f"v{n}", MIB, parameters={"backend": "directory"}) for n in range(4)]
    one, two = (
        driver.call("CreateVolumeGroupSnapshot", name=name, source_volume_ids=members).group_snapshot
        for name, members in (("one", volumes[:2]), ("two", volumes[2:]))
    )
    mine, others = ([s.snapshot_id for s in group.snapshots] for group in (one, two))
    asked = {"group_snapshot_id": one.group_snapshot_id}
    assert driver.call("GetVolumeGroupSnapshot", **asked, snapshot_ids=mine).group_snapshot == one
    assert driver.call("GetVolumeGroupSnapshot", **asked).group_snapshot == one
    for method in ("GetVolumeGroupSnapshot", "DeleteVolumeGroupSnapshot"):
        for wrong in (others, mine[:1], [*mine, others[0]]):
            code, why = driver.refused(method, **asked, snapshot_ids=wrong)
            assert code == "INVALID_ARGUMENT" and "snapshot_ids" in why and "not these" in why
    strange = driver.refused("GetVolumeGroupSnapshot", group_snapshot_id="group-0")
    assert strange[0] == "NOT_FOUND"
    assert len(driver.call("ListSnapshots").entries) == 4
    driver.call("DeleteVolumeGroupSnapshot", **asked, snapshot_ids=mine)
    left = [e.snapshot.snapshot_id for e in driver.call("ListSnapshots").entries]
    assert sorted(left) == sorted(others)


def test_a_group_of_images_is_of_one_instant_while_somebody_writes(driver: Driver) -> None:
    """A writer counts in one volume, then in the other: the second is never ahead."""
    volumes = sorted(driver.create(f"v{n}", 8 * MIB) for n in range(2))
    places = [driver.publish(volume, volume) for volume in volumes]
    over = threading.Event()

    def count() -> None:
        fds = [os.open(place / "count", os.O_CREAT | os.O_WRONLY) for place in reversed(places)]
        number = 0
        while not over.is_set():
            number += 1
            for fd in fds:  # that which is copied last is written first
                os.pwrite(fd, b"%08d" % number, 0)
        for fd in fds:
            os.close(fd)

    writer = threading.Thread(target=count)
    writer.start()
    try:
        made = [
            driver.call("CreateVolumeGroupSnapshot", name=f"g{n}", source_volume_ids=volumes).group_snapshot
            for n in range(3)
        ]
    finally:
        over.set()
        writer.join()
    for turn, group in enumerate(made):
        found = [
            int((restored(driver, s.snapshot_id, f"r{turn}{n}") / "count").read_text() or 0)
            for n, s in enumerate(group.snapshots)
        ]
        assert 0 <= found[1] - found[0] <= 1, found


@pytest.mark.parametrize("how", ["CreateSnapshot", "CreateVolumeGroupSnapshot", "clone"])
def test_raw_blocks_hold_every_write_that_was_done(driver: Driver, how: str) -> None:
    volume = driver.create("v", 8 * MIB, BLOCK)
    device = driver.publish(volume, "device", BLOCK)
    payload = os.urandom(MIB)
    with open(device, "r+b", buffering=0) as file:  # open all the time: the last close would sync it
        file.write(payload)
        if how == "clone":
            source = {"volume": {"volume_id": volume}}
            clone = driver.create("c", 8 * MIB, BLOCK, volume_content_source=source)
            copy = driver.publish(clone, "copy", BLOCK)
        else:
            fields = {"source_volume_id": volume, "source_volume_ids": [volume]}
            field = "source_volume_id" if how == "CreateSnapshot" else "source_volume_ids"
            made = driver.call(how, name="s", **{field: fields[field]})
            one = made.snapshot if how == "CreateSnapshot" else made.group_snapshot.snapshots[0]
            copy = restored(driver, one.snapshot_id, "copy", BLOCK)
    with open(copy, "rb") as file:
        assert file.read(MIB) == payload

"""Full disks, damaged files, strange names, many clients at once, and secrets that nobody may see."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from storageplane import doctor
from storageplane.csi.attach import Attachments
from storageplane.csi.intents import Intent, Intents

from .conftest import MIB, WRITER, Driver, loops, mounts, running

pytestmark = pytest.mark.root
BLOCK = {"block": {}, "access_mode": {"mode": 1}}
SEVERAL = {"mount": {}, "access_mode": {"mode": 7}}  # SINGLE_NODE_MULTI_WRITER
SECRET = "hunter2-hunter2"


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[Driver]:
    """A driver whose root is a tmpfs of 4 MiB."""
    with running(tmp_path, disk=4) as driver:
        yield driver


def fill(driver: Driver) -> Path:
    """Take every byte that is left."""
    filler = driver.root / "filler"
    for block in (65536, 4096):
        with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
            while True:
                file.write(bytes(block))
    assert os.statvfs(driver.root).f_bavail == 0
    return filler


def pour(target: Path, size: int) -> int:
    """The errno of writing so much, synced; 0 when it fits."""
    try:
        with open(target / "f", "wb", buffering=0) as file:
            for _ in range(size // MIB):
                file.write(os.urandom(MIB))
                os.fsync(file.fileno())
    except OSError as exc:
        return exc.errno or -1
    return 0


def test_a_disk_that_is_full_for_state_refuses_and_keeps_what_was(cramped: Driver) -> None:
    kind = {"parameters": {"backend": "directory"}}
    volume = cramped.create("v", MIB, **kind)
    filler = fill(cramped)
    cramped.publish(volume)  # the journal has room
    cramped.withdraw(volume)
    refused = None
    for turn in range(2000):
        how = {"provisioning": ("thick", "thin")[turn % 2]}
        try:
            cramped.call("ControllerModifyVolume", volume_id=volume, mutable_parameters=how)
        except grpc.RpcError as exc:
            refused = exc
            break
    assert isinstance(refused, grpc.Call)
    assert refused.code().name == "RESOURCE_EXHAUSTED" and "No space left" in str(refused.details())
    here = {"volume_id": volume, "volume_capability": WRITER}
    place = str(cramped.home / "stage")
    assert cramped.refused("NodeStageVolume", **here, staging_target_path=place)[0] == "RESOURCE_EXHAUSTED"
    assert mounts(cramped.home) == [str(cramped.root)]
    assert [e.volume.volume_id for e in cramped.call("ListVolumes").entries] == [volume]
    assert [s.reason for s in cramped.call("NodeGetStorageHealth").backend_health] == ["NearlyFull"]
    cramped.kill()
    cramped.start()  # with a disk that is still full
    assert cramped.call("Probe").ready.value
    filler.unlink()
    cramped.publish(volume)
    cramped.withdraw(volume)
    cramped.call("DeleteVolume", volume_id=volume)


def test_a_disk_that_is_full_for_data_is_the_writers_error_and_nobody_elses(cramped: Driver) -> None:
    over = {"parameters": {"backend": "image", "overcommit": "true"}}
    volume = cramped.create("v", 16 * MIB, **over)
    target = cramped.publish(volume)
    assert pour(target, 8 * MIB) in (errno.EIO, errno.ENOSPC, errno.EROFS)
    assert cramped.call("ListVolumes").entries
    cramped.withdraw(volume)
    cramped.call("DeleteVolume", volume_id=volume)
    assert loops(cramped.home) == [] and list((cramped.root / "csi" / "data").iterdir()) == []


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """One driver for all tests that leave nothing in it."""
    with running(tmp_path_factory.mktemp("shared")) as driver:
        yield driver


# --- names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../../etc/passwd",
        "/",
        "a/b",
        ".",
        "a\0b",
        "\n",
        "%s%n",
        "é" * 64,
        "名" * 42,
        "n" * 128,
        "-rf",
        " ",
    ],
)
def test_any_name_of_128_bytes_is_only_a_name(shared: Driver, name: str) -> None:
    before = {p for p in shared.home.rglob("*") if not p.is_relative_to(shared.root / "csi")}
    volume = shared.create(name, MIB, parameters={"backend": "directory"})
    assert shared.create(name, MIB, parameters={"backend": "directory"}) == volume
    snapshot = shared.call("CreateSnapshot", source_volume_id=volume, name=name).snapshot
    assert {p.name for p in (shared.root / "csi" / "data").iterdir()} == {volume, snapshot.snapshot_id}
    assert {p for p in shared.home.rglob("*") if not p.is_relative_to(shared.root / "csi")} == before
    shared.call("DeleteSnapshot", snapshot_id=snapshot.snapshot_id)
    shared.call("DeleteVolume", volume_id=volume)
    assert list((shared.root / "csi" / "data").iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 129, "é" * 65, "名" * 43, ""])
def test_a_longer_name_or_none_is_refused(shared: Driver, name: str) -> None:
    asked = {"name": name, "volume_capabilities": [WRITER]}
    assert shared.refused("CreateVolume", **asked)[0] == "INVALID_ARGUMENT"
    assert shared.refused("CreateSnapshot", source_volume_id="v", name=name)[0] == "INVALID_ARGUMENT"
    assert list((shared.root / "csi" / "volumes").iterdir()) == []


@pytest.mark.parametrize("method", ["NodeStageVolume", "NodePublishVolume"])
@pytest.mark.parametrize("path", ["relative", "/../x", "/a/../b", "/a\0b", "/" + "x" * 4097, ""])
def test_a_path_that_is_none_is_refused(shared: Driver, method: str, path: str) -> None:
    field = "staging_target_path" if method == "NodeStageVolume" else "target_path"
    fields = {"volume_id": shared.create("p", MIB), "volume_capability": WRITER, field: path}
    if method == "NodePublishVolume":
        fields["staging_target_path"] = "/s"
    code, why = shared.refused(method, **fields)
    assert code == "INVALID_ARGUMENT" and field in why
    shared.call("DeleteVolume", volume_id=fields["volume_id"])
    assert mounts(shared.home) == []


@pytest.mark.parametrize("what", ["stage", "target"])
def test_a_link_anywhere_in_a_path_is_refused(driver: Driver, what: str) -> None:
    volume = driver.create(parameters={"backend": "directory"})
    (driver.home / "away").mkdir()
    (driver.home / "link").symlink_to("away")
    (driver.home / "away" / "last").symlink_to("/")
    for path in (driver.home / "link" / "t", driver.home / "away" / "last", driver.home / "link"):
        here = {"volume_id": volume, "volume_capability": WRITER}
        if what == "stage":
            code, why = driver.refused("NodeStageVolume", **here, staging_target_path=str(path))
        else:
            stage = str(driver.stage(volume))
            code, why = driver.refused(
                "NodePublishVolume", **here, staging_target_path=stage, target_path=str(path)
            )
            driver.call("NodeUnpublishVolume", volume_id=volume, target_path=str(path))
            driver.call("NodeUnstageVolume", volume_id=volume, staging_target_path=stage)
        assert code == "INVALID_ARGUMENT" and str(path.name) in why
        assert mounts(driver.home) == []
        driver.kill()
        driver.start()
        assert mounts(driver.home) == []
    assert [p.name for p in (driver.home / "away").iterdir()] == ["last"]


# --- many at once -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["directory", "image"])
def test_thirty_two_clients_on_one_volume(driver: Driver, backend: str) -> None:
    """Each call is carried out, told to wait (ABORTED), or refused for what another has done."""
    kind = {"parameters": {"backend": backend}}
    volume = driver.create("v", 8 * MIB, SEVERAL, **kind)
    stage = str(driver.home / f"stage-{volume}")
    here = {"volume_id": volume, "volume_capability": SEVERAL, "staging_target_path": stage}

    def one(number: int) -> set[str]:
        chance, seen = random.Random(number), set()
        target = str(driver.home / f"t{number % 4}")
        calls: list[Callable[[], Any]] = [
            lambda: driver.create("v", 8 * MIB, SEVERAL, **kind),
            lambda: driver.call("NodeStageVolume", **here),
            lambda: driver.call("NodePublishVolume", **here, target_path=target),
            lambda: driver.call("NodeUnpublishVolume", volume_id=volume, target_path=target),
            lambda: driver.call("NodeUnstageVolume", volume_id=volume, staging_target_path=stage),
            lambda: driver.call("CreateSnapshot", source_volume_id=volume, name="s"),
        ]
        for _ in range(6):
            try:
                chance.choice(calls)()
                seen.add("OK")
            except grpc.RpcError as exc:
                seen.add(exc.code().name)
        return seen

    with ThreadPoolExecutor(32) as pool:
        seen = set().union(*pool.map(one, range(32)))
    assert seen <= {"OK", "ABORTED", "FAILED_PRECONDITION"} and "OK" in seen and "ABORTED" in seen
    for number in range(4):
        driver.call("NodeUnpublishVolume", volume_id=volume, target_path=str(driver.home / f"t{number}"))
    driver.call("NodeUnstageVolume", volume_id=volume, staging_target_path=stage)
    for entry in driver.call("ListSnapshots").entries:
        driver.call("DeleteSnapshot", snapshot_id=entry.snapshot.snapshot_id)
    driver.call("DeleteVolume", volume_id=volume)
    assert mounts(driver.home) == [] and loops(driver.home) == []
    assert list((driver.root / "csi" / "data").iterdir()) == []


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "newer", "directory"])
def test_a_record_that_cannot_be_read_stops_only_itself(driver: Driver, damage: str) -> None:
    good, bad = driver.create("good"), driver.create("bad")
    driver.settled()
    record = driver.root / "csi" / "volumes" / f"{bad}.json"
    text = record.read_bytes()
    record.unlink()
    if damage == "directory":
        record.mkdir()
    else:
        kinds = {
            "empty": b"",
            "truncated": text[: len(text) // 2],
            "flipped": text.replace(b'"size":', b'"sizf":'),
            "newer": text.replace(b'"version":1', b'"version":2'),
        }
        record.write_bytes(kinds[damage])
    driver.start()
    assert not driver.call("Probe").ready.value
    for method, fields in (
        ("ControllerGetVolume", {}),
        ("DeleteVolume", {}),
        ("NodeStageVolume", {"staging_target_path": "/s", "volume_capability": WRITER}),
    ):
        code, why = driver.refused(method, volume_id=bad, **fields)
        assert code == "INVALID_ARGUMENT" and str(record) in why
    assert (driver.root / "csi" / "data" / bad / "image").exists()
    (driver.publish(good) / "word").write_text("served")
    driver.withdraw(good)
    driver.call("DeleteVolume", volume_id=good)


def test_records_about_other_drivers_are_named_when_damaged(tmp_path: Path) -> None:
    intents = Intents(tmp_path)
    intents.write(Intent(name="pvc-good", driver="d", size=1))
    intents.write(Intent(name="pvc-bad", driver="d", size=1))
    (tmp_path / "csi-client" / "intents" / "pvc-bad.json").write_text("{")
    assert [i.name for i in intents.all()] == ["pvc-good"]
    lines = [line for good, line in doctor.findings(tmp_path) if not good and "pvc-bad.json" in line]
    assert len(lines) == 1 and "look for that volume at its driver" in lines[0]
    assert Attachments(tmp_path).damaged() == []


# --- secrets ----------------------------------------------------------------------------------------


def test_secrets_of_node_calls_are_nowhere(tmp_path: Path) -> None:
    with running(tmp_path, "--verbose") as driver:
        volume = driver.create(parameters={"backend": "directory"})
        here = {"volume_id": volume, "volume_capability": WRITER, "secrets": {"key": SECRET}}
        stage, target = str(tmp_path / "stage"), str(tmp_path / "target")
        wrong: list[tuple[str, dict[str, Any]]] = [
            ("NodeStageVolume", {**here, "staging_target_path": "relative"}),
            ("NodeStageVolume", {**here, "staging_target_path": stage, "volume_capability": BLOCK}),
            ("NodeStageVolume", {**here, "staging_target_path": stage, "secrets": {"k": SECRET * 400}}),
            ("NodePublishVolume", {**here, "staging_target_path": stage, "target_path": target}),
            ("ControllerPublishVolume", {**here, "node_id": "elsewhere"}),
        ]
        for method, fields in wrong:
            assert SECRET not in driver.refused(method, **fields)[1]
        driver.call("NodeStageVolume", **here, staging_target_path=stage)
        driver.call("NodePublishVolume", **here, staging_target_path=stage, target_path=target)
        driver.call("NodeUnpublishVolume", volume_id=volume, target_path=target)
        driver.call("NodeUnstageVolume", volume_id=volume, staging_target_path=stage)
        assert driver.log() and SECRET not in driver.log()
        for path in driver.root.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes()

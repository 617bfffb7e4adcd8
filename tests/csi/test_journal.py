"""The driver's journal: what it says after a kill, a torn write, a crash of the machine, and damage.

driver ── killed ── something happens to ROOT/csi/journal ── driver again
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netplane.model.base import amend
from netplane.model.errors import Invalid, KernelError
from storageplane.csi.depot import Depot
from storageplane.csi.volumes import Volume
from storageplane.host import journal as journal_file
from storageplane.host.journal import FIRST, SIZE, Journal

from .conftest import MIB, Driver

pytestmark = pytest.mark.root
PLAIN = {"parameters": {"backend": "directory"}}


def listed(driver: Driver) -> set[str]:
    return {e.volume.volume_id for e in driver.call("ListVolumes").entries}


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    written = Journal(tmp_path / "journal")
    assert written.open() == []
    for text in (b"one", b"two" * 1000):
        written.add(text)
    written.close()
    read = Journal(tmp_path / "journal")
    assert read.open() == [b"one", b"two" * 1000] and read.boot == journal_file.boot()
    read.add(b"three")
    read.close()
    again = Journal(tmp_path / "journal")
    assert len(again.open()) == 3
    again.clear()
    again.add(b"1")  # shorter than what lies there: that is not read as what follows
    again.close()
    assert Journal(tmp_path / "journal").open() == [b"1"]


def test_it_holds_what_fits_and_no_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.open()
    text, count = b"x" * 1000, 0
    while journal.fits(text):
        journal.add(text)
        count += 1
    journal.close()
    assert (tmp_path / "journal").stat().st_size == SIZE
    assert len(Journal(tmp_path / "journal").open()) == count > 200


@pytest.mark.parametrize("at", range(1, 40, 3))
def test_a_torn_entry_ends_it(tmp_path: Path, at: int) -> None:
    journal = Journal(tmp_path / "journal")
    journal.open()
    journal.add(b"whole")
    end = journal._end
    journal.add(b"torn" * 8)
    os.pwrite(journal._fd, bytes(40 - at), end + at)
    journal.close()
    assert Journal(tmp_path / "journal").open() == [b"whole"]


def test_a_newer_version_s_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr(journal_file, "VERSION", 2)
        Journal(tmp_path / "journal").open()
    with pytest.raises(Invalid, match="upgrade"):
        Journal(tmp_path / "journal").open()


@pytest.mark.parametrize("kept", [(0, 0), (0, 100), (64, SIZE)])
def test_a_damaged_one_is_named_and_kept_aside(driver: Driver, kept: tuple[int, int]) -> None:
    settled = driver.create("settled", MIB, **PLAIN)
    driver.settled()
    path = driver.root / "csi" / "journal"
    blank, end = kept
    path.write_bytes((bytes(blank) + path.read_bytes()[blank:])[:end])
    driver.start()
    assert not driver.call("Probe").ready.value
    assert listed(driver) == {settled}
    aside = path.with_name("journal.damaged")
    assert aside.exists() and path.stat().st_size == SIZE
    aside.unlink()
    assert driver.call("Probe").ready.value


def test_one_driver_at_a_time_has_a_root(driver: Driver) -> None:
    where = ["--endpoint", f"unix://{driver.home}/other.sock", "--root", str(driver.root), "--node", "n1"]
    patience = "from storageplane.csi import volumes; volumes.PATIENCE = 0.5"
    argv = [sys.executable, "-c", f"{patience}; from storageplane import cli; cli.main()", "csi", *where]
    second = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1 and "another driver" in second.stderr


def crash(driver: Driver) -> None:
    """The driver killed, and a journal that says it was written in another boot."""
    driver.kill()
    with open(driver.root / "csi" / "journal", "r+b", buffering=0) as file:
        raw = file.read(FIRST)
        generation = raw[12:20]
        file.seek(0)
        before, journal_file.boot = journal_file.boot, lambda: "another"  # type: ignore[assignment]
        try:
            file.write(journal_file._header(generation))
        finally:
            journal_file.boot = before


def test_directories_that_a_crash_of_the_machine_lost_are_made_again(driver: Driver) -> None:
    volume = driver.create("v", MIB, **PLAIN)
    home = driver.root / "csi" / "data" / volume
    crash(driver)
    (home / "tree").rmdir()  # never reached the disk
    home.rmdir()
    driver.start()
    assert (home / "tree").stat().st_mode & 0o7777 == 0o777
    (driver.publish(volume) / "word").write_text("kept")
    driver.withdraw(volume)


def test_lost_data_is_not_made_up(driver: Driver) -> None:
    """What is missing although it was durable is missing, and said so."""
    volume = driver.create("v", MIB, **PLAIN)
    driver.settled()
    home = driver.root / "csi" / "data" / volume
    (home / "tree").rmdir()
    driver.start()
    crash(driver)
    driver.start()
    stage = {
        "staging_target_path": str(driver.home / "s"),
        "volume_capability": {"mount": {}, "access_mode": {"mode": 1}},
    }
    code, why = driver.refused("NodeStageVolume", volume_id=volume, **stage)
    assert code == "INTERNAL" and "missing" in why


def test_directories_that_a_crash_of_the_machine_brought_back_go_again(driver: Driver) -> None:
    volume = driver.create("v", MIB, **PLAIN)
    (driver.publish(volume) / "word").write_text("secret")
    driver.withdraw(volume)
    home = driver.root / "csi" / "data" / volume
    driver.call("DeleteVolume", volume_id=volume)
    crash(driver)
    (home / "tree").mkdir(parents=True)  # its removal never reached the disk
    (home / "tree" / "word").write_text("secret")
    driver.start()
    assert not home.exists() and listed(driver) == set()


def test_an_empty_home_without_a_record_goes_and_one_with_data_stays(driver: Driver) -> None:
    data = driver.root / "csi" / "data"
    driver.kill()
    for digit in "12":
        (data / f"vol-{digit * 32}" / "tree").mkdir(parents=True)
    (data / f"vol-{'2' * 32}" / "tree" / "word").write_text("somebody's")
    driver.start()
    assert [p.name for p in data.iterdir()] == [f"vol-{'2' * 32}"]


def test_calls_that_come_at_once_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depot, count = Depot(tmp_path), [0]
    real = os.fdatasync

    def counted(fd: int) -> None:
        count[0] += 1
        real(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda i: depot.volumes.put(f"vol-{i:032x}", record(i)), range(320)))
    assert len(depot.volumes.all()) == 320 and count[0] < 200
    depot.volumes._journal.close()
    os.close(depot.volumes._alone)
    again = Depot(tmp_path)
    assert len(again.volumes.all()) == 320
    again.close()


def record(number: int) -> Volume:
    return Volume(id=f"vol-{number:032x}", name=str(number), size=MIB, backend="directory", phase="ready")


def test_a_deletion_goes_on_though_its_last_entry_was_lost(driver: Driver) -> None:
    """What is condemned durably is gone, whatever of the rest reached the disk."""
    volume = driver.create("v", MIB, **PLAIN)
    (driver.publish(volume) / "word").write_text("secret")
    driver.withdraw(volume)
    before = driver.root / "csi" / "journal"
    driver.call("DeleteVolume", volume_id=volume)
    raw = before.read_bytes()
    end = raw.rindex(b'{"name":"' + volume.encode())  # the last: that there is none any more
    crash(driver)
    with open(before, "r+b") as file:
        file.seek(end)
        file.write(bytes(32))
    home = driver.root / "csi" / "data" / volume
    (home / "tree").mkdir(parents=True)
    (home / "tree" / "word").write_text("secret")
    driver.start()
    assert not home.exists() and listed(driver) == set()
    assert driver.refused("ControllerGetVolume", volume_id=volume)[0] == "NOT_FOUND"


def test_a_directory_whose_record_cannot_be_written_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depot = Depot(tmp_path)
    wanted = amend(record(1), phase="making")

    def broken(*_: object) -> None:
        raise KernelError(5, "write")

    monkeypatch.setattr(depot.volumes, "put", broken)
    with pytest.raises(KernelError):
        depot.found(wanted)
    assert list((tmp_path / "csi" / "data").iterdir()) == []
    monkeypatch.undo()
    assert depot.found(wanted).phase == "ready" and depot.volumes.get(wanted.id) is not None
    depot.close()


@pytest.mark.parametrize("filled", [False, True])
def test_what_a_life_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filled: bool) -> None:
    """One sync when it is created and one when it is deleted, and that one before anything of value goes."""
    depot, seen = Depot(tmp_path), []
    home = tmp_path / "csi" / "data" / record(1).id / "tree"
    real = os.fdatasync

    def watched(fd: int) -> None:
        seen.append((home / "word").exists())
        real(fd)

    monkeypatch.setattr(os, "fdatasync", watched)
    volume = depot.found(amend(record(1), phase="making"))
    if filled:
        (home / "word").write_text("a user's")
    depot.discard(volume)
    assert seen == [False, filled] and not home.parent.exists()
    monkeypatch.undo()
    depot.close()

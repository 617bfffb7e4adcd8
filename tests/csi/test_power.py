"""The power goes: what was answered for is there, and what is there is whole.

disk.img ── loop ── ext4 ── records, payloads, a driver's root
   └── read while that is mounted: what a machine finds that lost its memory at this moment

The file that is behind a loop device has what was written to the disk, and nothing of what only the page
cache has. ext4's own guess that a rename wants a sync (auto_da_alloc) is off: it would hide ours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netplane.model.storage_facts import File, Payload
from storageplane.host import atomic
from storageplane.host.durable import Shelf

from .conftest import MIB, PROGRAM, Driver, mounts, tidy

pytestmark = pytest.mark.root
OPTIONS = "loop,noauto_da_alloc,commit=600"


class Disk:
    def __init__(self, home: Path) -> None:
        self.image, self.top, self._cuts = home / "disk.img", home / "disk", 0
        self._home = home
        with open(self.image, "wb") as file:
            file.truncate(64 * MIB)
        options = ("-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0")
        subprocess.run(["mkfs.ext4", *options, str(self.image)], check=True)
        self.top.mkdir()
        subprocess.run(["mount", "-o", OPTIONS, str(self.image), str(self.top)], check=True)

    @contextmanager
    def cut(self) -> Iterator[Path]:
        """What is left of it when the power goes now."""
        self._cuts += 1
        copy, top = self._home / f"cut{self._cuts}.img", self._home / f"cut{self._cuts}"
        shutil.copyfile(self.image, copy)
        top.mkdir()
        subprocess.run(["mount", "-o", OPTIONS, str(copy), str(top)], check=True)
        try:
            yield top
        finally:
            subprocess.run(["umount", "-R", str(top)], check=True)
            copy.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    yield Disk(tmp_path)
    tidy(tmp_path)


class Word(msgspec.Struct):
    text: str


def test_the_disk_of_this_test_loses_what_was_not_synced(disk: Disk) -> None:
    """Without this, the others would show nothing. A sync of all the machine may save it once."""
    assert any(_lost(disk, turn) for turn in range(8))


def _lost(disk: Disk, turn: int) -> bool:
    empty, late = f"empty{turn}", f"late{turn}"
    (disk.top / "new").write_text("not synced")
    os.rename(disk.top / "new", disk.top / empty)
    folder = os.open(disk.top, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    (disk.top / late).write_text("not even its name")
    with disk.cut() as left:
        return (left / empty).read_bytes() == b"" and not (left / late).exists()


def test_a_record_that_was_put_is_there_and_one_that_was_removed_is_not(disk: Disk) -> None:
    shelf = Shelf(disk.top / "shelf", Word, "look")
    shelf.open()
    os.sync()
    for text in ("one", "two"):
        shelf.put("record", Word(text))
        with disk.cut() as left:
            assert Shelf(left / "shelf", Word, "look").get("record") == Word(text)
    shelf.remove("record")
    with disk.cut() as left:
        assert list((left / "shelf").iterdir()) == []


@pytest.fixture
def volume(disk: Disk) -> Iterator[Callable[[str], None]]:
    """Write two files of a volume that is beneath DISK/v."""
    (disk.top / "v").mkdir()
    os.sync()
    at = os.open(disk.top / "v", os.O_RDONLY | os.O_DIRECTORY)

    def write(text: str) -> None:
        files = tuple(File(path, 0o644, text.encode()) for path in ("deep/one", "key"))
        atomic.write(at, Payload(path="v", files=files, gid=None, memory=False))

    yield write
    os.close(at)


def shown(folder: Path) -> set[str]:
    return {(folder / "v" / name).read_text() for name in ("key", "deep/one")}


def test_files_that_were_shown_are_there_and_whole(disk: Disk, volume: Callable[[str], None]) -> None:
    for text in ("one", "two"):
        volume(text)
        with disk.cut() as left:
            assert shown(left) == {text}


def test_the_power_goes_at_every_step_of_showing_files(disk: Disk, volume: Callable[[str], None]) -> None:
    """Old or new, whole: before each call of the kernel that changes or syncs something."""
    volume("one")
    seen: list[set[str]] = []
    inside = False

    def looking(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal inside
            if not inside:
                inside = True
                with disk.cut() as left:
                    seen.append(shown(left))
                inside = False
            return real(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "rename", "unlink", "rmdir"):
            patch.setattr(os, name, looking(getattr(os, name)))
        volume("two")
    assert len(seen) > 5 and seen[0] == {"one"} and seen[-1] == {"two"}
    assert all(found in ({"one"}, {"two"}) for found in seen), seen


class Other(Driver):
    """A driver after the next boot of the machine."""

    def launch(self, argv: list[str]) -> None:
        (self.home / "boot").write_text("another-boot\n")
        script = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
        quiet = ["unshare", "-m", "sh", "-c", script, str(self.home / "boot"), *PROGRAM, *argv]
        self.process = subprocess.Popen(quiet)


def _same(one: Path, two: Path) -> bool:
    if one.is_file():
        return one.read_bytes() == two.read_bytes()
    found = [{p.name: p.read_bytes() for p in top.iterdir()} for top in (one, two)]
    return two.is_dir() and found[0] == found[1]


@pytest.mark.parametrize("backend", ["directory", "image"])
def test_what_the_driver_answered_for_outlives_the_machine(disk: Disk, backend: str) -> None:
    kind = {"parameters": {"backend": backend, "overcommit": "true"}}
    content = "tree" if backend == "directory" else "image"
    driver = Driver(disk.top)
    gone = driver.create("gone", 4 * MIB, **kind)
    os.sync()
    kept = driver.create("kept", 4 * MIB, **kind)
    (driver.publish(kept) / "word").write_text("of the snapshot")
    os.sync()
    made = driver.create("made", 4 * MIB, **kind)
    snapshot = driver.call("CreateSnapshot", source_volume_id=kept, name="s").snapshot.snapshot_id
    group = driver.call("CreateVolumeGroupSnapshot", name="g", source_volume_ids=[kept, made]).group_snapshot
    driver.call("DeleteVolume", volume_id=gone)
    try:
        with disk.cut() as left:
            after = Other(left)
            try:
                volumes = {e.volume.volume_id for e in after.call("ListVolumes").entries}
                assert volumes == {kept, made}
                found = {e.snapshot.snapshot_id for e in after.call("ListSnapshots").entries}
                assert found == {snapshot, *(s.snapshot_id for s in group.snapshots)}
                ask = {"group_snapshot_id": group.group_snapshot_id}
                assert after.call("GetVolumeGroupSnapshot", **ask).group_snapshot == group
                homes = {p.name for p in (left / "root" / "csi" / "data").iterdir()}
                assert homes == volumes | found
                for home in homes - {kept}:
                    assert _same(
                        *(top / "root" / "csi" / "data" / home / content for top in (disk.top, left))
                    )
            finally:
                after.kill()
    finally:
        driver.withdraw(kept)
        driver.kill()
    assert mounts(disk.top) == []

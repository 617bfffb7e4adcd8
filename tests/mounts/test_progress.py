"""Long copies and formats show how far they are while they run, and are not given up while they move."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from netplane.model.base import Key
from storageplane.host import progress
from storageplane.metrics import VolumeStats
from tests.csi.conftest import MIB, PROGRAM, Driver
from tests.sequences.storage_world import World, pvc, storage_class
from tests.sequences.test_storage_snapshots import LOCAL, Site, restored, site, volume_snapshot

pytestmark = pytest.mark.root


def slow(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str, seconds: float = 1.2) -> None:
    """The real program, which takes its time before it begins, and writes a megabyte meanwhile."""
    real = subprocess.run(["which", program], capture_output=True, text=True, check=True).stdout.strip()
    (folder / "bin").mkdir()
    script = f'#!/bin/sh\nhead -c 1000000 /dev/zero >/dev/null\nsleep {seconds}\nexec {real} "$@"\n'
    (folder / "bin" / program).write_text(script.replace("head -c 1000000 /dev/zero", "printf %1000000s ."))
    (folder / "bin" / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")


def watched(work: Any, look: Any) -> list[Any]:
    """What `look` saw while `work` was done in a thread of its own, each thing once."""
    thread, seen = threading.Thread(target=work), []
    thread.start()
    while thread.is_alive():
        found = look()
        if found not in seen:
            seen.append(found)
        time.sleep(0.02)
    thread.join()
    return seen


def said(world: World, name: str) -> Any:
    note = world.note(name)
    return (note.reason, note.message) if note else None


def test_a_copy_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = site(tmp_path / "root", "image").put(volume_snapshot())
    slow(tmp_path, monkeypatch, "cp")
    monkeypatch.setattr(progress, "FIRST", 0.1)
    registry = CollectorRegistry()
    registry.register(VolumeStats(node.world.snapshot, "n1", node.root))

    def look() -> tuple[Any, bool]:
        scraped = generate_latest(registry).decode()
        return said(node.world, "r.provision"), 'storageplane_running_seconds{object="' in scraped

    seen = watched(lambda: node.put(restored("r")), look)
    words = [
        message for (found, _) in seen if found for reason, message in [found] if reason == "Provisioning"
    ]
    assert words and all("copying snapshots/data/snapshot-uid-s:" in word and "%" in word for word in words)
    assert any(metric for _, metric in seen) and not look()[1]
    assert said(node.world, "r.provision")[0] == "ProvisioningSucceeded"


def test_a_snapshot_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = site(tmp_path / "root")
    slow(tmp_path, monkeypatch, "cp")
    monkeypatch.setattr(progress, "FIRST", 0.1)
    seen = watched(lambda: node.put(volume_snapshot()), lambda: said(node.world, "s.snapshot"))
    assert any(found[1].startswith("copying: ") for found in seen if found and found[0] == "CreatingSnapshot")
    assert said(node.world, "s.snapshot")[0] == "SnapshotReady"


def test_a_format_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(tmp_path, monkeypatch, "mkfs.ext4")
    monkeypatch.setattr(progress, "FIRST", 0.1)
    cls = storage_class("d", LOCAL, parameters={"backend": "image"})
    node = Site(World(cls, pvc(size="16Mi", storageClassName="d", meta={"uid": "u1"})), tmp_path / "root")
    seen = watched(node.run, lambda: said(node.world, "c.provision"))
    assert any(found[1].startswith("mkfs.ext4: ") for found in seen if found and found[0] == "Provisioning")
    assert said(node.world, "c.provision")[0] == "ProvisioningSucceeded"


def test_the_csi_driver_logs_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(tmp_path, monkeypatch, "cp", 1.5)
    driver = Driver(tmp_path, program=PROGRAM)  # which finds that cp
    try:
        volume = driver.create("v", 8 * MIB, parameters={"backend": "directory"})
        driver.call("CreateSnapshot", source_volume_id=volume, name="s")
        assert "I cp " in driver.log() and " in 1 s" in driver.log()
    finally:
        driver.kill()


def test_who_moves_is_not_given_up_and_who_stands_still_is() -> None:
    moving = ("sh", "-c", "for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done")
    assert progress.finished(moving, 0.3).stdout.split() == list("123456")
    with pytest.raises(subprocess.TimeoutExpired):
        progress.finished(("sleep", "30"), 0.3)
    assert progress.running() == []


@pytest.mark.parametrize("what", ["a snapshot", "a claim"])
def test_what_is_deleted_while_it_is_copied_goes_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its object is deleted while the copy is under way: nothing of it is left in the end."""
    node = site(tmp_path / "root").put(volume_snapshot("done"))
    slow(tmp_path, monkeypatch, "cp", 0.7)
    claim = what == "a claim"
    key = Key("PersistentVolumeClaim" if claim else "VolumeSnapshot", "default", "r" if claim else "s")
    wanted = restored("r", of="done") if claim else volume_snapshot()
    half = node.root / "copies" / ("pvc-uid-r" if claim else "snapshot-uid-s")
    work = threading.Thread(target=lambda: node.put(wanted))
    work.start()
    while not half.exists():
        time.sleep(0.01)
    node.world.delete(key)
    work.join()
    node.run()
    assert node.world.get(key) is None and node.world.pv("pvc-uid-r") is None
    for thread in [t for t in threading.enumerate() if t.name == "errand"]:
        thread.join()  # whoever was still copying is through now
    assert node.directories() == ["pvc-u1"] and node.kept() == ["snapshot-uid-done.json"]
    assert [p.name for p in (node.root / "snapshots/data").iterdir()] == ["snapshot-uid-done"]
    assert list((node.root / "copies").iterdir()) == []

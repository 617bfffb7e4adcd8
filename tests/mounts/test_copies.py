"""Copies of our own volumes: blocks shared where the disk can, sparse elsewhere, whole whoever is killed.

tmp/root (plain, or btrfs on a loop) ── claim ── snapshot ── claims made from it
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.model.base import amend
from netplane.model.codec import parse
from netplane.model.errors import NetplaneError, Unavailable
from netplane.model.facts import Plan
from netplane.model.storage_facts import Capture, Data
from storageplane import backends
from storageplane.host import images, syscalls, tree
from storageplane.host.durable import Shelf
from tests.csi.conftest import MIB, on_btrfs
from tests.faults.dying import Death
from tests.sequences.storage_node import Node
from tests.sequences.storage_world import pvc
from tests.sequences.test_storage_snapshots import CLONE, Site, restored, site, volume_snapshot

from .bed import Bed, run

pytestmark = pytest.mark.root
__all__ = ["on_btrfs"]  # a fixture
STEPS = 200  # more than there are
OPERATIONS: list[tuple[Any, str]] = [
    (Shelf, "put"), (Shelf, "remove"), (tree, "make"), (tree, "remove"), (images, "run"),
    (images, "copy_tree"), (os, "rename"), (os, "replace"), (os, "mkdir"), (os, "rmdir"),
    (backends, "fill"), (backends, "erase"), (syscalls, "umount"), (syscalls, "move_mount"),
]  # fmt: skip


def shared(path: Path) -> bool:
    """Whether all of a file's blocks are another one's too."""
    listed = run("filefrag", "-v", path).splitlines()
    rows = [line for line in listed if line.strip()[:1].isdigit()]
    return bool(rows) and all("shared" in row for row in rows)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def small_disk(bed: Bed, size: int) -> Iterator[Path]:
    """In MiB."""
    disk = bed.base / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size}M", "disk", disk)
    try:
        yield disk
    finally:
        run("umount", disk)


def test_a_disk_that_shares_blocks_copies_none(on_btrfs: Path) -> None:
    node = site(on_btrfs / "root", "image", volumeMode="Block")
    source = node.data("pvc-u1") / "image"
    with open(source, "r+b") as file:
        file.write(os.urandom(12 * MIB))
        os.fsync(file.fileno())
    clone = restored("k", volumeMode="Block", dataSource=CLONE)
    node.put(volume_snapshot(), restored("r", volumeMode="Block"), clone)
    for copy in ("volumes/pvc-uid-r", "volumes/pvc-uid-k", "snapshots/data/snapshot-uid-s"):
        assert shared(node.root / copy / "image") and digest(node.root / copy / "image") == digest(source)


def test_a_disk_that_shares_none_copies_only_what_was_written(bed: Bed) -> None:
    node = site(bed.root, "image", "64Mi", volumeMode="Block")
    source = node.data("pvc-u1") / "image"
    with open(source, "r+b") as file:
        file.seek(40 * MIB)
        file.write(os.urandom(2 * MIB))
        os.fsync(file.fileno())
    node.put(volume_snapshot(), restored("r", "64Mi", volumeMode="Block"))
    copy = node.data("pvc-uid-r") / "image"
    assert digest(copy) == digest(source) and copy.stat().st_blocks * 512 < 4 * MIB < copy.stat().st_size


def test_a_copy_takes_no_room_that_others_were_promised(bed: Bed, on_btrfs: Path) -> None:
    """A disk of 48 MiB: 30 MiB are promised to one claim, and another has 8 MiB in use."""
    with small_disk(bed, 48) as disk:
        node = site(disk / "root", "image", "10Mi", volumeMode="Block")
        with open(node.data("pvc-u1") / "image", "r+b") as file:
            file.write(os.urandom(9 * MIB))
        node.put(pvc("big", "30Mi", storageClassName="d", volumeMode="Block", meta={"uid": "ub"}))
        assert node.world.pvc("big").status.phase == "Bound"
        node.put(volume_snapshot())
        assert "ResourceExhausted: a copy takes 9437184 bytes" in node.snap().status.error.message
        node.gone("PersistentVolumeClaim", "big")
        assert node.snap().status.ready_to_use and node.snap().status.error is None
    assert images.shares_blocks(on_btrfs) and not images.shares_blocks(Path("/dev/shm"))


def test_a_snapshot_that_waited_has_the_size_that_its_volume_has_by_then(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = site(bed.root, "image", "10Mi", volumeMode="Block")
    with monkeypatch.context() as full:
        full.setattr(backends, "room", lambda _: 0)
        full.setattr(images, "shares_blocks", lambda _: False)
        with open(node.data("pvc-u1") / "image", "r+b") as file:
            file.write(os.urandom(MIB))
        node.put(volume_snapshot())
        assert "ResourceExhausted" in node.snap().status.error.message
    volume = node.world.pv("pvc-u1")
    node.world.put(amend(volume, spec=amend(volume.spec, capacity={"storage": "20Mi"})))
    node.run()
    copy = node.root / "snapshots/data/snapshot-uid-s/image"
    assert node.snap().status.ready_to_use
    assert node.content().status.restore_size == copy.stat().st_size == 20 * MIB


def test_a_copied_directory_takes_none_either(bed: Bed) -> None:
    """A disk of 48 MiB: 30 MiB are promised to an image, and a directory has 10."""
    with small_disk(bed, 48) as disk:
        node = site(disk / "root")
        (node.data("pvc-u1") / "file").write_bytes(os.urandom(10 * MIB))
        backends.ensure(node.root, Data(path="volumes/big", backend="image", size=30 * MIB, block=True))
        node.put(volume_snapshot())
        assert "ResourceExhausted: a copy takes" in node.snap().status.error.message
        backends.erase(node.root, "volumes/big")
        node.run()
        assert node.snap().status.ready_to_use and node.snap().status.error is None
        node.gone("VolumeSnapshot", "s")
        backends.ensure(node.root, Data(path="volumes/big", backend="image", size=30 * MIB, block=True))
        node.put(restored("k", dataSource=CLONE))
        assert "ResourceExhausted: a copy takes" in " ".join(node.refused.values())
        assert not node.data("pvc-uid-k").exists() and node.directories() == ["big", "pvc-u1"]
        backends.erase(node.root, "volumes/big")
        node.run()
        assert digest(node.data("pvc-uid-k") / "file") == digest(node.data("pvc-u1") / "file")


def refusal(node: Site, fact: Capture) -> str:
    """Why it is not carried out, once it is not under way any more."""
    while True:
        try:
            node.taker.apply(Plan(add=(fact,)))
            return ""
        except Unavailable as exc:
            if "under way" not in str(exc):
                return str(exc)


def test_two_copies_at_once_are_not_both_given_the_same_room(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of 48 MiB, of which 10 are in use and 24 promised: there is room for one copy of the 10."""
    gate, begun, copy_tree = threading.Event(), threading.Event(), images.copy_tree

    def held(*paths: Path) -> None:
        begun.set()
        assert gate.wait(20)
        copy_tree(*paths)

    with small_disk(bed, 48) as disk:
        node = site(disk / "root")
        (node.data("pvc-u1") / "file").write_bytes(os.urandom(10 * MIB))
        backends.ensure(node.root, Data(path="volumes/big", backend="image", size=24 * MIB, block=True))
        before = backends.room(node.root)
        monkeypatch.setattr(images, "copy_tree", held)
        for name in "st":
            node.world.put(parse(volume_snapshot(name)), expect=0)
        Node.run(node)
        contents = [node.content(f"snapcontent-uid-{name}") for name in "st"]
        first, second = (Capture(c.name, c.metadata.uid, c.spec.driver) for c in contents)
        with pytest.raises(Unavailable, match="under way"):
            node.taker.apply(Plan(add=(first,)))
        assert begun.wait(20) and backends.room(node.root) < before - 9 * MIB
        assert "ResourceExhausted: a copy takes" in refusal(node, second)
        gate.set()
        node.run()
        assert node.snap("s").status.ready_to_use and not node.snap("t").status.ready_to_use
        backends.erase(node.root, "volumes/big")
        node.run()
        assert node.snap("t").status.ready_to_use


@pytest.mark.parametrize("backend", ["image", "btrfs"])
def test_a_source_whose_blocks_a_snapshot_shares_keeps_the_room_to_be_written(
    on_btrfs: Path, backend: str
) -> None:
    """A disk of 400 MiB: a claim of 64 MiB has 48 in use, and another all but 24 of the rest."""
    mode = {"volumeMode": "Block"} if backend == "image" else {}
    node = site(on_btrfs / "root", backend, "64Mi", **mode)
    data = node.data("pvc-u1") / ("image" if backend == "image" else "tree/file")
    with open(data, "r+b" if backend == "image" else "wb") as file:
        file.write(os.urandom(48 * MIB))
        os.fsync(file.fileno())
    rest = backends.room(node.root) // MIB - 24
    node.put(pvc("big", f"{rest}Mi", storageClassName="d", meta={"uid": "ub"}, **mode))
    assert node.world.pvc("big").status.phase == "Bound"
    node.put(volume_snapshot())
    assert "ResourceExhausted: a copy takes" in node.snap().status.error.message
    node.gone("PersistentVolumeClaim", "big")
    assert node.snap().status.ready_to_use and node.snap().status.error is None
    left = backends.room(node.root) // MIB
    assert rest + 24 - 48 - 4 < left < rest + 24 - 48 + 4


@pytest.mark.parametrize("left", [0, 2], ids=["for its record", "for its data"])
def test_a_disk_that_is_full_is_said_and_the_copy_made_when_it_is_not(
    bed: Bed, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unasked(*_: Any) -> Any:
        return contextlib.nullcontext()

    monkeypatch.setattr(backends, "copying", unasked)  # it was filled after that was asked
    with small_disk(bed, 24) as disk:
        node = site(disk / "root")
        (node.data("pvc-u1") / "file").write_bytes(os.urandom(5 * MIB))
        filler, spare = disk / "filler", disk / "spare"
        spare.write_bytes(bytes(left * MIB))
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(MIB)):
                pass
        spare.unlink()
        node.put(volume_snapshot())
        assert "No space left" in node.snap().status.error.message and not node.snap().status.ready_to_use
        assert list(node.root.glob("copies/*")) == [], "others need the room"
        filler.unlink()
        node.run()
        assert node.snap().status.ready_to_use and node.snap().status.error is None
        copy = node.root / "snapshots/data/snapshot-uid-s/file"
        assert digest(copy) == digest(node.data("pvc-u1") / "file")


def test_a_subvolume_is_copied_at_once_with_its_limit(on_btrfs: Path) -> None:
    node = site(on_btrfs / "root", "btrfs", "32Mi")
    file = node.data("pvc-u1") / "tree" / "file"
    file.write_bytes(os.urandom(8 * MIB))
    node.put(volume_snapshot(), restored("r", "64Mi"), restored("k", "32Mi", dataSource=CLONE))
    for name, size in (("r", 64), ("k", 32)):
        volume = node.data(f"pvc-uid-{name}")
        assert digest(volume / "tree" / "file") == digest(file) and shared(volume / "tree" / "file")
        here = backends.Place(node.root, f"volumes/{volume.name}")
        found = backends.BACKENDS["btrfs"].usage(here)
        assert found is not None and found.total == size * MIB
    for claim in ("c", "r", "k"):
        node.gone("PersistentVolumeClaim", claim)
    node.gone("VolumeSnapshot", "s")
    assert run("btrfs", "subvolume", "list", on_btrfs) == ""


# --- killed anywhere ------------------------------------------------------------------------------------


def killed(file: Path, step: int, work: Callable[[], Any]) -> bool:
    """Do this in a process that dies at its ``step``-th operation; whether it did."""
    pid = os.fork()
    if pid == 0:
        death = Death(file)
        for place in OPERATIONS:
            death.sow(*place)
        file.write_text(str(step))
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    file.unlink(missing_ok=True)
    return os.WIFSIGNALED(status)


def everything(node: Site) -> list[str]:
    """Every file, and every volume, snapshot and half a copy."""
    homes = [node.root / name for name in ("volumes", "snapshots/data", "copies")]
    found = [p for p in node.root.rglob("*") if p.is_file() or p.parent in homes]
    return sorted(str(p.relative_to(node.root)) for p in found if p.name != "qgroups.gone")


def wanted(node: Site, make: bool) -> Callable[[], None]:
    """What the drivers are to do next, as one call."""
    snapshot = node.world.snapshot()
    taken = [f for s in node.snapshots.scopes(None, snapshot) for f in node.snapshots.render(s, snapshot)]
    data = [f for s in node.room.scopes(None, snapshot) for f in node.room.render(s, snapshot)]

    def work() -> None:
        for driver, facts in ((node.taker, taken), (node.driver, data)):
            for fact in facts:
                patient(driver, fact)

    assert taken or not make
    return work


def patient(driver: Any, fact: Any) -> None:
    for _ in range(100):
        try:
            return driver.apply(Plan(add=(fact,)))
        except NetplaneError:
            continue
    raise AssertionError(fact)


BACKENDS = ["directory", "image", "tmpfs", "btrfs"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_while_it_copies_or_removes(
    request: pytest.FixtureRequest, bed: Bed, tmp_path: Path, backend: str, stride: int
) -> None:
    """Taken, restored, removed: each killed here and there, and finished by who comes after."""
    base = request.getfixturevalue("on_btrfs") / "root" if backend == "btrfs" else bed.root
    node = site(base, backend)
    marker = tmp_path / "death"
    if backend != "image":
        inside = node.data("pvc-u1") / ("" if backend == "directory" else "tree")
        (inside / "file").write_bytes(os.urandom(100_000))
    before = everything(node)
    counts = dict.fromkeys(("take", "restore", "remove"), 0)
    for step in range(1, STEPS, stride):
        died = False
        for what in counts:
            if what == "take":
                node.world.put(parse(volume_snapshot()))
            elif what == "restore":
                node.world.put(parse(restored("r")))
            else:
                for key in (node.snap().key, node.world.pvc("r").key):
                    node.world.delete(key)
            node.world.settle(*node.deciders)
            fell = killed(marker, step, wanted(node, what == "take"))
            counts[what] += fell
            died = died or fell
            node = Site(node.world, node.root).run()
            if what == "restore":
                assert node.world.pvc("r").status.phase == "Bound"
                copies = list(node.data("pvc-uid-r").rglob("file"))
                if backend != "image":
                    assert digest(copies[0]) == digest(inside / "file"), f"{what} at step {step}"
        assert everything(node) == before, f"killed at step {step}"
        if not died:
            break
    assert all(counts.values()), counts

"""The power goes after the data of a store's object was said to be there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netplane.model.storage_facts import Data
from storageplane import backends
from storageplane.host.trash import Trash

from ..csi.conftest import MIB, tidy
from ..csi.test_power import Disk

pytestmark = pytest.mark.root


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    yield Disk(tmp_path)
    tidy(tmp_path)


@pytest.mark.parametrize("backend", ["directory", "image"])
def test_a_copy_outlives_the_machine(disk: Disk, backend: str) -> None:
    """Its source may be removed when it is whole."""
    source = Data(path="volumes/v", backend=backend, size=4 * MIB, fstype="ext4" * (backend == "image"))
    backends.ensure(disk.top, source)
    if backend == "directory":
        (disk.top / "volumes" / "v" / "word").write_text("precious")
    os.sync()
    copy = Data(
        path="snapshots/s", backend=backend, size=source.size, fstype=source.fstype, source=source.path
    )
    for _ in range(2):  # done already: fine
        backends.fill(disk.top, copy)
        with disk.cut() as left:
            name = "word" if backend == "directory" else "image"
            here, there = (top / "snapshots" / "s" / name for top in (disk.top, left))
            assert here.read_bytes() == there.read_bytes()


def test_what_is_back_from_the_trash_outlives_the_machine(disk: Disk) -> None:
    trash = Trash(disk.top, "trash", 60)
    backends.ensure(disk.top, Data(path="volumes/v", backend="directory", size=0))
    (disk.top / "volumes" / "v" / "word").write_text("precious")
    trash.take("volumes/v")
    item = trash.find("v").item
    (disk.top / "trash.notes" / f"{item}.json").unlink()  # whose removal would sync more than itself
    os.sync()
    trash.restore(item, "volumes/v")
    with disk.cut() as left:
        assert (left / "volumes" / "v" / "word").read_text() == "precious"

"""The bed of each test: see bed.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storageplane.host import loops, mountinfo

from .bed import Bed, run


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(Path(os.path.realpath(tmp_path)))
    yield made
    for mounted in reversed(mountinfo.beneath(str(made.base))):  # what a failed test left
        run("umount", "-l", mounted.point, check=False)
    for device, _ in loops.backed_by(made.base):
        run("losetup", "-d", device, check=False)

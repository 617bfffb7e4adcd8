"""Directories on file systems of other kinds than the disk's own."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from storageplane.host import tree

from ..programs import program

pytestmark = pytest.mark.root


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Path]:
    """A file system that knows no flags of rename."""
    with program(sys.executable, "-m", "tests.mounts.fuse_tree", tmp_path) as server:
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n":
            pytest.skip("no FUSE here (CONFIG_FUSE_FS, /dev/fuse)")
        yield tmp_path
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_directory_is_made_where_rename_has_no_flags(plain: Path) -> None:
    for _ in range(2):
        tree.make(plain, "a/b", 0o750, (5, 6))
        made = os.stat(plain / "a" / "b")
        assert (stat.S_IMODE(made.st_mode), made.st_uid, made.st_gid) == (0o750, 5, 6)
        assert stat.S_IMODE(os.stat(plain / "a").st_mode) == 0o755
    for left in (".a.new", "a/.b.new"):
        assert not (plain / left).exists()

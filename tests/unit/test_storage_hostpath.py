"""hostPath: all types, each against everything that can stand there."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from netplane.model.errors import Invalid
from netplane.model.storage_facts import HostPath
from storageplane.host import hostpath

pytestmark = pytest.mark.root
KINDS = {"Directory", "File", "Socket", "CharDevice", "BlockDevice"}


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """One of each kind."""
    found = {kind: tmp_path / kind for kind in KINDS}
    found["Directory"].mkdir()
    found["File"].touch()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(found["Socket"]))
    server.close()
    os.mknod(found["CharDevice"], stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(found["BlockDevice"], stat.S_IFBLK | 0o600, os.makedev(7, 200))
    return found


@pytest.mark.parametrize("there", sorted(KINDS))
@pytest.mark.parametrize("wanted", sorted(KINDS | {"DirectoryOrCreate", "FileOrCreate", ""}))
def test_the_type_must_be_what_stands_there(places: dict[str, Path], wanted: str, there: str) -> None:
    fact = HostPath(path=str(places[there]), type=wanted)
    if wanted.removesuffix("OrCreate") in ("", there):
        hostpath.ensure(fact)
        return
    with pytest.raises(Invalid, match=r"hostPath type check failed: .* it must be an? "):
        hostpath.ensure(fact)


@pytest.mark.parametrize("wanted", sorted(KINDS))
def test_what_must_exist_is_not_made(tmp_path: Path, wanted: str) -> None:
    with pytest.raises(Invalid, match="does not exist"):
        hostpath.ensure(HostPath(path=str(tmp_path / "x"), type=wanted))
    assert not (tmp_path / "x").exists()


def test_no_type_is_no_check(tmp_path: Path) -> None:
    hostpath.ensure(HostPath(path=str(tmp_path / "x")))
    assert not (tmp_path / "x").exists()


def test_directories_come_with_parents_and_0755_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        hostpath.ensure(HostPath(path=str(tmp_path / "a/b"), type="DirectoryOrCreate"))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o755


def test_files_come_without_parents_and_0644(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="makes no parents"):
        hostpath.ensure(HostPath(path=str(tmp_path / "a/b"), type="FileOrCreate"))
    hostpath.ensure(HostPath(path=str(tmp_path / "b"), type="FileOrCreate"))
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o644


def test_what_exists_keeps_its_content_and_mode(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    (tmp_path / "f").chmod(0o600)
    hostpath.ensure(HostPath(path=str(tmp_path / "f"), type="FileOrCreate"))
    assert (tmp_path / "f").read_text() == "x"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o600


@pytest.mark.parametrize("path", ["relative", "/tmp/../etc", "/.."])
def test_a_path_with_dots_or_without_root_is_refused(path: str) -> None:
    with pytest.raises(Invalid, match="absolute path"):
        hostpath.ensure(HostPath(path=path, type="DirectoryOrCreate"))


def test_a_link_is_followed(places: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(places["Directory"])
    hostpath.ensure(HostPath(path=str(tmp_path / "link"), type="Directory"))

"""The plain case of a bind: it does what is plain, and leaves everything else as it found it.

BASE/data/v/tree ── bound ─> BASE/stage ── pointed ─> BASE/target
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from storageplane.host import binds, mountinfo, tree

from ..descriptors import held
from .bed import Bed, run

pytestmark = pytest.mark.root


@pytest.fixture
def data(bed: Bed) -> Iterator[int]:
    (bed.base / "data" / "v" / "tree").mkdir(parents=True)
    (bed.base / "data" / "v" / "tree" / "word").write_text("ours")
    (bed.base / "stage").mkdir()
    fd = os.open(bed.base / "data", os.O_PATH)
    yield fd
    os.close(fd)


def points(bed: Bed) -> list[str]:
    return [os.path.relpath(m.point, bed.base) for m in mountinfo.beneath(str(bed.base))]


def test_bound_shown_and_taken_away(bed: Bed, data: int) -> None:
    stage, target = bed.base / "stage", bed.base / "target"
    assert binds.bound(data, "v/tree", str(stage))
    assert binds.pointed(str(stage), str(target), True)
    assert (target / "word").read_text() == "ours"
    found = {os.path.relpath(m.point, bed.base): m for m in mountinfo.beneath(str(bed.base))}
    assert found["target"].read_only and not found["stage"].read_only
    assert {m.propagation for m in found.values()} == {"private"}
    assert binds.unbound(str(target), point=True) and not target.exists()
    assert binds.unbound(str(stage), point=False) and stage.is_dir()
    assert points(bed) == []


def nothing(_: Bed) -> None:
    pass


def link_at_target(bed: Bed) -> None:
    (bed.base / "stage").rmdir()
    (bed.base / "stage").symlink_to(bed.base / "host")


def link_in_the_data(bed: Bed) -> None:
    run("mv", str(bed.base / "data/v/tree"), str(bed.base / "data/v/real"))
    (bed.base / "data" / "v" / "tree").symlink_to(bed.base / "host")


def mount_in_the_data(bed: Bed) -> None:
    run("mount", "--bind", str(bed.base / "host"), str(bed.base / "data/v/tree"))


def file_at_target(bed: Bed) -> None:
    (bed.base / "stage").rmdir()
    (bed.base / "stage").touch()


def mounted_already(bed: Bed) -> None:
    run("mount", "--bind", str(bed.base / "host"), str(bed.base / "stage"))


def no_data(bed: Bed) -> None:
    run("rm", "-r", str(bed.base / "data/v"))


def no_target(bed: Bed) -> None:
    (bed.base / "stage").rmdir()


NOT_PLAIN = [
    link_at_target, link_in_the_data, mount_in_the_data, file_at_target, mounted_already, no_data, no_target,
]  # fmt: skip


@pytest.mark.parametrize("strange", NOT_PLAIN)
def test_what_is_not_plain_is_left_alone(bed: Bed, data: int, strange: Callable[[Bed], None]) -> None:
    strange(bed)
    before, open_before = (points(bed), bed.tree()), held()
    assert not binds.bound(data, "v/tree", str(bed.base / "stage"))
    assert (points(bed), bed.tree()) == before
    assert held() == open_before


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_a_point_that_is_there_is_somebody_s(bed: Bed, data: int, kind: str) -> None:
    assert binds.bound(data, "v/tree", str(bed.base / "stage"))
    target = bed.base / "target"
    if kind == "directory":
        target.mkdir()
    elif kind == "file":
        target.touch()
    else:
        target.symlink_to(bed.base / "host")
    assert not binds.pointed(str(bed.base / "stage"), str(target), False)
    assert points(bed) == ["stage"] and os.path.lexists(target)


def test_a_link_on_the_way_is_refused(bed: Bed, data: int) -> None:
    assert binds.bound(data, "v/tree", str(bed.base / "stage"))
    (bed.base / "way").symlink_to(bed.base / "host")
    assert not binds.pointed(str(bed.base / "stage"), str(bed.base / "way" / "target"), False)
    assert list((bed.base / "host").iterdir()) == []


def test_what_is_mounted_twice_or_filled_stays_for_a_closer_look(bed: Bed, data: int) -> None:
    stage, target = bed.base / "stage", bed.base / "target"
    assert binds.bound(data, "v/tree", str(stage)) and binds.pointed(str(stage), str(target), False)
    run("mount", "--bind", str(bed.base / "host"), str(target))
    assert not binds.unbound(str(target), point=True)
    assert points(bed).count("target") == 1 and target.is_dir()
    run("umount", str(target))
    (target / "somebody's").touch()
    assert not binds.unbound(str(target), point=True)
    assert (target / "somebody's").exists()


def test_a_busy_mount_stays(bed: Bed, data: int) -> None:
    assert binds.bound(data, "v/tree", str(bed.base / "stage"))
    with open(bed.base / "stage" / "word"):
        assert not binds.unbound(str(bed.base / "stage"), point=False)
    assert points(bed) == ["stage"]


# --- a directory made whole -----------------------------------------------------------------------


def made(at: int) -> bool:
    return tree.made_whole(at, "new", 0o700, ("tree", 0o777))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_its_modes_are_exact(bed: Bed, data: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert made(data)
    finally:
        os.umask(before)
    home = bed.base / "data" / "new"
    assert home.stat().st_mode & 0o7777 == 0o700 and (home / "tree").stat().st_mode & 0o7777 == 0o777


def test_one_that_holds_something_stays_and_what_a_crash_left_goes(bed: Bed, data: int) -> None:
    home, fresh = bed.base / "data" / "new", bed.base / "data" / ".new.new"
    (home / "tree").mkdir(parents=True)
    (home / "tree" / "word").write_text("somebody's")
    assert not made(data) and (home / "tree" / "word").exists() and not fresh.exists()
    (fresh / "tree").mkdir(parents=True)
    assert not made(data) and not fresh.exists()


def test_a_link_or_a_file_of_its_name_is_not_replaced(bed: Bed, data: int) -> None:
    home = bed.base / "data" / "new"
    home.symlink_to(bed.base / "host")
    assert not made(data) and home.is_symlink() and list((bed.base / "host").iterdir()) == []
    home.unlink()
    home.touch()
    assert not made(data) and home.is_file()


def test_only_what_is_hollow_goes(bed: Bed, data: int) -> None:
    assert not tree.hollowed(data, "v", ("tree",))
    assert (bed.base / "data" / "v" / "tree" / "word").exists()
    (bed.base / "data" / "v" / "tree" / "word").unlink()
    run("mount", "--bind", str(bed.base / "host"), str(bed.base / "data/v/tree"))
    assert not tree.hollowed(data, "v", ("tree",))
    run("umount", str(bed.base / "data/v/tree"))
    assert tree.hollowed(data, "v", ("tree",)) and not (bed.base / "data" / "v").exists()

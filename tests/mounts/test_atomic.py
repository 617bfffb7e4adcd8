"""The atomic writer: whole old or whole new, whatever step a kill falls on, and nothing left by the next.

volume/key -> ..data/key      volume/..data -> ..<time>.<number>
"""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from netplane.model.storage_facts import File, Payload
from storageplane.host import atomic

pytestmark = pytest.mark.root
CALLS = ("mkdir", "open", "fchmod", "fchown", "fsync", "symlink", "rename", "unlink", "rmdir")


def payload(gid: int | None = None, mode: int = 0o644, **files: str) -> Payload:
    """``a__b="x"``: the path a/b."""
    shown = tuple(File(k.replace("__", "/"), mode, v.encode()) for k, v in sorted(files.items()))
    return Payload(path="v", files=shown, gid=gid, memory=False)


OLD = payload(same="1", gone="1", deep__one="1", deep__two="1")
NEW = payload(same="2", fresh="2", deep__one="2", other__three="2")


@contextmanager
def volume(path: Path) -> Iterator[int]:
    path.mkdir(exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def write(path: Path, wanted: Payload) -> None:
    with volume(path) as at:
        atomic.write(at, wanted)


def shown(path: Path) -> dict[str, str]:
    """What a user sees: every file that can be read, not by the volume's own names."""
    found = {}
    for top in sorted(p for p in path.iterdir() if not p.name.startswith("..")):
        files = [f for f in top.rglob("*") if f.is_file()] if top.is_dir() else [top] if top.exists() else []
        found.update({str(f.relative_to(path)): f.read_text() for f in files})
    return found


def content(wanted: Payload) -> dict[str, str]:
    return {f.path: f.content.decode() for f in wanted.files}


def clean(path: Path) -> None:
    """One set, and no name of the writer's own but ..data."""
    own = sorted(n for n in os.listdir(path) if n.startswith(".."))
    assert len(own) == 2 and "..data" in own, own
    assert os.readlink(path / "..data") in own


def killed_at(step: int, act: Callable[[], None]) -> bool:
    """Run in a child that is killed before its ``step``-th call of the kernel; whether it was."""
    child = os.fork()
    if child == 0:
        left = iter(range(step, -1, -1))

        def dying(real: Any) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)

            return call

        for name in CALLS:
            setattr(os, name, dying(getattr(os, name)))
        act()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_files_appear_and_change_together(tmp_path: Path) -> None:
    place = tmp_path / "v"
    write(place, OLD)
    assert shown(place) == content(OLD)
    write(place, NEW)
    assert shown(place) == content(NEW)
    assert not os.path.lexists(place / "gone")
    clean(place)


@pytest.mark.parametrize("first", [True, False], ids=["first", "update"])
def test_killed_at_every_step_it_is_whole_and_the_next_write_finishes(tmp_path: Path, first: bool) -> None:
    for step in range(200):
        place = tmp_path / f"v{step}"
        if not first:
            write(place, OLD)
        if not killed_at(step, lambda at=place: write(at, NEW)):
            break
        if place.exists():
            seen, whole = shown(place), [{} if first else content(OLD), content(NEW)]
            assert any(seen.items() <= w.items() for w in whole), f"step {step}: half of both"
            if not first:
                assert seen["same"] == seen["deep/one"]
        write(place, NEW)
        assert shown(place) == content(NEW), f"step {step}"
        clean(place)
    assert 20 < step < 199, "the kills met no step, or never ended"


def test_a_reader_sees_one_version_only(tmp_path: Path) -> None:
    place, stop, torn = tmp_path / "v", threading.Event(), []
    versions = [payload(a=str(n), b=str(n), c=str(n)) for n in range(40)]
    write(place, versions[0])

    def read() -> None:
        while not stop.is_set():
            try:
                at = os.open(place / "..data", os.O_RDONLY | os.O_DIRECTORY)
                seen = {Path(f"/proc/self/fd/{at}/{name}").read_text() for name in "abc"}
                os.close(at)
            except FileNotFoundError:
                continue  # this set is gone: a newer one is there
            if len(seen) != 1:
                torn.append(seen)

    reader = threading.Thread(target=read)
    reader.start()
    for version in versions:
        write(place, version)
    stop.set()
    reader.join()
    assert torn == []


def test_the_same_again_changes_nothing_but_what_is_missing(tmp_path: Path) -> None:
    place = tmp_path / "v"
    write(place, OLD)
    before = os.readlink(place / "..data")
    (place / "same").unlink()
    (place / "stale").symlink_to("..data/stale")
    (place / "..data_tmp").symlink_to("nowhere")
    (place / "..2020_01_01_00_00_00.1").mkdir()
    (place / "..2020_01_01_00_00_00.1/leaked").write_text("x")
    write(place, OLD)
    assert shown(place) == content(OLD)
    assert os.readlink(place / "..data") == before
    clean(place)
    assert not os.path.lexists(place / "stale")


@pytest.mark.parametrize(
    "change",
    [
        lambda at: (at / "..data/same").write_text("y"),
        lambda at: (at / "..data/same").chmod(0o600),
        lambda at: (at / "..data/more").write_text("y"),
        lambda at: (at / "..data/gone").unlink(),
        lambda at: os.chown(at / "..data/same", 0, 5),
        lambda at: (at / "..data").unlink(),
    ],
    ids=["content", "mode", "more", "less", "group", "pointer"],
)
def test_what_differs_in_any_way_is_written_again(tmp_path: Path, change: Callable[[Path], Any]) -> None:
    place = tmp_path / "v"
    write(place, OLD)
    change(place)
    write(place, OLD)
    assert shown(place) == content(OLD)
    have = (place / "same").stat()
    assert (stat.S_IMODE(have.st_mode), have.st_gid) == (0o644, 0)
    clean(place)


def test_modes_are_exact_whatever_the_umask_and_a_group_may_read(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        write(tmp_path / "a", payload(mode=0o640, x="1", d__y="1"))
        write(tmp_path / "b", payload(gid=777, mode=0o400, x="1", d__y="1"))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a/x").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "a/d").stat().st_mode) == 0o755
    for path, mode in (("x", 0o440), ("d/y", 0o440), ("d", 0o2755)):
        have = (tmp_path / "b" / path).stat()
        assert (stat.S_IMODE(have.st_mode), have.st_gid) == (mode, 777), path


def test_a_fact_shows_nothing_of_its_content() -> None:
    secret = payload(x="hunter2")
    assert "hunter2" not in f"{secret!r} {secret} {secret.key} {secret.mark}"

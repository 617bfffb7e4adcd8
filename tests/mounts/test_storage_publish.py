"""Publishing on the real kernel, in the test run's own mount namespace.

ROOT/volumes/pvc-…        a claim's directory     ─┐
ROOT/pods/UID/…/cache     emptyDir                 ├─ bound at ─> TARGET/<volume>
ROOT/pods/UID/…/memory    emptyDir, tmpfs          │
HOST                      hostPath                ─┘
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from netplane.model.errors import Invalid, KernelError, Unavailable
from netplane.model.facts import Plan
from netplane.model.pods import Pod
from storageplane.claims.bind import Binder
from storageplane.host import tree
from storageplane.host.mounts import Mounts
from storageplane.pods import publish
from storageplane.pods.journal import Journal
from tests.sequences.storage_world import World, pv, pvc

from .bed import Bed, bound, claim, empty, host, mounts

pytestmark = pytest.mark.root


def everything(bed: Bed) -> Pod:
    memory = empty("memory", medium="Memory", sizeLimit="1Mi")
    return bed.pod(empty("cache"), memory, host(bed.host), claim())


def test_every_volume_shows_at_its_place_and_nothing_is_left(bed: Bed) -> None:
    snapshot = bound(bed)
    before = bed.tree()
    bed.publish(everything(bed), snapshot)
    for name in ("cache", "memory", "host", "data"):
        (bed.target / name / "file").write_text(name)
        assert str(bed.target / name) in mounts()
    assert (bed.host / "file").read_text() == "host"
    assert (bed.root / "volumes/pvc-u1/file").read_text() == "data"
    assert bed.unpublish() == 1
    bed.clean(
        sorted([*before, "host/file", "root/volumes", "root/volumes/pvc-u1", "root/volumes/pvc-u1/file"])
    )
    assert bed.unpublish() == 0


def test_data_in_a_claim_survives_its_pod_and_an_empty_dir_does_not(bed: Bed) -> None:
    snapshot = bound(bed)
    bed.publish(bed.pod(claim(), empty("cache")), snapshot)
    for name in ("data", "cache"):
        (bed.target / name / "kept").write_text("x")
    bed.unpublish()
    bed.publish(bed.pod(claim(), empty("cache"), uid="uid-2"), snapshot)
    assert (bed.target / "data/kept").exists()
    assert not (bed.target / "cache/kept").exists()
    bed.unpublish()


def test_publishing_again_keeps_what_is_there(bed: Bed) -> None:
    pod = bed.pod(empty("cache"), empty("memory", medium="Memory"))
    bed.publish(pod)
    for name in ("cache", "memory"):
        (bed.target / name / "kept").write_text("x")
    (bed.target / "cache").chmod(0o700)
    count = len(bed.points())
    bed.publish(pod)
    assert len(bed.points()) == count
    assert (bed.target / "cache/kept").exists() and (bed.target / "memory/kept").exists()
    assert stat.S_IMODE((bed.target / "cache").stat().st_mode) == 0o700
    bed.unpublish()


def test_an_empty_dir_is_0777_whatever_the_umask(bed: Bed) -> None:
    old = os.umask(0o077)
    try:
        bed.publish(bed.pod(empty("cache"), empty("memory", medium="Memory")))
    finally:
        os.umask(old)
    for name in ("cache", "memory"):
        assert stat.S_IMODE((bed.target / name).stat().st_mode) == 0o777
    bed.unpublish()


@pytest.mark.parametrize(
    ("limit", "memory", "size"),
    [("1Mi", None, 1 << 20), ("8Mi", "2Mi", 2 << 20), (None, "2Mi", 2 << 20), ("64Ki", "2Mi", 64 << 10)],
)
def test_memory_has_the_least_of_its_limits(
    bed: Bed, limit: str | None, memory: str | None, size: int
) -> None:
    source = {"medium": "Memory", **({"sizeLimit": limit} if limit else {})}
    resources = {"limits": {"memory": memory}} if memory else {}
    bed.publish(bed.pod(empty("m", **source), containers=[{"name": "a", "resources": resources}]))
    found = os.statvfs(bed.target / "m")
    assert found.f_blocks * found.f_frsize == size
    with pytest.raises(OSError, match="No space left") as caught:
        (bed.target / "m/big").write_bytes(b"x" * (size + 4096))
    assert caught.value.errno == errno.ENOSPC
    bed.unpublish()


def test_a_read_only_claim_cannot_be_written_and_its_source_can(bed: Bed) -> None:
    snapshot = bound(bed)
    done = bed.publish(bed.pod(claim(read_only=True)), snapshot)
    with pytest.raises(OSError, match="Read-only file system"):
        (bed.target / "data/file").write_text("x")
    (bed.root / "volumes/pvc-u1/file").write_text("x")
    assert done.read_only == {"data"}
    bed.unpublish()


@pytest.mark.parametrize("source", ["hostPath", "local"])
def test_a_static_volume_shows_its_path(bed: Bed, source: str) -> None:
    if source == "local":
        from tests.sequences.storage_world import on_node

        snapshot = bound(bed, local={"path": str(bed.host)}, nodeAffinity=on_node("n1"))
    else:
        snapshot = bound(bed, hostPath={"path": str(bed.host)})
    bed.publish(bed.pod(claim()), snapshot)
    (bed.target / "data/file").write_text("x")
    bed.unpublish()
    assert (bed.host / "file").read_text() == "x"


def test_a_volume_of_another_node_is_refused(bed: Bed) -> None:
    from tests.sequences.storage_world import on_node

    snapshot = bound(bed, local={"path": str(bed.host)}, nodeAffinity=on_node("n2"))
    with pytest.raises(Invalid, match="not reachable from node n1"):
        bed.publish(bed.pod(claim()), snapshot)


def test_an_unbound_claim_says_why(bed: Bed) -> None:
    world = World(pv("small", "1Mi"), pv("other", accessModes=["ReadOnlyMany"]), pvc()).settle(Binder())
    with pytest.raises(Unavailable) as caught:
        bed.publish(bed.pod(claim()), world.snapshot())
    for words in ("is Pending: FailedBinding", "small is too small: 1Mi of 1Gi", "other does not offer"):
        assert words in str(caught.value)


def test_a_read_write_once_pod_claim_serves_one_pod(bed: Bed) -> None:
    world = World(
        pv("v", accessModes=["ReadWriteOncePod"], hostPath={"path": str(bed.host)}),
        pvc(accessModes=["ReadWriteOncePod"]),
    )
    snapshot = world.settle(Binder()).snapshot()
    bed.publish(bed.pod(claim()), snapshot)
    with pytest.raises(Unavailable, match="published for pod default/p"):
        bed.publish(bed.pod(claim(), uid="uid-2", name="q"), snapshot, bed.base / "other")
    bed.unpublish()


# --- whole or nothing -------------------------------------------------------------------------------


def test_a_failure_leaves_nothing(bed: Bed) -> None:
    before = bed.tree()
    missing = host(bed.base / "missing", "Directory")
    with pytest.raises(Invalid, match="does not exist; it must be a directory"):
        bed.publish(bed.pod(empty("cache"), empty("memory", medium="Memory"), missing))
    bed.clean(before)


@pytest.mark.parametrize("steps", range(1, 19))
def test_killed_at_any_step_unpublish_leaves_nothing(bed: Bed, steps: int) -> None:
    snapshot = bound(bed)
    before = bed.tree()
    child = os.fork()
    if child == 0:
        try:
            bed.driver = _Dying(bed.root, steps)
            bed.publish(everything(bed), snapshot)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    bed.unpublish()
    assert bed.points() == bed.mounts
    kept = {"root/volumes", "root/volumes/pvc-u1"}
    assert [p for p in bed.tree() if p not in kept] == before


class _Dying(Mounts):
    """Killed before the n-th fact is made."""

    def __init__(self, root: Path, steps: int) -> None:
        super().__init__(root)
        self.steps = steps

    def _add(self, fact: Any) -> None:
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._add(fact)


@pytest.mark.parametrize("steps", range(1, 14))
def test_killed_while_unpublishing_the_next_one_finishes(bed: Bed, steps: int) -> None:
    before = bed.tree()
    bed.publish(bed.pod(empty("cache"), empty("memory", medium="Memory"), host(bed.host)))
    child = os.fork()
    if child == 0:
        try:
            done = Mounts(bed.root)
            count = iter(range(1, 100))
            remove = done._remove

            def dying(kind: str, path: str) -> None:
                if next(count) == steps:
                    os.kill(os.getpid(), signal.SIGKILL)
                remove(kind, path)

            done._remove = dying  # type: ignore[method-assign]
            publish.unpublish("default", "p", done)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    bed.unpublish()
    bed.clean(before)


def test_a_place_that_was_there_before_stays(bed: Bed) -> None:
    (bed.target / "cache").mkdir(parents=True)
    before = bed.tree()
    bed.publish(bed.pod(empty("cache")))
    bed.publish(bed.pod(empty("cache")))
    bed.unpublish()
    bed.clean(before)


def test_a_volume_in_use_is_refused_and_goes_later(bed: Bed) -> None:
    before = bed.tree()
    bed.publish(bed.pod(empty("cache")))
    with open(bed.target / "cache/open", "w"), pytest.raises(KernelError, match="still uses it"):
        bed.unpublish()
    bed.unpublish()
    bed.clean(before)


def test_another_target_is_refused_by_name(bed: Bed) -> None:
    bed.publish(bed.pod(empty("cache")))
    with pytest.raises(Invalid, match="is published at"):
        bed.publish(bed.pod(empty("cache")), target=bed.base / "elsewhere")
    with pytest.raises(Invalid, match="not at"):
        publish.unpublish("default", "p", bed.driver, str(bed.base / "elsewhere"))
    bed.unpublish()


# --- links and mounts in the way --------------------------------------------------------------------


def test_a_link_as_target_is_refused(bed: Bed) -> None:
    bed.target.mkdir(parents=True)
    (bed.target / "cache").symlink_to(bed.host)
    with pytest.raises(Invalid, match="symbolic link"):
        bed.publish(bed.pod(empty("cache")))
    assert not any(str(bed.host) == m for m in mounts())


def test_a_link_put_over_the_target_later_is_not_followed(bed: Bed) -> None:
    (bed.host / "cache").mkdir()
    bed.publish(bed.pod(empty("cache")))
    bed.unpublish()
    record = [("directory", str(bed.target)), ("point", f"{bed.target}/cache")]
    bed.target.parent.mkdir(exist_ok=True)
    bed.target.symlink_to(bed.host)
    with pytest.raises(KernelError) as caught:
        bed.driver.apply(Plan(remove=tuple(record)))
    assert caught.value.errno == errno.ELOOP
    assert (bed.host / "cache").exists() and bed.target.is_symlink()


def test_removal_deletes_links_and_never_what_they_point_to(bed: Bed) -> None:
    (bed.host / "precious").write_text("x")
    bed.publish(bed.pod(empty("cache")))
    (bed.target / "cache/link").symlink_to(bed.host)
    (bed.target / "cache/deep").mkdir()
    (bed.target / "cache/deep/link").symlink_to(bed.host / "precious")
    bed.unpublish()
    assert (bed.host / "precious").read_text() == "x"


def test_a_root_directory_swapped_for_a_link_is_refused(bed: Bed) -> None:
    (bed.host / "precious").mkdir()
    bed.publish(bed.pod(empty("cache")), target=None)
    publish.unpublish("default", "p", bed.driver)
    (bed.root / "pods").rmdir()
    (bed.root / "pods").symlink_to(bed.host)
    with pytest.raises(KernelError):
        bed.driver.apply(Plan(remove=(("directory", "pods/precious"),)))
    assert (bed.host / "precious").exists()


def test_nothing_beneath_a_mount_is_removed(bed: Bed) -> None:
    from storageplane.host import tree

    (bed.host / "precious").write_text("x")
    inner = bed.root / "volumes/v/inner"
    inner.mkdir(parents=True)
    os.system(f"mount --bind {bed.host} {inner}")
    with pytest.raises(KernelError, match="is mounted in it"):
        tree.remove(bed.root, "volumes/v")
    os.system(f"umount {inner}")
    assert (bed.host / "precious").exists()
    tree.remove(bed.root, "volumes/v")
    assert not (bed.root / "volumes/v").exists()


def test_a_tree_deeper_than_descriptors_and_paths_reach_is_removed(bed: Bed) -> None:
    tree.make(bed.root, "volumes/v", 0o777)
    fd = os.open(bed.root / "volumes/v", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        fd, above = os.open("d", os.O_RDONLY, dir_fd=fd), fd
        os.close(above)
    os.close(fd)
    tree.remove(bed.root, "volumes/v")
    assert os.listdir(bed.root / "volumes") == []


@pytest.mark.parametrize(
    "name", ["x" * 129, "x" * 255, "é" * 127, "漢字 🙂", "a b\tc", "-rf", "a\nb", "a\\b"]
)
def test_a_target_of_any_name_works_and_goes(bed: Bed, name: str) -> None:
    before = bed.tree()
    done = bed.publish(bed.pod(empty("cache"), host(bed.host)), target=bed.base / name)
    (bed.base / name / "cache/file").write_text("x")
    assert done.paths["cache"] == str(bed.base / name / "cache")
    publish.unpublish("default", "p", bed.driver, str(bed.base / name))
    bed.clean(before)


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "/".join(["x" * 200] * 21)])
def test_a_target_that_is_no_name_is_refused_and_leaves_nothing(bed: Bed, name: str) -> None:
    before = bed.tree()
    with pytest.raises(KernelError, match="ENAMETOOLONG"):
        bed.publish(bed.pod(empty("cache")), target=bed.base / name)
    bed.clean(before)


def test_a_link_that_is_the_target_stands_for_the_place_it_had_then(bed: Bed) -> None:
    """It is resolved once: whoever points it elsewhere later moves nothing."""
    (bed.base / "real").mkdir()
    (bed.base / "link").symlink_to("real")
    before = bed.tree()
    pod = bed.pod(empty("cache"))
    done = bed.publish(pod, target=bed.base / "link")
    assert done.paths["cache"] == str(bed.base / "real/cache")
    (bed.base / "link").unlink()
    (bed.base / "link").symlink_to(bed.host)
    with pytest.raises(Invalid, match="is published at"):
        bed.publish(pod, target=bed.base / "link")
    publish.unpublish("default", "p", bed.driver)
    assert list(bed.host.iterdir()) == []
    bed.clean(before)


def test_a_target_in_our_own_root_is_refused(bed: Bed) -> None:
    with pytest.raises(Invalid, match="choose a place outside"):
        bed.publish(bed.pod(empty("cache")), target=bed.root / "pods/x")


@pytest.mark.parametrize("path", ["", "..", "a/../b", "/etc", "a//b", "a/./b", "nul\0"])
def test_a_path_that_leads_outside_is_refused(bed: Bed, path: str) -> None:
    from storageplane.host import tree

    with pytest.raises(Invalid):
        tree.remove(bed.root, path)


@pytest.mark.parametrize("uid", ["../../etc", "a/b", "", ".hidden", "x" * 200])
def test_a_uid_that_is_a_path_is_refused(bed: Bed, uid: str) -> None:
    with pytest.raises(Invalid):
        bed.publish(bed.pod(empty("cache"), uid=uid))


# --- propagation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "seen"), [("None", False), ("HostToContainer", True), ("Bidirectional", True)]
)
def test_mounts_of_the_host_reach_containers_that_ask(bed: Bed, mode: str, seen: bool) -> None:
    os.system(f"mount --bind {bed.host} {bed.host} && mount --make-shared {bed.host}")
    (bed.host / "later").mkdir()
    asks = [{"name": "a", "volumeMounts": [{"name": "host", "mountPath": "/h", "mountPropagation": mode}]}]
    bed.publish(bed.pod(host(bed.host), containers=asks))
    os.system(f"mount -t tmpfs tmpfs {bed.host}/later")
    assert os.path.ismount(bed.target / "host/later") is seen
    bed.unpublish()
    assert os.path.ismount(bed.host / "later"), "unpublishing must not unmount the host's own"
    os.system(f"umount {bed.host}/later; umount {bed.host}")
    assert bed.points() == bed.mounts


# --- the journal ------------------------------------------------------------------------------------


def test_a_damaged_record_is_named_and_refused(bed: Bed) -> None:
    bed.publish(bed.pod(empty("cache")))
    path = Journal(bed.root).folder / "uid-1.json"
    good = path.read_bytes()
    for bad in (
        b"",
        good[:40],
        good.replace(b"cache", b"cashe"),
        good.replace(b'"version":1', b'"version":9'),
    ):
        path.write_bytes(bad)
        with pytest.raises(Invalid, match=r"uid-1\.json"):
            bed.unpublish()
    path.write_bytes(good)
    assert bed.unpublish() == 1


def test_many_may_make_one_directory_at_once(tmp_path: Path) -> None:
    """Each finds it there, whoever was first, and what lies in it."""
    for turn in range(60):
        together = threading.Barrier(8)

        def make(number: int, turn: int = turn, together: threading.Barrier = together) -> None:
            together.wait()
            tree.make(tmp_path, f"a{turn}/b/c{number % 2}", 0o750)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(make, range(8)))
        assert sorted(p.name for p in (tmp_path / f"a{turn}" / "b").iterdir()) == ["c0", "c1"]
        assert [p.name for p in (tmp_path / f"a{turn}").iterdir()] == ["b"]

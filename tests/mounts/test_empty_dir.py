"""emptyDir with a limit: a file system of its own on disk, tmpfs, hugetlbfs.

ROOT/pods/UID/plugins/…/V/image ── loop ── ext4 at ROOT/pods/UID/volumes/…/V ── bound at ─> TARGET/V
"""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from netplane.model.errors import Invalid, KernelError, NetplaneError, Unavailable
from netplane.model.storage_facts import Data
from storageplane import backends
from storageplane.host import limited, loops, mountinfo, syscalls
from storageplane.host.mounts import Mounts

from .bed import Bed, container, empty, run

pytestmark = pytest.mark.root
MIB = 1 << 20


def fill(path: Path, size: int) -> int:
    """Write up to ``size`` bytes; how many there was room for."""
    done = 0
    with open(path, "wb", buffering=0) as file:
        while done < size:
            try:
                done += file.write(b"x" * min(65536, size - done))
            except OSError:
                break
    return done


@pytest.mark.parametrize("limit", ["64Ki", "1Mi", "16Mi", "50M"])
def test_what_fits_is_the_limit_and_hardly_more(bed: Bed, limit: str) -> None:
    size = {"64Ki": 65536, "1Mi": MIB, "16Mi": 16 * MIB, "50M": 50_000_000}[limit]
    before = bed.tree()
    bed.publish(bed.pod(empty("v", sizeLimit=limit)))
    assert size <= fill(bed.target / "v/big", 3 * size) <= size + 2 * limited.NEAR
    bed.unpublish()
    bed.clean(before)


def test_it_looks_like_a_new_directory(bed: Bed) -> None:
    old = os.umask(0o077)
    try:
        bed.publish(bed.pod(empty("v", sizeLimit="8Mi")))
    finally:
        os.umask(old)
    assert os.listdir(bed.target / "v") == []
    assert stat.S_IMODE((bed.target / "v").stat().st_mode) == 0o777
    bed.unpublish()


def test_what_is_deleted_can_be_written_again_and_the_disk_gets_it_back(bed: Bed) -> None:
    bed.publish(bed.pod(empty("v", sizeLimit="16Mi")))
    (image,) = bed.root.glob("pods/*/plugins/*/v/image")
    run("sync", "-f", bed.target / "v")
    little = image.stat().st_blocks
    for _ in range(2):
        assert fill(bed.target / "v/big", 15 * MIB) == 15 * MIB
        run("sync", "-f", bed.target / "v")
        assert image.stat().st_blocks * 512 > 14 * MIB
        (bed.target / "v/big").unlink()
        run("sync", "-f", bed.target / "v")
    assert image.stat().st_blocks < little + 2048
    bed.unpublish()


def test_publishing_again_keeps_the_content_and_the_users_mode(bed: Bed) -> None:
    pod = bed.pod(empty("v", sizeLimit="8Mi"))
    bed.publish(pod)
    (bed.target / "v/kept").write_text("x")
    (bed.target / "v").chmod(0o700)
    for mounted in reversed(mountinfo.beneath(str(bed.base))):
        run("umount", mounted.point)
    assert not (bed.target / "v/kept").exists()
    bed.publish(pod)
    assert (bed.target / "v/kept").read_text() == "x"
    assert stat.S_IMODE((bed.target / "v").stat().st_mode) == 0o700
    bed.unpublish()


def test_two_volumes_have_each_their_own(bed: Bed) -> None:
    bed.publish(bed.pod(empty("a", sizeLimit="1Mi"), empty("b", sizeLimit="4Mi")))
    assert fill(bed.target / "a/big", 8 * MIB) < 2 * MIB < fill(bed.target / "b/big", 8 * MIB) < 5 * MIB
    bed.unpublish()


@pytest.mark.parametrize("steps", range(1, 12))
def test_killed_at_any_step_unpublish_leaves_no_mount_loop_or_image(bed: Bed, steps: int) -> None:
    before = bed.tree()
    child = os.fork()
    if child == 0:
        left = iter(range(steps, -1, -1))

        class Dying(Mounts):
            def _add(self, fact: Any) -> None:
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                super()._add(fact)

        bed.driver = Dying(bed.root)
        bed.publish(bed.pod(empty("v", sizeLimit="4Mi")))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    bed.unpublish()
    bed.clean(before)


def test_killed_while_the_image_is_made_the_next_publication_makes_it_whole(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    image = bed.base / "image"
    child = os.fork()
    if child == 0:
        limited.make(image, MIB)
    os.waitpid(child, 0)
    monkeypatch.undo()
    assert not image.exists()
    limited.make(image, MIB)
    assert MIB <= limited.usable(image) <= MIB + limited.NEAR
    assert [p.name for p in bed.base.glob("image*")] == ["image"]


def test_without_mkfs_it_is_refused_by_name(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bed.tree()
    monkeypatch.setenv("PATH", str(bed.host))
    with pytest.raises(Unavailable, match=r"mkfs\.ext4 is needed \(Debian: e2fsprogs\)"):
        bed.publish(bed.pod(empty("v", sizeLimit="1Mi")))
    bed.clean(before)


def test_a_limit_that_no_file_has_is_refused_and_undone(bed: Bed) -> None:
    before = bed.tree()
    with pytest.raises(KernelError, match=r"make image .*File too large \(EFBIG\)"):
        bed.publish(bed.pod(empty("v", sizeLimit="8Ei")))
    bed.clean(before)


def test_an_image_that_no_file_is_as_large_as_is_refused(bed: Bed) -> None:
    """A claim of 8Ei whose class overcommits."""
    data = Data(path="volumes/v", backend="image", size=1 << 63, block=True, overcommit=True)
    with pytest.raises(KernelError, match="File too large"):
        backends.ensure(bed.root, data)


def test_a_disk_that_is_full_undoes_the_publication(bed: Bed) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", bed.root)
    with pytest.raises(NetplaneError):
        bed.publish(bed.pod(empty("v", sizeLimit="64Mi")))
    assert loops.backed_by(bed.base) == []
    assert [m for m in bed.points() if m not in bed.mounts] == [str(bed.root)]
    run("umount", bed.root)


# --- memory ---------------------------------------------------------------------------------------


def test_huge_pages_are_of_the_size_and_number_that_the_pod_has(bed: Bed) -> None:
    if not syscalls.knows("hugetlbfs"):
        pytest.skip("this kernel has no hugetlbfs (CONFIG_HUGETLBFS)")
    before = bed.tree()
    limits = {"limits": {"hugepages-2Mi": "8Mi", "memory": "64Mi"}}
    for medium in ("HugePages", "HugePages-2Mi"):
        bed.publish(bed.pod(empty("v", medium=medium), containers=[container(resources=limits)]))
        found = os.statvfs(bed.target / "v")
        assert (found.f_bsize, found.f_blocks * found.f_bsize) == (2 * MIB, 8 * MIB)
        assert stat.S_IMODE((bed.target / "v").stat().st_mode) == 0o777
        assert mountinfo.beneath(str(bed.target / "v"))[0].fstype == "hugetlbfs"
        bed.unpublish()
        bed.clean(before)


@pytest.mark.parametrize(
    ("medium", "resources", "said"),
    [
        ("HugePages", {}, "must name exactly one page size; they name none"),
        ("HugePages", {"hugepages-2Mi": "2Mi", "hugepages-1Gi": "1Gi"}, "they name 1Gi, 2Mi"),
        ("HugePages-1Gi", {"hugepages-2Mi": "2Mi"}, "no container of the pod has a limit of hugepages-1Gi"),
    ],
)
def test_huge_pages_that_nobody_asks_for_are_refused(
    bed: Bed, medium: str, resources: dict[str, str], said: str
) -> None:
    with pytest.raises(Invalid, match=said):
        bed.publish(
            bed.pod(empty("v", medium=medium), containers=[container(resources={"limits": resources})])
        )


def test_a_page_size_that_the_machine_lacks_is_said(bed: Bed) -> None:
    there = [int(p.name[10:-2]) for p in Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB")]
    if not there:
        pytest.skip("this kernel has no hugetlbfs (CONFIG_HUGETLBFS)")
    words = [f"{k >> 20}Gi" if k >> 20 else f"{k >> 10}Mi" if k >> 10 else f"{k}Ki" for k in sorted(there)]
    sizes = ", ".join(words[::-1])
    before = bed.tree()
    odd = [container(resources={"limits": {"hugepages-3Mi": "6Mi"}})]
    with pytest.raises(Invalid, match=f"no huge pages of 3Mi; it has {sizes}$"):
        bed.publish(bed.pod(empty("v", medium="HugePages"), containers=odd))
    bed.clean(before)

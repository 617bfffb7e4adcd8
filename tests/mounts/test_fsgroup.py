"""fsGroup and fsGroupChangePolicy: which volumes it concerns, and what it does to each entry."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from netplane.model.errors import KernelError
from storageplane.host import ownership

from .bed import Bed, bound, claim, empty, host, run, statically_bound

pytestmark = pytest.mark.root
GID = 4242
GROUP = {"securityContext": {"fsGroup": GID}}
SPARED = {"securityContext": {"fsGroup": GID, "fsGroupChangePolicy": "OnRootMismatch"}}
HERE = {
    "required": {
        "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]
    }
}


def look(path: Path) -> tuple[int, int]:
    """(group, mode) of an entry itself."""
    have = path.lstat()
    return have.st_gid, stat.S_IMODE(have.st_mode)


def planted(top: Path) -> None:
    """A tree as some program may have left it."""
    (top / "d/e").mkdir(parents=True)
    for name, mode in (("f", 0o600), ("d/x", 0o711), ("d/e/s", 0o4755)):
        (top / name).write_text("x")
        (top / name).chmod(mode)
    (top / "d").chmod(0o700)
    (top / "link").symlink_to("/etc/passwd")
    os.mkfifo(top / "pipe", 0o600)


def local(bed: Bed, read_only: bool = False, **spec: Any) -> None:
    source = statically_bound({"local": {"path": str(bed.host)}}, nodeAffinity=HERE)
    bed.publish(bed.pod(claim(read_only), **spec), source)


def test_everything_in_a_local_volume_gets_the_group(bed: Bed) -> None:
    planted(bed.host)
    passwd = look(Path("/etc/passwd"))
    local(bed, **GROUP)
    found = {p: look(bed.host / p) for p in (".", "f", "d", "d/x", "d/e", "d/e/s", "pipe")}
    assert found == {
        ".": (GID, 0o2775), "f": (GID, 0o660), "d": (GID, 0o2770), "d/x": (GID, 0o771),
        "d/e": (GID, 0o2775), "d/e/s": (GID, 0o4775), "pipe": (GID, 0o660),
    }  # fmt: skip
    assert look(bed.host / "link")[0] == GID and look(Path("/etc/passwd")) == passwd
    (bed.target / "data/later").write_text("x")
    assert look(bed.host / "later")[0] == GID
    bed.unpublish()


def test_on_root_mismatch_leaves_a_volume_that_fits(bed: Bed) -> None:
    planted(bed.host)
    os.chown(bed.host, 0, GID)
    bed.host.chmod(0o2770)
    local(bed, **SPARED)
    assert look(bed.host / "f") == (0, 0o600)
    bed.unpublish()
    bed.host.chmod(0o770)  # no setgid: it does not fit
    local(bed, **SPARED)
    assert look(bed.host / "f") == (GID, 0o660)
    (bed.host / "f").chmod(0o600)
    bed.unpublish()
    local(bed, **GROUP)  # Always is the default
    assert look(bed.host / "f") == (GID, 0o660)
    bed.unpublish()


def die_at(step: int) -> None:
    """From now on, be killed before the ``step``-th entry gets its group."""
    left, real = iter(range(step, -1, -1)), ownership._give

    def dying(fd: int, gid: int) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(fd, gid)

    ownership._give = dying


def test_killed_in_the_middle_on_root_mismatch_still_finishes(bed: Bed) -> None:
    planted(bed.host)
    for step in range(1, 9):
        os.chown(bed.host, 0, 0)
        child = os.fork()
        if child == 0:
            die_at(step)
            local(bed, **SPARED)
            os._exit(0)
        os.waitpid(child, 0)
        bed.unpublish()
        local(bed, **SPARED)
        assert all(look(p)[0] == GID for p in (bed.host, *bed.host.rglob("*"))), step
        bed.unpublish()
        for path in bed.host.rglob("*"):
            os.lchown(path, 0, 0)


@pytest.mark.parametrize("source", [{}, {"medium": "Memory"}, {"sizeLimit": "4Mi"}])
def test_an_empty_dir_gets_the_group(bed: Bed, source: dict[str, Any]) -> None:
    bed.publish(bed.pod(empty("v", **source), **GROUP))
    assert look(bed.target / "v") == (GID, 0o2777)
    (bed.target / "v/made").mkdir()
    assert look(bed.target / "v/made")[0] == GID
    bed.unpublish()


def test_a_provisioned_volume_gets_the_group(bed: Bed) -> None:
    bed.publish(bed.pod(claim(), **GROUP), bound(bed))
    assert look(bed.root / "volumes/pvc-u1") == (GID, 0o2777)
    bed.unpublish()


def test_host_paths_and_read_only_claims_keep_theirs(bed: Bed) -> None:
    planted(bed.host)
    before = {p: look(p) for p in bed.host.rglob("*")}
    bed.publish(bed.pod(host(bed.host), **GROUP))
    bed.unpublish()
    bed.publish(bed.pod(claim(), **GROUP), statically_bound({"hostPath": {"path": str(bed.host)}}))
    bed.unpublish()
    local(bed, read_only=True, **GROUP)
    bed.unpublish()
    assert {p: look(p) for p in bed.host.rglob("*")} == before


def test_publishing_again_leaves_what_the_user_changed(bed: Bed) -> None:
    pod = bed.pod(empty("v"), **GROUP)
    bed.publish(pod)
    (bed.target / "v/f").write_text("x")
    (bed.target / "v/f").chmod(0o600)
    bed.publish(pod)
    assert look(bed.target / "v/f") == (GID, 0o600)
    bed.unpublish()


def test_a_volume_that_another_pod_has_keeps_its_group(bed: Bed) -> None:
    """As kubelet: only the first pod on the node gives a local volume its group."""
    planted(bed.host)
    local(bed, **GROUP)
    source = statically_bound({"local": {"path": str(bed.host)}}, nodeAffinity=HERE)
    other = bed.pod(claim(), uid="uid-2", name="q", securityContext={"fsGroup": 5})
    bed.publish(other, source, bed.base / "other")
    assert look(bed.host / "f")[0] == GID
    bed.unpublish()
    from storageplane.pods import publish

    publish.unpublish("default", "q", bed.driver)


def test_another_mount_in_the_volume_is_not_entered(bed: Bed) -> None:
    (bed.host / "inner").mkdir()
    run("mount", "-t", "tmpfs", "-o", "mode=0700", "tmpfs", bed.host / "inner")
    (bed.host / "inner/f").write_text("x")
    local(bed, **GROUP)
    assert look(bed.host / "inner")[0] == look(bed.host / "inner/f")[0] == 0
    bed.unpublish()
    run("umount", bed.host / "inner")
    assert bed.points() == bed.mounts


def test_a_read_only_file_system_is_named(bed: Bed) -> None:
    run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", bed.host)
    with pytest.raises(KernelError, match=f"group {GID}.*EROFS"):
        local(bed, **GROUP)
    run("umount", bed.host)
    assert bed.points() == bed.mounts

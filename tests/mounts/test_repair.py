"""After a reboot, a dead server, a lost source: what is published comes back, and what stands is left alone.

FUSE at HOST ── bound at ─> TARGET/host      the server is killed: ENOTCONN at both
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netplane.model.codec import parse
from netplane.model.errors import Conflict, Invalid, KernelError, NetplaneError, Unavailable
from netplane.model.facts import Plan
from netplane.model.snapshot import Snapshot
from netplane.model.storage_facts import NetworkMount
from storageplane.host import helper, loops, mountinfo
from storageplane.host.mounts import Mounts
from storageplane.pods import podlock, publish
from storageplane.pods.publish import again
from storageplane.pods.upkeep import Keeper, Published

from .bed import Bed, bound, claim, config_map, container, empty, host, mounts, run, secret, world

pytestmark = pytest.mark.root


def reboot(bed: Bed) -> None:
    """What a reboot takes: mounts, loop devices, what lies on tmpfs. Files on disk stay."""
    for mounted in reversed(mountinfo.beneath(str(bed.base))):
        run("umount", "-l", mounted.point)
    for device, _ in loops.backed_by(bed.base):
        run("losetup", "-d", device)
    assert bed.points() == bed.mounts and loops.backed_by(bed.base) == []


def ids(bed: Bed) -> dict[str, int]:
    return {m.point: m.id for m in mountinfo.beneath(str(bed.base))}


@pytest.fixture
def fuse() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a server; when it is killed its mount stays, broken."""
    started: list[subprocess.Popen[str]] = []

    def start(place: Path, code: int = errno.EIO) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "tests.mounts.fuse_server", str(place), str(code)]
        server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        started.append(server)
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n":
            pytest.skip("no FUSE here (CONFIG_FUSE_FS, /dev/fuse)")
        return server

    yield start
    for server in started:
        server.kill()
        server.communicate()


def kill(server: subprocess.Popen[str], place: Path) -> None:
    server.kill()
    server.wait()
    with pytest.raises(OSError, match="not connected") as caught:
        os.stat(place)
    assert caught.value.errno == errno.ENOTCONN


def test_after_a_reboot_everything_is_there_again(bed: Bed) -> None:
    before = bed.tree()
    view = {"name": "host", "mountPath": "/m", "subPath": "part"}
    pod = bed.pod(
        empty("disk"), empty("limited", sizeLimit="4Mi"), empty("memory", medium="Memory"), host(bed.host),
        {"name": "c", "configMap": {"name": "c"}}, {"name": "s", "secret": {"secretName": "s"}},
        containers=[container(view)],
    )  # fmt: skip
    objects = world(config_map(a="1"), secret(a="2"))
    bed.publish(pod, objects)
    paths, points = ids(bed).keys(), [str(p) for p in sorted(bed.target.iterdir())]
    for name in ("disk", "limited", "memory", "host"):
        (bed.target / name / "file").write_text(name)
    reboot(bed)
    assert again(pod, objects, "n1", bed.driver) == []
    assert ids(bed).keys() == paths and points == [str(p) for p in sorted(bed.target.iterdir())]
    kept = [n for n in ("disk", "limited", "memory", "host") if (bed.target / n / "file").exists()]
    assert kept == ["disk", "limited", "host"]
    assert ((bed.target / "c/a").read_text(), (bed.target / "s/a").read_text()) == ("1", "2")
    assert str(bed.root / "pods/uid-1/volume-subpaths/host/main/0") in mounts()
    bed.unpublish()
    bed.clean(sorted([*before, "host/file", "host/part"]))


def test_after_a_reboot_unpublish_alone_leaves_nothing(bed: Bed) -> None:
    before = bed.tree()
    pod = bed.pod(empty("limited", sizeLimit="4Mi"), empty("memory", medium="Memory"), host(bed.host))
    bed.publish(pod)
    reboot(bed)
    assert bed.unpublish() == 1
    bed.clean(before)


def test_what_stands_is_adopted_untouched(bed: Bed) -> None:
    pod = bed.pod(
        empty("limited", sizeLimit="4Mi"), empty("memory", medium="Memory"), host(bed.host), claim()
    )
    snapshot = bound(bed)
    bed.publish(pod, snapshot)
    before = ids(bed)
    again(pod, snapshot, "n1", bed.driver)
    assert ids(bed) == before
    run("umount", bed.target / "host")
    again(pod, snapshot, "n1", bed.driver)
    after, missed = ids(bed), str(bed.target / "host")
    assert after.keys() == before.keys()
    assert {p for p in before if before[p] != after[p]} <= {missed}
    bed.unpublish()


def test_what_is_being_unpublished_is_not_repaired_until_published_again(bed: Bed) -> None:
    pod = bed.pod(empty("cache"), empty("other"))
    bed.publish(pod)
    with open(bed.target / "cache/open", "w"), pytest.raises(KernelError, match="still uses it"):
        bed.unpublish()
    left = bed.points()
    assert again(pod, world(), "n1", bed.driver) is None
    assert bed.points() == left != bed.mounts
    bed.publish(pod)
    assert {str(bed.target / "cache"), str(bed.target / "other")} <= set(mounts())
    assert again(pod, world(), "n1", bed.driver) == []
    bed.unpublish()
    assert bed.points() == bed.mounts


def test_a_pod_that_is_not_published_is_left_alone(bed: Bed) -> None:
    before = bed.tree()
    assert again(bed.pod(empty("v")), world(), "n1", bed.driver) is None
    bed.clean(before)


def test_a_mount_whose_server_died_is_replaced(bed: Bed, fuse: Callable[..., subprocess.Popen[str]]) -> None:
    server = fuse(bed.host)
    view = {"name": "host", "mountPath": "/m", "readOnly": True, "recursiveReadOnly": "Enabled"}
    pod = bed.pod(host(bed.host), empty("cache"), containers=[container(view)])
    bed.publish(pod)
    (bed.target / "cache/kept").write_text("x")
    assert os.listdir(bed.target) and (bed.target / "host").is_dir()
    kill(server, bed.target / "host")
    run("umount", bed.host)
    fuse(bed.host)
    bed.publish(pod)
    for place in (bed.target / "host", bed.root / "pods/uid-1/volume-subpaths/host/main/0"):
        assert place.stat().st_dev == bed.host.stat().st_dev
    assert (bed.target / "cache/kept").exists()
    bed.unpublish()
    run("umount", bed.host)
    assert bed.points() == bed.mounts


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE], ids=["EIO", "ESTALE"])
def test_a_mount_that_answers_with_an_error_is_replaced(
    bed: Bed, fuse: Callable[..., subprocess.Popen[str]], code: int
) -> None:
    server = fuse(bed.host, code)
    pod = bed.pod(host(bed.host))
    bed.publish(pod)
    server.send_signal(signal.SIGUSR1)
    assert server.stdout is not None and server.stdout.readline() == "broken\n"
    with pytest.raises(OSError, match=os.strerror(code)):
        os.stat(bed.target / "host")
    with pytest.raises(NetplaneError, match=errno.errorcode[code]):
        bed.publish(pod)
    run("umount", "-l", bed.host)
    fuse(bed.host)
    bed.publish(pod)
    assert (bed.target / "host").stat().st_dev == bed.host.stat().st_dev
    bed.unpublish()
    run("umount", bed.host)
    assert bed.points() == bed.mounts


def test_a_dead_source_is_named_and_does_not_stop_the_others(
    bed: Bed, fuse: Callable[..., subprocess.Popen[str]]
) -> None:
    server = fuse(bed.host)
    pod = bed.pod(host(bed.host), empty("cache"), empty("late"))
    bed.publish(pod)
    kill(server, bed.host)
    for name in ("cache", "late"):
        run("umount", bed.target / name)
    with pytest.raises(NetplaneError, match=str(bed.host)):
        bed.publish(pod)
    assert {str(bed.target / "cache"), str(bed.target / "late")} <= set(mounts())
    bed.unpublish()
    run("umount", bed.host)
    assert bed.points() == bed.mounts


def test_a_dead_source_in_use_is_unpublished_too(
    bed: Bed, fuse: Callable[..., subprocess.Popen[str]]
) -> None:
    before = bed.tree()
    server = fuse(bed.host)
    bed.publish(bed.pod(host(bed.host)))
    held = os.open(bed.target / "host", os.O_PATH)
    kill(server, bed.target / "host")
    bed.unpublish()
    os.close(held)
    run("umount", bed.host)
    bed.clean(before)


def test_each_volume_that_is_lost_is_named_and_the_rest_is_repaired(bed: Bed) -> None:
    lost = [host(bed.base / n, "Directory", n) for n in ("one", "two")]
    (bed.base / "one").mkdir(), (bed.base / "two").mkdir()
    pod = bed.pod(*lost, {"name": "c", "configMap": {"name": "c"}})
    bed.publish(pod, world(config_map(a="1")))
    for name in ("one", "two"):
        run("umount", bed.target / name)
        (bed.base / name).rmdir()
    with pytest.raises(Invalid, match=r"volume one: .*does not exist.*volume two: .*does not exist"):
        bed.publish(pod, world(config_map(a="2")))
    assert (bed.target / "c/a").read_text() == "2"
    bed.unpublish()


def test_a_claim_that_is_deleted_meanwhile_does_not_concern_its_pod(bed: Bed) -> None:
    pod = bed.pod(claim(), {"name": "c", "configMap": {"name": "c"}})
    bed.publish(pod, bound(bed).with_put(parse(config_map(a="1"))))
    bed.publish(pod, world(config_map(a="2")))
    assert (bed.target / "c/a").read_text() == "2" and str(bed.target / "data") in mounts()
    run("umount", bed.target / "data")
    with pytest.raises(NetplaneError, match="PersistentVolumeClaim default/c does not exist"):
        bed.publish(pod, world(config_map(a="3")))
    assert (bed.target / "c/a").read_text() == "3"
    bed.unpublish()


def test_something_else_mounted_at_a_place_is_not_touched(bed: Bed) -> None:
    pod = bed.pod(empty("cache"), empty("other"))
    bed.publish(pod)
    run("umount", bed.target / "cache")
    run("mount", "-t", "tmpfs", "tmpfs", bed.target / "cache")
    (bed.target / "cache/theirs").write_text("x")
    with pytest.raises(NetplaneError, match="tmpfs is mounted there"):
        bed.publish(pod)
    assert (bed.target / "cache/theirs").exists()
    run("umount", bed.target / "cache")
    publish.unpublish("default", "p", bed.driver)
    assert bed.points() == bed.mounts


# --- nobody waits for another ---------------------------------------------------------------------


def test_many_pods_are_published_and_unpublished_at_once(bed: Bed) -> None:
    """Eight processes, each its own pod, at places with one parent."""
    before = bed.tree()
    children = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            try:
                for _ in range(5):
                    pod = bed.pod(empty("v", medium="Memory"), uid=f"uid-{number}", name=f"p{number}")
                    bed.publish(pod, target=bed.base / f"t/all/{number}")
                    assert publish.unpublish("default", f"p{number}", Mounts(bed.root)) == 1
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    for left in (bed.base / "t/all", bed.base / "t"):  # who made it found another's in it
        if left.exists():
            left.rmdir()
    bed.clean(before)


def test_a_pod_that_is_being_worked_on_is_not_repaired_meanwhile(bed: Bed) -> None:
    pod, other = bed.pod(empty("v")), bed.pod(empty("v"), uid="uid-2", name="q")
    bed.publish(pod)
    bed.publish(other, target=bed.base / "other")
    with podlock.alone(bed.root, "uid-1"):
        with pytest.raises(Unavailable, match="published or unpublished right now"):
            again(pod, world(), "n1", bed.driver)
        assert again(other, world(), "n1", bed.driver) == []
    assert again(pod, world(), "n1", bed.driver) == []
    bed.unpublish()
    publish.unpublish("default", "q", bed.driver)


def test_a_server_that_does_not_answer_keeps_nobody_waiting(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper repairs what is here at once, and asks the server aside until it is back."""
    answered = threading.Event()

    def mount(_: NetworkMount, target: str) -> None:
        assert answered.wait(20)
        run("mount", "-t", "tmpfs", "tmpfs", target)

    monkeypatch.setattr(helper, "mount", mount)
    far = {"name": "far", "nfs": {"server": "gone.example", "path": "/"}}
    pods = [
        bed.pod(far, empty("near"), nodeName="n1"),
        bed.pod(empty("v"), uid="uid-2", name="q", nodeName="n1"),
    ]
    answered.set()
    for pod in pods:
        bed.publish(pod, target=bed.base / pod.name)
    reboot(bed)
    answered.clear()
    keeper = Keeper("n1", bed.driver, lambda: Snapshot.of(pods))
    facts = [Published("default", name, "x") for name in ("p", "q")]
    with pytest.raises(Conflict):
        keeper.apply(Plan(add=tuple(facts)))
    assert {str(bed.base / "p/near"), str(bed.base / "q/v")} <= set(mounts())
    with pytest.raises(Unavailable, match="default/p: waiting for the servers"):
        keeper.apply(Plan(add=(facts[0],)))
    keeper.apply(Plan(add=(facts[1],)))
    answered.set()
    give_up = time.monotonic() + 20
    while str(bed.base / "p/far") not in mounts() and time.monotonic() < give_up:
        time.sleep(0.01)
    keeper.apply(Plan(add=(facts[0],)))
    for name in "pq":
        publish.unpublish("default", name, bed.driver)
    assert bed.points() == bed.mounts


def test_a_full_disk_does_not_stop_unpublishing(bed: Bed) -> None:
    run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", bed.root)
    pod = bed.pod(empty("disk"), empty("memory", medium="Memory"), {"name": "c", "configMap": {"name": "c"}})
    bed.publish(pod, world(config_map(a="1")))
    with pytest.raises(OSError, match="No space left"):
        (bed.target / "disk/big").write_bytes(bytes(1 << 20))
    with pytest.raises(NetplaneError, match="ENOSPC"):
        bed.publish(pod, world(config_map(a="2" * 9000)))
    assert (bed.target / "c/a").read_text() == "1", "what cannot be written leaves what was there"
    (shown,) = bed.root.glob("pods/*/volumes/kubernetes.io~configmap/c")
    assert len([n for n in os.listdir(shown) if n.startswith("..")]) == 2
    bed.unpublish()
    assert bed.points() == [*bed.mounts, str(bed.root)]
    run("umount", bed.root)

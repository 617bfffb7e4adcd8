"""What each container mounts: subPath and subPathExpr, read-only to the last mount, propagation, devices.

HOST/…        ── TARGET/host                                          the volume
HOST/…/a/b    ── ROOT/pods/UID/volume-subpaths/host/<container>/<i>    a container's own view of it
"""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.model.errors import Invalid, KernelError, NetplaneError, Unavailable
from storageplane.host import loops, subpath
from storageplane.pods import output
from storageplane.pods.publish import Publication

from .bed import Bed, config_map, container, empty, host, mounts, run, secret, statically_bound, world

pytestmark = pytest.mark.root
SECRET = {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}
CLAIM = {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}


def sub(path: str, name: str = "host", **more: Any) -> dict[str, Any]:
    return {"name": name, "mountPath": "/m", "subPath": path, **more}


def seen(done: Publication, index: int = 0, name: str = "main") -> Path:
    """Where the runtime takes a container's mount from."""
    (made,) = [c for c in done.pod.spec.containers if c.name == name]
    return Path(output.mounts_of(made, done)[index]["source"])


def test_a_sub_path_shows_a_part_and_missing_directories_are_made_like_the_volume(bed: Bed) -> None:
    bed.host.chmod(0o751)
    (bed.host / "there").mkdir(mode=0o700)
    (bed.host / "there/file").write_text("x")
    before = bed.tree()
    mine = container(sub("there"), sub("new/deep", mountPath="/n"), sub("there/file", mountPath="/f"))
    done = bed.publish(bed.pod(host(bed.host), containers=[mine]))
    assert os.listdir(seen(done)) == ["file"]
    (seen(done, 1) / "made").write_text("y")
    assert (bed.host / "new/deep/made").read_text() == "y"
    assert [stat.S_IMODE((bed.host / p).stat().st_mode) for p in ("there", "new", "new/deep")] == [
        0o700,
        0o751,
        0o751,
    ]
    assert seen(done, 2).is_file() and seen(done, 2).read_text() == "x"
    bed.unpublish()
    bed.clean(sorted([*before, "host/new", "host/new/deep", "host/new/deep/made"]))


def test_each_container_has_its_own_and_without_a_sub_path_the_volume(bed: Bed) -> None:
    both = [container(sub("a"), name="one"), container({"name": "host"}, sub("b"), name="two")]
    done = bed.publish(
        bed.pod(host(bed.host), containers=both, initContainers=[container(sub("i"), name="init")])
    )
    told = output.as_json(done)
    assert told["containers"]["two"][0]["source"] == str(bed.target / "host")
    assert {p.name for p in bed.host.iterdir()} == {"a", "b", "i"}
    for name, index in (("one", 0), ("two", 1), ("init", 0)):
        place = f"{bed.root}/pods/uid-1/volume-subpaths/host/{name}/{index}"
        assert told["containers"][name][index]["source"] == place and place in mounts()
    bed.unpublish()


def test_an_expression_takes_the_containers_environment(bed: Bed) -> None:
    env = [
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "MODE", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "mode"}}},
        {"name": "BOTH", "value": "$(POD)-$(MODE)"},
    ]
    expr = {"name": "host", "mountPath": "/m", "subPathExpr": "$(TIER)/$(BOTH)/$$(x)"}
    more = {"env": env, "envFrom": [{"prefix": "", "configMapRef": {"name": "tier"}}]}
    pod = bed.pod(host(bed.host), containers=[container(expr, **more)])
    done = bed.publish(pod, world(config_map(mode="fast"), config_map("tier", TIER="gold")))
    (seen(done) / "file").write_text("x")
    assert (bed.host / "gold/p-fast/$(x)/file").exists()
    bed.unpublish()


@pytest.mark.parametrize(
    ("expression", "env", "said"),
    [
        ("$(ABSENT)", [], "no value for 'ABSENT'"),
        ("$(UP)", [{"name": "UP", "value": "../../etc"}], "relative path without"),
        ("$(ROOT)", [{"name": "ROOT", "value": "/etc"}], "must be relative"),
        ("$(S)", [SECRET], "path is no secret"),
        ("$(T)", [SECRET, {"name": "T", "value": "$(S)"}], "path is no secret"),
        ("$(N)", [{"name": "N", "value": 5}], "Expected `str`"),
    ],
)  # fmt: skip
def test_an_expression_that_makes_no_path_is_refused(bed: Bed, expression: str, env: Any, said: str) -> None:
    before = bed.tree()
    mount = {"name": "host", "mountPath": "/m", "subPathExpr": expression}
    with pytest.raises(Invalid, match=said) as caught:
        bed.publish(
            bed.pod(host(bed.host), containers=[container(mount, env=env)]), world(secret(k="hunter2"))
        )
    assert "hunter2" not in str(caught.value)
    bed.clean(before)


@pytest.mark.parametrize("path", ["..", "a/../..", "/etc", "a\0b"])
def test_a_sub_path_out_of_the_volume_is_refused_when_it_is_read(bed: Bed, path: str) -> None:
    with pytest.raises(Invalid, match="subPath"):
        bed.pod(host(bed.host), containers=[container(sub(path))])


# --- links ----------------------------------------------------------------------------------------


def test_links_inside_the_volume_are_followed(bed: Bed) -> None:
    (bed.host / "releases/5").mkdir(parents=True)
    (bed.host / "current").symlink_to("releases/5")
    done = bed.publish(
        bed.pod(host(bed.host), containers=[container(sub("current"), sub("current/new", mountPath="/n"))])
    )
    (seen(done, 1) / "x").write_text("x")
    assert (bed.host / "releases/5/new/x").exists() and os.listdir(seen(done)) == ["new"]
    bed.unpublish()


@pytest.mark.parametrize(
    ("link", "path"),
    [("/etc", "l"), ("/etc", "l/passwd"), ("..", "l"), ("../outside", "l/new"), ("/proc/self/root", "l/etc"),
     ("nowhere", "l"), ("nowhere", "l/new"), ("l", "l")],
)  # fmt: skip
def test_a_link_out_of_the_volume_or_to_nothing_is_refused(bed: Bed, link: str, path: str) -> None:
    (bed.base / "outside").mkdir()
    (bed.host / "l").symlink_to(link)
    before = bed.tree()
    with pytest.raises(Invalid, match=r"leads outside|link to nothing"):
        bed.publish(bed.pod(host(bed.host), containers=[container(sub(path))]))
    bed.clean(before)


def test_a_file_on_the_way_is_refused(bed: Bed) -> None:
    (bed.host / "file").write_text("x")
    with pytest.raises(NetplaneError, match="ENOTDIR"):
        bed.publish(bed.pod(host(bed.host), containers=[container(sub("file/below"))]))


def test_nobody_who_swaps_directories_for_links_meanwhile_gets_outside(bed: Bed) -> None:
    """CVE-2021-25741: the volume's user exchanges a directory and a link while it is mounted."""
    outside = bed.base / "outside"
    (outside / "b").mkdir(parents=True)
    (outside / "b/precious").write_text("x")
    (bed.host / "a/b").mkdir(parents=True)
    (bed.host / "link").symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            _exchange(bed.host / "a", bed.host / "link")

    swapper = threading.Thread(target=swap)
    swapper.start()
    met = {"inside": 0, "refused": 0}
    try:
        count, give_up = 0, time.monotonic() + 20
        while min(met.values()) < 50 and time.monotonic() < give_up:
            count += 1
            try:
                subpath.make(str(bed.host), f"a/b/new{count}")
                with subpath.opened(str(bed.host), "a/b") as fd:
                    assert "precious" not in os.listdir(f"/proc/self/fd/{fd}"), "led outside"
                met["inside"] += 1
            except (Invalid, KernelError):
                met["refused"] += 1
    finally:
        stop.set()
        swapper.join()
    assert os.listdir(outside) == ["b"] and os.listdir(outside / "b") == ["precious"]
    assert min(met.values()) >= 50, met


def _exchange(one: Path, two: Path) -> None:
    """renameat2 with RENAME_EXCHANGE."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(two), 2)


# --- objects as files -----------------------------------------------------------------------------


def test_a_key_as_sub_path_does_not_follow_its_object_until_published_again(bed: Bed) -> None:
    volume = {"name": "v", "configMap": {"name": "c"}}
    pod = bed.pod(volume, containers=[container(sub("a_conf".replace("_", "."), "v"))])
    done = bed.publish(pod, world(config_map(a_conf="old")))
    held = os.open(seen(done), os.O_RDONLY)  # as a running container holds it
    assert seen(done).is_file() and seen(done).read_text() == "old"
    done = bed.publish(pod, world(config_map(a_conf="new")))
    assert (seen(done).read_text(), (bed.target / "v/a.conf").read_text()) == ("new", "new")
    assert os.read(held, 10) == b"old"
    os.close(held)
    bed.unpublish()


def test_a_key_that_is_not_there_is_refused_and_makes_no_directory(bed: Bed) -> None:
    before = bed.tree()
    volume = {"name": "v", "configMap": {"name": "c"}}
    with pytest.raises(Unavailable, match="volume v shows no 'typo'; it shows a"):
        bed.publish(bed.pod(volume, containers=[container(sub("typo", "v"))]), world(config_map(a="1")))
    bed.clean(before)


# --- read-only, propagation -----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "in"])
@pytest.mark.parametrize("how", ["", "Disabled", "IfPossible", "Enabled"])
def test_read_only_reaches_the_mounts_beneath_only_when_asked(bed: Bed, how: str, path: str) -> None:
    inner = bed.host / "in/mounted"
    inner.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "tmpfs", inner)
    asked = {"name": "host", "mountPath": "/m", "readOnly": True, **({"subPath": path} if path else {})}
    asked |= {"recursiveReadOnly": how} if how else {}
    done = bed.publish(bed.pod(host(bed.host), containers=[container(asked)]))
    place = _as_a_runtime_would(bed, done)
    below = place / ("mounted" if path else "in/mounted")
    with pytest.raises(OSError, match="Read-only"):
        (place / "new").write_text("x")
    if how in ("IfPossible", "Enabled"):
        with pytest.raises(OSError, match="Read-only"):
            (below / "new").write_text("x")
    else:
        (below / "new").write_text("x")
    (inner / "still").write_text("x")
    run("umount", "-R", place)
    bed.unpublish()
    run("umount", inner)
    assert bed.points() == bed.mounts


def _as_a_runtime_would(bed: Bed, done: Publication) -> Path:
    """The container's first mount, carried out as runc does."""
    told = output.mounts_of(done.pod.spec.containers[0], done)[0]
    place = bed.base / "rootfs"
    place.mkdir()
    run("mount", "--rbind", told["source"], place)
    run("mount", "--make-rprivate", place)
    if "ro" in told["options"]:
        run("mount", "-o", "remount,bind,ro", place)
    return place


@pytest.mark.parametrize(
    ("mount", "said"),
    [
        ({"recursiveReadOnly": "Enabled"}, "needs readOnly"),
        (
            {"recursiveReadOnly": "Enabled", "readOnly": True, "mountPropagation": "HostToContainer"},
            "needs mountPropagation None",
        ),
        ({"recursiveReadOnly": "Sometimes"}, "not supported"),
        ({"subPath": "a", "subPathExpr": "b"}, "beside subPath"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(bed: Bed, mount: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        bed.pod(host(bed.host), containers=[container({"name": "host", **mount})])


@pytest.mark.parametrize(
    ("mode", "reaches"), [("None", False), ("HostToContainer", True), ("Bidirectional", True)]
)
def test_later_mounts_reach_a_sub_path_that_asks(bed: Bed, mode: str, reaches: bool) -> None:
    run("mount", "--bind", bed.host, bed.host)
    run("mount", "--make-shared", bed.host)
    (bed.host / "a/later").mkdir(parents=True)
    done = bed.publish(bed.pod(host(bed.host), containers=[container(sub("a", mountPropagation=mode))]))
    run("mount", "-t", "tmpfs", "tmpfs", bed.host / "a/later")
    assert os.path.ismount(seen(done) / "later") is reaches
    if mode == "Bidirectional":
        (seen(done) / "back").mkdir()
        run("mount", "-t", "tmpfs", "tmpfs", seen(done) / "back")
        assert os.path.ismount(bed.host / "a/back")
        run("umount", bed.host / "a/back")
    bed.unpublish()
    assert os.path.ismount(bed.host / "a/later")
    run("umount", bed.host / "a/later")
    run("umount", bed.host)
    assert bed.points() == bed.mounts


# --- block devices --------------------------------------------------------------------------------


@pytest.fixture
def device(bed: Bed) -> Iterator[str]:
    """A loop device on a file of a MiB."""
    image = bed.base / "disk"
    image.write_bytes(b"begin".ljust(1 << 20, b"\0"))
    yield loops.attach(image)
    loops.detach(image)
    image.unlink()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_block_volume_is_a_device_of_the_container(bed: Bed, device: str, read_only: bool) -> None:
    claim = {"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": read_only}}
    here = {
        "required": {
            "nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
            ]
        }
    }
    objects = statically_bound({"local": {"path": device}}, "Block", nodeAffinity=here)
    mine = {"name": "main", "volumeDevices": [{"name": "v", "devicePath": "/dev/xvda"}]}
    done = bed.publish(bed.pod(claim, containers=[mine]), objects)
    spec = output.as_spec(done.pod.spec.containers[0], done)
    number = os.stat(device).st_rdev
    (node,), (rule,) = spec["linux"]["devices"], spec["linux"]["resources"]["devices"]
    assert (node["path"], node["type"], node["major"], node["minor"]) == (
        "/dev/xvda",
        "b",
        os.major(number),
        os.minor(number),
    )
    assert rule == {
        "allow": True,
        "type": "b",
        "major": node["major"],
        "minor": node["minor"],
        "access": "r" if read_only else "rwm",
    }
    assert (bed.target / "v").stat().st_rdev == number
    assert output.as_podman(done.pod.spec.containers[0], done) == [
        f"--device={bed.target}/v:/dev/xvda:{rule['access']}"
    ]
    with pytest.raises(Invalid, match="use -o spec"):
        output.as_oci(done.pod.spec.containers[0], done)
    json.dumps(output.as_json(done))
    bed.unpublish()
    assert bed.points() == bed.mounts


def test_a_device_is_not_mounted_nor_a_directory_a_device(bed: Bed, device: str) -> None:
    here = {
        "required": {
            "nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
            ]
        }
    }
    objects = statically_bound({"local": {"path": device}}, "Block", nodeAffinity=here)
    with pytest.raises(Invalid, match="is a block device; use volumeDevices"):
        bed.publish(bed.pod(CLAIM, containers=[container({"name": "v"})]), objects)
    asks = {"name": "main", "volumeDevices": [{"name": "cache", "devicePath": "/dev/x"}]}
    with pytest.raises(Invalid, match="has a file system; use volumeMounts"):
        bed.publish(bed.pod(empty("cache"), containers=[asks]))
    with pytest.raises(Invalid, match="must be a block device"):
        bed.publish(
            bed.pod(CLAIM), statically_bound({"local": {"path": str(bed.host)}}, "Block", nodeAffinity=here)
        )
    with pytest.raises(Invalid, match="needs a local or csi source"):
        bed.publish(bed.pod(CLAIM), statically_bound({"hostPath": {"path": device}}, "Block"))

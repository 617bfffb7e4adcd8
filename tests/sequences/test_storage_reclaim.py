"""Recycle and Delete in cases of the upstream controller's kinds, on real directories.

Each case is a released volume and what stands around it; run once, again, shuffled, and cut after each
write. What Recycle empties is a directory of the test's own.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from netplane.model.base import Key
from netplane.model.codec import parse
from storageplane import names
from storageplane.host import tree

from .binder_cases import BOUND, MADE
from .storage_node import Node
from .storage_world import Crash, World, on_node, pod, pv, pvc

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("driven")]
OURS = {"annotations": {names.BOUND_BY_CONTROLLER: "yes"}}
RELEASED = {"status": {"phase": "Released"}}
LIVE = pvc(volumeName="v", meta={"annotations": BOUND, "uid": "u"}, status={"phase": "Bound"})
MACHINES = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": n}} for n in ("n1", "n2")]
FINISHED = {**pod(), "status": {"phase": "Succeeded"}}


class Case(NamedTuple):
    """``more``: fields of the volume; ``phase`` "": its object is gone; ``kept``: its content stays."""

    more: dict[str, Any]
    others: list[dict[str, Any]]
    phase: str
    kept: bool
    word: str = ""  # in the volume's event
    setup: Callable[[Path], object] = lambda _: None
    busy: str = ""


def linked(place: Path) -> None:
    place.rename(place.with_name("real"))
    place.symlink_to(place.with_name("real"))


def mounted(place: Path) -> None:
    (place / "in").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place / "in"], check=True)


RECYCLE: dict[str, Case] = {
    "ours to choose": Case({"meta": OURS}, [], "Available", False, "Volume recycled"),
    "prebound by a user": Case({}, [], "Available", False, "Volume recycled"),
    "was Failed": Case({"meta": OURS, "status": {"phase": "Failed"}}, [], "Available", False),
    "used by a pod": Case({"meta": OURS}, [pod()], "Released", True, "used by pods: default/p"),
    "used by a pod not placed": Case({"meta": OURS}, [pod(node="")], "Released", True, "used by pods"),
    "used by a pod that ended": Case({"meta": OURS}, [FINISHED], "Available", False),
    "its claim lives": Case({"meta": OURS}, [LIVE], "Bound", True),
    "a claim of that name anew": Case({}, [pvc(meta={"uid": "new"}, size="9Gi")], "Available", False),
    "a link": Case({}, [], "Failed", True, "(ELOOP)", linked),
    "nothing there": Case({}, [], "Failed", False, "(ENOENT)", lambda p: tree.remove(p.parent, p.name)),
    "a file": Case(
        {}, [], "Failed", False, "(ENOTDIR)", lambda p: (tree.remove(p.parent, p.name), p.write_text("x"))
    ),
    "something is mounted in it": Case({}, [], "Failed", True, "is mounted in it", mounted),
    "published here": Case({}, [], "Released", True, busy="pod default/q"),
    "several nodes": Case({}, MACHINES, "Failed", True, "needs spec.nodeAffinity"),
    "several nodes, and which": Case({"nodeAffinity": on_node("n1")}, MACHINES, "Available", False),
    "another node's": Case({"nodeAffinity": on_node("n2")}, MACHINES, "Released", True),
    "no recycler": Case(
        {"hostPath": None, "nfs": {"server": "s", "path": "/p"}}, [], "Failed", True, "only hostPath"
    ),
    "being deleted": Case(
        {"meta": {"deletionTimestamp": "x", "finalizers": ["somebody/else"]}}, [], "Released", True
    ),
    "Retain": Case({"persistentVolumeReclaimPolicy": "Retain"}, [], "Released", True),
}


def released(case: Case, place: Path, policy: str) -> dict[str, Any]:
    spec = {
        "hostPath": {"path": str(place)},
        "persistentVolumeReclaimPolicy": policy,
        **RELEASED,
        **case.more,
    }
    return pv("v", claim="c:u", **{k: v for k, v in spec.items() if v is not None})


def recycling(name: str, base: Path) -> tuple[Node, Case, Path]:
    case, place = RECYCLE[name], base / "data"
    (place / "sub").mkdir(parents=True)
    (place / "sub/file").write_text("x")
    (place / "link").symlink_to(base)
    (base / "outside").write_text("x")
    case.setup(place)
    doc = released(case, place, "Recycle")
    if doc["spec"].get("nfs"):
        doc["spec"].pop("hostPath", None)
    node = Node(World(doc, *case.others), base / "root")
    node.busy = case.busy
    return node, case, place


def check_recycled(node: Node, case: Case, place: Path) -> None:
    volume, said = node.world.pv("v"), node.world.note("v.reclaim")
    assert volume.status.phase == case.phase, node.refused
    assert (place / "sub/file").exists() is case.kept
    assert (place.parent / "outside").exists()
    assert case.word in (said.message if said else "")
    if case.phase == "Available":
        assert list(place.iterdir()) == []
        ref = volume.spec.claim_ref
        ours = names.BOUND_BY_CONTROLLER in case.more.get("meta", {}).get("annotations", {})
        assert ref is None if ours else (ref.name, ref.uid) == ("c", "")


@pytest.mark.parametrize("name", RECYCLE)
def test_recycle_comes_to_what_it_should_again_and_again(tmp_path: Path, name: str) -> None:
    node, case, place = recycling(name, tmp_path)
    check_recycled(node.run(), case, place)
    node.world.writes.clear()
    node.world.restart()
    node.run()
    assert node.world.writes == []
    chance = random.Random(1)
    node.run(order=lambda scopes: chance.sample(sorted(scopes), len(scopes)))
    check_recycled(node, case, place)


@pytest.mark.parametrize("name", RECYCLE)
@pytest.mark.parametrize("count", range(4))
def test_recycle_cut_after_any_write_converges(tmp_path: Path, name: str, count: int) -> None:
    node, case, place = recycling(name, tmp_path)
    node.world.crash_after = count
    try:
        node.run()
    except Crash:
        node.world.crash_after = None
    check_recycled(node.run(), case, place)


def test_a_volume_is_recycled_when_the_last_pod_that_names_its_claim_goes(tmp_path: Path) -> None:
    node, _, place = recycling("ours to choose", tmp_path)
    for name in ("p", "q"):
        node.world.put(parse(pod(name)))
    assert node.run().world.note("v.reclaim").message == "Volume is used by pods: default/p, default/q"
    node.world.delete(Key("Pod", "default", "q"))
    assert node.run().world.note("v.reclaim").message == "Volume is used by pods: default/p"
    assert (place / "sub/file").exists()
    node.world.put(parse({**pod(), "status": {"phase": "Succeeded"}}))
    node.run()
    assert (node.world.pv("v").status.phase, (place / "sub/file").exists()) == ("Available", False)


def test_a_volume_that_is_kept_goes_as_soon_as_it_is_deleted(tmp_path: Path) -> None:
    """Its data stays, so the finalizer that would wait for that is taken off."""
    node = Node(World(pv("v", meta={"finalizers": [names.DATA]})), tmp_path / "root").run()
    node.world.delete(node.world.pv("v").key)
    assert node.run().world.pv("v") is None


@pytest.mark.parametrize("path", ["/", "/etc", "/tmp", "/usr/", "/var/../home"])
def test_what_is_the_systems_is_never_emptied(path: str) -> None:
    from netplane.model.errors import Invalid

    with pytest.raises(Invalid, match="nothing there is removed"):
        tree.scrub(path, "/var/lib/storageplane")


def test_what_is_around_our_own_root_is_never_emptied(tmp_path: Path) -> None:
    from netplane.model.errors import Invalid

    (tmp_path / "root").mkdir()
    with pytest.raises(Invalid, match="storageplane's own"):
        tree.scrub(str(tmp_path), str(tmp_path / "root"))
    assert (tmp_path / "root").exists()


# --- Delete ---------------------------------------------------------------------------------------

PROVISIONED = {
    "annotations": {names.PROVISIONED_BY: names.DIRECTORY, names.BOUND_BY_CONTROLLER: "yes"},
    "finalizers": [names.PV_PROTECTION, names.DATA],
}
GOING = {**PROVISIONED, "deletionTimestamp": "x"}
DELETE: dict[str, Case] = {
    "released": Case({}, [], "", False),
    "was Failed": Case({"status": {"phase": "Failed"}}, [], "", False),
    "still Bound in the store": Case({"status": {"phase": "Bound"}}, [], "", False),
    "nobody provisioned it": Case({"meta": {}}, [], "Failed", True, "nobody here provisioned"),
    "another provisioner's": Case({"meta": MADE, "local": {"path": "/x"}}, [], "Released", True),
    "published here": Case({}, [], "Released", True, busy="pod default/q"),
    "something is mounted in it": Case({}, [], "Failed", True, "is mounted in it", mounted),
    "its claim lives": Case({}, [LIVE], "Bound", True),
    "a claim of that name anew": Case({}, [pvc(meta={"uid": "new"}, size="9Gi")], "", False),
    "its claim is bound elsewhere": Case(
        {}, [pv("w", claim="c:u"), {**LIVE, "spec": {**LIVE["spec"], "volumeName": "w"}}], "", False
    ),
    "data gone already": Case({}, [], "", False, setup=lambda p: tree.remove(p.parent, p.name)),
    "deleted by a user": Case({"meta": GOING}, [], "", False),
    "deleted by a user, claim lives": Case(
        {"meta": GOING, "status": {"phase": "Bound"}}, [LIVE], "Bound", True
    ),
    "deleted by a user, Retain": Case(
        {"meta": GOING, "persistentVolumeReclaimPolicy": "Retain"}, [], "", True
    ),
    "another node's": Case({"nodeAffinity": on_node("n2")}, [], "Released", True),
    "Retain": Case({"persistentVolumeReclaimPolicy": "Retain"}, [], "Released", True),
    "given up with its node": Case(
        {"meta": {**PROVISIONED, "annotations": {**PROVISIONED["annotations"], names.LOST: "n1"}}},  # type: ignore[dict-item]
        [], "Released", True,
    ),
}  # fmt: skip


def deleting(name: str, base: Path) -> tuple[Node, Case, Path]:
    case, place = DELETE[name], base / "root/volumes/v"
    (place / "sub").mkdir(parents=True)
    (place / "sub/file").write_text("x")
    (place / "link").symlink_to(base)
    (base / "outside").write_text("x")
    case.setup(place)
    more = {"nodeAffinity": on_node("n1"), "meta": PROVISIONED, "local": {"path": str(place)}, **case.more}
    spec = {"persistentVolumeReclaimPolicy": "Delete", **RELEASED, **more}
    node = Node(World(pv("v", claim="c:u", **spec), *case.others), base / "root")
    node.busy = case.busy
    return node, case, place


def check_deleted(node: Node, case: Case, place: Path) -> None:
    volume, said = node.world.pv("v"), node.world.note("v.reclaim")
    assert (volume.status.phase if volume else "") == case.phase, node.refused
    assert (place / "sub/file").exists() is case.kept
    assert place.exists() is case.kept
    assert (place.parents[2] / "outside").exists()
    assert case.word in (said.message if said else "")


@pytest.mark.parametrize("name", DELETE)
def test_delete_comes_to_what_it_should_again_and_again(tmp_path: Path, name: str) -> None:
    node, case, place = deleting(name, tmp_path)
    check_deleted(node.run(), case, place)
    node.world.writes.clear()
    node.world.restart()
    node.run()
    assert node.world.writes == []
    chance = random.Random(2)
    node.run(order=lambda scopes: chance.sample(sorted(scopes), len(scopes)))
    check_deleted(node, case, place)


@pytest.mark.parametrize("name", DELETE)
@pytest.mark.parametrize("count", range(4))
def test_delete_cut_after_any_write_converges(tmp_path: Path, name: str, count: int) -> None:
    node, case, place = deleting(name, tmp_path)
    node.world.crash_after = count
    try:
        node.run()
    except Crash:
        node.world.crash_after = None
    check_deleted(node.run(), case, place)


@pytest.mark.parametrize("kind", ["recycle", "delete"])
def test_what_could_not_go_goes_once_it_can(tmp_path: Path, kind: str) -> None:
    """Failed is not the end: when what was mounted is gone, the next try succeeds, and the event goes."""
    begin = recycling if kind == "recycle" else deleting
    node, _, place = begin("something is mounted in it", tmp_path)
    assert node.run().world.pv("v").status.phase == "Failed"
    subprocess.run(["umount", place / "in"], check=True)
    node.run()
    volume = node.world.pv("v")
    assert volume.status.phase == "Available" if kind == "recycle" else volume is None
    assert not (place / "sub").exists()

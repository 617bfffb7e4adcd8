"""Provisioning and reclaim, with the real directories: once, again, and with a crash after each write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from netplane.model.errors import Conflict, Unavailable
from netplane.model.facts import Plan
from storageplane import names
from storageplane.claims.bind import Binder
from storageplane.claims.provision import Provisioner
from storageplane.claims.reclaim import Reclaimer, VolumeData, Volumes

from .storage_world import Crash, World, pod, pv, pvc, storage_class

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("driven")]
LATE = {"volumeBindingMode": "WaitForFirstConsumer"}


class Node:
    """One node's controllers, room and driver over a world; ``busy``: who has data published."""

    def __init__(self, world: World, root: Path, name: str = "n1") -> None:
        self.world, self.root, self.busy = world, root, ""
        self.deciders: tuple[Any, ...] = (Binder(), Provisioner(name, root), Reclaimer())
        self.room = Volumes(name, root)
        self.driver = VolumeData(root, world, lambda _: self.busy)
        self.left: set[Any] = set()  # scopes that are still to be brought about

    def run(self) -> Node:
        """To the fixpoint of decisions and facts."""
        while True:
            before = len(self.world.writes)
            self.world.settle(*self.deciders)
            snapshot = self.world.snapshot()
            self.left = set(self.world.due(self.room, self.left))
            for scope in sorted(self.left):
                self.driver.apply(Plan(add=tuple(self.room.render(scope, snapshot))))
                self.left.discard(scope)
            if len(self.world.writes) == before:
                return self

    def directories(self) -> list[str]:
        folder = self.root / "volumes"
        return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


def claimed(**more: Any) -> World:
    return World(storage_class("d", **more), pvc(storageClassName="d", meta={"uid": "u1"}))


def test_a_claim_gets_a_directory_of_its_own(tmp_path: Path) -> None:
    node = Node(claimed(), tmp_path).run()
    volume, claim = node.world.pv("pvc-u1"), node.world.pvc()
    assert (volume.status.phase, claim.status.phase, claim.spec.volume_name) == ("Bound", "Bound", "pvc-u1")
    assert volume.spec.capacity == {"storage": "1Gi"}
    assert volume.spec.persistent_volume_reclaim_policy == "Delete"
    assert volume.metadata.annotations[names.PROVISIONED_BY] == names.DIRECTORY
    assert volume.metadata.annotations[names.SIZE_ENFORCED] == "false"
    assert claim.metadata.annotations[names.STORAGE_PROVISIONER] == names.DIRECTORY
    place = tmp_path / "volumes/pvc-u1"
    assert volume.spec.local.path == str(place)
    assert place.stat().st_mode & 0o7777 == 0o777


def test_the_owner_may_change_the_mode_of_the_directory(tmp_path: Path) -> None:
    node = Node(claimed(), tmp_path).run()
    (tmp_path / "volumes/pvc-u1").chmod(0o700)
    node.run()
    assert (tmp_path / "volumes/pvc-u1").stat().st_mode & 0o7777 == 0o700


def test_a_static_volume_goes_before_a_new_one(tmp_path: Path) -> None:
    world = claimed()
    world.put(World(pv("v", storageClassName="d")).pv("v"), expect=0)
    node = Node(world, tmp_path).run()
    assert (world.pvc().spec.volume_name, node.directories()) == ("v", [])


def test_waits_for_the_pods_node(tmp_path: Path) -> None:
    world = claimed(**LATE)
    here, there = Node(world, tmp_path / "1", "n1"), Node(world, tmp_path / "2", "n2")
    (tmp_path / "1").mkdir(), (tmp_path / "2").mkdir()
    here.run(), there.run()
    assert world.pvc().status.phase == "Pending"
    assert world.note().reason == "WaitForFirstConsumer"
    world.put(next(iter(World(pod(node="n2")).objects.values())))
    here.run(), there.run(), here.run()
    assert world.pvc().status.phase == "Bound"
    assert (here.directories(), there.directories()) == ([], ["pvc-u1"])


@pytest.mark.parametrize(
    ("claim", "cls", "word"),
    [
        ({"volumeMode": "Block"}, {}, "cannot be a block device; use image"),
        ({"selector": {"matchLabels": {"a": "b"}}}, {}, "selector"),
        ({"dataSource": {"kind": "Populator", "name": "s"}}, {}, "kind 'Populator' is not supported"),
        ({}, {"parameters": {"size": "1"}}, "parameters[size]: not known"),
        ({}, {"mountOptions": ["noatime"]}, "mountOptions"),
        ({}, {"allowedTopologies": [{"matchLabelExpressions": []}]}, "allowedTopologies"),
    ],
)
def test_what_a_directory_cannot_do_is_said(
    tmp_path: Path, claim: dict[str, Any], cls: dict[str, Any], word: str
) -> None:
    world = World(storage_class("d", **cls), pvc(storageClassName="d", meta={"uid": "u1"}, **claim))
    node = Node(world, tmp_path).run()
    assert node.directories() == []
    said = world.note("c.provision")
    assert said.reason == "ProvisioningFailed" and word in said.message


def test_another_provisioners_class_is_left_alone(tmp_path: Path) -> None:
    world = World(storage_class("d", "example.com/other"), pvc(storageClassName="d"))
    node = Node(world, tmp_path).run()
    assert (node.directories(), world.pvc().status.phase) == ([], "Pending")
    assert world.note().reason == "ExternalProvisioning"


def test_delete_removes_the_data_and_then_the_volume(tmp_path: Path) -> None:
    node = Node(claimed(), tmp_path).run()
    (tmp_path / "volumes/pvc-u1/sub").mkdir()
    (tmp_path / "volumes/pvc-u1/sub/file").write_text("x")
    node.world.delete(node.world.pvc().key)
    node.run()
    assert (node.directories(), node.world.pv("pvc-u1")) == ([], None)


def test_retain_keeps_the_data_and_the_volume(tmp_path: Path) -> None:
    node = Node(claimed(reclaimPolicy="Retain"), tmp_path).run()
    node.world.delete(node.world.pvc().key)
    node.run()
    assert node.world.pv("pvc-u1").status.phase == "Released"
    assert node.directories() == ["pvc-u1"]
    node.world.delete(node.world.pv("pvc-u1").key)
    node.run()
    assert (node.world.pv("pvc-u1"), node.directories()) == (None, ["pvc-u1"])


def test_a_claim_of_the_same_name_does_not_get_retained_data(tmp_path: Path) -> None:
    node = Node(claimed(reclaimPolicy="Retain"), tmp_path).run()
    node.world.delete(node.world.pvc().key)
    node.run()
    node.world.put(World(pvc(storageClassName="d", meta={"uid": "u2"})).pvc(), expect=0)
    node.run()
    assert node.world.pvc().spec.volume_name == "pvc-u2"
    assert node.world.pv("pvc-u1").status.phase == "Released"


def test_published_data_waits(tmp_path: Path) -> None:
    node = Node(claimed(), tmp_path).run()
    node.busy = "pod default/p"
    node.world.delete(node.world.pvc().key)
    with pytest.raises(Unavailable, match="in use by pod default/p"):
        node.run()
    assert node.directories() == ["pvc-u1"]
    assert node.world.pv("pvc-u1").status.phase == "Released"
    node.busy = ""
    assert node.run().directories() == []


def test_data_stays_when_the_claim_lives_after_all(tmp_path: Path) -> None:
    """The decision was taken on an older view than what the store holds when the data would go."""
    node = Node(claimed(), tmp_path).run()
    old = node.world.snapshot()
    gone = old.with_delete(node.world.pvc().key)
    volume = gone.get(type(node.world.pv("pvc-u1")), "", "pvc-u1")
    from storageplane.claims.steps import phased

    gone = gone.with_put(phased(volume, "Released"))
    (scope,) = node.room.scopes(None, gone)
    with pytest.raises(Conflict, match="its data stays"):
        node.driver.apply(Plan(add=tuple(node.room.render(scope, gone))))
    assert node.directories() == ["pvc-u1"]


def live_and_die(node: Node) -> None:
    node.run()
    node.world.delete(node.world.pvc().key)
    node.run()


@pytest.mark.parametrize("count", range(12))
def test_a_crash_after_any_write_of_a_life_converges(tmp_path: Path, count: int) -> None:
    """Create, bind, delete: cut after each write, then run again to the end."""
    world = claimed()
    node = Node(world, tmp_path)
    world.crash_after = count
    with pytest.raises(Crash):
        live_and_die(node)
    world.crash_after = None
    node.run()
    if world.pvc() is not None:
        assert (world.pvc().status.phase, node.directories()) == ("Bound", ["pvc-u1"])
        world.delete(world.pvc().key)
        node.run()
    assert (node.directories(), world.pv("pvc-u1"), world.pvc()) == ([], None, None)

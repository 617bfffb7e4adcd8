"""Provisioning in cases: what is decided from claim, class, pods and what the machine has.

The machine is given as a value, so that every backend can be asked for; no data is made here (see
test_storage_volumes and tests/mounts for that).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from netplane.model.base import Key
from storageplane import backends, names
from storageplane.claims.bind import Binder
from storageplane.claims.provision import Provisioner

from .storage_world import Crash, World, pod, pv, pvc, storage_class

pytestmark = pytest.mark.usefixtures("driven")

GIB = 1 << 30
MACHINE = backends.Machine(
    {("btrfs", ""): "it is not on btrfs"}, {"disk": 10 * GIB, "memory": 2 * GIB}
)  # fmt: skip
LATE = {"volumeBindingMode": "WaitForFirstConsumer"}
UID = {"meta": {"uid": "u1"}}
ROOT = Path("/r")


class Fixed:
    """A machine that has what it has; ``done``: the volumes whose data it counts already."""

    def __init__(self, machine: backends.Machine = MACHINE, done: tuple[str, ...] = ()) -> None:
        self.found, self.done = machine, done

    def machine(self) -> backends.Machine:
        return self.found

    def made(self, volume: str) -> bool:
        return volume in self.done


class Case(NamedTuple):
    """``reason`` and ``word``: what the claim is told; ``backend`` "": nothing is provisioned."""

    objects: list[dict[str, Any]]
    backend: str
    reason: str
    word: str = ""
    enforced: bool = False


def claimed(cls: dict[str, Any], **claim: Any) -> list[dict[str, Any]]:
    return [storage_class("d", **cls), pvc(storageClassName="d", **{**UID, **claim})]


def local(claim: dict[str, Any] | None = None, **parameters: str) -> list[dict[str, Any]]:
    return claimed({"provisioner": names.LOCAL, "parameters": parameters}, **(claim or {}))


FAILED, DONE = "ProvisioningFailed", "ProvisioningSucceeded"
CASES: dict[str, Case] = {
    "a directory": Case(claimed({}), "directory", DONE, "Successfully provisioned volume pvc-u1"),
    "kept afterwards": Case(claimed({"reclaimPolicy": "Retain"}), "directory", DONE),
    "any access modes": Case(claimed({}, accessModes=["ReadWriteMany"]), "directory", DONE),
    "no pod yet": Case(claimed(LATE), "", "WaitForFirstConsumer", "first consumer"),
    "pod not placed yet": Case([*claimed(LATE), pod(node="")], "", "WaitForPodScheduled", "pod p "),
    "pod here": Case([*claimed(LATE), pod()], "directory", DONE),
    "pod elsewhere": Case([*claimed(LATE), pod(node="n2")], "", "ExternalProvisioning"),
    "pod ended": Case([*claimed(LATE), {**pod(), "status": {"phase": "Failed"}}], "", "WaitForFirstConsumer"),
    "chosen by a scheduler": Case(
        claimed(LATE, meta={"uid": "u1", "annotations": {names.SELECTED_NODE: "n1"}}), "directory", DONE
    ),
    "chosen elsewhere": Case(
        claimed(LATE, meta={"uid": "u1", "annotations": {names.SELECTED_NODE: "n2"}}),
        "", "ExternalProvisioning",
    ),
    "Block": Case(claimed({}, volumeMode="Block"), "", FAILED, "cannot be a block device"),
    "a selector": Case(claimed({}, selector={"matchLabels": {"a": "b"}}), "", FAILED, "knows no selectors"),
    "a clone": Case(
        claimed({}, dataSource={"kind": "PersistentVolumeClaim", "name": "s"}),
        "", FAILED, "PersistentVolumeClaim default/s does not exist",
    ),
    "a snapshot": Case(
        claimed({}, dataSourceRef={"kind": "VolumeSnapshot", "name": "s"}), "", FAILED, "VolumeSnapshot"
    ),
    "attributes": Case(claimed({}, volumeAttributesClassName="gold"), "", FAILED, "no attributes to modify"),
    "a parameter": Case(claimed({"parameters": {"size": "1"}}), "", FAILED, "parameters[size]: not known"),
    "mount options": Case(claimed({"mountOptions": ["noatime"]}), "", FAILED, "mountOptions"),
    "topologies": Case(claimed({"allowedTopologies": [{}]}), "", FAILED, "allowedTopologies"),
    "another provisioner": Case(
        claimed({"provisioner": "example.com/x"}), "", "ExternalProvisioning", "'example.com/x'"
    ),
    "no such class": Case([pvc(storageClassName="d", **UID)], "", FAILED, '"d" not found'),
    "no class at all": Case([pvc(storageClassName="", **UID)], "", "FailedBinding", "no storage class"),
    "the default class": Case([storage_class("d", default=True), pvc(**UID)], "directory", DONE),
    "a static volume fits": Case([*claimed({}), pv("v", storageClassName="d")], "", ""),
    "a static volume is too small": Case(
        [*claimed({}), pv("v", "1Mi", storageClassName="d")], "directory", DONE
    ),
    "names its volume": Case(claimed({}, volumeName="v"), "", "FailedBinding", "does not exist"),
    "an image of its own accord": Case(local(), "image", DONE, enforced=True),
    "xfs": Case(local(fsType="xfs"), "image", DONE, enforced=True),
    "xfs, too small": Case(local({"size": "100Mi"}, fsType="xfs"), "", FAILED, "too few for xfs"),
    "a file system nobody knows": Case(local(fsType="zfs"), "", FAILED, "zfs"),
    "a directory by its class": Case(local(backend="directory"), "directory", DONE),
    "a directory with a file system": Case(
        local(backend="directory", fsType="ext4"), "", FAILED, "cannot be file system ext4"
    ),
    "btrfs that is not here": Case(local(backend="btrfs"), "", FAILED, "not on btrfs"),
    "memory": Case(local(backend="tmpfs"), "tmpfs", DONE, enforced=True),
    "more memory than there is": Case(
        local({"size": "3Gi"}, backend="tmpfs"), "", FAILED, "ResourceExhausted"
    ),
    "more than there is": Case(local({"size": "11Gi"}), "", FAILED, "ResourceExhausted"),
    "more, as its class allows": Case(
        local({"size": "11Gi"}, overcommit="true"), "image", DONE, enforced=True
    ),
    "a directory of any size": Case(claimed({}, size="11Ti"), "directory", DONE),
}  # fmt: skip
table = pytest.mark.parametrize("name", CASES)


def deciders(site: Fixed | None = None) -> tuple[Any, ...]:
    served = (names.DIRECTORY, names.LOCAL)
    return Binder(), Provisioner("n1", ROOT, served, site or Fixed())


def check(world: World, case: Case) -> None:
    volume, claim = world.pv("pvc-u1"), world.pvc()
    told = world.note("c.provision") or world.note("c.binding")
    assert (told.reason if told else "") == case.reason
    assert case.word in (told.message if told else "")
    assert (volume is not None) is bool(case.backend)
    if volume is None:
        return
    notes = volume.metadata.annotations
    assert notes[names.BACKEND] == case.backend
    assert notes[names.SIZE_ENFORCED] == str(case.enforced).lower()
    assert (claim.status.phase, claim.spec.volume_name) == ("Bound", "pvc-u1")
    assert claim.metadata.annotations[names.STORAGE_PROVISIONER] == notes[names.PROVISIONED_BY]
    assert volume.spec.local.path == "/r/volumes/pvc-u1"


@table
def test_comes_to_what_it_should(name: str) -> None:
    check(World(*CASES[name].objects).settle(*deciders()), CASES[name])


@table
def test_running_again_writes_nothing(name: str) -> None:
    world = World(*CASES[name].objects).settle(*deciders())
    world.writes.clear()
    assert world.resync(*deciders()).writes == []


@table
@pytest.mark.parametrize("seed", range(2))
def test_any_order_comes_to_the_same(name: str, seed: int) -> None:
    chance = random.Random(seed)
    world = World(*CASES[name].objects)
    world.settle(*deciders(), order=lambda scopes: chance.sample(sorted(scopes), len(scopes)))
    check(world, CASES[name])


@table
def test_a_crash_after_any_write_converges(name: str) -> None:
    whole = World(*CASES[name].objects).settle(*deciders())
    for count in range(len(whole.writes)):
        world = World(*CASES[name].objects)
        world.crash_after = count
        with pytest.raises(Crash):
            world.settle(*deciders())
        world.crash_after = None
        check(world.settle(*deciders()), CASES[name])


def test_who_chose_the_node_is_written_down() -> None:
    world = World(*claimed(LATE), pod()).settle(*deciders())
    assert world.pvc().metadata.annotations[names.SELECTED_NODE] == "n1"


def test_volumes_that_are_promised_and_not_yet_made_count() -> None:
    """Of two claims for 6 GiB each on a disk of ten, one is served, in whatever order; then room returns."""
    objects = [storage_class("d", names.LOCAL), *(pvc(n, "6Gi", storageClassName="d") for n in "ab")]
    world = World(*objects).settle(*deciders())
    phases = {n: world.pvc(n).status.phase for n in "ab"}
    assert sorted(phases.values()) == ["Bound", "Pending"]
    (late,) = (n for n, phase in phases.items() if phase == "Pending")
    (early,) = set("ab") - {late}
    assert "6442450944 bytes are asked for and 4294967296 of disk" in world.note(f"{late}.provision").message
    world.resync(*deciders(Fixed(done=(f"pvc-uid-{early}",))))  # the machine has counted it: no event says so
    assert world.pvc(late).status.phase == "Bound"
    assert world.note(f"{late}.provision").reason == DONE


def test_a_size_that_is_enforced_is_whole_blocks() -> None:
    world = World(*local({"size": "1000000000"})).settle(*deciders())
    assert world.pv("pvc-u1").spec.capacity == {"storage": "1000001536"}
    assert world.pvc().status.capacity == {"storage": "1000001536"}


def test_a_claim_that_waits_for_room_is_looked_at_when_a_volume_goes() -> None:
    from netplane.model.changes import Event

    world = World(*local({"size": "11Gi"}), pv("v"))
    (provisioner,) = deciders()[1:]
    gone = Event(world.pv("v"), None)
    assert [s.name for s in provisioner.scopes(gone, world.snapshot())] == ["claim/default/c"]


def test_what_is_said_of_a_provisioning_counts_and_goes_with_the_claim() -> None:
    world = World(*local({"size": "11Gi"})).settle(*deciders())
    told = world.note("c.provision")
    assert (told.count, told.type, told.involved_object.name) == (1, "Warning", "c")
    assert told.first_timestamp and told.last_timestamp
    smaller = backends.Machine(MACHINE.lacking, {"disk": GIB, "memory": 0})
    world.resync(*deciders(Fixed(smaller)))  # what a machine has less of, no event says
    assert world.note("c.provision").count == 2
    world.delete(world.pvc().key)
    world.settle(*deciders())
    assert world.get(Key("Event", "default", "c.provision")) is None

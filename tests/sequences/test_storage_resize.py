"""Claims that ask for more: conditions, capacities, refusals. Pods' own claims. Access modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from netplane.model.base import Key, amend
from netplane.model.codec import parse
from netplane.model.errors import Invalid
from netplane.model.pods import Pod
from storageplane import backends, names
from storageplane.claims import access, steps
from storageplane.claims.bind import Binder
from storageplane.claims.ephemeral import Ephemerals
from storageplane.claims.provision import Provisioner
from storageplane.claims.resize import Resizer

from .storage_world import Crash, World, pod, pv, pvc, storage_class
from .test_storage_provision import GIB, MACHINE, Fixed

pytestmark = pytest.mark.usefixtures("driven")

ROOT = Path("/r")
GROWS = {"allowVolumeExpansion": True}


def deciders(machine: backends.Machine = MACHINE) -> tuple[Any, ...]:
    served = (names.DIRECTORY, names.LOCAL)
    return Binder(), Provisioner("n1", ROOT, served, Fixed(machine)), Resizer("n1", ROOT, machine)


def bound(provisioner: str = names.DIRECTORY, **cls: Any) -> World:
    claim = pvc(storageClassName="d", meta={"uid": "u1"})
    return World(storage_class("d", provisioner, **cls), claim).settle(*deciders())


def ask(world: World, size: str) -> None:
    claim = world.pvc()
    resources = amend(claim.spec.resources, requests={"storage": size})
    world.put(amend(claim, spec=amend(claim.spec, resources=resources)))


def conditions(world: World) -> list[str]:
    return [c.type for c in world.pvc().status.conditions if c.status == "True"]


def test_a_directory_grows_at_once() -> None:
    world = bound(**GROWS)
    ask(world, "5Gi")
    world.settle(*deciders())
    assert world.pv("pvc-u1").spec.capacity == {"storage": "5Gi"}
    assert world.pvc().status.capacity == {"storage": "5Gi"}
    assert conditions(world) == [] and world.pvc().status.allocated_resources == {}
    assert world.note("c.resize").reason == "VolumeResizeSuccessful"


def test_an_image_waits_for_its_file_system() -> None:
    world = bound(names.LOCAL, **GROWS)
    ask(world, "5Gi")
    world.settle(*deciders())
    claim = world.pvc()
    assert world.pv("pvc-u1").spec.capacity == {"storage": "5Gi"}
    assert (claim.status.capacity, conditions(world)) == ({"storage": "1Gi"}, ["FileSystemResizePending"])
    assert claim.status.allocated_resources == {"storage": "5Gi"}
    assert claim.status.allocated_resource_statuses == {"storage": "NodeResizePending"}
    assert world.note("c.resize").reason == "FileSystemResizeRequired"
    world.put(steps.annotated(world.pv("pvc-u1"), {names.GROWN: str(5 * GIB)}))  # as the driver notes it
    world.settle(*deciders())
    assert (world.pvc().status.capacity, conditions(world)) == ({"storage": "5Gi"}, [])


def test_growing_is_cut_anywhere_and_converges() -> None:
    for provisioner in (names.DIRECTORY, names.LOCAL):
        whole = bound(provisioner, **GROWS)
        ask(whole, "5Gi")
        begun = len(whole.writes)
        whole.settle(*deciders())
        for count in range(begun, len(whole.writes)):
            world = bound(provisioner, **GROWS)
            ask(world, "5Gi")
            world.crash_after = count
            with pytest.raises(Crash):
                world.settle(*deciders())
            world.crash_after = None
            world.settle(*deciders())
            assert world.pvc().status == whole.pvc().status
            assert world.pv("pvc-u1").spec == whole.pv("pvc-u1").spec


@pytest.mark.parametrize(
    ("world", "word"),
    [
        (lambda: bound(), "set its allowVolumeExpansion to true"),
        (lambda: World(pv("v"), pvc()).settle(*deciders()), "only dynamically provisioned"),
        (lambda: World(storage_class("d", **GROWS), pv("v", storageClassName="d"),
                       pvc(storageClassName="d")).settle(*deciders()), "only dynamically provisioned"),
    ],
)  # fmt: skip
def test_what_cannot_grow_says_why_and_stays(world: Any, word: str) -> None:
    made = world()
    ask(made, "5Gi")
    made.settle(*deciders())
    said = made.note("c.resize")
    assert (said.reason, said.type) == ("VolumeResizeFailed", "Warning") and word in said.message
    assert made.pvc().status.capacity == {"storage": "1Gi"}
    ask(made, "1Gi")
    assert made.settle(*deciders()).note("c.resize") is None


def test_there_must_be_room_to_grow() -> None:
    world = bound(names.LOCAL, **GROWS)
    ask(world, "50Gi")
    world.settle(*deciders())
    assert "ResourceExhausted" in world.note("c.resize").message
    assert world.pv("pvc-u1").spec.capacity == {"storage": "1Gi"}
    assert conditions(world) == []


def test_a_class_that_allows_it_later_lets_it_grow() -> None:
    world = bound()
    ask(world, "5Gi")
    world.settle(*deciders())
    world.put(parse(storage_class("d", **GROWS)))
    world.settle(*deciders())
    assert world.pvc().status.capacity == {"storage": "5Gi"}


def test_nothing_shrinks() -> None:
    world = bound(**GROWS)
    ask(world, "5Gi")
    world.settle(*deciders())
    ask(world, "1Gi")
    world.settle(*deciders())
    assert world.pv("pvc-u1").spec.capacity == {"storage": "5Gi"}
    assert world.pvc().status.capacity == {"storage": "5Gi"}


def test_attributes_are_not_modified_and_it_says_so() -> None:
    world = bound()
    claim = world.pvc()
    world.put(amend(claim, spec=amend(claim.spec, volume_attributes_class_name="gold")))
    assert world.settle(*deciders()).note("c.resize").reason == "VolumeModifyFailed"


# --- pods' own claims -----------------------------------------------------------------------------


def owner(name: str = "p", uid: str = "up", **spec: Any) -> dict[str, Any]:
    template = {
        "metadata": {"labels": {"app": "web"}, "annotations": {"a": "b"}},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, **spec,
        },
    }  # fmt: skip
    volume = {"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}
    made = pod(name)
    return {
        **made,
        "metadata": {**made["metadata"], "uid": uid},
        "spec": {**made["spec"], "volumes": [volume]},
    }


def owned(world: World) -> Any:
    return world.pvc("p-scratch")


def test_a_pods_own_claim_is_made_from_its_template_and_bound() -> None:
    world = World(owner(), pv("v")).settle(Binder(), Ephemerals())
    claim = owned(world)
    (ref,) = claim.metadata.owner_references
    assert (ref.kind, ref.name, ref.uid, ref.controller, ref.block_owner_deletion) == (
        "Pod", "p", "up", True, True,
    )  # fmt: skip
    assert (claim.labels, claim.metadata.annotations["a"]) == ({"app": "web"}, "b")
    assert claim.status.phase == "Bound"


def test_a_claim_of_that_name_that_is_not_the_pods_is_left_and_told() -> None:
    world = World(owner(), pvc("p-scratch")).settle(Binder(), Ephemerals())
    assert owned(world).metadata.owner_references == ()
    told = world.get(Key("Event", "default", "p.ephemeral"))
    assert 'PVC "p-scratch" was not created for pod "p" (pod is not owner)' in told.message
    world.delete(owned(world).key)
    world.settle(Binder(), Ephemerals())
    assert owned(world).metadata.owner_references
    assert world.get(Key("Event", "default", "p.ephemeral")) is None


def test_a_template_that_is_wrong_is_told() -> None:
    world = World(owner(accessModes=[])).settle(Binder(), Ephemerals())
    assert owned(world) is None
    assert "accessModes" in world.get(Key("Event", "default", "p.ephemeral")).message


def test_it_goes_with_its_pod_and_not_before() -> None:
    world = World(owner(), pv("v")).settle(Binder(), Ephemerals())
    world.delete(owned(world).key)
    world.settle(Binder(), Ephemerals())
    assert owned(world).deleting  # protected while the pod is placed
    world.delete(Key("Pod", "default", "p"))
    world.settle(Binder(), Ephemerals())
    assert owned(world) is None
    assert world.pv("v").status.phase == "Released"


def test_a_pod_of_the_same_name_gets_a_claim_of_its_own() -> None:
    world = World(owner(), pv("v"), pv("w")).settle(Binder(), Ephemerals())
    first = owned(world).spec.volume_name
    world.delete(Key("Pod", "default", "p"))
    world.put(parse(owner(uid="up2")))
    world.settle(Binder(), Ephemerals())
    (ref,) = owned(world).metadata.owner_references
    assert ref.uid == "up2"
    assert owned(world).spec.volume_name != first


def test_a_pod_that_ended_keeps_its_claim_and_gets_no_new_one() -> None:
    ended = {**owner(), "status": {"phase": "Succeeded"}}
    assert owned(World(ended).settle(Ephemerals())) is None
    world = World(owner()).settle(Ephemerals())
    world.put(parse(ended))
    assert owned(world.settle(Ephemerals())) is not None


# --- access modes ---------------------------------------------------------------------------------

RWO, ROX, RWX, RWOP = "ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"


def user(name: str, node: str, reads: bool = False, at: str = "1", **more: Any) -> Pod:
    doc = pod(name, node, uid=name, creationTimestamp=f"2026-01-01T00:00:0{at}Z")
    doc["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = reads
    found = parse({**doc, **more})
    assert isinstance(found, Pod)
    return found


@pytest.mark.parametrize(
    ("modes", "first", "second", "refused"),
    [
        # nobody has it published yet: of those that are placed the older one comes first
        ([RWOP], user("a", "n1"), user("b", "n1", at="2"), "in use by pod default/a"),
        ([RWOP], user("a", "n2"), user("b", "n1", at="2"), "in use by pod default/a on node n2"),
        ([RWOP], user("a", "n1", status={"phase": "Succeeded"}), user("b", "n1", at="2"), ""),
        ([RWOP], user("a", ""), user("b", "n1", at="2"), ""),
        ([RWOP], user("a", "n1", at="3"), user("b", "n1", at="2"), ""),
        ([RWO], user("a", "n1"), user("b", "n1", at="2"), ""),
        ([RWO], user("a", "n2"), user("b", "n1", at="2"), "is ReadWriteOnce and in use"),
        ([RWX], user("a", "n2"), user("b", "n1", at="2"), ""),
        ([ROX], user("a", "n2", True), user("b", "n1", True, at="2"), ""),
        ([RWO, ROX], user("a", "n2", True), user("b", "n1", True, at="2"), ""),
        ([RWO, ROX], user("a", "n2", True), user("b", "n1", at="2"), "is ReadOnlyMany and in use"),
        ([RWO, ROX], user("a", "n1"), user("b", "n1", True, at="2"), "is ReadWriteOnce and in use"),
        ([RWX, ROX], user("a", "n1"), user("b", "n1", True, at="2"), "is ReadWriteMany and in use"),
        ([RWO], user("a", "n1"), user("b", "n1", True, at="2"), ""),
    ],
)
def test_one_access_mode_is_in_force_at_a_time(
    modes: list[str], first: Pod, second: Pod, refused: str
) -> None:
    world = World(pvc(accessModes=modes), first, second)
    said = access.obstacle(second, world.pvc(), "n1", world.snapshot())
    assert refused in said and bool(refused) == bool(said)
    assert access.obstacle(first, world.pvc(), first.spec.node_name, World(pvc(), first).snapshot()) == ""


@pytest.mark.parametrize(
    ("modes", "first", "second", "refused"),
    [
        # the first has it published, and is the younger one
        ([RWOP], user("a", "n1", at="3"), user("b", "n1", at="2"), "in use by pod default/a"),
        (
            [RWO],
            user("a", "n2", at="3"),
            user("b", "n1", at="2"),
            "is ReadWriteOnce and in use by pod default/a on node n2",
        ),
        ([RWO], user("a", "n1", at="3"), user("b", "n1", at="2"), ""),
        ([RWO, ROX], user("a", "n1", at="3"), user("b", "n1", True, at="2"), "is ReadWriteOnce and in use"),
        ([RWO, ROX], user("a", "n1", True, at="3"), user("b", "n1", at="2"), "is ReadOnlyMany and in use"),
        ([RWX], user("a", "n2", at="3"), user("b", "n1", at="2"), ""),
        ([RWO], user("a", "n2", at="3", status={"phase": "Failed"}), user("b", "n1", at="2"), ""),
    ],
)
def test_who_has_it_published_decides_and_not_who_is_older(
    modes: list[str], first: Pod, second: Pod, refused: str
) -> None:
    claim, uid = pvc(accessModes=modes, volumeName="v", meta={"uid": "u"}), first.metadata.uid
    world = World(pv("v", claim="c:u", accessModes=modes), claim, first, second)
    mode = access.mode_of(first, world.pvc())
    world.put(access.held_by(world.pv("v"), {uid: access.Hold("default/a", mode, first.spec.node_name)}))
    said = access.obstacle(second, world.pvc(), "n1", world.snapshot())
    assert refused in said and bool(refused) == bool(said)
    assert access.obstacle(first, world.pvc(), first.spec.node_name, world.snapshot()) == ""
    third = user(
        "c", "n2" if first.spec.node_name == "n1" else "n1", at="1"
    )  # older than both, and not there
    world.put(third)
    if first.finished:
        return
    assert access.obstacle(second, world.pvc(), "n1", world.snapshot()) == said
    world.delete(first.key)  # its object is gone, what it has published is not
    said = access.obstacle(second, world.pvc(), "n1", world.snapshot())
    assert refused in said and ("unpublish it there" in said) == bool(refused)


def test_what_a_volume_says_wrongly_of_who_uses_it_is_named() -> None:
    world = World(pv("v", claim="c:u", meta={"annotations": {names.IN_USE: "me"}}),
                  pvc(volumeName="v", meta={"uid": "u"}), user("a", "n1"))  # fmt: skip
    with pytest.raises(Invalid, match=r"PersistentVolume v: metadata.annotations: storageplane.io/in-use"):
        access.obstacle(user("b", "n1"), world.pvc(), "n1", world.snapshot())

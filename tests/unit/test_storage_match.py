"""What is decided and explained about volumes, in tables."""

from __future__ import annotations

import random
from typing import Any

import pytest

from netplane.model.codec import parse
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim
from storageplane.claims import match
from storageplane.claims.bind import Binder
from storageplane.claims.describe import describer
from storageplane.host import mountinfo
from storageplane.volumes import claim
from tests.sequences.binder_cases import BOUND
from tests.sequences.storage_world import World, on_node, pod, pv, pvc, storage_class

READY = {"status": {"phase": "Available"}}


def test_why_gives_one_reason_per_volume_in_matching_order() -> None:
    world = World(
        pv("e", "1Mi", **READY),
        pv("d", "5Gi", storageClassName="x", **READY),
        pv("c", "4Gi", claim="other", **READY),
        pv("b", "9Gi", accessModes=["ReadWriteOnce", "ReadOnlyMany"], volumeMode="Block", **READY),
        pv("a", accessModes=["ReadOnlyMany"], **READY),
        pv("f", "6Gi", status={"phase": "Released"}),
        pvc(storageClassName="ssd"),
    )
    assert match.why(world.pvc(), world.snapshot()) == [
        ("e", "is too small: 1Mi of 1Gi"),
        ("c", "is claimed by default/other"),
        ("d", "its storage class is 'x'"),
        ("f", "is Released, not Available"),
        ("b", "its volume mode is Block"),
        ("a", "does not offer the access modes ReadWriteOnce"),
    ]


def test_why_names_the_node_and_the_selector() -> None:
    late = storage_class("late", volumeBindingMode="WaitForFirstConsumer")
    far = pv("far", storageClassName="late", nodeAffinity=on_node("n1"), **READY)
    claim = pvc(storageClassName="late")
    world = World(far, late, claim)
    waits = "waits for a pod that uses the claim to be placed on a node"
    assert match.why(world.pvc(), world.snapshot()) == [("far", waits)]
    world = World(far, late, claim, pod(node="n2"))
    assert match.why(world.pvc(), world.snapshot()) == [("far", "is not reachable from node n2")]
    world = World(pv("v", **READY), pvc(selector={"matchLabels": {"a": "b"}}))
    assert match.why(world.pvc(), world.snapshot()) == [("v", "its labels do not match the claim's selector")]


def told(world: World, name: str = "c") -> dict[str, str]:
    """Volume → what `describe pvc` says of it, in its order."""
    lines = list(describer(world.pvc(name), world.snapshot()))
    rows = [line.split(None, 1) for line in lines[lines.index("Volumes:") + 1 :]]
    return {row[0]: row[1] for row in rows}


TAKEN = "is about to be taken"
OTHER = "is not looked at: a claim that was bound gets no other volume"
DONE: dict[str, Any] = {"meta": {"annotations": BOUND, "uid": "u"}}
BOTH = ["ReadWriteOnce", "ReadOnlyMany"]


@pytest.mark.parametrize(
    ("objects", "rows"),
    [
        ([pv("b"), pv("a"), pv("c", "2Gi"), pv("d", accessModes=BOTH), pvc()],
         {"a": TAKEN, "b": "fits, but a comes first", "c": "fits, but a comes first",
          "d": "fits, but a comes first"}),
        ([pv("a"), pv("b", "9Gi", claim="c"), pvc()], {"b": TAKEN, "a": "fits, but b comes first"}),
        ([pv("a", claim="c"), pv("b", claim="c"), pvc()], {"a": TAKEN, "b": "fits, but a comes first"}),
        ([pv("a"), pv("b", claim="c", accessModes=BOTH), pvc()],
         {"a": TAKEN, "b": "fits, but a comes first"}),
        ([pv("a", "1Mi", claim="c"), pv("b"), pvc()], {"a": "is too small: 1Mi of 1Gi", "b": TAKEN}),
        ([pv("a"), pv("b"), pvc(volumeName="b")], {"b": TAKEN, "a": "is not b, which the claim names"}),
        ([pv("a", "1Mi"), pv("b"), pvc(volumeName="a")],
         {"a": "is too small: 1Mi of 1Gi", "b": "is not a, which the claim names"}),
        ([pv("b"), pvc(volumeName="a")], {"a": "does not exist", "b": "is not a, which the claim names"}),
        ([pv("a", claim="d"), pv("b"), pvc(volumeName="a")],
         {"a": "already bound to a different claim, default/d", "b": "is not a, which the claim names"}),
        ([pv("a", storageClassName="x"), pvc(volumeName="a")], {"a": "its storage class is 'x'"}),
        ([pv("a", accessModes=["ReadOnlyMany"]), pvc(volumeName="a")], {"a": "does not offer ReadWriteOnce"}),
        ([pv("a", storageClassName="x", claim="c"), pvc(volumeName="a")], {"a": TAKEN}),
        ([pv("b"), pvc(volumeName="a", **DONE)],
         {"a": "Bound claim has lost its PersistentVolume. Data may be lost!", "b": OTHER}),
        ([pv("a", claim="d:9"), pv("b"), pvc(volumeName="a", **DONE)],
         {"a": "Two claims are bound to the same volume, this one is bound incorrectly", "b": OTHER}),
        ([pv("b"), pvc(**DONE)], {"b": OTHER}),
        ([pv("a", claim="c:u"), pv("b"), pvc(volumeName="a", **DONE)], {"a": TAKEN, "b": OTHER}),
        ([pv("b"), pvc(meta={"deletionTimestamp": "x", "finalizers": ["somebody/else"]})],
         {"b": "is not looked at: the claim is being deleted"}),
    ],
)  # fmt: skip
def test_describe_says_of_each_volume_what_the_binder_does(
    objects: list[dict[str, Any]], rows: dict[str, str]
) -> None:
    world = World(*objects)
    assert list(told(world).items()) == list(rows.items())
    taken = [name for name, reason in rows.items() if reason == TAKEN]
    world.settle(Binder())
    bound = world.pvc().status.phase == "Bound"
    assert taken == ([world.pvc().spec.volume_name] if bound else [])
    if not bound:  # and it says so still when the binder has been there, as publish does
        assert list(told(world).items()) == list(rows.items())
        said = claim.reason(world.pvc(), world.snapshot())
        assert all(f"{name} {text}" in said for name, text in rows.items())


@pytest.mark.parametrize("seed", range(40))
def test_the_volume_that_is_about_to_be_taken_is_the_one_that_is_taken(seed: int) -> None:
    chance = random.Random(seed)
    more: list[dict[str, Any]] = [
        {}, {}, {"claim": "c"}, {"claim": "c:old"}, {"claim": "d"}, {"storageClassName": "x"},
        {"accessModes": BOTH}, {"accessModes": BOTH, "claim": "c"}, {"accessModes": ["ReadOnlyMany"]},
        {"claim": "d:9", "status": {"phase": "Released"}}, {"volumeMode": "Block"},
        {"nodeAffinity": on_node("n2")},
    ]  # fmt: skip
    late = storage_class("x", "kubernetes.io/no-provisioner", volumeBindingMode="WaitForFirstConsumer")
    volumes = [pv(f"v{i}", chance.choice(("1Mi", "1Gi", "2Gi")), **chance.choice(more)) for i in range(6)]
    asked = chance.choice(({}, {}, {"storageClassName": "x"}, {"volumeName": "v3"}, {"volumeName": "v9"}))
    world = World(*volumes, pvc(**asked), late, *([pod()] if chance.random() < 0.5 else []))
    rows = match.why(world.pvc(), world.snapshot())
    assert {name for name, _ in rows} >= {f"v{i}" for i in range(6)}
    world.settle(Binder())
    taken = world.pvc().spec.volume_name if world.pvc().status.phase == "Bound" else ""
    assert [name for name, reason in rows if not reason] == ([taken] if taken else [])


def test_the_newest_default_class_wins() -> None:
    world = World(
        storage_class("old", default=True, meta={"creationTimestamp": "2024-01-01T00:00:00Z"}),
        storage_class("new", default=True, meta={"creationTimestamp": "2025-01-01T00:00:00Z"}),
        storage_class("plain"),
    )
    found = match.default_class(world.snapshot())
    assert found is not None and found.name == "new"


@pytest.mark.parametrize(
    ("terms", "fits"),
    [
        ([{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}], True),
        ([{"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}], False),
        ([{"matchExpressions": [{"key": "gpu", "operator": "NotIn", "values": ["a"]}]}], True),
        ([{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}], True),
        ([{"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}], False),
        ([{"matchExpressions": [{"key": "cpus", "operator": "Gt", "values": ["7"]}]}], True),
        ([{"matchExpressions": [{"key": "cpus", "operator": "Lt", "values": ["8"]}]}], False),
        ([{"matchExpressions": [{"key": "zone", "operator": "Gt", "values": ["1"]}]}], False),
        ([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}], True),
        ([{}], False),
        ([{}, {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}], True),
        (
            [
                {
                    "matchExpressions": [
                        {"key": "zone", "operator": "Exists"},
                        {"key": "gpu", "operator": "Exists"},
                    ]
                }
            ],
            False,
        ),
    ],
)
def test_node_affinity(terms: list[dict[str, Any]], fits: bool) -> None:
    volume = parse(pv("v", nodeAffinity={"required": {"nodeSelectorTerms": terms}}))
    assert isinstance(volume, PersistentVolume)
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n1", "labels": {"zone": "a", "cpus": "8"}},
    }
    assert match.fits_node(volume.spec.node_affinity, "n1", Snapshot.of([parse(node)])) is fits


def test_a_node_without_an_object_is_known_by_its_hostname() -> None:
    volume = parse(pv("v", nodeAffinity=on_node("n1")))
    assert isinstance(volume, PersistentVolume)
    assert match.fits_node(volume.spec.node_affinity, "n1", Snapshot.of([]))
    assert not match.fits_node(volume.spec.node_affinity, "n2", Snapshot.of([]))


def test_sizes_compare_as_quantities() -> None:
    claim = parse(pvc(size="1G"))
    assert isinstance(claim, PersistentVolumeClaim)
    assert match.requested(claim) == 10**9
    small, exact = parse(pv("a", "953Mi")), parse(pv("b", "1000M"))
    assert isinstance(small, PersistentVolume) and isinstance(exact, PersistentVolume)
    assert match.unsatisfied(small, claim) == "is too small: 953Mi of 1G"
    assert match.unsatisfied(exact, claim) == ""


def test_mountinfo_is_read_with_its_escapes_and_tags() -> None:
    line = r"36 35 98:0 /a\040b /mnt/x\011y ro,noatime shared:1 master:2 - ext4 /dev/root rw,errors=continue"
    found = mountinfo.parse(line)
    assert (found.root, found.point) == ("/a b", "/mnt/x\ty")
    assert (found.fstype, found.propagation, found.read_only) == ("ext4", "rshared", True)
    assert mountinfo.parse("1 0 0:1 / / rw master:3 - tmpfs none rw").propagation == "rslave"
    assert mountinfo.parse("1 0 0:1 / / rw - tmpfs none rw").propagation == "private"

"""What is decided and explained about volumes, in tables."""

from __future__ import annotations

from typing import Any

import pytest

from netplane.model.codec import parse
from netplane.model.snapshot import Snapshot
from netplane.model.storage import PersistentVolume, PersistentVolumeClaim
from storageplane.claims import match
from storageplane.host import mountinfo
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

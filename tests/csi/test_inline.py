"""Volumes of a pod itself at our own driver: made with the publication, gone with it, whoever dies between.

pod ── publish ── NodePublishVolume (ephemeral) ── volume inline-… ── ROOT/csi/inline/… ── target
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.model.codec import parse
from netplane.model.snapshot import Snapshot
from storageplane.host.mounts import Mounts
from storageplane.pods import publish
from tests.sequences.storage_world import pod

from .conftest import MIB, WRITER, Driver, loops, mounts, running
from .foreign import NAME, volumes
from .test_kill_steps import BLOCK, STEPS, Mortal

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
SHARED = {"mount": {}, "access_mode": {"mode": 7}}  # SINGLE_NODE_MULTI_WRITER
EPHEMERAL = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.name": "p"}


def asked(driver: Driver, target: str = "t", capability: Any = WRITER, **attributes: str) -> dict[str, Any]:
    """A NodePublishVolume of the volume csi-1."""
    return {
        "volume_id": "csi-1",
        "target_path": str(driver.home / target),
        "volume_capability": capability,
        "volume_context": {**EPHEMERAL, **attributes},
    }


def left(driver: Driver, target: str = "t") -> dict[str, Any]:
    """A NodeUnpublishVolume of it."""
    return {"volume_id": "csi-1", "target_path": str(driver.home / target)}


def nothing(driver: Driver) -> None:
    assert volumes(driver) == [] and {*mounts(driver.home)} <= {str(driver.root)} and loops(driver.home) == []
    assert [p for top in ("data", "inline") for p in (driver.root / "csi" / top).glob("*")] == []


@pytest.mark.parametrize("backend", ["image", "directory", "tmpfs"])
def test_a_pods_own_volume_lives_as_long_as_its_publication(
    other: Driver, tmp_path: Path, backend: str
) -> None:
    root, target = tmp_path / "ours", tmp_path / "pod"
    attributes = {"size": "16Mi", "backend": backend}
    made = pod(uid="u1")
    made["spec"]["volumes"] = [{"name": "v", "csi": {"driver": NAME, "volumeAttributes": attributes}}]
    one: Any = parse(made)
    publish.publish(one, Snapshot.of([]), "n1", Mounts(root), str(target))
    (target / "v/word").write_text("x")
    if backend != "directory":
        with pytest.raises(OSError, match="No space left"):
            (target / "v/big").write_bytes(bytes(24 * MIB))
    assert volumes(other) == [], "it is nobody's but the pod's"
    publish.publish(one, Snapshot.of([]), "n1", Mounts(root), str(target))
    assert (target / "v/word").read_text() == "x"
    assert publish.unpublish("default", "p", Mounts(root), str(target)) == 1
    nothing(other)
    publish.publish(one, Snapshot.of([]), "n1", Mounts(root), str(target))
    assert "word" not in os.listdir(target / "v"), "another one"
    assert publish.unpublish("default", "p", Mounts(root), str(target)) == 1
    nothing(other)


def test_it_is_read_only_measured_and_survives_the_drivers_death(driver: Driver) -> None:
    driver.call("NodePublishVolume", **asked(driver, size="16Mi"), readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        (driver.home / "t/x").write_text("x")
    driver.kill()
    driver.start()
    where = {"volume_id": "csi-1", "volume_path": str(driver.home / "t")}
    assert 8 * MIB < driver.call("NodeGetVolumeStats", **where).usage[0].total <= 16 * MIB
    driver.call("NodeUnpublishVolume", **left(driver))
    nothing(driver)


def test_it_goes_with_its_last_target(driver: Driver) -> None:
    for target in ("t", "u"):
        driver.call("NodePublishVolume", **asked(driver, target, SHARED, size="16Mi"))
    (driver.home / "t/word").write_text("x")
    driver.call("NodeUnpublishVolume", **left(driver, "t"))
    assert (driver.home / "u/word").read_text() == "x"
    driver.call("NodeUnpublishVolume", **left(driver, "u"))
    nothing(driver)
    driver.call("NodeUnpublishVolume", **left(driver, "u"))  # by a kubelet that did not get the answer
    unknown = {**left(driver), "volume_id": "vol-" + "0" * 32}
    assert driver.refused("NodeUnpublishVolume", **unknown)[0] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ({"size": "much"}, "INVALID_ARGUMENT", "volumeAttributes.size: 'much' is no size"),
        ({"size": "0"}, "INVALID_ARGUMENT", "volumeAttributes.size: '0' is no size"),
        ({"size": "20E"}, "INVALID_ARGUMENT", "volumeAttributes.size: '20E' is no size"),
        ({"size": "1Ei", "backend": "image"}, "RESOURCE_EXHAUSTED", "not promised yet"),
        ({"pool": "gold"}, "INVALID_ARGUMENT", "pool"),
        ({"capability": BLOCK}, "INVALID_ARGUMENT", "not a block device"),
        ({"target": "no/such/place"}, "", ""),
    ],
)
def test_what_cannot_be_had_is_said_and_leaves_nothing(
    driver: Driver, more: dict[str, Any], code: str, said: str
) -> None:
    have, words = driver.refused("NodePublishVolume", **asked(driver, **more))
    assert code in ("", have) and said in words
    nothing(driver)


def test_the_same_one_otherwise_is_refused_and_stays(driver: Driver) -> None:
    driver.call("NodePublishVolume", **asked(driver, size="16Mi"))
    (driver.home / "t/word").write_text("x")
    for other in (asked(driver, size="64Mi"), asked(driver, "u", size="16Mi")):
        code, _ = driver.refused("NodePublishVolume", **other)
        assert code in ("ALREADY_EXISTS", "FAILED_PRECONDITION")
    assert (driver.home / "t/word").read_text() == "x"
    named = driver.create("csi-1", 8 * MIB)  # somebody's volume of that name is another one
    driver.call("NodeUnpublishVolume", **left(driver))
    assert volumes(driver) == [named]
    driver.call("DeleteVolume", volume_id=named)
    nothing(driver)


def test_nobody_outside_reaches_it_by_its_id_inside(driver: Driver) -> None:
    """Every call that says it is answered as for a volume that is not there, and it stays."""
    driver.call("NodePublishVolume", **asked(driver, size="8Mi", backend="image"))
    (driver.home / "t/word").write_text("x")
    (own,) = [p.name for p in (driver.root / "csi/data").iterdir()]
    staging = str(driver.root / "csi/inline" / own)
    here, able = {"volume_id": own}, {"volume_id": own, "volume_capability": WRITER}
    calls: dict[str, dict[str, Any]] = {
        "ControllerGetVolume": here,
        "ControllerGetVolumeHealth": here,
        "ControllerPublishVolume": {**able, "node_id": "n1"},
        "ControllerExpandVolume": {**here, "capacity_range": {"required_bytes": 32 * MIB}},
        "ControllerModifyVolume": {**here, "mutable_parameters": {"provisioning": "thick"}},
        "ValidateVolumeCapabilities": {**here, "volume_capabilities": [WRITER]},
        "CreateSnapshot": {"name": "s", "source_volume_id": own},
        "CreateVolumeGroupSnapshot": {"name": "g", "source_volume_ids": [own]},
        "CreateVolume": {
            "name": "copy",
            "volume_capabilities": [WRITER],
            "volume_content_source": {"volume": {"volume_id": own}},
        },
        "NodeStageVolume": {**able, "staging_target_path": staging},
        "NodePublishVolume": {
            **able,
            "staging_target_path": staging,
            "target_path": str(driver.home / "stolen"),
        },
        "NodeUnpublishVolume": {**here, "target_path": str(driver.home / "t")},
        "NodeUnstageVolume": {**here, "staging_target_path": staging},
        "NodeGetVolumeStats": {**here, "volume_path": staging},
        "NodeExpandVolume": {**here, "volume_path": staging},
        "NodeGetVolumeHealth": here,
    }
    for method, fields in calls.items():
        assert driver.refused(method, **fields)[0] == "NOT_FOUND", method
    driver.call("DeleteVolume", **here)
    driver.call("ControllerUnpublishVolume", **here, node_id="n1")
    assert not driver.call("ListSnapshots", source_volume_id=own).entries
    assert (driver.home / "t/word").read_text() == "x"
    driver.call("NodeUnpublishVolume", **left(driver))
    nothing(driver)
    assert driver.refused("ControllerGetVolume", **here)[0] == "NOT_FOUND"


# --- whoever dies -----------------------------------------------------------------------------------


@pytest.fixture
def dying(tmp_path: Path) -> Iterator[Mortal]:
    with running(tmp_path, kind=Mortal, disk=64) as driver:  # whose free bytes nobody else changes
        yield driver


@pytest.mark.parametrize("backend", ["directory", pytest.param("image", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["NodePublishVolume", "NodeUnpublishVolume"])
def test_killed_at_every_step_it_is_made_or_gone_by_the_same_call(
    dying: Mortal, backend: str, name: str
) -> None:
    there, gone = asked(dying, size="8Mi", backend=backend), left(dying)
    dying.call("NodePublishVolume", **there)
    dying.call("NodeUnpublishVolume", **gone)
    before = dying.world()
    for step in range(1, STEPS):
        if name == "NodeUnpublishVolume":
            dying.call("NodePublishVolume", **there)
            died = dying.dies(step, (name, gone))
        else:
            died = dying.dies(step, (name, there))
            if step % 2:  # else it is not asked for again
                dying.call(name, **there)
                (dying.home / "t/word").write_text("x")
        dying.gone(("NodeUnpublishVolume", gone))
        assert dying.world() == before, f"{name} of a {backend} killed at step {step}"
        nothing(dying)
        if not died:
            break
    assert 8 < step < STEPS - 1

"""A node given up: what is lost with it, what is not, who may say so, and what becomes of the claims."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from netplane.model.base import Key, Object, amend
from netplane.model.errors import Conflict, Invalid
from netplane.model.storage_facts import Erase
from storageplane import names
from storageplane.claims import access, lost, pulse
from storageplane.claims.bind import Binder
from storageplane.claims.reclaim import Reclaimer, Volumes
from storageplane.claims.snapshots import Snapshotter

from .binder_cases import BOUND
from .storage_world import Crash, World, on_node, pod, pv, pvc
from .test_storage_snapshots import content, volume_snapshot

pytestmark = pytest.mark.usefixtures("driven")

MADE: dict[str, Any] = {
    "annotations": {names.PROVISIONED_BY: names.DIRECTORY, names.BOUND_BY_CONTROLLER: "yes"},
    "finalizers": [names.PV_PROTECTION, names.DATA],
}


class Shop(World):
    def list(self, kinds: Iterable[str] | None = None) -> tuple[list[Object], int]:
        return [o for o in self.objects.values() if kinds is None or o.KIND in set(kinds)], 1


def node(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"zone": "a"}}}


def beat(name: str, ago: float, namespace: str = pulse.NAMESPACE, holder: str = "x") -> dict[str, Any]:
    when = datetime.now(UTC) - timedelta(seconds=ago)
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 40, "renewTime": when.isoformat()}
    return {
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec,
        "metadata": {"name": name, "namespace": namespace},
    }  # fmt: skip


def pair(claim: str, volume: str, where: str) -> list[dict[str, Any]]:
    """A claim of its own name, bound to a volume on one node."""
    uid = f"uid-of-{claim}"
    local = {"path": f"/r/volumes/{volume}"}
    affinity = on_node(where)
    return [
        pv(volume, claim=f"{claim}:{uid}", local=local, nodeAffinity=affinity, meta=MADE,
           persistentVolumeReclaimPolicy="Delete", status={"phase": "Bound"}),
        pvc(claim, volumeName=volume, meta={"uid": uid, "annotations": BOUND}, status={"phase": "Bound"}),
    ]  # fmt: skip


def shop(*more: dict[str, Any]) -> Shop:
    return Shop(
        node("n1"), node("n2"), *pair("a", "va", "n1"), *pair("b", "vb", "n2"),
        pv("everywhere"), pv("shared", local={"path": "/x"}, nodeAffinity=zone()), pod("pa", "n1", "a"),
        pod("pb", "n2", "b"), *more,
    )  # fmt: skip


def zone() -> dict[str, Any]:
    need = {"key": "zone", "operator": "In", "values": ["a"]}
    return {"required": {"nodeSelectorTerms": [{"matchExpressions": [need]}]}}


def settled(world: Shop) -> Shop:
    world.settle(Binder(), Reclaimer())
    return world


def test_only_what_nobody_else_reaches_is_lost() -> None:
    found = lost.loss("n1", shop().snapshot())
    assert [v.name for v in found.volumes] == ["va"]
    assert [c.name for c in found.claims] == ["a"]
    assert [p.name for p in found.pods] == ["pa"]


def test_its_claims_are_lost_and_the_others_go_on() -> None:
    world = settled(shop())
    said = list(lost.give_up(world, "n1"))
    assert said == ["pod default/pa deleted", "volume va given up"]
    settled(world)
    assert world.pv("va") is None
    assert (world.pvc("a").status.phase, world.note("a.binding").reason) == ("Lost", "ClaimLost")
    assert world.pvc("b").status.phase == "Bound" and world.pv("vb").status.phase == "Bound"
    assert world.pv("shared").status.phase == world.pv("everywhere").status.phase == "Available"
    assert list(lost.give_up(world, "n1")) == []


def test_a_lost_claim_can_be_deleted_at_once() -> None:
    world = settled(shop())
    list(lost.give_up(world, "n1"))
    world.delete(world.pvc("a").key)
    assert settled(world).pvc("a") is None


def test_its_claims_can_start_anew() -> None:
    world = settled(shop())
    list(lost.give_up(world, "n1", rebind=True))
    world.put(next(iter(World(pv("w")).objects.values())), expect=0)
    settled(world)
    claim = world.pvc("a")
    assert claim.status.phase == "Bound" and claim.spec.volume_name in ("w", "everywhere", "shared")
    assert names.LOST not in claim.metadata.annotations


@pytest.mark.parametrize("rebind", [False, True])
def test_cut_after_any_write_and_said_again_it_comes_to_the_same(rebind: bool) -> None:
    whole = settled(shop())
    begun = len(whole.writes)
    list(lost.give_up(whole, "n1", rebind))
    for count in range(begun, len(whole.writes)):
        world = settled(shop())
        world.crash_after = count
        with pytest.raises(Crash):
            list(lost.give_up(world, "n1", rebind))
        world.crash_after = None
        settled(world)  # the controllers go on in between
        list(lost.give_up(world, "n1", rebind))
        settled(world)
        assert world.pv("va") is None
        assert world.pvc("a").status.phase == ("Bound" if rebind else "Lost"), f"after {count}"


@pytest.mark.parametrize("namespace", [pulse.NAMESPACE, pulse.NODES])
def test_a_node_that_is_alive_is_not_given_up_unless_forced(namespace: str) -> None:
    world = settled(shop(beat("n1", 5, namespace)))
    with pytest.raises(Invalid, match=r"node n1 is alive: x holds its lease .* for 3\d s more; stop"):
        list(lost.give_up(world, "n1"))
    assert world.pv("va") is not None
    assert list(lost.give_up(world, "n1", force=True))[-1] == "volume va given up"


@pytest.mark.parametrize("lease", [beat("n1", 41), beat("n1", 0, holder=""), beat("n2", 0)])
def test_a_lease_that_ran_out_or_was_released_or_is_anothers_does_not_hold_it(lease: dict[str, Any]) -> None:
    assert lost.alive("n1", shop(lease).snapshot(), time.time()) == ""


def test_a_volume_that_somebody_else_holds_is_named_and_keeps_none_of_the_others() -> None:
    world = settled(shop(*pair("c", "vc", "n1")))
    held = world.pv("va")
    world.put(amend(held, metadata=amend(held.metadata, finalizers=(*held.metadata.finalizers, "x.org/y"))))
    with pytest.raises(Invalid, match=r"PersistentVolume va is given up, and held by x\.org/y"):
        list(lost.give_up(world, "n1"))
    assert world.pv("vc") is None


def test_a_volume_that_others_keep_writing_to_is_not_said_to_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    world = settled(shop(*pair("c", "vc", "n1")))
    used = access.Hold("default/x", "ReadWriteOnce", "n1")
    world.put(access.held_by(world.pv("shared"), {"uid-x": used}))
    put = world.put

    def busy(obj: Object, expect: int | None = None) -> Object:
        if obj.key == world.pv("shared").key:
            raise Conflict("somebody was faster")
        return put(obj, expect)

    monkeypatch.setattr(world, "put", busy)
    said: list[str] = []
    with pytest.raises(Invalid, match="PersistentVolume shared: others keep writing to it"):
        said.extend(lost.give_up(world, "n1"))
    assert said and not [line for line in said if "shared" in line]
    assert world.pv("vc") is None, "the others are given up"


def test_a_node_that_comes_back_leaves_alone_what_was_given_up(tmp_path: Path) -> None:
    """Its volume's object may be held by somebody else for long; the data is not touched meanwhile."""
    more = {**MADE, "annotations": {**MADE["annotations"], names.LOST: "n1"}, "deletionTimestamp": "x"}
    spec = {"local": {"path": f"{tmp_path}/volumes/v"}, "nodeAffinity": on_node("n1"), "meta": more}
    world = World(pv("v", persistentVolumeReclaimPolicy="Delete", status={"phase": "Released"}, **spec))
    room = Volumes("n1", tmp_path)
    (scope,) = room.scopes(None, world.snapshot())
    assert room.render(scope, world.snapshot()) == []


def test_a_node_that_nobody_has_heard_of_is_a_mistake() -> None:
    with pytest.raises(Invalid, match="n9"):
        list(lost.give_up(shop(), "n9"))


@pytest.mark.parametrize("deleting", [False, True])
def test_the_snapshots_on_it_are_given_up_too_and_block_nobody(deleting: bool) -> None:
    world = shop(
        volume_snapshot("gone", content="on-n1"), content_on("on-n1", "n1", "gone"),
        volume_snapshot("kept", content="on-n2"), content_on("on-n2", "n2", "kept"),
    )  # fmt: skip
    world.settle(Snapshotter())
    gone, kept = (Key("VolumeSnapshot", "default", name) for name in ("gone", "kept"))
    if deleting:
        world.delete(gone)
        world.settle(Snapshotter())
        assert world.get(gone) is not None  # its node would have to remove it
    assert "snapshot content on-n1 given up" in list(lost.give_up(world, "n1"))  # type: ignore[arg-type]
    world.settle(Snapshotter())
    assert world.get(Key("VolumeSnapshotContent", "", "on-n1")) is None
    assert world.get(Key("VolumeSnapshotContent", "", "on-n2")) is not None
    if deleting:
        assert world.get(gone) is None
    else:
        assert "on-n1 does not exist" in world.get(gone).status.error.message
    assert world.get(kept).status.error is None


# --- kept for a node that is expected back ------------------------------------------------------------


def keeping() -> Shop:
    world = shop(volume_snapshot("s", content="on-n1"), content_on("on-n1", "n1", "s"))
    world.settle(Snapshotter(), Binder(), Reclaimer())
    return world


def test_what_is_retained_stays_bound_and_survives_its_claims_deletion() -> None:
    world = keeping()
    before = world.state()
    said = list(lost.retain(world, "n1"))
    assert said == ["volume va retained", "snapshot content on-n1 retained"]
    after = world.state()
    assert sorted(k for k in after if after[k] != before[k]) == sorted(
        map(str, (world.pv("va").key, Key("VolumeSnapshotContent", "", "on-n1")))
    ), "pods, claims and the other node's volumes are as they were"
    assert list(lost.retain(world, "n1")) == []

    for gone in (Key("Pod", "default", "pa"), world.pvc("a").key, Key("VolumeSnapshot", "default", "s")):
        world.delete(gone)
    world.settle(Snapshotter(), Binder(), Reclaimer())
    assert world.pvc("a") is None and world.pv("va").status.phase == "Released"
    assert world.get(Key("VolumeSnapshotContent", "", "on-n1")) is not None
    room = Volumes("n1", Path("/r"))  # the node is back
    orders = [f for s in room.scopes(None, world.snapshot()) for f in room.render(s, world.snapshot())]
    assert not [f for f in orders if isinstance(f, Erase)], "its data is to go"


def test_without_it_the_same_deletion_takes_the_data() -> None:
    world = keeping()
    for gone in (Key("Pod", "default", "pa"), world.pvc("a").key):
        world.delete(gone)
    world.settle(Snapshotter(), Binder(), Reclaimer())
    room = Volumes("n1", Path("/r"))
    orders = [f for s in room.scopes(None, world.snapshot()) for f in room.render(s, world.snapshot())]
    assert [f for f in orders if isinstance(f, Erase)]


def test_what_is_being_deleted_is_not_retained_and_what_is_retained_can_be_given_up() -> None:
    world = settled(shop(*pair("c", "vc", "n1")))
    world.delete(world.pv("vc").key)
    assert list(lost.retain(world, "n1")) == ["volume va retained"]
    assert world.pv("vc").spec.persistent_volume_reclaim_policy == "Delete"
    assert "volume va given up" in list(lost.give_up(world, "n1"))
    assert settled(world).pvc("a").status.phase == "Lost"


def test_a_node_that_is_alive_is_not_said_to_be_lost_to_retain_either() -> None:
    world = settled(shop(beat("n1", 5)))
    with pytest.raises(Invalid, match="node n1 is alive"):
        list(lost.retain(world, "n1"))
    assert list(lost.retain(world, "n1", force=True)) == ["volume va retained"]


def content_on(name: str, host: str, of: str) -> dict[str, Any]:
    made = content(name, "handle", "Delete", annotations={names.SNAPSHOT_HOST: host})
    made["spec"]["volumeSnapshotRef"]["name"] = of
    made["status"] = {"snapshotHandle": "handle", "readyToUse": True, "restoreSize": 1}
    return made

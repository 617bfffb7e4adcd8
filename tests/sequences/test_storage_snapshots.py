"""VolumeSnapshots of our own volumes, with the real copies: bound, ready, restored, cloned, held and gone.

Once, again, in other orders, and with a crash after each write.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from netplane.model.base import Key, amend
from netplane.model.codec import parse
from netplane.model.errors import NetplaneError, Unavailable
from netplane.model.facts import Plan, Scope
from netplane.model.storage_facts import Capture
from storageplane.claims.capture import OwnSnapshots, SnapshotData
from storageplane.claims.snapshots import Snapshotter

from .storage_node import Node
from .storage_world import Crash, World, pv, pvc, storage_class

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("driven")]
API = "snapshot.storage.k8s.io/v1"
LOCAL = "storageplane.io/local"
CLONE = {"kind": "PersistentVolumeClaim", "name": "c"}


def snapshot_class(name: str = "snap", driver: str = LOCAL, policy: str = "Delete", **more: Any) -> Any:
    meta = {"name": name, **more.pop("meta", {})}
    if more.pop("default", False):
        meta["annotations"] = {"snapshot.storage.kubernetes.io/is-default-class": "true"}
    return {
        "apiVersion": API, "kind": "VolumeSnapshotClass", "metadata": meta, "driver": driver,
        "deletionPolicy": policy, **more,
    }  # fmt: skip


def volume_snapshot(name: str = "s", claim: str = "c", cls: str | None = "snap", content: str = "") -> Any:
    source = {"volumeSnapshotContentName": content} if content else {"persistentVolumeClaimName": claim}
    named = {"volumeSnapshotClassName": cls} if cls and not content else {}
    return {
        "apiVersion": API, "kind": "VolumeSnapshot", "metadata": {"name": name, "namespace": "default"},
        "spec": {"source": source, **named},
    }  # fmt: skip


def content(name: str, handle: str, policy: str = "Retain", **more: Any) -> Any:
    return {
        "apiVersion": API, "kind": "VolumeSnapshotContent", "metadata": {"name": name, **more},
        "spec": {
            "driver": LOCAL, "deletionPolicy": policy, "source": {"snapshotHandle": handle},
            "volumeSnapshotRef": {"namespace": "default", "name": "s"},
        },
    }  # fmt: skip


class Site(Node):
    """A node with snapshots too."""

    def __init__(self, world: World, root: Path, name: str = "n1") -> None:
        super().__init__(world, root, name)
        self.deciders = (*self.deciders, Snapshotter())
        self.snapshots = OwnSnapshots(name, (LOCAL, "storageplane.io/directory"))
        self.taker = SnapshotData(root, world, self.driver.timed)

    def run(self, order: Any = sorted) -> Site:
        """To the fixpoint, copies included."""
        for _ in range(200):
            before = len(self.world.writes)
            super().run(order)
            self.bring_about(self.snapshots, self.taker, order)
            waiting = any("copied" in why or "under way" in why for why in self.refused.values())
            if len(self.world.writes) == before and not waiting:
                return self
        raise AssertionError(f"no end: {self.refused}")

    def put(self, *docs: Any) -> Site:
        for doc in docs:
            self.world.put(parse(doc), expect=0)
        return self.run()

    def gone(self, kind: str, name: str) -> Site:
        namespaced = kind in ("VolumeSnapshot", "PersistentVolumeClaim")
        self.world.delete(Key(kind, "default" if namespaced else "", name))
        return self.run()

    def snap(self, name: str = "s") -> Any:
        return self.world.get(Key("VolumeSnapshot", "default", name))

    def content(self, name: str = "snapcontent-uid-s") -> Any:
        return self.world.get(Key("VolumeSnapshotContent", "", name))

    def kept(self) -> list[str]:
        return sorted(p.name for p in (self.root / "snapshots").glob("*.json"))

    def data(self, volume: str) -> Path:
        return self.root / "volumes" / volume


def site(root: Path, backend: str = "directory", size: str = "16Mi", **claim: Any) -> Site:
    """Claim c of class d, provisioned."""
    cls = storage_class("d", LOCAL, parameters={"backend": backend})
    asked = pvc(size=size, storageClassName="d", meta={"uid": "u1"}, **claim)
    return Site(World(cls, snapshot_class(), asked), root).run()


def restored(
    name: str = "r", size: str = "16Mi", kind: str = "VolumeSnapshot", of: str = "s", **more: Any
) -> Any:
    group = {"apiGroup": "snapshot.storage.k8s.io"} if kind == "VolumeSnapshot" else {}
    source = {"kind": kind, "name": of, **group}
    more = {"storageClassName": "d", "dataSource": source, **more}
    return pvc(name, size, meta={"uid": f"uid-{name}"}, **more)


def digest(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def fill(folder: Path) -> dict[str, str]:
    (folder / "deep").mkdir()
    for i in range(8):
        (folder / "deep" / str(i)).write_bytes(random.Random(i).randbytes(50_000))
    return digest(folder)


# --- a life ---------------------------------------------------------------------------------------


def test_a_snapshot_is_taken_restored_and_deleted(tmp_path: Path) -> None:
    node = site(tmp_path)
    before = fill(node.data("pvc-u1"))
    node.data("pvc-u1").chmod(0o2770)
    node.put(volume_snapshot())
    found, made = node.snap(), node.content()
    assert found.status.ready_to_use and found.status.restore_size == "16Mi" and found.status.creation_time
    assert found.status.bound_volume_snapshot_content_name == made.name == "snapcontent-uid-s"
    assert (made.spec.source.volume_handle, made.status.restore_size) == ("pvc-u1", 16 << 20)
    assert made.spec.volume_snapshot_ref.uid == found.metadata.uid and made.spec.deletion_policy == "Delete"
    assert node.world.note("s.snapshot").reason == "SnapshotReady"
    assert node.world.pvc().metadata.finalizers == ("kubernetes.io/pvc-protection",)

    (node.data("pvc-u1") / "deep" / "0").write_text("later")
    node.put(restored())
    assert node.world.pvc("r").status.phase == "Bound"
    assert digest(node.data("pvc-uid-r")) == before
    assert node.data("pvc-uid-r").stat().st_mode & 0o7777 == 0o2770
    assert node.world.note("r.provision").reason == "ProvisioningSucceeded"

    node.gone("VolumeSnapshot", "s")
    assert (node.snap(), node.content(), node.kept()) == (None, None, [])
    assert list((tmp_path / "snapshots/data").iterdir()) == []
    assert node.world.note("s.snapshot") is None
    assert digest(node.data("pvc-uid-r")) == before


@pytest.mark.parametrize("backend", ["image", "tmpfs"])
def test_a_larger_copy_of_every_backend(tmp_path: Path, backend: str) -> None:
    node = site(tmp_path, backend)
    node.put(volume_snapshot(), restored("r", "32Mi"), restored("k", "32Mi", "PersistentVolumeClaim", "c"))
    for name in ("r", "k"):
        volume = node.world.pv(f"pvc-uid-{name}")
        assert node.world.pvc(name).status.capacity == {"storage": "32Mi"}
        assert volume.metadata.annotations["storageplane.io/backend"] == backend
        if backend == "image":
            assert (node.data(volume.name) / "image").stat().st_size == 32 << 20
            assert volume.metadata.annotations["storageplane.io/grown"] == str(32 << 20)
    for name in ("c", "r", "k"):
        node.gone("PersistentVolumeClaim", name)
    node.gone("VolumeSnapshot", "s")
    assert node.directories() == [] and list((tmp_path / "snapshots/data").iterdir()) == []


def test_a_claim_is_cloned_and_both_go_their_ways(tmp_path: Path) -> None:
    node = site(tmp_path)
    before = fill(node.data("pvc-u1"))
    node.put(restored("k", "16Mi", "PersistentVolumeClaim", "c"))
    (node.data("pvc-u1") / "deep/1").unlink()
    assert digest(node.data("pvc-uid-k")) == before
    node.gone("PersistentVolumeClaim", "c")
    assert node.directories() == ["pvc-uid-k"] and digest(node.data("pvc-uid-k")) == before


# --- binding ----------------------------------------------------------------------------------------


def test_a_retained_content_outlives_its_snapshot_and_is_bound_again(tmp_path: Path) -> None:
    node = site(tmp_path)
    before = fill(node.data("pvc-u1"))
    node.put(snapshot_class("keep", policy="Retain"), volume_snapshot(cls="keep"))
    handle = node.content().status.snapshot_handle
    node.gone("VolumeSnapshot", "s")
    assert node.snap() is None and node.content() is not None and node.kept() == [f"{handle}.json"]
    node.gone("VolumeSnapshotContent", "snapcontent-uid-s")
    assert node.content() is None and node.kept() == [f"{handle}.json"]

    node.put(content("mine", handle, "Delete"), volume_snapshot(content="mine"), restored())
    assert node.snap().status.ready_to_use and node.snap().status.bound_volume_snapshot_content_name == "mine"
    assert node.content("mine").spec.volume_snapshot_ref.uid == node.snap().metadata.uid
    assert node.content("mine").spec.source_volume_mode == "Filesystem"
    assert digest(node.data("pvc-uid-r")) == before
    node.gone("VolumeSnapshot", "s")
    assert (node.content("mine"), node.kept()) == (None, [])


def test_a_content_whose_snapshot_does_not_name_it_waits(tmp_path: Path) -> None:
    node = site(tmp_path).put(content("mine", "nowhere"))
    assert (
        not node.content("mine").spec.volume_snapshot_ref.uid and not node.content("mine").status.ready_to_use
    )
    node.put(volume_snapshot(content="mine"))
    assert "no snapshot nowhere" in node.snap().status.error.message
    node.gone("VolumeSnapshot", "s")
    node.gone("VolumeSnapshotContent", "mine")
    assert node.content("mine") is None


def test_the_default_class_of_the_driver_is_assigned(tmp_path: Path) -> None:
    node = site(tmp_path)
    node.put(snapshot_class("other", "foreign.example", default=True), volume_snapshot(cls=None))
    assert "one default VolumeSnapshotClass" in node.snap().status.error.message
    node.put(snapshot_class("mine", default=True))
    assert node.snap().spec.volume_snapshot_class_name == "mine" and node.snap().status.ready_to_use


@pytest.mark.parametrize(
    ("doc", "objects", "reason", "word"),
    [
        (volume_snapshot(cls="none"), [], "GetSnapshotClassFailed", "none does not exist"),
        (volume_snapshot(claim="x"), [], "SnapshotCreationFailed", "default/x does not exist"),
        (volume_snapshot(content="x"), [], "SnapshotContentMissing", "x does not exist"),
        (volume_snapshot(cls="f"), [snapshot_class("f", "foreign.example")], "SnapshotCreationFailed",
         "is of driver foreign.example, the claim's volume of storageplane.io/local"),
        (volume_snapshot(claim="w"), [pvc("w", storageClassName="")], "SnapshotCreationFailed", "not bound"),
        (volume_snapshot(claim="w"),
         [pv("v", storageClassName=""), pvc("w", storageClassName="")], "SnapshotCreationFailed", "neither"),
    ],
    ids=["class", "claim", "content", "driver", "unbound", "static"],
)  # fmt: skip
def test_why_there_is_no_snapshot(tmp_path: Path, doc: Any, objects: Any, reason: str, word: str) -> None:
    node = site(tmp_path).put(*objects, doc)
    assert not node.snap().status.ready_to_use and word in node.snap().status.error.message
    assert node.world.note("s.snapshot").reason == reason and node.content() is None


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"size": "8Mi"}, "8388608 bytes are less than the 16777216 of VolumeSnapshot default/s"),
        ({"volumeMode": "Block"}, "spec.volumeMode Block: VolumeSnapshot default/s is Filesystem"),
        ({"of": "gone"}, "VolumeSnapshot default/gone does not exist"),
        ({"storageClassName": "i"}, "parameters[backend]: VolumeSnapshot default/s is directory"),
        ({"kind": "PersistentVolumeClaim", "of": "nobody"}, "default/nobody does not exist"),
        ({"dataSource": {"apiGroup": "x", "kind": "Dump", "name": "d"}}, "'Dump' is not supported"),
        ({"dataSource": None, "dataSourceRef": {**CLONE, "namespace": "o"}},
         "spec.dataSourceRef.namespace"),
        ({"dataSource": {"apiGroup": "apps", "kind": "VolumeSnapshot", "name": "s"}}, "'apps' has no Volume"),
    ],
)  # fmt: skip
def test_what_cannot_be_restored_is_said(tmp_path: Path, more: dict[str, Any], word: str) -> None:
    node = site(tmp_path)
    node.put(storage_class("i", LOCAL, parameters={"backend": "image"}), volume_snapshot())
    node.put(restored("r", **more))
    said = node.world.note("r.provision")
    assert said.reason == "ProvisioningFailed" and word in said.message
    assert node.world.pvc("r").status.phase == "Pending" and node.directories() == ["pvc-u1"]


def test_a_claim_waits_for_its_snapshot(tmp_path: Path) -> None:
    node = site(tmp_path).put(restored())
    assert "does not exist" in node.world.note("r.provision").message
    node.put(volume_snapshot())
    assert node.world.pvc("r").status.phase == "Bound" and node.data("pvc-uid-r").exists()


def test_another_node_restores_nothing(tmp_path: Path) -> None:
    node = site(tmp_path / "1").put(volume_snapshot())
    there = Site(node.world, tmp_path / "2", "n2")
    node.world.put(parse(restored()), expect=0)
    there.run()
    assert node.world.pvc("r").status.phase == "Pending" and there.directories() == []
    node.run()
    assert node.world.pvc("r").status.phase == "Bound" and node.data("pvc-uid-r").exists()


# --- what is held -------------------------------------------------------------------------------------


def test_what_is_being_copied_is_held(tmp_path: Path) -> None:
    """Deciders alone: nobody copies. The claim, the snapshot and the volume that are copied all stay."""
    node = site(tmp_path).put(volume_snapshot("done"))
    world = node.world
    world.put(parse(volume_snapshot()), expect=0)
    world.put(parse(restored("r", of="done")), expect=0)
    world.put(parse(restored("k", "16Mi", "PersistentVolumeClaim", "c")), expect=0)
    world.settle(*node.deciders)
    for kind, name in (("VolumeSnapshot", "done"), ("VolumeSnapshot", "s"), ("PersistentVolumeClaim", "c")):
        world.delete(Key(kind, "default", name))
    world.settle(*node.deciders)
    assert node.snap("done") is not None and "restored to r" in world.note("done.snapshot").message
    assert world.pvc() is None and world.pv("pvc-u1").status.phase == "Released"
    assert list(node.room.render(Scope("volume", "volume/pvc-u1"), world.snapshot())) == []
    node.run()
    assert node.snap("done") is None and node.snap() is None and world.pvc() is None
    assert node.directories() == ["pvc-uid-k", "pvc-uid-r"] and node.kept() == []


def test_the_claim_is_held_until_its_snapshot_is_taken(tmp_path: Path) -> None:
    node = site(tmp_path)
    before = fill(node.data("pvc-u1"))
    node.world.put(parse(volume_snapshot()), expect=0)
    node.world.settle(*node.deciders)
    node.world.delete(node.world.pvc().key)
    node.world.settle(*node.deciders)
    assert node.world.pvc() is not None
    node.run()
    assert node.world.pvc() is None and node.directories() == [] and node.snap().status.ready_to_use
    node.put(restored())
    assert digest(node.data("pvc-uid-r")) == before


# --- crashes and orders -------------------------------------------------------------------------------


@pytest.mark.parametrize("going", [False, True], ids=["taken and restored", "deleted"])
def test_a_crash_after_each_write_ends_the_same(tmp_path: Path, going: bool) -> None:
    states, counts = [], itertools.count(0)
    for after in counts:
        node = site(tmp_path / str(after))
        fill(node.data("pvc-u1"))
        world = node.world
        if going:
            node.put(volume_snapshot(), restored())
        world.writes.clear()
        crashed = False
        world.crash_after = after
        try:
            if going:
                node.gone("VolumeSnapshot", "s")
            else:
                node.put(volume_snapshot(), restored())
        except Crash:
            crashed = True
        world.crash_after = None
        again = Site(world, node.root)
        if going and node.snap() is not None and not node.snap().deleting:
            world.delete(node.snap().key)
        for doc in () if going else (volume_snapshot(), restored()):
            if world.get(parse(doc).key) is None:
                world.put(parse(doc), expect=0)
        again.run()
        state = {k: v for k, v in again.world.state().items() if not k.startswith("Event")}
        states.append((untimed(state), again.directories(), again.kept(), digest(again.data("pvc-uid-r"))))
        assert states[-1][1:] == states[0][1:], f"crashed after write {after}"
        assert states[-1][0].keys() == states[0][0].keys()
        if not crashed:
            break
    assert len(states) > 5


def untimed(state: dict[str, Any]) -> dict[str, Any]:
    return {k: None if "Snapshot" in k else v for k, v in state.items()}


@pytest.mark.parametrize("seed", range(3))
def test_in_any_order(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    node = Site(World(), tmp_path)
    docs = [
        storage_class("d", LOCAL, parameters={"backend": "directory"}), snapshot_class(), restored(),
        pvc(size="16Mi", storageClassName="d", meta={"uid": "u1"}), volume_snapshot(),
        restored("k", "16Mi", "PersistentVolumeClaim", "c"),
    ]  # fmt: skip
    dice.shuffle(docs)
    for doc in docs:
        node.world.put(parse(doc), expect=0)
        node.run(lambda scopes: dice.sample(scopes, len(scopes)))
    assert node.snap().status.ready_to_use and node.directories() == ["pvc-u1", "pvc-uid-k", "pvc-uid-r"]
    assert {node.world.pvc(n).status.phase for n in ("c", "k", "r")} == {"Bound"}


def test_half_a_copy_is_made_anew(tmp_path: Path) -> None:
    """What a killed agent left of a snapshot and of a volume is not taken for whole."""
    node = site(tmp_path)
    before = fill(node.data("pvc-u1"))
    for left in ("copies/snapshot-uid-s", "copies/pvc-uid-r"):
        (tmp_path / left / "deep").mkdir(parents=True)
        (tmp_path / left / "deep/0").write_text("half")
        (tmp_path / left / "more").write_text("stale")
    node.put(volume_snapshot(), restored())
    assert digest(node.data("pvc-uid-r")) == before and list((tmp_path / "copies").iterdir()) == []


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    node = site(tmp_path).put(snapshot_class("keep", policy="Retain"), volume_snapshot(cls="keep"))
    handle = node.content().status.snapshot_handle
    (tmp_path / "snapshots" / f"{handle}.json").write_text("{")
    node.gone("VolumeSnapshot", "s").gone("VolumeSnapshotContent", "snapcontent-uid-s")
    node.put(content("mine", handle), volume_snapshot(content="mine"))
    assert f"{handle}.json: unreadable" in node.snap().status.error.message
    wanted = Capture(content="mine", uid=node.content("mine").metadata.uid, driver=LOCAL)
    with pytest.raises((NetplaneError, Unavailable), match="remove the file"):
        node.taker.apply(Plan(add=(wanted,)))


@pytest.mark.parametrize(("policy", "left"), [("Delete", False), ("Retain", True)])
def test_a_content_whose_snapshot_vanishes_goes_by_its_policy(
    tmp_path: Path, policy: str, left: bool
) -> None:
    """Somebody took the snapshot's finalizers off, so nobody deleted the content first."""
    node = site(tmp_path / "r").put(volume_snapshot())
    made = node.content()
    node.world.put(amend(made, spec=amend(made.spec, deletion_policy=policy)))
    found = node.run().snap()
    node.world.put(amend(found, metadata=amend(found.metadata, finalizers=())))
    node.gone("VolumeSnapshot", "s")
    assert (node.content() is not None, bool(node.kept())) == (left, left)


def test_a_content_that_is_deleted_first_goes_with_its_snapshot(tmp_path: Path) -> None:
    """Nothing but the snapshot changes then."""
    node = site(tmp_path / "r").put(volume_snapshot()).gone("VolumeSnapshotContent", "snapcontent-uid-s")
    assert node.content().deleting and node.kept()
    node.gone("VolumeSnapshot", "s")
    assert (node.content(), node.kept()) == (None, [])


def test_a_content_that_was_kept_is_deleted_after_all(tmp_path: Path) -> None:
    """There is no snapshot any more: nothing but the content changes."""
    node = site(tmp_path / "r").put(volume_snapshot())
    for policy in ("Retain", "Delete"):
        made = node.content()
        assert node.kept()
        node.world.put(amend(made, spec=amend(made.spec, deletion_policy=policy)))
        node.run()
        if node.snap() is not None:
            node.gone("VolumeSnapshot", "s")
    assert (node.content(), node.kept()) == (None, [])

"""Volumes of another driver (`foreign`): their life, and whoever dies while they are made and published."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from netplane.model.base import Key, amend
from netplane.model.codec import parse
from netplane.model.errors import Invalid, NetplaneError, Unavailable
from netplane.model.facts import Plan
from netplane.model.snapshot import Snapshot
from netplane.model.storage_facts import Capture, CsiVolume, Provision, Veiled
from netplane.model.volumes import CSISource, Volume
from netplane.store import open_store
from storageplane import agent
from storageplane.csi.attach import Attachments
from storageplane.csi.client import Clients, veiled
from storageplane.csi.intents import Intents
from storageplane.csi.provisioning import CsiProvisioning
from storageplane.csi.snapshotting import Snapshotting
from storageplane.host.durable import Shelf
from storageplane.host.mounts import Mounts
from storageplane.pods import publish, session
from tests.sequences.storage_world import World, pod, pvc, storage_class
from tests.sequences.test_storage_snapshots import CLONE, content, volume_snapshot

from .conftest import MIB, Driver, loops, mounts
from .crashes import crashing
from .foreign import NAME, Bench, Shots, read, snapshots, until, volumes, write
from .test_kill_steps import Mortal

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
SECRET = "hunter2-hunter2"


# --- the whole life ---------------------------------------------------------------------------------


def test_a_claim_is_provisioned_published_grown_and_deleted(other: Driver, tmp_path: Path) -> None:
    root, target = tmp_path / "ours", tmp_path / "pod"
    store = open_store(f"sqlite://{tmp_path}/s.db")
    cls = storage_class("fast", NAME, parameters={"fsType": "xfs"}, allowVolumeExpansion=True)
    for obj in (cls, pvc("c", "320Mi", storageClassName="fast"), pod()):
        store.put(parse(obj))
    config = agent.Config("n1", root, csi_drivers=(NAME,))
    core = agent.build(open_store(f"sqlite://{tmp_path}/s.db"), config)
    core.start()
    try:
        found, snapshot = session.ready(store, Key("Pod", "default", "p"), "n1", str(root), ())
        done = publish.publish(found, snapshot, "n1", Mounts(root), str(target))
        place = Path(done.paths["data"])
        (place / "word").write_text("kept")
        space = os.statvfs(place)
        assert space.f_blocks * space.f_frsize < 340 * MIB

        claim: Any = store.get(Key("PersistentVolumeClaim", "default", "c"))
        more = amend(claim.spec, resources=amend(claim.spec.resources, requests={"storage": "640Mi"}))
        store.put(amend(claim, spec=more), expect=claim.revision)
        grown = until(
            lambda: (s := os.statvfs(place)).f_blocks * s.f_frsize > 500 * MIB, "it never grew where it is"
        )
        assert grown and (place / "word").read_text() == "kept"
        name = f"pvc-{claim.metadata.uid}"
        key = Key("PersistentVolume", "", name)
        until(lambda: store.get(key).spec.capacity == {"storage": str(640 * MIB)}, "the volume never said so")

        store.delete(Key("Pod", "default", "p"))
        store.delete(Key("PersistentVolumeClaim", "default", "c"))
        until(lambda: not store.get(Key("PersistentVolumeClaim", "default", "c")), "the claim stays")
        assert volumes(other), "deleted while it is published"
        assert publish.unpublish("default", "p", Mounts(root), str(target)) == 1
        until(lambda: store.get(key) is None, "the volume object stays")
        assert volumes(other) == []
        assert mounts(tmp_path) == [] and loops(tmp_path) == []
        assert not list((root / "csi-client" / "attached").iterdir())
        assert not list((root / "csi-client" / "intents").iterdir())
    finally:
        core.stop()
        store.close()


# --- whoever dies, nothing leaks --------------------------------------------------------------------


@pytest.mark.parametrize("goes", [False, True], ids=["the claim stays", "the claim goes"])
def test_the_driver_dies_at_every_step_of_making_a_volume(mortal: Mortal, tmp_path: Path, goes: bool) -> None:
    bench = Bench(tmp_path / "ours")
    for step in range(1, 100):
        died = mortal.dies_while(step, bench.attempt, bench.fact)
        if died and goes:
            assert list(bench.driver().observe()) == [bench.fact.key]
            bench.converge(Plan(remove=(bench.fact.key,)))
        elif died:
            bench.converge(Plan(add=(bench.fact,)))
        if not (died and goes):
            assert volumes(mortal) == [bench.volume().spec.csi.volume_handle], step
            bench.withdraw()
        assert bench.volume() is None and volumes(mortal) == [], f"leaked at step {step}"
        assert list((mortal.root / "csi" / "data").iterdir()) == []
        assert not bench.driver().observe()
        if not died:
            break
    assert 5 < step < 99


@pytest.mark.parametrize("goes", [False, True], ids=["the claim stays", "the claim goes"])
def test_we_die_at_every_step_of_making_a_volume(
    other: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes: bool
) -> None:
    """Before and after each record, each call and each write to the store."""
    bench = Bench(tmp_path / "ours")
    places = ((Intents, "write"), (Intents, "remove"), (World, "put"), (CsiProvisioning, "_created"))
    dies = crashing(monkeypatch, *places)
    for number in range(1, 50):
        crashed = dies(number, bench.attempt, bench.fact)
        if crashed:
            observed = tuple(bench.driver().observe())
            if goes:
                bench.converge(Plan(remove=observed))
            elif bench.volume() is None:
                bench.converge(Plan(add=(bench.fact,)))
            else:
                bench.converge(Plan(remove=observed))  # it stands: nobody wants one any more
        known = bench.volume()
        assert volumes(other) == ([known.spec.csi.volume_handle] if known else []), f"step {number}"
        assert known or goes
        bench.withdraw()
        assert volumes(other) == [] and not bench.driver().observe()
        if not crashed:
            break
    assert 6 < number < 49


@pytest.mark.parametrize("command", ["publish", "unpublish"])
def test_the_driver_dies_at_every_step_of_publishing(mortal: Mortal, tmp_path: Path, command: str) -> None:
    root = tmp_path / "ours"
    handle = mortal.create("v", 8 * MIB)
    fact = CsiVolume(target="pods/u/volumes/v/mount", driver=NAME, handle=handle)
    for step in range(1, 100):
        if command == "unpublish":
            Attachments(root).publish(fact)
        if command == "publish":
            died = mortal.dies_while(step, Attachments(root).publish, fact)
        else:
            died = mortal.dies_while(step, Attachments(root).unpublish, fact.target)
        Attachments(root).unpublish(fact.target)
        assert mounts(tmp_path) == [] and loops(tmp_path) == [], f"{command} died at step {step}"
        assert list((root / "csi-client" / "attached").iterdir()) == []
        assert not (root / fact.target).exists()
        if not died:
            break
    assert 5 < step < 99
    mortal.call("DeleteVolume", volume_id=handle)


def test_a_snapshot_is_taken_restored_cloned_and_deleted(other: Driver, tmp_path: Path) -> None:
    bench = Shots(tmp_path / "ours")
    handle = bench.volume().spec.csi.volume_handle
    write(bench, handle, "of that moment")
    bench.world.put(parse(volume_snapshot()))
    bench.due()
    assert bench.snap().status.ready_to_use and bench.snap().status.restore_size == "8Mi"
    assert bench.content().status.snapshot_handle == snapshots(other)[0]
    write(bench, handle, "later")
    for name, source in (("copy", {"kind": "VolumeSnapshot", "name": "s"}), ("clone", CLONE)):
        claim = bench.world.put(parse(pvc(name, "8Mi", storageClassName="fast", dataSource=source)))
        wanted = Provision(namespace="default", claim=name, uid=claim.metadata.uid, driver=NAME)
        bench.attempt(wanted)
        assert bench.world.note(f"{name}.provision").reason == "ProvisioningSucceeded"
    assert (read(bench, "pvc-uid-copy"), read(bench, "pvc-uid-clone")) == ("of that moment", "later")
    bench.gone(bench.snap().key)
    bench.settle()
    assert bench.content().deleting and snapshots(other)
    bench.due()
    assert (bench.snap(), bench.content(), snapshots(other)) == (None, None, [])


def test_what_somebody_else_took_is_bound_restored_and_kept(other: Driver, tmp_path: Path) -> None:
    bench = Shots(tmp_path / "ours")
    handle = bench.volume().spec.csi.volume_handle
    write(bench, handle, "theirs")
    taken = other.call("CreateSnapshot", source_volume_id=handle, name="theirs").snapshot.snapshot_id
    theirs = content("mine", taken)
    theirs["spec"]["driver"] = NAME
    bench.world.put(parse(theirs))
    bench.world.put(parse(volume_snapshot(content="mine")))
    bench.due()
    assert bench.snap().status.ready_to_use and bench.content("mine").status.restore_size == 8 * MIB
    bench.gone(bench.snap().key)
    bench.due()
    bench.gone(Key("VolumeSnapshotContent", "", "mine"))
    bench.due()
    assert bench.content("mine") is None and snapshots(other) == [taken]

    nowhere = content("other", "snap-of-nobody")
    nowhere["spec"]["driver"] = NAME
    bench.world.put(parse(nowhere))
    bench.world.put(parse(volume_snapshot(content="other")))
    bench.settle()
    wanted = Capture(content="other", uid=bench.content("other").metadata.uid, driver=NAME)
    with pytest.raises(NetplaneError, match="has no snapshot snap-of-nobody"):
        bench.attempt(wanted)
    bench.settle()
    assert "has no snapshot" in bench.snap().status.error.message


@pytest.mark.parametrize("goes", [False, True], ids=["it stays", "it goes"])
def test_the_driver_dies_at_every_step_of_a_snapshot(mortal: Mortal, tmp_path: Path, goes: bool) -> None:
    """None is leaked and none is taken twice, whether it is still wanted afterwards or not."""
    bench = Shots(tmp_path / "ours")
    for step in range(1, 100):
        bench.world.put(parse(volume_snapshot()))
        bench.settle()
        wanted = Capture(content=bench.content().name, uid=bench.content().metadata.uid, driver=NAME)
        died = mortal.dies_while(step, bench.attempt, wanted)
        if not goes:
            bench.due()
            assert snapshots(mortal) == [bench.content().status.snapshot_handle], step
        bench.gone(bench.snap().key)
        bench.due()
        assert (bench.snap(), bench.content(), snapshots(mortal)) == (None, None, []), step
        if not died:
            break
    assert 3 < step < 99


@pytest.mark.parametrize("goes", [False, True], ids=["it stays", "its objects are lost"])
def test_we_die_at_every_step_of_a_snapshot(
    other: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes: bool
) -> None:
    bench = Shots(tmp_path / "ours")
    places = ((Shelf, "put"), (Shelf, "remove"), (World, "put"), (Snapshotting, "_create"))
    dies = crashing(monkeypatch, *places)
    for number in range(1, 50):
        bench.world.put(parse(volume_snapshot()))
        bench.settle()
        wanted = Capture(content=bench.content().name, uid=bench.content().metadata.uid, driver=NAME)
        crashed = dies(number, bench.attempt, wanted)
        if goes and not bench.content().status.snapshot_handle:
            for key in (bench.snap().key, bench.content().key):
                bench.world.objects.pop(key)  # what the store lost, the record still knows
        else:
            bench.due()
            assert snapshots(other) == [bench.content().status.snapshot_handle], number
            bench.gone(bench.snap().key)
        bench.due()
        assert snapshots(other) == [] and not bench.driver().observe(), number
        if not crashed:
            break
    assert 5 < number < 49


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"size": "4Mi"}, "4194304 bytes are less than the 8388608 of VolumeSnapshot default/s"),
        ({"volumeMode": "Block"}, "VolumeSnapshot default/s is Filesystem"),
        ({"source": {"kind": "VolumeSnapshot", "name": "x"}}, "VolumeSnapshot default/x does not exist"),
        ({"source": {"apiGroup": "x", "kind": "Dump", "name": "s"}}, "kind 'Dump' is not supported"),
        ({"cls": "own"}, "VolumeSnapshot default/s is of foreign.example"),
    ],
)
def test_what_a_driver_is_not_asked_to_restore(
    other: Driver, tmp_path: Path, more: dict[str, Any], word: str
) -> None:
    bench = Shots(tmp_path / "ours")
    bench.world.put(parse(volume_snapshot()))
    bench.world.put(parse(storage_class("own", "second.example")))
    bench.due()
    source = more.pop("source", {"kind": "VolumeSnapshot", "name": "s"})
    spec = {"storageClassName": more.pop("cls", "fast"), "dataSource": source}
    claim = bench.world.put(parse(pvc("r", more.pop("size", "8Mi"), **spec, **more)))
    wanted = Provision(namespace="default", claim="r", uid=claim.metadata.uid, driver=NAME)
    with pytest.raises(NetplaneError, match=word):
        bench.attempt(wanted)
    assert word in bench.world.note("r.provision").message and len(volumes(other)) == 1


# --- what is wrong is said ----------------------------------------------------------------------------


def test_a_driver_that_is_not_there_or_another_is_named(other: Driver, tmp_path: Path) -> None:
    root = tmp_path / "ours"
    with pytest.raises(Unavailable, match=r"no socket at .*plugins/absent.example/csi.sock; start it"):
        Clients(root).get("absent.example")
    (root / "plugins" / "wrong.example").mkdir()
    (root / "plugins" / "wrong.example" / "csi.sock").symlink_to(other.socket)
    with pytest.raises(Invalid, match=r"'foreign.example' answers"):
        Clients(root).get("wrong.example")
    assert Clients(root).names() == (NAME, "wrong.example")


def test_a_refusal_leaves_no_intent_and_no_secret(other: Driver, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "ours")
    prefix = "csi.storage.k8s.io/provisioner-secret"
    wrong = {"size": SECRET, f"{prefix}-name": "key", f"{prefix}-namespace": "default"}
    bench.world.objects.clear()
    bench.world.put(parse(storage_class("fast", NAME, parameters=wrong)))
    bench.world.put(bench.claim)
    with pytest.raises(Unavailable, match="Secret default/key does not exist"):
        bench.attempt(bench.fact)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "key", "namespace": "default"},
        "stringData": {"password": SECRET},
    }
    bench.world.put(parse(secret))
    with pytest.raises(Invalid, match=r"parameters\[size\]: not known") as caught:
        bench.attempt(bench.fact)
    assert SECRET not in str(caught.value)
    assert not bench.driver().observe() and volumes(other) == []
    assert SECRET not in other.log()


def test_what_a_driver_says_is_shown_without_secrets() -> None:
    assert veiled(f"cannot log in with {SECRET}", {"password": SECRET}) == "cannot log in with ***"
    secrets = (("NodeStageVolume", (("k", Veiled(SECRET)),)),)
    fact = CsiVolume(target="t", driver="d", handle="h", secrets=secrets)
    assert SECRET not in repr(fact) and SECRET not in str(Plan(add=(fact,)))


def test_a_volume_of_the_pod_itself_that_its_driver_refuses_is_undone(other: Driver, tmp_path: Path) -> None:
    del other
    root = tmp_path / "ours"
    one: Any = parse(pod(uid="u1"))
    source = CSISource(driver=NAME, volume_attributes={"size": "much"})
    one = amend(one, spec=amend(one.spec, volumes=(Volume(name="v", csi=source),)))
    with pytest.raises(NetplaneError, match=r"foreign\.example: NodePublishVolume"):
        publish.publish(one, Snapshot.of([]), "n1", Mounts(root), str(tmp_path / "pod"))
    assert list((root / "csi-client" / "attached").iterdir()) == []
    assert list((root / "published").iterdir()) == []
    assert list((root / "pods").iterdir()) == []

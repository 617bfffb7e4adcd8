"""Binding, in cases of the upstream controller's kinds: once, again, shuffled, with crashes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from netplane.model.changes import Put, assumed
from netplane.model.codec import parse
from netplane.model.facts import Scope
from storageplane import names
from storageplane.claims import match
from storageplane.claims.bind import Binder

from .binder_cases import MORE
from .storage_world import Crash, World, on_node, pod, pv, pvc, storage_class

pytestmark = pytest.mark.usefixtures("driven")

SSD = {"metadata": {"name": "ssd"}}
RWX = ["ReadWriteOnce", "ReadWriteMany"]
BOUND = {names.BIND_COMPLETED: "yes", names.BOUND_BY_CONTROLLER: "yes"}
DONE = {"meta": {"annotations": BOUND, "uid": "u"}, "status": {"phase": "Bound"}}
WAITING = {"volumeBindingMode": "WaitForFirstConsumer", "provisioner": "kubernetes.io/no-provisioner"}
WFFC = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "late"}, **WAITING}
BLOCK = {"volumeMode": "Block"}

# id: (objects, {volume: phase}, claim phase, volume that the claim has)
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, str], str, str]] = {
    # any volume
    "exact size": ([pv("v"), pvc()], {"v": "Bound"}, "Bound", "v"),
    "no volume at all": ([pvc()], {}, "Pending", ""),
    "too small": ([pv("v", "1Gi"), pvc(size="2Gi")], {"v": "Available"}, "Pending", ""),
    "smallest of the fitting": (
        [pv("a", "8Gi"), pv("b", "3Gi"), pv("c", "1Gi"), pvc(size="2Gi")],
        {"a": "Available", "b": "Bound", "c": "Available"},
        "Bound",
        "b",
    ),
    "equal sizes: by name": ([pv("b"), pv("a"), pvc()], {"a": "Bound", "b": "Available"}, "Bound", "a"),
    "fewest access modes before smallest": (
        [pv("few", "9Gi"), pv("many", "1Gi", accessModes=RWX), pvc()],
        {"few": "Bound", "many": "Available"},
        "Bound",
        "few",
    ),
    "more access modes will do": ([pv("v", accessModes=RWX), pvc()], {"v": "Bound"}, "Bound", "v"),
    "missing access mode": ([pv("v"), pvc(accessModes=["ReadWriteMany"])], {"v": "Available"}, "Pending", ""),
    "claimed by another": (
        [pv("v", claim="other:1"), pvc(), pvc("other", meta={"uid": "1"}, volumeName="v")],
        {"v": "Bound"},
        "Pending",
        "",
    ),
    "prebound to it, larger than another": (
        [pv("a", "1Gi"), pv("b", "9Gi", claim="c"), pvc()],
        {"a": "Available", "b": "Bound"},
        "Bound",
        "b",
    ),
    "prebound overlooks class and selector": (
        [
            pv("v", claim="c", storageClassName="x"),
            pvc(storageClassName="", selector={"matchLabels": {"a": "b"}}),
        ],
        {"v": "Bound"},
        "Bound",
        "v",
    ),
    "prebound but too small": ([pv("v", claim="c"), pvc(size="2Gi")], {"v": "Available"}, "Pending", ""),
    "prebound with another uid": (
        [pv("v", claim="c:old"), pvc(meta={"uid": "new"})],
        {"v": "Released"},
        "Pending",
        "",
    ),
    "prebound in another namespace": (
        [{**pv("v"), "spec": {**pv("v")["spec"], "claimRef": {"namespace": "x", "name": "c"}}}, pvc()],
        {"v": "Available"},
        "Pending",
        "",
    ),
    "selector matches": (
        [
            pv("a"),
            pv("b", meta={"labels": {"disk": "fast"}}),
            pvc(selector={"matchLabels": {"disk": "fast"}}),
        ],
        {"a": "Available", "b": "Bound"},
        "Bound",
        "b",
    ),
    "selector matches none": (
        [pv("a"), pvc(selector={"matchExpressions": [{"key": "disk", "operator": "Exists"}]})],
        {"a": "Available"},
        "Pending",
        "",
    ),
    "a deleting volume is left": (
        [pv("v", meta={"deletionTimestamp": "x", "finalizers": ["somebody/else"]}), pvc()],
        {"v": "Available"},
        "Pending",
        "",
    ),
    "a deleting claim is not bound": (
        [pv("v"), pvc(meta={"deletionTimestamp": "x", "finalizers": ["somebody/else"]})],
        {"v": "Available"},
        "",
        "",
    ),
    # a named volume
    "named": ([pv("a"), pv("b"), pvc(volumeName="b")], {"a": "Available", "b": "Bound"}, "Bound", "b"),
    "named, absent": ([pv("a"), pvc(volumeName="b")], {"a": "Available"}, "Pending", "b"),
    "named, too small": ([pv("a"), pvc(size="2Gi", volumeName="a")], {"a": "Available"}, "Pending", "a"),
    "named, of another class": (
        [pv("a", storageClassName="x"), pvc(storageClassName="", volumeName="a")],
        {"a": "Available"},
        "Pending",
        "a",
    ),
    "named, missing mode": (
        [pv("a"), pvc(accessModes=["ReadWriteMany"], volumeName="a")],
        {"a": "Available"},
        "Pending",
        "a",
    ),
    "named, another's": (
        [pv("a", claim="d"), pvc(volumeName="a")],
        {"a": "Available"},
        "Pending",
        "a",
    ),
    "named both ways": ([pv("a", claim="c"), pvc(volumeName="a")], {"a": "Bound"}, "Bound", "a"),
    # a bound claim
    "bound, volume gone": ([pvc(volumeName="v", **DONE)], {}, "Lost", "v"),
    "bound, name removed": ([pv("v"), pvc(**DONE)], {"v": "Available"}, "Lost", ""),
    "bound, volume another's": (
        [pv("v", claim="d:2"), pvc("d", meta={"uid": "2"}, volumeName="v"), pvc(volumeName="v", **DONE)],
        {"v": "Bound"},
        "Lost",
        "v",
    ),
    "bound, claimRef lost": ([pv("v"), pvc(volumeName="v", **DONE)], {"v": "Bound"}, "Bound", "v"),
    "bound, phases lost": (
        [pv("v", claim="c:u"), pvc(volumeName="v", meta={"annotations": BOUND, "uid": "u"})],
        {"v": "Bound"},
        "Bound",
        "v",
    ),
    # volumes
    "claim gone": ([pv("v", claim="c:u", status={"phase": "Bound"})], {"v": "Released"}, "", ""),
    "claim of that name anew": (
        [pv("v", claim="c:old", status={"phase": "Bound"}), pvc(meta={"uid": "new"})],
        {"v": "Released"},
        "Pending",
        "",
    ),
    "failed stays failed": ([pv("v", claim="c:u", status={"phase": "Failed"})], {"v": "Failed"}, "", ""),
    "claim bound elsewhere, ours to undo": (
        [
            pv(
                "v",
                claim="c:u",
                meta={"annotations": {names.BOUND_BY_CONTROLLER: "yes"}},
                status={"phase": "Bound"},
            ),
            pv("w", claim="c:u"),
            pvc(volumeName="w", **DONE),
        ],
        {"v": "Available", "w": "Bound"},
        "Bound",
        "w",
    ),
    "claim bound elsewhere, the user's choice": (
        [pv("v", claim="c:u", status={"phase": "Bound"}), pv("w", claim="c:u"), pvc(volumeName="w", **DONE)],
        {"v": "Available", "w": "Bound"},
        "Bound",
        "w",
    ),
    # classes
    "same class": (
        [pv("a"), pv("b", storageClassName="ssd"), pvc(storageClassName="ssd")],
        {"a": "Available", "b": "Bound"},
        "Bound",
        "b",
    ),
    "class differs": (
        [pv("a", storageClassName="x"), pvc(storageClassName="ssd")],
        {"a": "Available"},
        "Pending",
        "",
    ),
    "no class, volume without": (
        [pv("a"), storage_class("d", default=True), pvc()],
        {"a": "Bound"},
        "Bound",
        "a",
    ),
    "default class is assigned": (
        [pv("a", storageClassName="d"), storage_class("d", default=True), pvc()],
        {"a": "Bound"},
        "Bound",
        "a",
    ),
    "the empty class gets no default": (
        [pv("a", storageClassName="d"), storage_class("d", default=True), pvc(storageClassName="")],
        {"a": "Available"},
        "Pending",
        "",
    ),
    # volume modes
    "block to block": ([pv("a", **BLOCK), pvc(**BLOCK)], {"a": "Bound"}, "Bound", "a"),
    "block claim, file volume": ([pv("a"), pvc(**BLOCK)], {"a": "Available"}, "Pending", ""),
    "file claim, block volume": ([pv("a", **BLOCK), pvc()], {"a": "Available"}, "Pending", ""),
    "block, named": ([pv("a"), pvc(volumeName="a", **BLOCK)], {"a": "Available"}, "Pending", "a"),
    "block, prebound": ([pv("a", claim="c"), pvc(**BLOCK)], {"a": "Available"}, "Pending", ""),
    "block, both ways": (
        [pv("a", claim="c"), pvc(volumeName="a", **BLOCK)],
        {"a": "Available"},
        "Pending",
        "a",
    ),
    # topology
    "waits for a pod": (
        [pv("a", storageClassName="late"), WFFC, pvc(storageClassName="late")],
        {"a": "Available"},
        "Pending",
        "",
    ),
    "pod not placed yet": (
        [pv("a", storageClassName="late"), WFFC, pvc(storageClassName="late"), pod(node="")],
        {"a": "Available"},
        "Pending",
        "",
    ),
    "the pod's node decides": (
        [
            pv("a", storageClassName="late", nodeAffinity=on_node("n1")),
            pv("b", storageClassName="late", nodeAffinity=on_node("n2")),
            WFFC,
            pvc(storageClassName="late"),
            pod(node="n2"),
        ],
        {"a": "Available", "b": "Bound"},
        "Bound",
        "b",
    ),
    "no volume on the pod's node": (
        [
            pv("a", storageClassName="late", nodeAffinity=on_node("n1")),
            WFFC,
            pvc(storageClassName="late"),
            pod(node="n3"),
        ],
        {"a": "Available"},
        "Pending",
        "",
    ),
}

CASES |= MORE
table = pytest.mark.parametrize("name", CASES)


def build(name: str) -> World:
    return World(*CASES[name][0])


def seen(world: World) -> tuple[dict[str, str], str, str]:
    volumes = {k.name: o.status.phase for k, o in world.objects.items() if k.kind == "PersistentVolume"}
    claim = world.pvc()
    return volumes, claim.status.phase if claim else "", claim.spec.volume_name if claim else ""


@table
def test_comes_to_what_upstream_says(name: str) -> None:
    assert seen(build(name).settle(Binder())) == CASES[name][1:]


@table
def test_running_again_writes_nothing(name: str) -> None:
    world = build(name).settle(Binder())
    world.writes.clear()
    assert world.resync(Binder()).writes == []


@table
@pytest.mark.parametrize("seed", range(3))
def test_any_order_comes_to_the_same(name: str, seed: int) -> None:
    chance = random.Random(seed)
    world = build(name).settle(Binder(), order=lambda scopes: chance.sample(sorted(scopes), len(scopes)))
    assert seen(world) == CASES[name][1:]


@table
def test_a_crash_after_any_write_converges(name: str) -> None:
    whole = build(name).settle(Binder())
    for count in range(len(whole.writes)):
        world = build(name)
        world.crash_after = count
        with pytest.raises(Crash):
            world.settle(Binder())
        world.crash_after = None
        assert world.settle(Binder()).state() == whole.state(), f"after {count} writes"


def test_binding_is_four_writes_with_the_volume_first() -> None:
    world = World(pv("v"), pvc()).settle(Binder())
    both = [w for w in world.writes if "Event" not in w][-4:]
    assert both == [
        "put PersistentVolume v", "put PersistentVolume v",
        "put PersistentVolumeClaim default/c", "put PersistentVolumeClaim default/c",
    ]  # fmt: skip
    volume, claim = world.pv("v"), world.pvc()
    assert volume.spec.claim_ref.uid == claim.metadata.uid
    assert volume.metadata.annotations == {names.BOUND_BY_CONTROLLER: "yes"}
    assert claim.metadata.annotations == BOUND
    assert claim.status.capacity == {"storage": "1Gi"}
    assert claim.status.access_modes == ("ReadWriteOnce",)


def test_what_the_user_chose_is_not_marked_as_ours() -> None:
    world = World(pv("v", claim="c"), pvc(volumeName="v")).settle(Binder())
    assert names.BOUND_BY_CONTROLLER not in world.pv("v").metadata.annotations
    assert world.pvc().metadata.annotations == {names.BIND_COMPLETED: "yes"}


def test_a_freed_user_volume_keeps_its_name_and_loses_the_uid() -> None:
    world = World(*CASES["claim bound elsewhere, the user's choice"][0]).settle(Binder())
    ref = world.pv("v").spec.claim_ref
    assert (ref.name, ref.uid) == ("c", "")


def test_two_claims_never_share_a_volume() -> None:
    world = World(pv("v"), pvc("a"), pvc("b")).settle(Binder())
    phases = sorted(world.pvc(n).status.phase for n in "ab")
    assert phases == ["Bound", "Pending"]


@pytest.mark.parametrize("seed", range(6))
def test_multisync_each_claim_has_a_volume_of_its_own(seed: int) -> None:
    """Volumes and claims of three sizes and two sets of modes; decided in any order, replayed, cut."""
    chance = random.Random(seed)
    sizes = [f"{chance.choice((1, 2, 4))}Gi" for _ in range(9)]
    modes = [chance.choice((["ReadWriteOnce"], RWX)) for _ in sizes]
    objects = [pv(f"v{i}", size, accessModes=m) for i, (size, m) in enumerate(zip(sizes, modes, strict=True))]
    objects += [
        pvc(f"c{i}", size, accessModes=m) for i, (size, m) in enumerate(zip(sizes, modes, strict=True))
    ]

    def shuffled(scopes: list[Any]) -> list[Any]:
        return chance.sample(sorted(scopes), len(scopes))

    world = World(*objects)
    world.crash_after = chance.randrange(40)
    while True:
        try:
            world.settle(Binder(), order=shuffled)
            break
        except Crash:
            world.crash_after = len(world.writes) + chance.randrange(5, 40)
    claims = [world.pvc(f"c{i}") for i in range(9)]
    taken = [c.spec.volume_name for c in claims if c.status.phase == "Bound"]
    assert len(taken) == len(set(taken))
    for claim in claims:
        if claim.status.phase == "Bound":
            assert world.pv(claim.spec.volume_name).spec.claim_ref.uid == claim.metadata.uid
    free = [v for i in range(9) if not (v := world.pv(f"v{i}")).spec.claim_ref]
    for claim in claims:
        if claim.status.phase != "Bound":
            assert all(
                match.obstacle(v, claim, world.snapshot())
                or not set(claim.spec.access_modes) <= set(v.spec.access_modes)
                for v in free
            )
    world.writes.clear()
    world.crash_after = None
    assert world.resync(Binder(), order=shuffled).writes == []


def test_a_volume_that_appears_later_is_taken() -> None:
    world = World(pvc()).settle(Binder())
    assert world.note().reason == "FailedBinding"
    world.put(World(pv("v")).pv("v"), expect=0)
    world.settle(Binder())
    assert seen(world) == ({"v": "Bound"}, "Bound", "v")
    assert world.note() is None


def offered(world: World, volumes: list[str]) -> list[str]:
    """The claims that these volumes take, one after the other, while nobody goes on with a bind."""
    snapshot, found = world.snapshot(), []
    for name in volumes:
        writes = Binder().decide(Scope("bind", f"volume/{name}"), snapshot)
        refs = [w.object.spec.claim_ref for w in writes if isinstance(w, Put)]
        found += [ref.name for ref in refs if ref]
        snapshot = assumed(snapshot, writes)
    return found


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The claims that a volume passed by, or took."""
    seen: list[str] = []

    def watched(real: Any) -> Any:
        def asked(claim: Any, snapshot: Any) -> Any:
            seen.append(claim.name)
            return real(claim, snapshot)

        return asked

    for question in ("waits", "_being_bound"):
        monkeypatch.setattr(match, question, watched(getattr(match, question)))
    return seen


MANY = 300


@pytest.mark.parametrize("sizes", ["alike", "volumes of every size", "claims of every size", "two of each"])
def test_many_volumes_beside_claims_that_are_being_bound(sizes: str, looked_at: list[str]) -> None:
    """No volume walks through the claims that those before it took."""

    def size(i: int, kind: str) -> str:
        if sizes == "two of each":
            return f"{1 + i % 2}Gi"
        return f"{(1 if kind not in sizes else 1 + i) + (MANY if kind == 'volumes' else 0)}Mi"

    volumes = [pv(f"v{i}", size(i, "volumes")) for i in range(MANY)]
    claims = [pvc(f"c{i}", size(i, "claims"), meta={"uid": f"u{i}"}) for i in range(MANY)]
    taken = offered(World(*volumes, *claims), sorted(v["metadata"]["name"] for v in volumes))
    assert sorted(taken) == sorted(c["metadata"]["name"] for c in claims)
    assert len(looked_at) < 16 * MANY


def test_many_volumes_beside_claims_whose_pods_have_no_node(looked_at: list[str]) -> None:
    late = {"storageClassName": "late"}
    volumes = [pv(f"v{i}", **late) for i in range(MANY)]
    claims = [pvc(f"c{i}", meta={"uid": f"u{i}"}, **late) for i in range(MANY)]
    world = World(*volumes, *claims, WFFC)
    assert offered(world, [f"v{i}" for i in range(MANY)]) == []
    assert len(looked_at) < 4 * MANY
    world.put(parse(pod(claim="c7")))
    assert offered(world, ["v3"]) == ["c7"]


def test_a_mismatch_of_a_named_volume_says_why() -> None:
    world = World(pv("v"), pvc(size="5Gi", volumeName="v")).settle(Binder())
    assert world.note().reason == "VolumeMismatch"
    assert "too small: 1Gi of 5Gi" in world.note().message


def test_a_claim_in_use_outlives_its_deletion_until_the_pod_goes() -> None:
    world = World(pv("v"), pvc(), pod()).settle(Binder())
    world.delete(world.pvc().key)
    world.settle(Binder())
    assert world.pvc().deleting
    assert world.pv("v").status.phase == "Bound"
    world.delete(next(k for k in world.objects if k.kind == "Pod"))
    world.settle(Binder())
    assert world.pvc() is None
    assert world.pv("v").status.phase == "Released"


def test_a_bound_volume_outlives_its_deletion_until_the_claim_goes() -> None:
    world = World(pv("v"), pvc()).settle(Binder())
    world.delete(world.pv("v").key)
    world.settle(Binder())
    assert world.pv("v") is not None
    world.delete(world.pvc().key)
    world.settle(Binder())
    assert world.pv("v") is None


def test_events_of_a_claim_go_with_it() -> None:
    world = World(pvc()).settle(Binder())
    claim = world.pvc()
    world.delete(claim.key)
    world.settle(Binder())
    binder = Binder()
    from netplane.model.changes import Event

    for scope in binder.scopes(Event(claim, None), world.snapshot()):
        for write in binder.decide(scope, world.snapshot()):
            world._carry_out(write)
    assert world.note() is None

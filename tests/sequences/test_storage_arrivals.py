"""Objects that arrive one after the other, in every order, with decisions between them by events alone.

What comes first may be taken before anything better is there, so the tables' results need not come about; but
whatever the order, events bring about what looking at everything after each arrival does, to the last write.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest

from netplane.model.base import amend
from netplane.model.changes import Event
from netplane.model.codec import parse
from netplane.model.facts import Scope
from storageplane.claims.bind import Binder
from storageplane.claims.ephemeral import Ephemerals
from storageplane.csi.claims import CsiVolumes

from . import test_storage_binding, test_storage_provision
from .storage_world import World, on_node, pod, pv, pvc, storage_class
from .test_storage_binding import seen
from .test_storage_provision import check, deciders

BINDING, PROVISION = test_storage_binding.CASES, test_storage_provision.CASES
Deciders = Callable[[], tuple[Any, ...]]


class Heard(World):
    """Driven by events."""

    driven = "events"


class Looked(World):
    """Looked at as a whole."""

    driven = "resync"


def arrived(kind: type[World], objects: list[Any], controllers: Deciders) -> World:
    world = kind()
    for doc in objects:
        world.put(parse(doc))
        world.settle(*controllers())
    return world


def by_events(objects: list[Any], controllers: Deciders) -> World:
    """The world that events came to; nothing is left to be found by looking at everything."""
    heard = arrived(Heard, objects, controllers)
    assert heard.state() == arrived(Looked, objects, controllers).state()
    heard.writes.clear()
    assert heard.resync(*controllers()).writes == []
    return heard


class At:
    """When the last of some objects was there. The claim is "claim", others have their names."""

    def __init__(self, objects: list[Any]) -> None:
        kinds = [(o["kind"], o["metadata"]["name"]) for o in objects]
        self.places = {"claim" if k == "PersistentVolumeClaim" else n: i for i, (k, n) in enumerate(kinds)}

    def __call__(self, *names: str) -> int:
        return max(self.places[name] for name in names)


# Where the order counts: exactly when the table's result does not come about, and what does instead.
EARLY: dict[str, tuple[Callable[[At], bool], tuple[str, str]]] = {
    # a volume that fits was there before the better one
    "smallest of the fitting": (lambda at: at("claim", "a") < at("claim", "b"), ("Bound", "a")),
    "equal sizes: by name": (lambda at: at("claim", "b") < at("claim", "a"), ("Bound", "b")),
    "fewest access modes before smallest": (
        lambda at: at("claim", "many") < at("claim", "few"), ("Bound", "many"),
    ),
    "prebound to it, larger than another": (lambda at: at("claim", "a") < at("claim", "b"), ("Bound", "a")),
    # the default class was assigned before the volume without a class was there
    "no class, volume without": (lambda at: at("claim", "d") < at("a"), ("Pending", "")),
    # nobody knew yet that the class waits for a pod
    "waits for a pod": (lambda at: at("claim", "a") < at("late"), ("Bound", "a")),
    "pod not placed yet": (lambda at: at("claim", "a") < at("late"), ("Bound", "a")),
    "no volume on the pod's node": (lambda at: at("claim", "a") < at("late"), ("Bound", "a")),
    "the pod's node decides": (
        lambda at: at("claim", "a") < at("late") and at("claim", "a") <= at("claim", "b"), ("Bound", "a"),
    ),
    # the claim came as one that is being deleted, when no pod named it
    "bound, deleting, still used": (lambda at: at("claim") < at("p"), ("", "")),
}  # fmt: skip


@pytest.mark.parametrize("name", BINDING)
def test_bindings_by_events_in_any_order_of_arrival(name: str) -> None:
    objects, *expected = BINDING[name]
    deviates, instead = EARLY.get(name, (None, ("", "")))
    for order in permutations(objects):
        world = by_events(list(order), lambda: (Binder(),))
        if deviates is not None and deviates(At(list(order))):
            assert seen(world)[1:] == instead, order
        else:
            assert seen(world) == tuple(expected), order


@pytest.mark.parametrize("name", PROVISION)
def test_provisioning_by_events_in_any_order_of_arrival(name: str) -> None:
    """A static volume that would fit comes too late when the claim and its class are there before it."""
    for order in permutations(PROVISION[name].objects):
        at, case = At(list(order)), PROVISION[name]
        if name == "a static volume fits" and at("claim", "d") < at("v"):
            case = PROVISION["a static volume is too small"]
        check(by_events(list(order), deciders), case)


def test_a_class_that_comes_to_allow_growth_wakes_the_claims_and_volumes_that_wait() -> None:
    """Also those of CSI drivers, whose volumes grow as facts."""
    bound = {"phase": "Bound", "capacity": {"storage": "1Gi"}}
    claims = [
        pvc(n, s, storageClassName=c, volumeName=f"v-{n}", status=bound)
        for n, s, c in [("more", "2Gi", "d"), ("same", "1Gi", "d"), ("other", "2Gi", "x")]
    ]
    world = World(*claims)
    event = Event(parse(storage_class("d")), parse(storage_class("d", allowVolumeExpansion=True)))
    found = CsiVolumes("n1", ("x",)).scopes(event, world.snapshot())
    assert set(found) == {Scope("csi", "claim/default/more"), Scope("csi", "volume/v-more")}


def test_a_pod_that_is_placed_later_wakes_its_claim(driven: str) -> None:
    """Its change alone: everything else was there."""
    late = storage_class("late", "kubernetes.io/no-provisioner", volumeBindingMode="WaitForFirstConsumer")
    mine = [pv(n, storageClassName="late", nodeAffinity=on_node(f"n{i}")) for i, n in enumerate("abc")]
    world = World(late, *mine, pvc(storageClassName="late"), pod(node="")).settle(Binder())
    assert (world.note().reason, World.driven) == ("WaitForPodScheduled", driven)
    world.put(parse(pod(node="n1")))
    assert seen(world.settle(Binder()))[1:] == ("Bound", "b")


def test_a_node_that_is_labelled_later_wakes_the_claims_that_wait(driven: str) -> None:
    """A volume of a zone; the pod's node is not known, then known without a zone, then in it."""
    zone = {"key": "zone", "operator": "In", "values": ["a"]}
    there = {"required": {"nodeSelectorTerms": [{"matchExpressions": [zone]}]}}
    late = storage_class("late", "kubernetes.io/no-provisioner", volumeBindingMode="WaitForFirstConsumer")
    volume = pv("v", storageClassName="late", nodeAffinity=there)
    for labels in ([{"zone": "a"}], [{}, {"zone": "a"}]):
        world = World(late, volume, pvc(storageClassName="late"), pod(node="n1")).settle(Binder())
        for found in labels:
            assert (world.pvc().status.phase, World.driven) == ("Pending", driven)
            meta = {"name": "n1", "labels": found}
            world.put(parse({"apiVersion": "v1", "kind": "Node", "metadata": meta}))
            world.settle(Binder())
        assert world.pvc().status.phase == "Bound"


def test_a_claim_of_a_pod_that_is_gone_goes_whenever_it_comes(driven: str) -> None:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "gone", "controller": True}
    world = World().settle(Ephemerals())
    world.put(parse(pvc("p-scratch", meta={"ownerReferences": [owner]})))
    assert (world.settle(Ephemerals()).pvc("p-scratch"), World.driven) == (None, driven)


# --- the default class ----------------------------------------------------------------------------

MARK = "storageclass.kubernetes.io/is-default-class"


def default(name: str, year: int = 2025) -> dict[str, Any]:
    return storage_class(name, default=True, meta={"creationTimestamp": f"{year}-01-01T00:00:00Z"})


def added(world: World, *docs: dict[str, Any]) -> World:
    """These arrive together."""
    for doc in docs:
        world.put(parse(doc))
    return world.settle(*deciders())


def marked(world: World, name: str, value: str) -> World:
    cls = world.get(parse(storage_class(name)).key)
    world.put(amend(cls, metadata=amend(cls.metadata, annotations={MARK: value})))
    return world.settle(*deciders())


def class_of(world: World, name: str = "c") -> str | None:
    found: str | None = world.pvc(name).spec.storage_class_name
    return found


@pytest.fixture
def waiting(driven: str) -> World:
    """A claim without a class, and one that wants none, before there is any."""
    assert World.driven == driven
    none = pvc("none", storageClassName="", meta={"uid": "u2"})
    world = World(pvc(meta={"uid": "u1"}), none).settle(*deciders())
    assert (class_of(world), world.note().reason) == (None, "FailedBinding")
    return world


def test_a_default_class_that_comes_later_is_assigned_and_provisions(waiting: World) -> None:
    added(waiting, storage_class("plain"))
    assert class_of(waiting) is None
    added(waiting, default("d"))
    assert (class_of(waiting), waiting.pvc().spec.volume_name) == ("d", "pvc-u1")
    assert (waiting.pvc().status.phase, waiting.note()) == ("Bound", None)
    assert (class_of(waiting, "none"), waiting.pvc("none").status.phase) == ("", "Pending")


def test_a_class_that_is_made_the_default_later_is_assigned(waiting: World) -> None:
    added(waiting, storage_class("d"))
    assert class_of(marked(waiting, "d", "false")) is None
    assert class_of(marked(waiting, "d", "true")) == "d"


@pytest.mark.parametrize("order", [(2024, 2025), (2025, 2024)])
def test_of_two_default_classes_the_newest_counts_whichever_comes_first(
    waiting: World, order: tuple[int, int]
) -> None:
    added(waiting, *(default(f"of-{year}", year) for year in order))
    assert class_of(waiting) == "of-2025"


def test_what_was_assigned_stays_when_a_newer_default_comes(waiting: World) -> None:
    added(waiting, default("old", 2024))
    added(waiting, default("new", 2025))
    added(waiting, pvc("later"))
    assert (class_of(waiting), class_of(waiting, "later")) == ("old", "new")


def test_a_class_that_loses_its_mark_is_the_default_no_more(waiting: World) -> None:
    added(waiting, default("old", 2024), default("new", 2025))
    marked(waiting, "new", "false")
    added(waiting, pvc("second"))
    marked(waiting, "old", "false")
    added(waiting, pvc("third"))
    assert [class_of(waiting, n) for n in ("c", "second", "third")] == ["new", "old", None]
    assert class_of(marked(waiting, "new", "true"), "third") == "new"

"""Who names the kinds that mean something to it is asked about no other: so it must have named all."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import inspect

from netplane import cluster
from netplane.cni.render import CniConfig, CniRoom
from netplane.datapath.room import PathConfig, PathRoom
from netplane.dns.zone import DnsRoom, ReplaceableRoom
from netplane.model import codec
from netplane.model.base import Object
from netplane.model.facts import FastPath
from netplane.model.snapshot import Snapshot
from netplane.overlay.room import OverlayRoom
from netplane.policy.room import PolicyRoom
from netplane.reconcile.base import Event, Listeners
from netplane.services.room import ServicesRoom

DNS = DnsRoom("n1")
EVERYBODY: list[Any] = [
    CniRoom("n1", CniConfig()),
    OverlayRoom("n1"),
    ServicesRoom("n1"),
    PolicyRoom("n1"),
    PathRoom("n1", PathConfig(("eth0",), FastPath(gateway_mac="02:00:00:00:00:01"))),
    DNS,
    ReplaceableRoom(DNS),
    *cluster.controllers(cluster.ClusterConfig(("10.244.0.0/16",), ("10.96.0.0/16",))),
]


def filled(kind: inspect.Type) -> Any:
    """A value of the type, with what has no default: names are n1, numbers 1."""
    if isinstance(kind, inspect.StructType):
        return {f.encode_name: filled(f.type) for f in kind.fields if f.required}
    return "n1" if isinstance(kind, inspect.StrType) else 1 if isinstance(kind, inspect.IntType) else ()


def sample(cls: type[Object]) -> Object:
    namespace = {"namespace": "default"} if cls.NAMESPACED else {}
    meta = {"name": "n1", "labels": {"app": "web"}, **namespace}
    return msgspec.convert({**filled(inspect.type_info(cls)), "metadata": meta}, cls)


@pytest.mark.parametrize("one", EVERYBODY, ids=lambda one: type(one).__name__)
def test_an_object_of_a_kind_that_is_not_named_touches_nothing(one: Any) -> None:
    objects = {kind: sample(cls) for kind, cls in codec.KINDS.items()}
    snapshot = Snapshot.of(objects.values())
    assert one.kinds and one.kinds <= objects.keys()
    for kind in objects.keys() - one.kinds:
        for event in (Event(None, objects[kind]), Event(objects[kind], None)):
            assert list(one.scopes(event, snapshot)) == [], kind


def test_who_names_no_kinds_is_asked_about_all() -> None:
    class Some:
        kinds = frozenset(("Pod",))

    some, every = Some(), object()
    listeners = Listeners([some, every])
    assert listeners.of("Pod") == (some, every) and listeners.of("Node") == (every,)

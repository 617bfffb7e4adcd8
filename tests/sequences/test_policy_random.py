"""Policy by single changes holds what a room that begins with the end holds: random objects, no kernel.

node-1: x/a x/c y/b z/a z/c     node-2: x/b y/a y/c z/b
"""

from __future__ import annotations

# ruff: noqa: E501 (objects in a line)
import random
from typing import Any

import pytest

from netplane.model import codec
from netplane.model.base import Key
from netplane.model.changes import Event
from netplane.model.facts import Fact, FactKey, Mark, Scope
from netplane.model.snapshot import Snapshot
from netplane.policy.room import PolicyRoom

from ..policy_random import policies

Doc = dict[str, Any]
PODS = [(space, name, i) for i, (space, name) in enumerate((s, n) for s in "xyz" for n in "abc")]


def pod_doc(rng: random.Random, space: str, name: str, i: int) -> Doc:
    ports = [{"containerPort": rng.choice((80, 81)), "name": f"serve-{p}-{k}", "protocol": k.upper()}
             for p in (80, 81) for k in ("tcp", "udp")]  # fmt: skip
    status = {"phase": rng.choice(("Running",) * 5 + ("Succeeded",)), "podIP": f"10.244.{i % 2}.{2 + i // 2}"}
    return {"apiVersion": "v1", "kind": "Pod", "status": status if rng.random() < 0.9 else {},
            "metadata": {"name": name, "namespace": space, "labels": {"pod": rng.choice("abc")}},
            "spec": {"nodeName": f"node-{i % 2 + 1}", "containers": [{"name": "c", "ports": ports}]}}  # fmt: skip


def attachment_doc(space: str, name: str, i: int) -> Doc:
    spec = {"node": f"node-{i % 2 + 1}", "containerID": name, "ifname": "eth0", "netns": "/n", "network": "net1",
            "podNamespace": space, "podName": name, "hostIfname": "h",
            "ips": [{"address": f"10.244.{i % 2}.{2 + i // 2}/32"}]}  # fmt: skip
    meta = {"name": f"{space}{name}.node"}
    return {
        "apiVersion": "netplane.io/v1",
        "kind": "Attachment",
        "metadata": meta,
        "phase": "Ready",
        "spec": spec,
    }


def change(rng: random.Random, docs: list[Doc]) -> Doc | Key:
    """An object as it is from now on, or the key of one that goes."""
    kind = rng.randrange(5)
    if kind == 0:
        doc = pod_doc(rng, *rng.choice(PODS))
    elif kind == 4:
        doc = attachment_doc(*rng.choice(PODS))
    elif kind == 1:
        labels = {"ns": rng.choice("xyz")} if rng.random() < 0.8 else {}
        doc = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": rng.choice("xyz"), "labels": labels},
        }
    else:
        doc = rng.choice(docs)
    return doc if rng.random() < 0.75 else codec.parse(doc).key


class Held:
    """What the facts of all scopes come to, as the reconciler's ledger has them."""

    def __init__(self) -> None:
        self.room, self.snapshot = PolicyRoom("node-1"), Snapshot.of(())
        self.scopes: dict[Scope, tuple[Fact, ...]] = {}
        self.render(self.room.scopes(None, self.snapshot))

    def render(self, scopes: Any) -> None:
        self.scopes |= {scope: tuple(self.room.render(scope, self.snapshot)) for scope in scopes}

    def take(self, what: Doc | Key) -> None:
        new = None if isinstance(what, Key) else codec.parse(what)
        key = what if isinstance(what, Key) else codec.parse(what).key
        old = self.snapshot.find(key)
        if old is None and new is None:
            return
        self.snapshot = self.snapshot.with_put(new) if new else self.snapshot.with_delete(key)
        self.render(self.room.scopes(Event(old, new), self.snapshot))

    def facts(self) -> dict[FactKey, Mark]:
        return {
            fact.key: fact.mark for facts in self.scopes.values() for fact in facts if fact.TYPE != "flows"
        }


@pytest.mark.parametrize("seed", range(12))
def test_single_changes_come_to_what_a_fresh_start_renders(seed: int) -> None:
    rng, held = random.Random(seed), Held()
    docs = policies(rng, rng.choice((10, 60)))
    for step in range(60):
        held.take(change(rng, docs))
        fresh = Held()
        fresh.snapshot = held.snapshot
        fresh.render(fresh.room.scopes(None, held.snapshot))
        have, want = held.facts(), fresh.facts()
        assert have == want, f"step {step}: {set(have.items()) ^ set(want.items())}"

"""A store in memory with the contract's revisions, uids and finalizers, and builders of objects.

Controllers settle in it in one of two ways: "resync", where every scope is decided again and again, and
"events", where only those scopes are decided that the controllers say a change touches, as in an agent.
"""

from __future__ import annotations

import itertools
from typing import Any

from netplane.model.base import Key, Object, ObjectMeta, amend
from netplane.model.changes import Event, Put
from netplane.model.codec import parse
from netplane.model.errors import Conflict, NotFound
from netplane.model.snapshot import Snapshot
from netplane.reconcile.base import Listeners


class Crash(Exception):
    """The process dies before a write."""


class World:
    """``crash_after``: how many writes go through before every next one is a crash."""

    driven = "resync"  # or "events"

    def __init__(self, *objects: Any) -> None:
        self.news: list[tuple[Event, Snapshot] | None] = []  # None: a start, which looks at everything
        self.heard: dict[str, int] = {}  # controller of a node → how much of the news it knows
        self.now = Snapshot.of(())
        self.objects: dict[Key, Object] = {}
        self.revisions = itertools.count(1)
        self.born: set[Key] = set()  # keys that had an object once
        self.writes: list[str] = []
        self.crash_after: int | None = None
        for obj in objects:
            self.put(parse(obj) if isinstance(obj, dict) else obj)
        self.writes.clear()

    def get(self, key: Key) -> Any:
        return self.objects.get(key)

    def put(self, obj: Any, expect: int | None = None) -> Any:
        have = self.objects.get(obj.key)
        self._expected(have, obj.key, expect)
        meta: ObjectMeta = obj.metadata
        uid = (have.metadata.uid if have else meta.uid) or self._uid(obj.key)
        if have is not None and amend(obj, metadata=amend(meta, resource_version="")) == amend(
            have, metadata=amend(have.metadata, resource_version="")
        ):
            return have
        self._write(f"put {obj.key}")
        revision = str(next(self.revisions))
        self.born.add(obj.key)
        stored = amend(obj, metadata=amend(meta, uid=uid, resource_version=revision))
        if stored.deleting and not stored.metadata.finalizers:
            self.objects.pop(obj.key, None)
            self._tell(have, None)
        else:
            self.objects[obj.key] = stored
            self._tell(have, stored)
        return stored

    def delete(self, key: Key, expect: int | None = None) -> Any:
        have = self.objects.get(key)
        if have is None:
            raise NotFound(str(key))
        self._expected(have, key, expect)
        if not have.metadata.finalizers:
            self._write(f"delete {key}")
            self._tell(have, None)
            return self.objects.pop(key)
        if have.deleting:
            return have
        return self.put(amend(have, metadata=amend(have.metadata, deletion_timestamp="2026-01-01T00:00:00Z")))

    def snapshot(self) -> Snapshot:
        return Snapshot.of(self.objects.values())

    def settle(self, *controllers: Any, order: Any = sorted) -> World:
        """Decide, one write at a time, until nothing is left to write."""
        way = self.resync if self.driven == "resync" else self.hear
        return way(*controllers, order=order)

    def resync(self, *controllers: Any, order: Any = sorted) -> World:
        """Decide every scope until nothing is left to write."""
        for _ in range(300):
            before = len(self.writes)
            for controller in controllers:
                for scope in order(list(controller.scopes(None, self.snapshot()))):
                    for write in controller.decide(scope, self.snapshot()):
                        self._carry_out(write)
            if len(self.writes) == before:
                return self
        raise AssertionError(f"no fixpoint: {self.writes[-6:]}")

    def hear(self, *controllers: Any, order: Any = sorted) -> World:
        """Decide what the news touches, and what that brings, until there is no more news."""
        for _ in range(300):
            touched = self._touched(controllers)
            if not touched:
                return self
            deciders = {c.name: c for c in controllers}
            for scope in order(touched):
                for write in deciders[scope.room].decide(scope, self.snapshot()):
                    self._carry_out(write)
        raise AssertionError(f"no fixpoint: {self.writes[-6:]}")

    def due(self, room: Any, retried: Any = ()) -> list[Any]:
        """The scopes of a room that are to be rendered now; ``retried``: those that failed the last time."""
        if self.driven == "resync":
            return list(room.scopes(None, self.snapshot()))
        return list({*self._touched((room,)), *retried})

    def _touched(self, controllers: Any) -> list[Any]:
        """The scopes of what each controller has not heard of."""
        found = set()
        for controller in controllers:
            listeners = Listeners((controller,))
            who = f"{controller.name} of {getattr(controller, 'node', '')}"
            for told in self.news[self.heard.get(who, 0) :]:
                if told is None:
                    found |= set(controller.scopes(None, self.snapshot()))
                elif listeners.of(told[0].object.KIND):
                    found |= set(controller.scopes(*told))
            self.heard[who] = len(self.news)
        return list(found)

    def _tell(self, old: Any, new: Any) -> None:
        if new is not None:
            self.now = self.now.with_put(new)
        elif old is not None:
            self.now = self.now.with_delete(old.key)
        else:
            return
        self.news.append((Event(old, new), self.now))

    def restart(self) -> None:
        """Whoever hears looks at everything once, as after a start."""
        self.news.append(None)

    def _carry_out(self, write: Any) -> None:
        if isinstance(write, Put):
            self.put(write.object, write.expect)
        elif write.key in self.objects:
            self.delete(write.key, write.expect)

    def _uid(self, key: Key) -> str:
        return f"uid-{key.name}" + ("-again" if key in self.born else "")

    def _expected(self, have: Any, key: Key, expect: int | None) -> None:
        if expect is not None and expect != (have.revision if have else 0):
            raise Conflict(f"{key}: expected {expect}")

    def _write(self, what: str) -> None:
        if self.crash_after is not None and len(self.writes) >= self.crash_after:
            self.restart()
            raise Crash(what)
        self.writes.append(what)

    # --- what tests ask ---------------------------------------------------------------------------

    def pv(self, name: str) -> Any:
        return self.objects.get(Key("PersistentVolume", "", name))

    def pvc(self, name: str = "c") -> Any:
        return self.objects.get(Key("PersistentVolumeClaim", "default", name))

    def note(self, name: str = "c.binding") -> Any:
        return self.objects.get(Key("Event", "default", name))

    def state(self) -> dict[str, Any]:
        """Everything but revisions and times: two worlds that agree in it are the same to users."""
        return {str(k): _timeless(o) for k, o in self.objects.items()}


def _timeless(obj: Any) -> Any:
    bare = amend(obj, metadata=amend(obj.metadata, resource_version=""))
    return amend(bare, first_timestamp="", last_timestamp="", count=0) if obj.KIND == "Event" else bare


def pv(name: str, size: str = "1Gi", **more: Any) -> dict[str, Any]:
    """A volume; ``claim``: "name" or "name:uid"; ``meta``, ``status`` and spec fields as they are."""
    spec = {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/data"}}
    meta = {"name": name, **more.pop("meta", {})}
    status = more.pop("status", {})
    if "claim" in more:
        ref, _, uid = more.pop("claim").partition(":")
        spec["claimRef"] = {"namespace": "default", "name": ref, **({"uid": uid} if uid else {})}
    if more.get("local") or more.get("csi"):
        del spec["hostPath"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": meta,
        "spec": {**spec, **more},
        "status": status,
    }


def pvc(name: str = "c", size: str = "1Gi", **more: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "default", **more.pop("meta", {})}
    status = more.pop("status", {})
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, **more}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": meta,
        "spec": spec,
        "status": status,
    }


def storage_class(name: str, provisioner: str = "storageplane.io/directory", **more: Any) -> dict[str, Any]:
    meta = {"name": name, **more.pop("meta", {})}
    if more.pop("default", False):
        meta["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": meta,
        "provisioner": provisioner,
        **more,
    }


def pod(name: str = "p", node: str = "n1", claim: str = "c", **meta: Any) -> dict[str, Any]:
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": claim}}
    spec = {"containers": [{"name": "main"}], "volumes": [volume], "nodeName": node}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", **meta},
        "spec": spec,
    }


def on_node(node: str) -> dict[str, Any]:
    need = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {"required": {"nodeSelectorTerms": [{"matchExpressions": [need]}]}}

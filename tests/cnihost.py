"""A host for the CNI server: objects in memory, facts as rendered, and faults when a test asks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from netplane.cni.host import Seen
from netplane.cni.render import CniConfig, CniRoom
from netplane.cni.wiring import ROOM
from netplane.model.base import Key, Object, ObjectMeta, amend
from netplane.model.changes import Put, Write
from netplane.model.errors import Conflict, NotFound
from netplane.model.facts import Fact, FactKey, Link, Scope
from netplane.model.flows import Flows
from netplane.model.nodes import Node, NodeAddress, NodeSpec, NodeStatus
from netplane.model.own import Attachment
from netplane.model.snapshot import Snapshot

CONFIG = CniConfig(cluster_cidrs=("10.244.0.0/16", "fd00:10:244::/48"), pod_mtu=1450)


def node(*cidrs: str, name: str = "n1") -> Node:
    cidrs = cidrs or ("10.244.1.0/24", "fd00:10:244:1::/64")
    return Node(
        metadata=ObjectMeta(name=name),
        spec=NodeSpec(pod_cidr=cidrs[0], pod_cidrs=cidrs),
        status=NodeStatus(addresses=(NodeAddress(type="InternalIP", address="192.0.2.1"),)),
    )


def no_fault(_verb: str, _what: object) -> None:
    pass


class MemoryHost:
    """Serialises like a store (revisions, Conflict, NotFound); ``kernel`` is what sync last rendered."""

    boot_id = "boot-1"

    def __init__(self, *objects: Object, synced: bool = True) -> None:
        self.node = "n1"
        self.room = CniRoom("n1", CONFIG)
        self.kernel: dict[Scope, tuple[Fact, ...]] = {}
        self.links: set[tuple[str, str]] = set()
        self.gone: set[str] = set()
        self.cookies: dict[str, int] = {}
        self.peers: dict[tuple[str, str], str] = {}
        self.loopbacks: list[str] = []
        self.forgotten: list[Flows] = []
        self.left: list[str] = []  # the attachments of whose addresses no flow is left
        self.fail: Callable[[str, object], None] = no_fault
        self._lock = threading.RLock()
        self._snapshot = Snapshot.of((), synced=synced)
        for obj in objects or (node(),):
            self.put(obj)

    def snapshot(self) -> Snapshot:
        return self._snapshot

    def put(self, obj: Object, expect: int | None = None) -> Object:
        self.fail("put", obj)
        with self._lock:
            old = self._snapshot.find(obj.key)
            if expect is not None and expect != (old.revision if old else 0):
                raise Conflict(f"{obj.key} is at {old.revision if old else 0}, not {expect}")
            revision = self._snapshot.revision + 1
            stored: Object = amend(obj, metadata=amend(obj.metadata, resource_version=str(revision)))
            self._snapshot = self._snapshot.with_put(stored)
            self.room.undone.discard(obj.name)
            return stored

    def draft(self, record: Attachment) -> None:
        with self._lock:
            if self._snapshot.find(record.key) is not None:
                raise Conflict(f"{record.key} is there")
            self._snapshot = self._snapshot.with_put(record)
            self.room.undone.discard(record.name)

    def retract(self, record: Attachment) -> None:
        with self._lock:
            found = self._snapshot.find(record.key)
            if found is not None and found.revision == 0:
                self._snapshot = self._snapshot.with_delete(record.key)

    def delete(self, key: Key, expect: int | None = None) -> Object:
        self.fail("delete", key)
        with self._lock:
            old = self._snapshot.find(key)
            if old is None:
                raise NotFound(f"{key} is not there")
            if expect is not None and expect != old.revision:
                raise Conflict(f"{key} is at {old.revision}, not {expect}")
            self._snapshot = self._snapshot.with_delete(key, self._snapshot.revision + 1)
            return old

    def write(self, writes: Sequence[Write]) -> list[Object]:
        return [self.put(*w) if isinstance(w, Put) else self.delete(*w) for w in writes]

    def sync(self, scopes: Iterable[Scope], before: Callable[[], object] | None = None) -> None:
        if before is not None:
            before()
        for scope in scopes:
            self.fail("sync", scope)
            with self._lock:
                before = self.kernel.pop(scope, ())
                after = tuple(self.room.render(scope, self._snapshot))
                if after:
                    self.kernel[scope] = after
                pairs = [dict(f.options) for f in self._links() if f.kind == "veth"]
                self.links = {(str(o["peer_netns"]), str(o["peer"])) for o in pairs}
                self.apply(before, after)

    def restart(self) -> None:
        """As an agent's: what was not written is not there, and what no record wants is swept."""
        for record in list(self._snapshot.list(Attachment)):
            self.retract(record)
        for scope in [scope for scope in self.kernel if not self.room.render(scope, self._snapshot)]:
            self.sync([scope])

    def withdraw(self, name: str) -> None:
        self.room.undone.add(name)
        self.sync([Scope("cni", name)])

    def _links(self) -> list[Link]:
        return [fact for facts in self.kernel.values() for fact in facts if isinstance(fact, Link)]

    def apply(self, before: tuple[Fact, ...], after: tuple[Fact, ...]) -> None:
        """For hosts with a kernel."""

    def verify(self, scopes: Iterable[Scope]) -> list[str]:
        return [f"{scope} is missing" for scope in scopes if scope not in self.kernel]

    def link_exists(self, netns: str, ifname: str) -> bool:
        return (netns, ifname) in self.links

    def netns_exists(self, path: str, cookie: int = 0) -> bool:
        return path not in self.gone and cookie in (0, self.netns_cookie(path))

    def netns_cookie(self, path: str) -> int:
        return self.cookies.get(path, 1)

    def mtu_and_mac(self, link: str) -> tuple[int, str]:
        return (1500, "02:00:00:00:00:01") if ("", link) in self.links else (0, "")

    def look(self, netns: str, ifname: str) -> Seen | None:  # noqa: ARG002
        return None

    def peer(self, netns: str, ifname: str) -> str:
        return self.peers.get((netns, ifname), "")

    def towards(self, address: str) -> str:  # noqa: ARG002
        return ""

    def localnet(self, link: str) -> bool:  # noqa: ARG002
        return False

    def redirects(self, link: str) -> bool:  # noqa: ARG002
        return False

    def default_link(self) -> str:
        return "w0"

    def raise_loopback(self, netns: str) -> None:
        self.loopbacks.append(netns)

    def forget(self, flows: Iterable[Flows]) -> None:
        self.forgotten += flows

    def forget_all(self, records: Sequence[Attachment]) -> None:
        for record in records:
            self.fail("forget", record)
            assert not self.keys(Scope(ROOM, record.name)), "the kernel still leads packets there"
            self.left.append(record.name)

    def keys(self, scope: Scope) -> set[FactKey]:
        return {fact.key for fact in self.kernel.get(scope, ())}

"""What the CNI server sees of an agent (cni.host.Host): its core, its links, and policy at a pod's birth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .cni.host import Seen
from .cni.render import CniRoom
from .cni.wiring import ROOM
from .kernel import netns, sysctl
from .kernel.conntrack import Conntrack
from .kernel.hostflows import HostFlows
from .kernel.rtnetlink import LinkDriver
from .kernel.underlay import default_route_device
from .model.base import Object
from .model.changes import Put, Write
from .model.facts import Link, Plan, Scope
from .model.flows import Flows
from .model.own import Attachment
from .model.snapshot import Snapshot
from .policy.birth import Birth
from .reconcile.core import Core
from .spare import Spare


class CniHost:
    """What the CNI server sees of the agent (cni.host.Host)."""

    birth: Birth | None = None  # what policy wants of a pod before it has an interface
    spare: Spare | None = None

    def __init__(self, room: CniRoom, core: Core, links: LinkDriver) -> None:
        self.node, self.boot_id = room.node, room.config.boot_id
        self._room, self._core, self._links = room, core, links
        self._tracker = Conntrack()
        self._flows = HostFlows()

    def snapshot(self) -> Snapshot:
        return self._core.snapshot()

    def put(self, obj: Object, expect: int | None = None) -> Object:
        stored = self._core.put(obj, expect)
        self._room.undone.discard(obj.name)
        return stored

    def draft(self, record: Attachment) -> None:
        self._core.draft(record)
        self._room.undone.discard(record.name)

    def retract(self, record: Attachment) -> None:
        self._core.retract(record.key)

    def write(self, writes: Sequence[Write]) -> list[Object]:
        with self._core.aside():
            return self._write(writes)

    def _write(self, writes: Sequence[Write]) -> list[Object]:
        pods = [w.object.key for w in writes if isinstance(w, Put)] if self.birth else []
        before = {key: self._core.snapshot().find(key) for key in pods}
        if self.spare:
            self.spare.drop(writes)
        stored = self._core.write(writes)
        if self.spare:
            self.spare.keep(obj for w, obj in zip(writes, stored, strict=True) if isinstance(w, Put))
        if self.birth:  # a pod's address is known: others' policies name it, before ADD returns
            self._core.sync(self.birth.after(before, self._core.snapshot()))
        return stored

    def sync(self, scopes: Iterable[Scope], before: Callable[[], object] | None = None) -> None:
        with self._core.aside():
            self._sync(list(scopes), before)

    def _sync(self, scopes: list[Scope], before: Callable[[], object] | None) -> None:
        birth = self.birth
        if birth is None:
            self._core.sync(scopes, before)
            return

        def isolated() -> None:
            """The record, then what policy says of it, and only then the interface."""
            if before is not None:
                before()
            self._core.sync(birth.before_links(scopes, self._core.snapshot()))

        self._core.sync(scopes, isolated)

    def withdraw(self, name: str) -> None:
        self._room.undone.add(name)
        self._core.sync([Scope(ROOM, name)])

    def verify(self, scopes: Iterable[Scope]) -> list[str]:
        return self._core.verify(scopes)

    def link_exists(self, netns_path: str, ifname: str) -> bool:
        return self._links.link_exists(netns_path, ifname)

    def netns_exists(self, path: str, cookie: int = 0) -> bool:
        """The node's own is no pod's: /proc/PID/ns/net leads there once the number is another process's."""
        if not netns.exists(path) or netns.is_own(path):
            return False
        return not cookie or netns.cookie(path) == cookie

    def netns_cookie(self, path: str) -> int:
        return netns.cookie(path)

    def mtu_and_mac(self, link: str) -> tuple[int, str]:
        return self._links.mtu_and_mac(link)

    def look(self, netns_path: str, ifname: str) -> Seen | None:
        found = self._links.look(netns_path, ifname)
        if found is None:
            return None
        state, addresses = found
        promisc = state.options.get("promisc") == "1"
        return Seen(state.kind, state.ours, state.up, promisc, state.mac, addresses)

    def peer(self, netns_path: str, ifname: str) -> str:
        return self._links.peer(netns_path, ifname)

    def towards(self, address: str) -> str:
        return self._links.towards(address)

    def localnet(self, link: str) -> bool:
        return sysctl.read(f"net/ipv4/conf/{link}/route_localnet") == "1"

    def redirects(self, link: str) -> bool:
        return self._links.redirects(link)

    def default_link(self) -> str:
        return default_route_device() or ""

    def raise_loopback(self, netns_path: str) -> None:
        self._links.apply(Plan(add=(Link(name="lo", netns=netns_path),)))

    def forget(self, flows: Iterable[Flows]) -> None:
        self._tracker.forget(flows)

    def forget_all(self, records: Sequence[Attachment]) -> None:
        self._flows.forget(entry.address.partition("/")[0] for record in records for entry in record.spec.ips)
        if self.spare:
            for record in records:
                self.spare.gone(record.name)

    def finish(self) -> None:
        """At a start, before any address is given: see to what a process was killed over that deleted it."""
        for record in self.spare.leaving() if self.spare else ():
            found = self.snapshot().get(Attachment, "", record.name)
            if found is None or found.phase != "Ready":
                self.forget_all([record])

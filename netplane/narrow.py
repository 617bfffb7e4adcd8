"""What one request needs of the store, for a process without an agent: a handful of records, not all.

The verbs, the room and the core are the agent's. They see a store that lists no more than an ADD can meet:
its own record and pod, whoever holds what it asks for, and where its ranges' turns are. A CHECK meets its own
record alone, and so does a DEL that finds none, as the second of two.

Rule 1: what is not seen is never judged. Before anything is taken away, and where a shared thing is not as
        this ADD wants it, everything is read (`Narrow.complete`): the last of those who share it takes it
        away, and only all records tell who is the last.
Rule 2: a request that fails on this view is done again on all of the store, so that what is refused, and why,
        is the same as ever. None of `view` says so beforehand: there is something to clear up, a range is
        full, or the request is none that this is made for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address
from itertools import chain
from typing import Any

from .cni import frame as wire
from .cni import plan, turns
from .cni.host import Host
from .cni.ipam import Pool
from .cni.names import pod_name, turn_name
from .cni.nodebridges import NodeBridges
from .cni.ports import versions
from .cni.ranges import NONE, OURS, RangeSet, whole
from .cni.render import CniConfig
from .cni.request import Request, parse
from .cni.turns import Turn
from .cni.verbs import Verbs
from .model.base import Key, Object
from .model.errors import Invalid, NetplaneError, Unavailable
from .model.facts import Driver, Plan
from .model.nodes import Node
from .model.own import Allocation, Attachment
from .model.pods import Pod
from .store.attachments import AttachmentIndex
from .store.sqlite import SqliteStore

NEWEST = (8, 256)  # records in which each range's last address is looked for, and where 8 do not tell
_AFTER_ALL = 1 << 62  # a revision that no record reaches


class Narrow:
    """A store for `Core.load` that lists ``keys`` until it is ``complete``; the rest is the store's."""

    def __init__(self, store: SqliteStore, keys: Iterable[Key], turn: Sequence[Turn]) -> None:
        self._store, self._keys = store, tuple(dict.fromkeys(keys))
        self.turn = turn
        self.complete = False

    def list(self, kinds: Iterable[str] | None = None) -> tuple[list[Object], int]:
        if self.complete:
            return self._store.list(kinds)
        found = [self._store.get(key) for key in self._keys]
        listed = [obj for obj in found if obj is not None]
        return listed, max((obj.revision for obj in listed), default=0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Careful:
    """A driver that adds; what it would change or remove, others may want, who are not read yet."""

    def __init__(self, driver: Driver, narrow: Narrow) -> None:
        self._driver, self._narrow = driver, narrow
        if hasattr(driver, "begin"):
            self.begin = self._begin

    def apply(self, plan: Plan) -> None:
        self._refuse(plan)
        self._driver.apply(plan)

    def _begin(self, plan: Plan) -> Callable[[], None] | None:
        self._refuse(plan)
        begun: Callable[[], None] | None = self._driver.begin(plan)  # type: ignore[attr-defined]
        return begun

    def _refuse(self, plan: Plan) -> None:
        if not self._narrow.complete and (plan.change or plan.remove):
            raise Unavailable("what the kernel holds is shared: all records are to be read first")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)


class NarrowVerbs(Verbs):
    """The agent's, which see to it that all is known before anything goes."""

    def __init__(
        self,
        host: Host,
        config: CniConfig,
        narrow: Narrow,
        read_all: Callable[[], None],
        pods_on: Callable[[str], int],
    ) -> None:
        super().__init__(host, config)
        self.narrow, self.read_all = narrow, read_all
        self._bridges = NodeBridges(self._records, pods_on)

    def _release(self, record: Attachment) -> None:
        self.read_all()
        super()._release(record)

    def _every(self) -> tuple[Attachment, ...]:
        self.read_all()
        return self._records()

    def _turns(self, network: str) -> Sequence[Turn]:
        return super()._turns(network) if self.narrow.complete else self.narrow.turn


def view(store: SqliteStore, node: str, boot_id: str, raw: bytes) -> Narrow | None:
    """What is needed for this request; None when all is, see rule 2. Raises Invalid, Unavailable."""
    request = _plain(raw)
    index = AttachmentIndex(store, node)
    if request is None or not index.prepare():
        return None
    if index.any_other("phase", "Ready") or index.any_other("boot", boot_id):
        return None
    if request.command != "ADD":
        records = [Key(Attachment.KIND, "", name) for name in plan.record_names(node, request)]
        if request.command == "DEL" and any(store.get(key) for key in records):
            return None
        return Narrow(store, [Key(Node.KIND, "", node), *records], ())
    try:
        keys = [*_own(node, request), *_held(index, request)]
        turn = list(_turn(store, index, node, request))
    except (_Full, Invalid):
        return None
    return Narrow(store, keys, turn)


class _Full(Exception):
    """A range has no address left."""


def _plain(raw: bytes) -> Request | None:
    try:
        request = parse(wire.parse(raw))
    except NetplaneError:
        return None  # which is said on the way that all requests go
    made_for = request.command in ("CHECK", "DEL") or (request.command == "ADD" and not request.chained)
    return request if made_for and request.config.kind != "loopback" else None


def _network(request: Request) -> str | None:
    leases = request.config.leases
    return {"": "", OURS: request.config.name, NONE: None}.get(leases.type)


def _own(node: str, request: Request) -> Iterator[Key]:
    """The node, the record of this name, its pod, and what is kept of its network."""
    yield Key(Node.KIND, "", node)
    yield Key(Attachment.KIND, "", plan.record_name(node, request, plan.kind_of(request)))
    yield Key(Pod.KIND, *_pod(request))
    network = _network(request)
    if network is not None:
        yield Key(Allocation.KIND, "", turn_name(node, network))


def _pod(request: Request) -> tuple[str, str]:
    if request.pod.name:
        return request.pod.namespace, request.pod.name
    return "default", pod_name(request.container_id)


def _held(index: AttachmentIndex, request: Request) -> Iterator[Key]:
    """The pod's other interfaces, and who holds an address or a port that is asked for."""
    terms = [("pod", "/".join(_pod(request)))]
    network = _network(request)
    if network is not None:
        terms += [("ip", f"{network} {_canonical(text)}") for text in request.ips]
    for port in request.config.runtime_config.port_mappings:
        protocol = port.protocol.lower()
        versions(port)  # Invalid for what is no address
        terms.append(("port", f"{protocol} {port.host_port}"))
        yield Key(Allocation.KIND, "", f"nodeport.{protocol}.{port.host_port}")
    for what, value in terms:
        yield from (Key(Attachment.KIND, "", name) for name in index.names(what, value))


def _canonical(text: str) -> str:
    try:
        return str(ip_address(text.partition("/")[0]))
    except ValueError:
        raise Invalid(f"{text} is no address") from None


def _turn(store: SqliteStore, index: AttachmentIndex, node: str, request: Request) -> Iterator[Turn]:
    """Of each range, the place right before its next free address."""
    network = _network(request)
    if network is None:
        return
    found = store.get(Key(Allocation.KIND, "", turn_name(node, network)))
    known = turns.kept(found if isinstance(found, Allocation) else None)
    pools = [pool for ranges in _sets(store, node, request) for pool in map(Pool, ranges)]
    for most in NEWEST:
        if _go_on(pools, known, index.newest(network, most)):
            break
    for pool in pools:
        yield _before_free(pool, lambda address: bool(index.names("ip", f"{network} {address}")))


def _go_on(pools: Sequence[Pool], known: Sequence[Turn], newest: Sequence[Turn]) -> bool:
    """Let each begin after its newest; whether that is certain: no older record could be newer."""
    oldest = min((revision for _, revision in newest), default=0)
    both = sorted([*known, *newest], key=lambda turn: turn[1])
    begun = [pool.go_on(both) for pool in pools]
    return all(revision is not None and revision >= oldest for revision in begun)


def _sets(store: SqliteStore, node: str, request: Request) -> Iterable[RangeSet]:
    if request.config.leases.type == OURS:
        return request.config.leases.sets
    found = store.get(Key(Node.KIND, "", node))
    return map(whole, found.pod_cidrs if isinstance(found, Node) else ())


def _before_free(pool: Pool, held: Callable[[str], bool]) -> Turn:
    begin = pool.first if pool.turn is None else pool.turn + 1
    for offset in chain(range(begin, pool.last + 1), range(pool.first, begin)):
        if pool.may_give(offset) and not held(str(pool.network[offset])):
            before = offset - 1 if offset > pool.first else pool.last
            return str(pool.network[before]), _AFTER_ALL
    raise _Full


__all__ = ["Careful", "Narrow", "NarrowVerbs", "view"]

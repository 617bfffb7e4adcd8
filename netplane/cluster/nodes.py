"""Node registration and heartbeat: the one edge here, over a store's `get` and `put`.

Rule 1: one node name has one living agent. A lease that another instance renews is respected and
        the newcomer refused; one that ran out, or was ours before a crash, is taken at once.
Rule 2: a pulse is a Lease, so that a beat wakes nobody who watches Nodes.
Rule 3: of a Node only what is ours is written; what others put there stays.
Rule 4: clocks may jump. A lease from the future proves nothing, so it is watched for its duration on
        the monotonic clock; who beats is timed by the caller's monotonic clock as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ..model.base import Key, Object, ObjectMeta, OwnerReference, amend
from ..model.errors import Conflict, Invalid, Unavailable
from ..model.nodes import Condition, Lease, LeaseSpec, Node, NodeAddress
from .leases import DURATION_SECONDS, NAMESPACE, expires, seconds_of, timestamp

MTU = "netplane.io/underlay-mtu"
INSTANCE = "netplane.io/instance"
HOSTNAME_LABEL = "kubernetes.io/hostname"
TRIES = 8  # of a write that loses to others; each loss means that somebody else made progress
T = TypeVar("T")


class Shelf(Protocol):
    """What registration needs of a store."""

    def get(self, key: Key) -> Object | None: ...
    def put(self, obj: Object, expect: int | None = None) -> Object: ...


@dataclass(frozen=True)
class Machine:
    """Facts about the machine, found by the agent. ``node_ips``: at most one per family."""

    node: str
    node_ips: tuple[str, ...]
    underlay_mtu: int
    hostname: str
    boot_id: str
    instance: str

    @property
    def holder(self) -> str:
        return f"{self.node}_{self.instance}"


class Registrar:
    """`register` once, `beat` every RENEW_SECONDS, `release` at a clean end. One thread at a time."""

    def __init__(
        self,
        shelf: Shelf,
        machine: Machine,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shelf = shelf
        self._machine = machine
        self._clock = clock
        self._monotonic = monotonic
        self._beats: set[str] = set()  # the renew times that we wrote since the last one known to stand
        self._doubtful: tuple[int, float] | None = None  # a lease's revision, first seen when

    def register(self) -> Node:
        """Take the lease, then write the Node. The Node as stored.

        Raises Invalid when another live agent has this name (holder and time in the message),
        Unavailable when that cannot be told yet (call again) or the store is away.
        """
        _retry(self._take)
        node = _retry(self._write_node)
        _retry(self._renew)  # now with the node as its owner
        return node

    def beat(self) -> None:
        """Renew the lease; put the Node back if somebody removed it.

        Raises Invalid when another agent took the name over: stop acting for it. Raises Unavailable.
        """
        _retry(self._renew)
        _retry(self._write_node)

    def release(self) -> None:
        """Give the name up at a clean end: others rank without us, and a new host may take it."""
        lease = self._lease()
        if lease is not None and lease.spec.holder_identity == self._machine.holder:
            self._shelf.put(amend(lease, spec=amend(lease.spec, holder_identity="")), lease.revision)

    # --- lease ---

    def _take(self) -> Lease:
        lease = self._lease()
        if lease is not None and lease.spec.holder_identity != self._machine.holder:
            self._refuse_if_live(lease)
        return self._put_lease(lease)

    def _renew(self) -> Lease:
        lease = self._lease()
        if lease is not None:
            holder, renewed = lease.spec.holder_identity, lease.spec.renew_time
            if holder != self._machine.holder:
                taker = holder or "nobody"
                raise Invalid(f"node {self._machine.node} was taken over by {taker} at {renewed}")
            if self._beats and renewed not in self._beats:
                raise Invalid(
                    f"node {self._machine.node}: another agent renews its lease as {holder} (at {renewed}): "
                    "its state directory was copied; empty one of the two and start it again"
                )
        return self._put_lease(lease)

    def _refuse_if_live(self, lease: Lease) -> None:
        now, spec = self._clock(), lease.spec
        if expires(lease) <= now:
            return
        if seconds_of(spec.renew_time) - now > DURATION_SECONDS:
            self._watch_doubtful(lease)
            return
        heard = now - seconds_of(spec.renew_time)
        raise Invalid(
            f"node name {self._machine.node} is in use by {spec.holder_identity} since {spec.acquire_time} "
            f"(last heard of {heard:.0f} s ago); give this node another --node name, "
            f"or stop that agent and wait until {timestamp(expires(lease))}"
        )

    def _watch_doubtful(self, lease: Lease) -> None:
        """A lease from the future: stale if nobody renews it for its duration by our own clock."""
        now = self._monotonic()
        if self._doubtful is None or self._doubtful[0] != lease.revision:
            self._doubtful = (lease.revision, now)
        left = self._doubtful[1] + DURATION_SECONDS - now
        if left > 0:
            raise Unavailable(
                f"node {self._machine.node}: its lease of {lease.spec.holder_identity} was renewed in the "
                f"future ({lease.spec.renew_time}): a clock jumped; watching it for {left:.0f} s"
            )

    def _put_lease(self, lease: Lease | None) -> Lease:
        now, holder = timestamp(self._clock()), self._machine.holder
        old = lease.spec if lease is not None else LeaseSpec()
        new = old.holder_identity != holder
        spec = LeaseSpec(
            holder_identity=holder,
            lease_duration_seconds=DURATION_SECONDS,
            acquire_time=now if new else old.acquire_time,
            renew_time=now,
            lease_transitions=old.lease_transitions + (1 if new and lease is not None else 0),
        )
        meta = lease.metadata if lease is not None else self._lease_meta()
        if not meta.owner_references:
            meta = amend(meta, owner_references=self._owner())
        self._beats.add(now)  # a put whose answer is lost may have happened
        stored = self._shelf.put(Lease(metadata=meta, spec=spec), lease.revision if lease is not None else 0)
        self._beats = {now}
        assert isinstance(stored, Lease)
        return stored

    def _lease_meta(self) -> ObjectMeta:
        return ObjectMeta(name=self._machine.node, namespace=NAMESPACE)

    def _owner(self) -> tuple[OwnerReference, ...]:
        node = self._shelf.get(Key(Node.KIND, "", self._machine.node))
        if node is None:
            return ()
        return (OwnerReference(api_version="v1", kind="Node", name=node.name, uid=node.metadata.uid),)

    def _lease(self) -> Lease | None:
        found = self._shelf.get(Key(Lease.KIND, NAMESPACE, self._machine.node))
        assert found is None or isinstance(found, Lease)
        return found

    # --- node ---

    def _write_node(self) -> Node:
        found = self._shelf.get(Key(Node.KIND, "", self._machine.node))
        assert found is None or isinstance(found, Node)
        node = described(found, self._machine, self._clock())
        if found is not None and node == found:
            return found
        stored = self._shelf.put(node, found.revision if found is not None else 0)
        assert isinstance(stored, Node)
        return stored


def _retry(step: Callable[[], T]) -> T:
    for _ in range(TRIES - 1):
        try:
            return step()
        except Conflict:
            continue
    return step()


def described(node: Node | None, machine: Machine, now: float) -> Node:
    """The Node with what this machine says of itself; all else as it was. ``now``: epoch seconds."""
    node = node or Node(metadata=ObjectMeta(name=machine.node))
    notes = {**node.metadata.annotations, MTU: str(machine.underlay_mtu), INSTANCE: machine.instance}
    labels = {**node.labels, HOSTNAME_LABEL: machine.hostname}
    ours = [NodeAddress(type="InternalIP", address=ip) for ip in machine.node_ips]
    ours.append(NodeAddress(type="Hostname", address=machine.hostname))
    others = [a for a in node.status.addresses if a.type not in ("InternalIP", "Hostname")]
    info = {**(node.status.node_info or {}), "bootID": machine.boot_id}
    status = amend(
        node.status,
        addresses=(*ours, *others),
        conditions=_ready(node.status.conditions, now),
        node_info=info,
    )
    made: Node = amend(node, metadata=amend(node.metadata, annotations=notes, labels=labels), status=status)
    return made


def _ready(conditions: tuple[Condition, ...], now: float) -> tuple[Condition, ...]:
    if any(c.type == "Ready" and c.status == "True" for c in conditions):
        return conditions
    ready = Condition(
        type="Ready",
        status="True",
        reason="AgentReady",
        message="netplane is running",
        last_transition_time=timestamp(now).partition(".")[0] + "Z",
    )
    return (*(c for c in conditions if c.type != "Ready"), ready)

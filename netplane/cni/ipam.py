"""Addresses for pods: one of each set of ranges (the node's pod CIDRs, or a network's own), in turn.

Rule 1: the record is the Attachment object; this is an index over those records, rebuilt from a
        snapshot at any time. Nothing is kept anywhere else.
Rule 2: taking and giving back cost the same with 2 addresses in use as with 60,000: every address
        is passed by the cursor once, then addresses come back in the order they were released, so
        that one just released rests as long as possible.
Rule 3: the turn outlives its record and its process: see `turns`.
Rule 4: the network's own, the gateway's (the first host) and IPv4's broadcast address are never given.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from ..model.errors import Invalid, Unavailable
from ..model.own import Attachment, AttachmentIP
from .errors import CONFIG, Refused
from .ranges import Range, RangeSet
from .turns import Turn, of_records

Network = IPv4Network | IPv6Network


def gateway(cidr: str) -> str:
    """The gateway of a pod CIDR: its first host address. Raises Invalid when it has none."""
    network = ip_network(cidr)
    if network.num_addresses < 4:
        raise Invalid(f"pod CIDR {cidr} has no room for a gateway and pods; give a node at least a /30")
    return str(network[1])


class Pool:
    """One range. Addresses are offsets from the network address here. Not thread-safe."""

    def __init__(self, given: Range) -> None:
        self.given = given
        self.network: Network = ip_network(given.subnet)
        self.gateway = self._offset(given.gateway)
        self.first, self.last = self._offset(given.first), self._offset(given.last)
        self.first += self.first == self.gateway
        self.last -= self.last == self.gateway
        self.used: dict[int, str] = {}  # offset -> holder
        self.turn: int | None = None  # the offset given last
        self._fresh: deque[list[int]] = deque([[self.first, self.last]])  # spans not yet passed
        self._freed: OrderedDict[int, None] = OrderedDict()  # passed, and free: oldest first

    def _offset(self, address: str) -> int:
        return int(ip_address(address)) - int(self.network.network_address)

    def holds(self, address: IPv4Address | IPv6Address) -> bool:
        """Whether it is one that this range could have given (or could once: it is in the subnet)."""
        return address.version == self.network.version and address in self.network

    @property
    def size(self) -> int:
        return max(0, self.last - self.first + 1 - (self.first < self.gateway < self.last))

    @property
    def full(self) -> bool:
        return len(self.used) >= self.size

    def __str__(self) -> str:
        return f"range {self.network}: {len(self.used)} of {self.size} addresses in use"

    def begin_after(self, offset: int) -> None:
        """Let the cursor go on behind ``offset`` and come round (after a restart)."""
        if self.first <= offset <= self.last:
            self.turn = offset
            self._fresh = deque([[offset + 1, self.last], [self.first, offset]])

    def go_on(self, turns: Sequence[Turn]) -> int | None:
        """Begin after the last of these, which are in their order, that this range gave; its revision."""
        for address, revision in reversed(turns):
            found = ip_address(address)
            if self.holds(found) and self.first <= self._offset(address) <= self.last:
                self.begin_after(self._offset(address))
                return revision
        return None

    def may_give(self, offset: int) -> bool:
        return offset != self.gateway and self.first <= offset <= self.last

    def take(self, holder: str) -> int:
        """The next free offset. Raises Unavailable, naming the range and its use."""
        while self._fresh:
            span = self._fresh[0]
            if span[0] > span[1]:
                self._fresh.popleft()
                continue
            offset, span[0] = span[0], span[0] + 1
            if offset not in self.used and offset != self.gateway:
                self.turn = offset
                return self._hold(offset, holder)
        if not self._freed:
            raise Unavailable(f"{self}: none is free")
        offset, _ = self._freed.popitem(last=False)
        self.turn = offset
        return self._hold(offset, holder)

    def claim(self, offset: int, holder: str) -> int:
        """This very offset. Raises Refused, naming its holder."""
        if not self.may_give(offset):
            what = "the gateway's" if offset == self.gateway else "reserved"
            raise Refused(CONFIG, f"ips: {self.network[offset]} is {what} in {self.network}; ask for another")
        if offset in self.used:
            raise Unavailable(f"ips: {self.network[offset]} is held by {self.used[offset]}")
        self._freed.pop(offset, None)
        return self._hold(offset, holder)

    def release(self, offset: int) -> None:
        if self.used.pop(offset, None) is None:
            return
        if not any(low <= offset <= high for low, high in self._fresh):
            self._freed[offset] = None

    def _hold(self, offset: int, holder: str) -> int:
        self.used[offset] = holder
        return offset


class Ipam:
    """The pools of the node, or of a network of its own.

    Thread-safe: each method is one short critical section.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sets: tuple[tuple[Pool, ...], ...] = ()
        self._pools: tuple[Pool, ...] = ()
        self._taken: dict[str, tuple[str, tuple[AttachmentIP, ...]]] = {}  # name -> (holder, ips)
        self._pinned: set[str] = set()  # taken, with no record that says so (yet, or any more)

    @property
    def cidrs(self) -> tuple[str, ...]:
        return tuple(str(pool.network) for pool in self._pools)

    @property
    def sets(self) -> tuple[RangeSet, ...]:
        return tuple(tuple(pool.given for pool in pools) for pools in self._sets)

    def rebuild(
        self,
        sets: Iterable[RangeSet],
        read: Callable[[], Iterable[Attachment]],
        kept: Callable[[], Iterable[Turn]] = tuple,
    ) -> None:
        """Begin anew from the records, which ``read`` gives, and the turns of those that are gone, which
        ``kept`` gives; what is pinned stays."""
        with self._lock:
            records = tuple(read())
            pinned = {name: held for name, held in self._taken.items() if name in self._pinned}
            self._taken = pinned | {a.name: (describe(a), a.spec.ips) for a in records}
            self._sets = tuple(tuple(map(Pool, ranges)) for ranges in sets)
            self._pools = tuple(pool for pools in self._sets for pool in pools)
            for holder, ips in self._taken.values():
                for pool, offset in self._located(ips):
                    pool.used[offset] = holder
            turns = sorted((*of_records(records), *kept()), key=lambda turn: turn[1])
            for pool in self._pools:
                pool.go_on(turns)

    def at_turn(self, ips: Iterable[AttachmentIP]) -> bool:
        """Whether one of these is the last that was given of its range; True when there is no index yet."""
        with self._lock:
            return not self._pools or any(pool.turn == offset for pool, offset in self._located(ips))

    def pin(self, record: Attachment) -> None:
        """From now on no record speaks for what ``record`` holds. Call before it is deleted."""
        with self._lock:
            self._taken.setdefault(record.name, (describe(record), record.spec.ips))
            self._pinned.add(record.name)

    def unpin(self, name: str) -> None:
        """A record speaks for it now. Call once `rebuild` would read it."""
        with self._lock:
            self._pinned.discard(name)

    def take(
        self, name: str, holder: str, asked: tuple[str, ...] = (), routed: bool = True
    ) -> tuple[AttachmentIP, ...]:
        """One address of each set for the attachment ``name``, those in ``asked`` where it names them.

        They are pinned until `unpin`. ``routed``: with a host's length, see `render`.

        Raises Unavailable (exhausted, held by somebody else) or Refused (outside of every range);
        then nothing is taken.
        """
        with self._lock:
            wanted = self._wanted(asked)
            done: list[tuple[Pool, int]] = []
            try:
                for pools in self._sets:
                    done.append(_one(pools, wanted, holder))
            except Exception:
                for pool, offset in done:
                    pool.release(offset)
                raise
            ips = tuple(_entry(pool, offset, routed) for pool, offset in done)
            self._taken[name] = (holder, ips)
            self._pinned.add(name)
            return ips

    def release(self, name: str) -> None:
        """Give back what ``name`` holds; nothing when it holds nothing."""
        with self._lock:
            _, ips = self._taken.pop(name, ("", ()))
            self._pinned.discard(name)
            for pool, offset in self._located(ips):
                pool.release(offset)

    def check(self) -> None:
        """Raises Unavailable when the next `take` would find no address."""
        with self._lock:
            for pools in self._sets:
                if all(pool.full for pool in pools):
                    raise Unavailable(f"{'; '.join(map(str, pools))}: none is free")

    def usage(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(map(str, self._pools))

    def _wanted(self, asked: tuple[str, ...]) -> dict[Pool, int]:
        wanted: dict[Pool, int] = {}
        for text in asked:
            pool, offset = self._find(text)
            if any(pool in pools and any(p in wanted for p in pools) for pools in self._sets):
                raise Refused(CONFIG, f"ips: {', '.join(asked)}: one address of each range set at most")
            wanted[pool] = offset
        return wanted

    def _find(self, text: str) -> tuple[Pool, int]:
        try:
            address = ip_address(text.partition("/")[0])
        except ValueError:
            raise Refused(CONFIG, f"ips: {text!r:.60} is not an IPv4 or IPv6 address") from None
        inside = [pool for pool in self._pools if pool.holds(address)]
        for pool in sorted(
            inside, key=lambda p: not p.first <= int(address) - int(p.network.network_address) <= p.last
        ):
            return pool, int(address) - int(pool.network.network_address)
        raise Refused(CONFIG, f"ips: {address} is outside of the ranges {', '.join(self.cidrs)}")

    def _located(self, ips: Iterable[AttachmentIP]) -> list[tuple[Pool, int]]:
        """The pools and offsets of addresses; those of ranges that the node has no more are left out."""
        found = []
        for entry in ips:
            address = ip_address(entry.address.partition("/")[0])
            for pool in self._pools:
                if pool.holds(address):
                    found.append((pool, int(address) - int(pool.network.network_address)))
        return found


def _one(pools: tuple[Pool, ...], wanted: dict[Pool, int], holder: str) -> tuple[Pool, int]:
    """An address of one set: the one that was asked for, or that of the first range that has any."""
    for pool in pools:
        if pool in wanted:
            return pool, pool.claim(wanted[pool], holder)
    for pool in pools:
        if not pool.full:
            return pool, pool.take(holder)
    raise Unavailable(f"{'; '.join(map(str, pools))}: none is free")


def _entry(pool: Pool, offset: int, routed: bool) -> AttachmentIP:
    length = pool.network.max_prefixlen if routed else pool.network.prefixlen
    subnet = pool.given.subnet if routed else ""
    return AttachmentIP(address=f"{pool.network[offset]}/{length}", gateway=pool.given.gateway, subnet=subnet)


def describe(attachment: Attachment) -> str:
    """Who holds an address, in a user's words."""
    return holder_of(
        attachment.spec.pod_namespace,
        attachment.spec.pod_name,
        attachment.spec.container_id,
        attachment.spec.ifname,
    )


def holder_of(namespace: str, pod: str, container_id: str, ifname: str) -> str:
    return f"pod {namespace}/{pod} (container {container_id[:13]}, {ifname})"

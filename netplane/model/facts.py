"""Facts: one thing each that this node must hold. Pure data; drivers make them true.

Rule 1: a fact's `key` names the resource, its `mark` the state it must be in. Same key and same
        mark: nothing to do. Same key, another mark: change it. The driver's `observe` yields the
        (key, mark) pairs that the kernel holds, so a mark is whatever can be read back exactly.
Rule 2: key[0] is the fact's type name in lower case; a driver accepts types, never rooms.
Rule 3: two scopes may want the same fact (equal key and mark): it stays until neither does.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

FactKey = tuple[Hashable, ...]
Mark = Hashable


class Scope(NamedTuple):
    """The unit of recomputation: a room's name and what it recomputes ("default/web", "")."""

    room: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.room}:{self.name}" if self.name else self.room


class Fact(msgspec.Struct, frozen=True, gc=False):
    """Subclasses are flat, hashable and name their key; the mark is the fact itself by default."""

    TYPE: ClassVar[str] = ""

    @property
    def key(self) -> FactKey:
        raise NotImplementedError

    @property
    def mark(self) -> Mark:
        return self


Facts = Iterable[Fact]


class Plan(msgspec.Struct, frozen=True):
    """What one driver is to do, in one go: all of it, or none of it where the kernel allows."""

    add: tuple[Any, ...] = ()  # facts whose key is not there
    change: tuple[Any, ...] = ()  # facts whose key is there with another mark
    remove: tuple[FactKey, ...] = ()  # keys

    def __bool__(self) -> bool:
        return bool(self.add or self.change or self.remove)


class Driver(Protocol):
    """The only thing that touches the kernel (or a table, for in-process planes).

    Three more things a driver may have. ``unseen(key)``: whether `observe` does not look where that fact is,
    so it may be there all the same. ``apart``: True when its facts need nothing of another driver's, so
    that they may come before, beside or after. ``begin(plan)``: carry a plan out while the caller goes on
    with drivers that are apart; it returns what waits for the end and raises as `apply` does, or None for a
    plan that is not to be done so.
    """

    @property
    def name(self) -> str: ...

    @property
    def accepts(self) -> tuple[type[Fact], ...]: ...

    @property
    def parallel(self) -> bool:
        """Whether `apply` may run in several threads at once."""
        ...

    def observe(self) -> Mapping[FactKey, Mark]:
        """Everything there that is ours. Raises KernelError, Unavailable."""
        ...

    def apply(self, plan: Plan) -> None:
        """Carry the plan out. Adding what is there and removing what is gone is success.

        Raises KernelError (or Invalid, when the fact itself is impossible); then either nothing
        was done or `observe` tells what was.
        """
        ...


# --- links, addresses, routes (driver: kernel.rtnetlink) -------------------------------------


class Link(Fact, frozen=True):
    """One interface. ``netns`` is a path, "" for the namespace the agent runs in.

    ``kind``: bridge, veth, vxlan, macvlan, or "" for a link that exists anyway (lo, the uplink) and is only
    to be configured. ``options`` are the kind's own, as (name, value) pairs sorted by name:
    bridge: vlan_filtering, promisc, …; macvlan: link (in our namespace), mode;
    veth: peer, peer_netns, peer_mac, peer_mtu, clsact (may be born with one); vxlan: id, port, local,
    link, learning, …; bridge port: hairpin, isolated, learning.
    """

    TYPE: ClassVar[str] = "link"

    name: str
    kind: str = ""
    netns: str = ""
    alias: str = ""  # how a fresh process knows it as ours: "netplane:<scope>"
    mtu: int = 0  # 0: the kernel's choice
    mac: str = ""
    up: bool = True
    master: str = ""
    options: tuple[tuple[str, str | int], ...] = ()

    @property
    def key(self) -> FactKey:
        return ("link", self.netns, self.name)

    @property
    def mark(self) -> Mark:
        """Not all of a link reads back (the path of its peer's namespace), so its alias keeps this."""
        return digest(*map(str, msgspec.structs.astuple(self)))


class Address(Fact, frozen=True):
    """An address with prefix length on a link; IPv6 addresses are always added NODAD."""

    TYPE: ClassVar[str] = "address"

    link: str
    address: str  # 10.244.1.1/24
    netns: str = ""

    @property
    def key(self) -> FactKey:
        return ("address", self.netns, self.link, self.address)


class Route(Fact, frozen=True):
    """A route; ours in the node's namespace carry protocol ROUTE_PROTOCOL."""

    TYPE: ClassVar[str] = "route"

    dst: str  # CIDR; 0.0.0.0/0 and ::/0 are the defaults
    link: str = ""
    via: str = ""
    netns: str = ""
    onlink: bool = False
    src: str = ""
    mtu: int = 0
    advmss: int = 0
    metric: int = 0
    table: int = 254
    scope: str = ""  # global (default with via), link
    kind: str = "unicast"  # unicast, blackhole, unreachable

    @property
    def key(self) -> FactKey:
        return ("route", self.netns, self.table, self.dst, self.metric)

    @property
    def mark(self) -> Mark:
        """With the scope that the kernel chooses when none is named, as it reads back."""
        return msgspec.structs.replace(self, scope=self.effective_scope)

    @property
    def effective_scope(self) -> str:
        """IPv6 has no scopes; IPv4 needs link for what is reached without a gateway."""
        if ":" in self.dst:
            return "global"
        return self.scope or ("global" if self.via or self.kind != "unicast" else "link")


class Neighbour(Fact, frozen=True):
    """A permanent ARP or ND entry."""

    TYPE: ClassVar[str] = "neighbour"

    link: str
    address: str
    mac: str
    netns: str = ""

    @property
    def key(self) -> FactKey:
        return ("neighbour", self.netns, self.link, self.address)


class Fdb(Fact, frozen=True):
    """A VXLAN forwarding entry: frames to ``mac`` go to the host ``dst``."""

    TYPE: ClassVar[str] = "fdb"

    link: str
    mac: str
    dst: str
    netns: str = ""

    @property
    def key(self) -> FactKey:
        return ("fdb", self.netns, self.link, self.mac)


class Shaper(Fact, frozen=True):
    """A token bucket (tbf) at a link's root: what leaves by the link is slowed down, not dropped."""

    TYPE: ClassVar[str] = "shaper"

    link: str
    rate: int  # bytes per second
    burst: int  # bytes
    netns: str = ""

    @property
    def key(self) -> FactKey:
        return ("shaper", self.netns, self.link)


class Sysctl(Fact, frozen=True):
    """``name`` with slashes below /proc/sys: net/ipv4/ip_forward."""

    TYPE: ClassVar[str] = "sysctl"

    name: str
    value: str
    netns: str = ""

    @property
    def key(self) -> FactKey:
        return ("sysctl", self.netns, self.name)


ROUTE_PROTOCOL = 78  # 'N'; not in /etc/iproute2/rt_protos
ALIAS = "netplane:"  # prefix of every link alias of ours


# --- nftables, all in table inet netplane (driver: kernel.nftables) ---------------------------


class Chain(Fact, frozen=True):
    """A chain and its rules, in nft's words. ``hook`` empty: a regular chain."""

    TYPE: ClassVar[str] = "chain"

    name: str
    rules: tuple[str, ...] = ()
    type: str = ""  # filter, nat, route
    hook: str = ""
    priority: str = ""  # dstnat, srcnat, filter, or a number
    policy: str = ""

    @property
    def key(self) -> FactKey:
        return ("chain", self.name)

    @property
    def mark(self) -> Mark:
        """Rules do not read back as written, so a chain is compared by this hash, kept in a comment."""
        return _known(self.name, self.type, self.hook, self.priority, self.policy, *self.rules)


class Guard(Fact, frozen=True):
    """Rules, in nft's words, for every frame that a link receives (driver: kernel.nft_guard)."""

    TYPE: ClassVar[str] = "guard"

    link: str
    rules: tuple[str, ...]

    @property
    def key(self) -> FactKey:
        return ("guard", self.link)

    @property
    def mark(self) -> Mark:
        return digest(self.link, *self.rules)


class Limit(Fact, frozen=True):
    """What a port of a bridge sends beyond this is dropped (driver: kernel.nft_limit)."""

    TYPE: ClassVar[str] = "limit"

    link: str
    rate: int  # bytes per second
    burst: int  # bytes

    @property
    def key(self) -> FactKey:
        return ("limit", self.link)


class Set(Fact, frozen=True):
    """A named set or map. ``typeof``/``value`` in nft's words; a map has a ``value`` or is a vmap.

    ``spec`` is everything between the braces but elements, one statement per item:
    ("typeof ip daddr . meta l4proto . th dport : verdict",) or ("type ipv4_addr", "flags interval").
    """

    TYPE: ClassVar[str] = "set"

    name: str
    spec: tuple[str, ...]
    map: bool = False

    @property
    def key(self) -> FactKey:
        return ("set", self.name)

    @property
    def mark(self) -> Mark:
        return _known(self.name, str(self.map), *self.spec)


class Element(Fact, frozen=True):
    """One element. ``item`` are the key's parts (str or int), ``value`` the map's (or None).

    A verdict is one string ("goto lb5", "drop"); an address and port are ("10.0.0.1", 80).
    """

    TYPE: ClassVar[str] = "element"

    of: str
    item: tuple[str | int, ...]
    value: tuple[str | int, ...] | None = None

    @property
    def key(self) -> FactKey:
        return ("element", self.of, self.item)

    @property
    def mark(self) -> Mark:
        return self.value


# --- what goes with a service beside its rules -------------------------------------------------


class Translation(Fact, frozen=True):
    """Where flows to an address and port may be answered from (driver: kernel.flows).

    Tracked UDP flows that are answered from elsewhere are forgotten, so that their next packet is
    decided anew; when the fact goes, all of them are.
    """

    TYPE: ClassVar[str] = "translation"

    protocol: str  # udp
    address: str
    port: int
    backends: tuple[tuple[str, int], ...]  # sorted (address, port)

    @property
    def key(self) -> FactKey:
        return ("translation", self.protocol, self.address, self.port)

    @property
    def mark(self) -> Mark:
        return self.backends


class HealthCheck(Fact, frozen=True):
    """An HTTP server that tells load balancers how many endpoints are here (driver: services.health)."""

    TYPE: ClassVar[str] = "healthcheck"

    port: int
    namespace: str
    name: str
    endpoints: int  # ready ones on this node

    @property
    def key(self) -> FactKey:
        return ("healthcheck", self.port)


# --- the packet path (driver: kernel.datapath) --------------------------------------------------


class Hook(Fact, frozen=True):
    """The packet path's programs at a link. ``place``: pod (a port of a bridge), bridge, tunnel or wire.

    ``barred``: what enters there never takes the fast path (a guard stands behind it); ``shaped``: what
    leaves there goes through the link's queue, not around it; ``mac``: of the pod behind the port;
    ``bridge``: that it is a port of.
    """

    TYPE: ClassVar[str] = "hook"

    link: str
    place: str
    barred: bool = False
    shaped: bool = False
    mac: str = ""
    bridge: str = ""

    @property
    def key(self) -> FactKey:
        return ("hook", self.link)


class FastPath(Fact, frozen=True):
    """What the packet path must know of the node; there is at most one."""

    TYPE: ClassVar[str] = "fastpath"

    gateway_mac: str  # frames of pods to this MAC are routed
    tunnel: str = ""  # the VXLAN device, "" without
    tunnel_mac: str = ""
    vni: int = 0
    port: int = 0

    @property
    def key(self) -> FactKey:
        return ("fastpath",)


# --- names (driver: the DNS server's table) -----------------------------------------------------


class Record(Fact, frozen=True):
    """One answer of the zone: an RRset under a name. ``rotate``: give its data in turn (dnsrr).

    Several owners may hold a name and type together (the PTR of an address that two headless services
    share): each has a fact of its own, and the answer is the union of their data.
    """

    TYPE: ClassVar[str] = "record"

    name: str  # absolute, lower case, without the final dot
    type: str  # A, AAAA, SRV, PTR, CNAME, TXT, SOA, NS
    data: tuple[str, ...]  # presentation format; () with the name known: NODATA
    ttl: int = 5
    rotate: bool = False
    owner: str = ""

    @property
    def key(self) -> FactKey:
        return ("record", self.name, self.type, self.owner)


def digest(*parts: str) -> str:
    """Sixteen hex digits over the parts: short enough for a comment, wide enough not to collide."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


@functools.lru_cache(maxsize=256)
def _known(*parts: str) -> str:
    """The same of what every pod and service wants alike."""
    return digest(*parts)

"""A Link as rtnetlink requests, and a link's answer as a Link's words. Pure.

Rule 1: `wish` and `State.words` use the same words, so what differs is a comparison of two dicts.
Rule 2: what a fact leaves open (mtu 0, mac "") is the kernel's choice and is never compared.
Rule 3: options stand in tables: the name that a fact uses, the kernel's attribute, its width.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..model.errors import Invalid
from ..model.facts import Link
from . import nlmsg as nl
from . import ours
from .nlmsg import Request

CREATE = nl.NLM_F_CREATE | nl.NLM_F_EXCL
KINDS = ("bridge", "veth", "vxlan", "macvlan")
Options = Mapping[str, tuple[int, str]]  # name -> (attribute, struct format)

BRIDGE: Options = {
    "forward_delay": (1, "=I"), "ageing": (4, "=I"), "stp": (5, "=I"), "vlan_filtering": (7, "=B"),
    "mcast_snooping": (23, "=B"),
}  # fmt: skip
VXLAN: Options = {
    "id": (1, "=I"), "ttl": (5, "=B"), "learning": (7, "=B"), "ageing": (8, "=I"), "port": (15, ">H"),
    "udp_csum": (18, "=B"), "udp_zero_csum6_tx": (19, "=B"), "udp_zero_csum6_rx": (20, "=B"),
}  # fmt: skip
MACVLAN: Options = {"mode": (1, "=I")}
PORT: Options = {
    "hairpin": (4, "=B"), "learning": (8, "=B"), "flood": (9, "=B"), "mcast_flood": (27, "=B"),
    "bcast_flood": (30, "=B"), "neigh_suppress": (32, "=B"), "isolated": (33, "=B"),
}  # fmt: skip
VXLAN_LINK, VXLAN_LOCAL, VXLAN_LOCAL6 = 3, 4, 17
_VETH_WORDS = {"clsact", "peer", "peer_netns", "peer_mac", "peer_mtu"}
_VXLAN_WORDS = {"local", "link"}
_PROMISC = "promisc"
_OWNER = frozenset((nl.IFLA_IFALIAS, nl.IFLA_GROUP))
_IPV6_MTU = 1280  # a link below it has no IPv6, and the kernel refuses settings of it
_OPERSTATE = 16  # IFLA_OPERSTATE
_FORMATS = {f: struct.Struct(f) for f in ("=B", "=I", ">H")}
# A veth uses one queue; the kernel would make one more for each processor that could ever be (5.17), with
# its directories below /sys, and hide all but the first.
_ONE_QUEUE = nl.attr32(31, 1) + nl.attr32(32, 1)  # IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES
_NO_LINK_LOCAL = nl.nest(
    nl.IFLA_AF_SPEC, nl.nest(10, nl.attr(nl.IFLA_INET6_ADDR_GEN_MODE, bytes([nl.IN6_ADDR_GEN_MODE_NONE])))
)


def check(fact: Link) -> None:
    """Raise Invalid for a link that can never be."""
    problem = ""
    if not 0 < len(fact.name.encode()) < 16 or "/" in fact.name:
        problem = "the name of an interface has 1 to 15 bytes and no '/'"
    elif fact.kind and fact.kind not in KINDS:
        problem = f"kind {fact.kind!r} is not known; use one of {', '.join(KINDS)}, or none"
    else:
        known = _words_of(fact.kind)
        unknown = [name for name, _ in fact.options if name not in known]
        if unknown:
            problem = f"option {unknown[0]!r} is not known for kind {fact.kind!r}"
        elif fact.kind == "veth" and not dict(fact.options).get("peer"):
            problem = "a veth needs the option peer, the name of its other end"
    if problem:
        raise Invalid(f"link {fact.name}: {problem}")


@functools.cache
def _words_of(kind: str) -> frozenset[str]:
    return frozenset(own_options(kind).keys() | extra_words(kind) | PORT.keys())


def own_options(kind: str) -> Options:
    return {"bridge": BRIDGE, "vxlan": VXLAN, "macvlan": MACVLAN}.get(kind, {})


def extra_words(kind: str) -> set[str]:
    words = {"veth": _VETH_WORDS, "vxlan": _VXLAN_WORDS, "bridge": {_PROMISC}, "macvlan": {"link"}}
    return words.get(kind, set())


def port_options(fact: Link) -> dict[str, int]:
    """The options of the bridge port, if it is one; "learning" of a vxlan is the device's own."""
    if not fact.master:
        return {}
    own = own_options(fact.kind)
    return {name: int(value) for name, value in fact.options if name in PORT and name not in own}


class State(NamedTuple):
    """One link as the kernel has it; ``master``, ``iflink`` (a veth's peer) and ``link`` are indexes."""

    ifindex: int
    name: str
    kind: str
    alias: str
    group: int
    mtu: int
    mac: str
    up: bool
    master: int
    iflink: int
    options: dict[str, str]

    @property
    def ours(self) -> bool:
        return ours.is_ours(self.alias, self.group)

    def words(self, name_of: Callable[[int], str]) -> dict[str, str]:
        link = self.options.get("link")
        found = {
            "kind": self.kind, "mtu": str(self.mtu), "mac": self.mac, "up": str(int(self.up)),
            "master": name_of(self.master) if self.master else "", **self.options,
        }  # fmt: skip
        if link is not None:
            found["link"] = name_of(int(link)) if link != "0" else ""
        return found


def wish(fact: Link) -> dict[str, str]:
    """What of the fact can be read back from the link, in the words of `State.words`."""
    words = {"up": str(int(fact.up))}
    if fact.kind:
        words = {"kind": fact.kind, "master": fact.master, **words}
    elif fact.master:
        words["master"] = fact.master
    if fact.mtu:
        words["mtu"] = str(fact.mtu)
    if fact.mac:
        words["mac"] = fact.mac.lower()
    port, own = port_options(fact), {*own_options(fact.kind), *_VXLAN_WORDS, _PROMISC}
    if fact.kind == "macvlan":
        own.discard("link")  # an index of another namespace: it does not read back
    words.update((name, str(value)) for name, value in fact.options if name in port or name in own)
    return words


def differences(want: Mapping[str, str], have: Mapping[str, str]) -> list[str]:
    """The words whose value differs, sorted. What a kernel was built without is off (vlan_filtering)."""
    return sorted(
        word
        for word, value in want.items()
        if have.get(word, "") != value and not (value == "0" and word not in have)
    )


def owned(body: bytes) -> tuple[int, bool]:
    """Index of the link in an RTM_NEWLINK, and whether it is ours: all that a deletion needs to know."""
    found = nl.pick(body, 16, _OWNER, len(_OWNER))
    mine = ours.is_ours(nl.string(found.get(nl.IFLA_IFALIAS)), nl.u32(found.get(nl.IFLA_GROUP)))
    return nl.IFINFOMSG.unpack_from(body)[2], mine


def parse(body: bytes) -> State:
    """The body of an RTM_NEWLINK."""
    _, _, index, flags, _ = nl.IFINFOMSG.unpack_from(body)
    found = nl.attrs(body, 16)
    info = nl.attrs(found.get(nl.IFLA_LINKINFO, b""))
    kind = nl.string(info.get(nl.IFLA_INFO_KIND))
    options = {}
    if nl.string(info.get(nl.IFLA_INFO_SLAVE_KIND)) == "bridge":
        options = _read(PORT, nl.attrs(info.get(nl.IFLA_INFO_SLAVE_DATA, b"")))
    data = nl.attrs(info.get(nl.IFLA_INFO_DATA, b""))
    options.update(_read(own_options(kind), data))
    if flags & nl.IFF_PROMISC:
        options[_PROMISC] = "1"
    if kind == "vxlan":
        local = data.get(VXLAN_LOCAL) or data.get(VXLAN_LOCAL6)
        options["local"] = nl.ip_text(local) if local else ""
        options["link"] = str(nl.u32(data.get(VXLAN_LINK)))
    return State(
        index, nl.string(found.get(nl.IFLA_IFNAME)), kind, nl.string(found.get(nl.IFLA_IFALIAS)),
        nl.u32(found.get(nl.IFLA_GROUP)), nl.u32(found.get(nl.IFLA_MTU)),
        nl.mac_text(found.get(nl.IFLA_ADDRESS)), bool(flags & nl.IFF_UP),
        nl.u32(found.get(nl.IFLA_MASTER)), nl.u32(found.get(nl.IFLA_LINK)), options,
    )  # fmt: skip


def _read(table: Options, data: Mapping[int, bytes]) -> dict[str, str]:
    return {
        name: str(_FORMATS[form].unpack_from(data[attribute])[0])
        for name, (attribute, form) in table.items()
        if attribute in data
    }


def _write(table: Options, values: Mapping[str, str | int]) -> list[bytes]:
    return [
        nl.attr(table[name][0], _FORMATS[table[name][1]].pack(int(value)))
        for name, value in values.items()
        if name in table
    ]


# --- requests ---------------------------------------------------------------------------------

_GET = nl.IFINFOMSG.pack(0, 0, 0, 0, 0) + nl.attr32(nl.IFLA_EXT_MASK, nl.RTEXT_FILTER_SKIP_STATS)
_DOWN = nl.IFINFOMSG.pack(0, 0, 0, 0, 0)
_UP = nl.IFINFOMSG.pack(0, 0, 0, nl.IFF_UP, nl.IFF_UP)
_TO_DOWN = nl.IFINFOMSG.pack(0, 0, 0, 0, nl.IFF_UP)


def carries(body: bytes) -> bool:
    """Whether a link's answer says that it is up and has its carrier (RFC 2863: up, or not known)."""
    return (nl.first(body, 16, _OPERSTATE) or b"\0")[0] in (0, 6)


def ends(body: bytes) -> tuple[int, int]:
    """A veth's own index and its other end's."""
    return nl.IFINFOMSG.unpack_from(body)[2], nl.u32(nl.first(body, 16, nl.IFLA_LINK))


def get_index(index: int) -> Request:
    return Request(nl.RTM_GETLINK, 0, nl.IFINFOMSG.pack(0, 0, index, 0, 0), f"look up link #{index}")


def get(name: str) -> Request:
    return Request(nl.RTM_GETLINK, 0, _GET + nl.text(nl.IFLA_IFNAME, name), f"look up link {name}")


def ports_of(bridge: int) -> bytes:
    """What a dump of links is to be asked with for those of one master alone."""
    return _GET + nl.attr32(nl.IFLA_MASTER, bridge)


def create(fact: Link, master: int, link: int, peer_fd: int) -> Request:
    """Make the link, down and marked by its group; master, link: indexes or 0.

    ``peer_fd``: the namespace of a veth's other end, or of a macvlan itself; -1 for this one.
    """
    parts = [_DOWN, nl.text(nl.IFLA_IFNAME, fact.name), nl.attr32(nl.IFLA_GROUP, ours.GROUP_NEW)]
    if fact.mtu:
        parts.append(nl.attr32(nl.IFLA_MTU, fact.mtu ^ (fact.kind == "bridge")))
    if fact.mac or fact.kind == "bridge":
        parts.append(nl.attr(nl.IFLA_ADDRESS, nl.mac_bytes(fact.mac or _bridge_mac(fact.name))))
    if master:
        parts.append(nl.attr32(nl.IFLA_MASTER, master))
    if fact.kind == "macvlan":
        parts.append(nl.attr32(nl.IFLA_LINK, link))
        if peer_fd >= 0:
            parts.append(nl.attr32(nl.IFLA_NET_NS_FD, peer_fd))
        link = 0
    if fact.kind == "veth":
        parts.append(_ONE_QUEUE)
    kind = nl.attr(nl.IFLA_INFO_KIND, fact.kind.encode())
    data = _peer(fact, peer_fd) if fact.kind == "veth" else _data(fact, link)
    parts.append(nl.nest(nl.IFLA_LINKINFO, kind, nl.nest(nl.IFLA_INFO_DATA, *data)))
    return Request(nl.RTM_NEWLINK, CREATE, b"".join(parts), f"create {fact.kind} {fact.name}")


def _bridge_mac(name: str) -> str:
    """A bridge that was given no MAC takes the lowest of its ports', and changes it when they come
    and go, under the feet of pods that know their gateway by it. One that was given any keeps it."""
    raw = hashlib.sha256(b"netplane bridge " + name.encode()).digest()[:6]
    return bytes([raw[0] & 0xFC | 0x02, *raw[1:]]).hex(":")


def _data(fact: Link, link: int, only: set[str] | None = None) -> list[bytes]:
    options = {n: v for n, v in fact.options if only is None or n in only}
    if only is None and not int(options.get("vlan_filtering", 1)):
        del options["vlan_filtering"]  # the default, refused by kernels built without it
    data = _write(own_options(fact.kind), options)
    if link:
        data.append(nl.attr32(VXLAN_LINK, link))
    if options.get("local"):
        local = nl.ip_bytes(str(options["local"]))
        data.append(nl.attr(VXLAN_LOCAL if len(local) == 4 else VXLAN_LOCAL6, local))
    return data


def _peer(fact: Link, peer_fd: int) -> list[bytes]:
    options = dict(fact.options)
    parts = [_DOWN, nl.text(nl.IFLA_IFNAME, str(options["peer"])), _ONE_QUEUE]
    mtu = int(options.get("peer_mtu") or fact.mtu)
    if mtu:
        parts.append(nl.attr32(nl.IFLA_MTU, mtu))
    if options.get("peer_mac"):
        parts.append(nl.attr(nl.IFLA_ADDRESS, nl.mac_bytes(str(options["peer_mac"]))))
    if peer_fd >= 0:
        parts.append(nl.attr32(nl.IFLA_NET_NS_FD, peer_fd))
    return [nl.nest(nl.VETH_INFO_PEER, *parts)]


def finish(fact: Link) -> list[Request]:
    """After `create`: the alias, the port's options, no link-local address on our side, and up.

    A tunnel has carrier as soon as it is up, so it goes up by itself once that is settled; a veth
    has none before its peer is up, so one request does.
    """
    apart = fact.up and fact.kind == "vxlan"
    parts = [
        _UP if fact.up and not apart else _DOWN,
        nl.text(nl.IFLA_IFNAME, fact.name),
        nl.attr32(nl.IFLA_GROUP, 0),
        nl.text(nl.IFLA_IFALIAS, ours.alias_of(fact, wish(fact))),
    ]
    if fact.kind == "bridge" and fact.mtu:
        # Only a change counts as the user's word; else the bridge follows its ports' smallest MTU.
        parts.append(nl.attr32(nl.IFLA_MTU, fact.mtu))
    if (fact.kind == "vxlan" or fact.master) and not 0 < fact.mtu < _IPV6_MTU:
        parts.append(_NO_LINK_LOCAL)
    port = port_options(fact)
    if port:
        parts.append(_linkinfo_port(fact, port))
    settle = Request(nl.RTM_NEWLINK, 0, b"".join(parts), f"configure {fact.kind} {fact.name}")
    promisc = [_promisc(fact)] if dict(fact.options).get(_PROMISC) else []
    return [settle, up(fact.name)] if apart else [settle, *promisc]


def _promisc(fact: Link) -> Request:
    flag = nl.IFF_PROMISC if dict(fact.options).get(_PROMISC) else 0
    head = nl.IFINFOMSG.pack(0, 0, 0, flag, nl.IFF_PROMISC)
    return Request(nl.RTM_NEWLINK, 0, head + nl.text(nl.IFLA_IFNAME, fact.name), f"promiscuous {fact.name}")


def _linkinfo_port(fact: Link, port: Mapping[str, int]) -> bytes:
    kind = [nl.attr(nl.IFLA_INFO_KIND, fact.kind.encode())] if fact.kind else []
    slave = nl.attr(nl.IFLA_INFO_SLAVE_KIND, b"bridge")
    return nl.nest(nl.IFLA_LINKINFO, *kind, slave, nl.nest(nl.IFLA_INFO_SLAVE_DATA, *_write(PORT, port)))


def modify(fact: Link, differing: set[str], master: int, link: int) -> list[Request]:
    """Change only what differs; our own links get their alias (with the new mark) last."""
    what = f"change link {fact.name} ({', '.join(sorted(differing)) or 'alias'})"
    name = nl.text(nl.IFLA_IFNAME, fact.name)
    parts = [(_UP if fact.up else _TO_DOWN) if "up" in differing else _DOWN, name]
    if "mtu" in differing:
        parts.append(nl.attr32(nl.IFLA_MTU, fact.mtu))
    if "mac" in differing:
        parts.append(nl.attr(nl.IFLA_ADDRESS, nl.mac_bytes(fact.mac)))
    if "master" in differing:
        parts.append(nl.attr32(nl.IFLA_MASTER, master))
    requests = (
        [Request(nl.RTM_NEWLINK, 0, b"".join(parts), what)] if len(parts) > 2 or "up" in differing else []
    )
    if _PROMISC in differing:
        requests.append(_promisc(fact))
    own = (differing - {_PROMISC}) & (own_options(fact.kind).keys() | extra_words(fact.kind))
    if own:
        kind = nl.attr(nl.IFLA_INFO_KIND, fact.kind.encode())
        data = nl.nest(nl.IFLA_INFO_DATA, *_data(fact, link if "link" in own else 0, own))
        requests.append(
            Request(nl.RTM_NEWLINK, 0, _DOWN + name + nl.nest(nl.IFLA_LINKINFO, kind, data), what)
        )
    port = {n: v for n, v in port_options(fact).items() if n in differing or "master" in differing}
    if port:
        requests.append(Request(nl.RTM_NEWLINK, 0, _DOWN + name + _linkinfo_port(fact, port), what))
    if fact.kind:
        alias = nl.text(nl.IFLA_IFALIAS, ours.alias_of(fact, wish(fact)))
        group = nl.attr32(nl.IFLA_GROUP, 0)
        requests.append(Request(nl.RTM_NEWLINK, 0, _DOWN + name + alias + group, what))
    return requests


def up(name: str) -> Request:
    return Request(nl.RTM_NEWLINK, 0, _UP + nl.text(nl.IFLA_IFNAME, name), f"set link {name} up")


def say_mac(fact: Link) -> Request:
    """Set the MAC that it has: the kernel says to the segment whose addresses it has, where it is told to."""
    parts = nl.text(nl.IFLA_IFNAME, fact.name) + nl.attr(nl.IFLA_ADDRESS, nl.mac_bytes(fact.mac))
    return Request(nl.RTM_NEWLINK, 0, _DOWN + parts, f"announce link {fact.name}")


def delete(name: str) -> Request:
    return Request(nl.RTM_DELLINK, 0, _DOWN + nl.text(nl.IFLA_IFNAME, name), f"delete link {name}")


def delete_all(indexes: list[int]) -> list[Request]:
    """One request per link puts it into a group, one more deletes the group: one RCU wait for all.

    A single link is marked too: by its group `LinkMonitor` knows that its end is our own doing.
    """
    doom = nl.attr32(nl.IFLA_GROUP, ours.GROUP_DOOMED)
    heads = [nl.IFINFOMSG.pack(0, 0, index, 0, 0) for index in indexes]
    marks = [Request(nl.RTM_NEWLINK, 0, head + doom, "mark a link for deletion") for head in heads]
    what = f"delete {len(indexes)} links"
    return [*marks, Request(nl.RTM_DELLINK, 0, heads[0] if len(heads) == 1 else _DOWN + doom, what)]

"""Addresses, routes, neighbours and forwarding entries as rtnetlink requests, and back. Pure.

Rule 1: an index is the interface's, found by name beforehand; ``replace`` also takes what is there.
Rule 2: what reads back is the fact itself, so a fact must be written canonically (10.1.0.0/16, ::1).
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable
from socket import AF_INET6

import msgspec

from ..model.errors import Invalid
from ..model.facts import ROUTE_PROTOCOL, Address, Fdb, Neighbour, Route
from . import nlmsg as nl
from .nlmsg import Request

ADD = nl.NLM_F_CREATE | nl.NLM_F_EXCL
PUT = nl.NLM_F_CREATE | nl.NLM_F_REPLACE
IPV6_DEFAULT_METRIC = 1024  # what the kernel makes of no metric, IPv6 only
AF_BRIDGE = 7
LOCAL_TABLE = 255
_SCOPE_NAMES = {number: name for name, number in nl.RT_SCOPES.items()}
_KIND_NAMES = {number: name for name, number in nl.RTN_KINDS.items()}
_NO_LINK_KINDS = ("blackhole", "unreachable", "prohibit")


def _cidr(text: str, what: str) -> tuple[bytes, int]:
    address, _, length = text.partition("/")
    try:
        packed = nl.ip_bytes(address)
        bits = int(length) if length else len(packed) * 8
        if not 0 <= bits <= len(packed) * 8:
            raise ValueError(f"the prefix length is at most {len(packed) * 8}")
    except ValueError as exc:
        raise Invalid(f"{what} {text!r}: {exc}") from None
    return packed, bits


def address(fact: Address, index: int, delete: bool = False) -> Request:
    """IFA_PROTO (kernel 5.18) marks it as ours; NODAD, because a pod's addresses are assigned, not tried."""
    packed, bits = _cidr(fact.address, "address")
    v4 = len(packed) == 4
    parts = [
        nl.IFADDRMSG.pack(nl.family_of(packed), bits, 0 if v4 else nl.IFA_F_NODAD, 0, index),
        nl.attr(nl.IFA_LOCAL, packed),
        nl.attr(nl.IFA_ADDRESS, packed),
    ]
    verb = "remove" if delete else "add"
    what = f"{verb} address {fact.address} on {fact.link}"
    if delete:
        return Request(nl.RTM_DELADDR, 0, b"".join(parts), what)
    parts.append(nl.attr(nl.IFA_PROTO, bytes([ROUTE_PROTOCOL])))
    if not v4:
        parts.append(nl.attr32(nl.IFA_FLAGS, nl.IFA_F_NODAD))
    elif bits < 31:
        broadcast = ipaddress.IPv4Interface((packed, bits)).network.broadcast_address.packed
        parts.append(nl.attr(nl.IFA_BROADCAST, broadcast))
    return Request(nl.RTM_NEWADDR, ADD, b"".join(parts), what)


def read_address(body: bytes, name_of: Callable[[int], str]) -> tuple[Address, int]:
    """The address and its protocol (78: ours; 0 when the kernel tells none)."""
    _, bits, _, _, index = nl.IFADDRMSG.unpack_from(body)
    found = nl.attrs(body, 8)
    packed = found.get(nl.IFA_LOCAL) or found.get(nl.IFA_ADDRESS) or b"\0\0\0\0"
    proto = found.get(nl.IFA_PROTO, b"\0")[0]
    return Address(link=name_of(index), address=f"{nl.ip_text(packed)}/{bits}"), proto


def route(fact: Route, index: int, flags: int = ADD) -> Request:
    """``flags`` ADD or PUT; the index is not used for kinds without a link."""
    body = _route(msgspec.structs.replace(fact, link="", netns=""))
    if fact.kind not in _NO_LINK_KINDS:
        body += nl.attr32(nl.RTA_OIF, index)
    return Request(nl.RTM_NEWROUTE, flags, body, f"add route {_route_words(fact)}")


@functools.lru_cache(maxsize=1024)
def _route(fact: Route) -> bytes:
    """A route's body but for its link: the same for every pod of a network."""
    packed, bits = _cidr(fact.dst, "route")
    if fact.kind not in nl.RTN_KINDS or fact.effective_scope not in nl.RT_SCOPES:
        raise Invalid(f"route {fact.dst}: kind {fact.kind!r} or scope {fact.scope!r} is not known")
    parts = [_rtmsg(fact, packed, bits, nl.RTN_KINDS[fact.kind], ROUTE_PROTOCOL)]
    if bits:
        parts.append(nl.attr(nl.RTA_DST, packed))
    if fact.via:
        parts.append(nl.attr(nl.RTA_GATEWAY, _cidr(fact.via, f"route {fact.dst} via")[0]))
    if fact.src:
        parts.append(nl.attr(nl.RTA_PREFSRC, _cidr(fact.src, f"route {fact.dst} src")[0]))
    if fact.metric:
        parts.append(nl.attr32(nl.RTA_PRIORITY, fact.metric))
    parts.append(nl.attr32(nl.RTA_TABLE, fact.table))
    metrics = [(nl.RTAX_MTU, fact.mtu), (nl.RTAX_ADVMSS, fact.advmss)]
    if fact.mtu or fact.advmss:
        parts.append(nl.nest(nl.RTA_METRICS, *(nl.attr32(k, v) for k, v in metrics if v)))
    return b"".join(parts)


def _rtmsg(fact: Route, packed: bytes, bits: int, kind: int, protocol: int) -> bytes:
    table = fact.table if fact.table < 256 else 0
    scope = nl.RT_SCOPES[fact.effective_scope] if kind else 255  # RT_SCOPE_NOWHERE: any, when deleting
    onlink = nl.RTNH_F_ONLINK if fact.onlink else 0
    return nl.RTMSG.pack(nl.family_of(packed), bits, 0, 0, table, protocol, scope, kind, onlink)


def _route_words(fact: Route) -> str:
    via = f" via {fact.via}" if fact.via else ""
    return f"{fact.dst}{via}{f' dev {fact.link}' if fact.link else ''}"


def delete_route(dst: str, table: int, metric: int) -> Request:
    """Only a route of ours (protocol 78) matches."""
    packed, bits = _cidr(dst, "route")
    fact = Route(dst=dst, table=table)
    parts = [_rtmsg(fact, packed, bits, 0, ROUTE_PROTOCOL), nl.attr32(nl.RTA_TABLE, table)]
    if bits:
        parts.append(nl.attr(nl.RTA_DST, packed))
    if len(packed) == 16:
        metric = metric or IPV6_DEFAULT_METRIC
    if metric:
        parts.append(nl.attr32(nl.RTA_PRIORITY, metric))
    return Request(nl.RTM_DELROUTE, 0, b"".join(parts), f"remove route {dst}")


def no_multicast(link: str, index: int) -> Request:
    """Remove the route ff00::/8 that the kernel gives every link that carries (addrconf_add_mroute).

    Nobody sends from a bridge's port; and for every link that comes or goes the kernel walks all routes,
    and the ports' are the only ones of which there are as many as pods.
    """
    head = nl.RTMSG.pack(AF_INET6, 8, 0, 0, LOCAL_TABLE, 0, 0, 0, 0)
    body = head + nl.attr(nl.RTA_DST, b"\xff" + bytes(15)) + nl.attr32(nl.RTA_OIF, index)
    return Request(nl.RTM_DELROUTE, 0, body, f"remove the multicast route of {link}")


def get_route(dst: str) -> Request:
    """The kernel's own look-up of one destination."""
    packed, bits = _cidr(dst, "destination")
    head = nl.RTMSG.pack(nl.family_of(packed), bits, 0, 0, 0, 0, 0, 0, 0)
    return Request(nl.RTM_GETROUTE, 0, head + nl.attr(nl.RTA_DST, packed), f"look up the route to {dst}")


def read_route(body: bytes, name_of: Callable[[int], str]) -> tuple[Route, int]:
    """The route and its protocol."""
    family, bits, _, _, table, protocol, scope, kind, flags = nl.RTMSG.unpack_from(body)
    found = nl.attrs(body, 12)
    v4 = family == 2
    dst = nl.ip_text(found[nl.RTA_DST]) if nl.RTA_DST in found else ("0.0.0.0" if v4 else "::")
    metrics = nl.attrs(found.get(nl.RTA_METRICS, b""))
    metric = nl.u32(found.get(nl.RTA_PRIORITY))
    kind_name = _KIND_NAMES.get(kind, str(kind))
    nowhere = kind_name in _NO_LINK_KINDS  # IPv6 shows lo for these
    fact = Route(
        dst=f"{dst}/{bits}",
        link="" if nowhere else name_of(nl.u32(found.get(nl.RTA_OIF))),
        via=nl.ip_text(found[nl.RTA_GATEWAY]) if nl.RTA_GATEWAY in found else "",
        onlink=bool(flags & nl.RTNH_F_ONLINK),
        src=nl.ip_text(found[nl.RTA_PREFSRC]) if nl.RTA_PREFSRC in found else "",
        mtu=nl.u32(metrics.get(nl.RTAX_MTU)),
        advmss=nl.u32(metrics.get(nl.RTAX_ADVMSS)),
        metric=0 if not v4 and metric == IPV6_DEFAULT_METRIC else metric,
        table=nl.u32(found.get(nl.RTA_TABLE), table),
        scope=_SCOPE_NAMES.get(scope, str(scope)),
        kind=kind_name,
    )
    return fact, protocol


def _mac(text: str, what: str) -> bytes:
    try:
        return nl.mac_bytes(text)
    except ValueError as exc:
        raise Invalid(f"{what}: {exc}") from None


def neighbour(fact: Neighbour, index: int) -> Request:
    packed, _ = _cidr(fact.address, "neighbour")
    what = f"set neighbour {fact.address} on {fact.link}"
    parts = (
        nl.NDMSG.pack(nl.family_of(packed), index, nl.NUD_PERMANENT, 0, 0),
        nl.attr(nl.NDA_DST, packed),
        nl.attr(nl.NDA_LLADDR, _mac(fact.mac, what)),
        nl.attr(nl.NDA_PROTOCOL, bytes([ROUTE_PROTOCOL])),
    )
    return Request(nl.RTM_NEWNEIGH, PUT, b"".join(parts), what)


def delete_neighbour(link: str, address: str, index: int) -> Request:
    packed, _ = _cidr(address, "neighbour")
    body = nl.NDMSG.pack(nl.family_of(packed), index, 0, 0, 0) + nl.attr(nl.NDA_DST, packed)
    return Request(nl.RTM_DELNEIGH, 0, body, f"remove neighbour {address} on {link}")


def fdb(fact: Fdb, index: int) -> Request:
    what = f"set forwarding entry {fact.mac} to {fact.dst} on {fact.link}"
    parts = (
        nl.NDMSG.pack(AF_BRIDGE, index, nl.NUD_PERMANENT | nl.NUD_NOARP, nl.NTF_SELF, 0),
        nl.attr(nl.NDA_LLADDR, _mac(fact.mac, what)),
        nl.attr(nl.NDA_DST, _cidr(fact.dst, what)[0]),
    )
    return Request(nl.RTM_NEWNEIGH, PUT, b"".join(parts), what)


def delete_fdb(link: str, mac: str, index: int) -> Request:
    what = f"remove forwarding entry {mac} on {link}"
    body = nl.NDMSG.pack(AF_BRIDGE, index, 0, nl.NTF_SELF, 0) + nl.attr(nl.NDA_LLADDR, _mac(mac, what))
    return Request(nl.RTM_DELNEIGH, 0, body, what)


def read_neighbour(body: bytes, name_of: Callable[[int], str]) -> tuple[Neighbour | Fdb | None, int]:
    """A permanent neighbour or a forwarding entry to a host, and its protocol; None for all others."""
    family, index, state, flags, _ = nl.NDMSG.unpack_from(body)
    found = nl.attrs(body, 12)
    mac, dst = nl.mac_text(found.get(nl.NDA_LLADDR)), found.get(nl.NDA_DST)
    proto = found.get(nl.NDA_PROTOCOL, b"\0")[0]
    if dst is None or not mac or not state & nl.NUD_PERMANENT:
        return None, proto
    if family == AF_BRIDGE:
        entry = Fdb(link=name_of(index), mac=mac, dst=nl.ip_text(dst)) if flags & nl.NTF_SELF else None
        return entry, proto
    return Neighbour(link=name_of(index), address=nl.ip_text(dst), mac=mac), proto

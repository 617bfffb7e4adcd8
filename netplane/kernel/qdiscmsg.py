"""A Shaper as rtnetlink requests, and back: one token bucket at a link's root. Pure.

Rule 1: the kernel keeps the burst as a time, rounded; the limit keeps it exactly, because it is always
        what the rate lets through in LATENCY, and the burst.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ..model.facts import Shaper
from . import nlmsg as nl
from .nlmsg import Request

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
ROOT = 0xFFFFFFFF  # TC_H_ROOT
INGRESS = 0xFFFFFFF1  # TC_H_INGRESS
CLSACT = 0xFFFF0000  # its handle
LATENCY = 25  # ms that a packet may wait, as in the reference plugin
TCMSG = struct.Struct("=B3xiIII")  # family, ifindex, handle, parent, info
_TBF = struct.Struct("=BBHhHI12xIII")  # rate (cell_log … rate), peakrate, limit, buffer, mtu
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: no rate table is needed (3.8)
_KIND, _OPTIONS = 1, 2
_PARMS, _RATE64, _BURST = 1, 4, 6
_U64 = struct.Struct("=Q")


def _limit(rate: int, burst: int) -> int:
    return min(burst + rate * LATENCY // 1000, 0xFFFFFFFF)


def shape(fact: Shaper, index: int) -> Request:
    """Puts the bucket there, or changes the one that is there."""
    rate = min(fact.rate, 0xFFFFFFFF)
    parms = _TBF.pack(0, _ETHERNET, 0, 0, 0, rate, _limit(fact.rate, fact.burst), 0, 0)
    parts = [nl.attr(_PARMS, parms), nl.attr32(_BURST, min(fact.burst, 0xFFFFFFFF))]
    if fact.rate > rate:
        parts.append(nl.attr(_RATE64, _U64.pack(fact.rate)))
    body = TCMSG.pack(0, index, 0, ROOT, 0) + nl.text(_KIND, "tbf") + nl.nest(_OPTIONS, *parts)
    what = f"shape {fact.link} to {fact.rate} bytes/s"
    return Request(RTM_NEWQDISC, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, body, what)


def unshape(link: str, index: int) -> Request:
    return Request(RTM_DELQDISC, 0, TCMSG.pack(0, index, 0, ROOT, 0), f"take the shaper of {link} away")


def clsact(link: str, index: int) -> Request:
    """The place for programs at a link. It comes before the link is up: the kernel takes a link's queue away
    for a moment to put it there (qdisc_graft), and what is sent then is lost."""
    body = TCMSG.pack(0, index, CLSACT, INGRESS, 0) + nl.text(_KIND, "clsact")
    return Request(RTM_NEWQDISC, nl.NLM_F_CREATE, body, f"make a place for programs at {link}")


def at_ingress(body: bytes, index: int) -> bool:
    """Whether this is the ingress queue of the link: its filters may send frames elsewhere. A clsact, which
    has the same place, is somebody's programs."""
    _, link, _, parent, _ = TCMSG.unpack_from(body)
    found = nl.string(nl.attrs(body, TCMSG.size).get(_KIND))
    return (link, parent, found) == (index, INGRESS, "ingress")


def read(body: bytes, name_of: Callable[[int], str]) -> Shaper | None:
    """The token bucket at the root of a link; None for any other queue."""
    _, index, _, parent, _ = TCMSG.unpack_from(body)
    found = nl.attrs(body, TCMSG.size)
    if parent != ROOT or nl.string(found.get(_KIND)) != "tbf":
        return None
    options = nl.attrs(found[_OPTIONS])
    *_, rate, limit, _, _ = _TBF.unpack_from(options[_PARMS])
    if _RATE64 in options:
        (rate,) = _U64.unpack_from(options[_RATE64])
    return Shaper(link=name_of(index), rate=rate, burst=limit - rate * LATENCY // 1000)

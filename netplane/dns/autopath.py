"""The client's search list, walked here: one question instead of the eight that ndots:5 makes. Pure.

A pod's resolver asks for "example.com" as example.com.ns.svc.<domain> first. When that does not exist,
the answer is that of the first name further down the list that does, behind a CNAME. What is in no list
gets the same denial as ever, so that the client goes on by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..model.errors import Invalid
from ..model.pods import Pod
from ..model.resolvconf import Resolv, resolv
from . import wire


def candidates(name: bytes, pod: Pod, domain: str, host: Resolv) -> Iterator[bytes]:
    """The names to try after ``name``, which is the first that this pod's resolver makes of its own."""
    searches = resolv(pod, (), domain, host).searches
    try:
        zones = [wire.name(search) for search in searches]
    except Invalid:
        return
    if not zones or not wire.within(name, zones[0]) or name == zones[0]:
        return
    base = name[: -len(zones[0])]
    for zone in (*zones[1:], b"\0"):
        if len(base) + len(zone) <= 255:
            yield base + zone

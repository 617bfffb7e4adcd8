"""Which of the ready endpoints are near enough: the hints of EndpointSlices (KEP-2433, KEP-3015).

Rule 1: hints count only if every ready endpoint has them and one names this node, or its zone; the
        node comes first. In any other case all endpoints serve: a hint must never cut a service off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeVar

from ..model.services import EndpointHints

ZONE = "topology.kubernetes.io/zone"  # label of a Node

T = TypeVar("T")


class Hints(NamedTuple):
    nodes: frozenset[str] = frozenset()
    zones: frozenset[str] = frozenset()


def hints(found: EndpointHints) -> Hints:
    return Hints(frozenset(n.name for n in found.for_nodes), frozenset(z.name for z in found.for_zones))


def nearest(ready: Mapping[T, Hints], node: str, zone: str) -> Collection[T]:
    """Those that are hinted to this node, else to this zone, else all of them."""
    for place, by in ((node, 0), (zone, 1)):
        if place and all(h[by] for h in ready.values()):
            near = [key for key, h in ready.items() if place in h[by]]
            if near:
                return near
    return ready.keys()

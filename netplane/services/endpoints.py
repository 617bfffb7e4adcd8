"""Which endpoints answer for one port of a service: from EndpointSlices to (address, port) pairs.

Rule 1: the ready ones; if there is none, those that still serve while they terminate (KEP-1669).
Rule 2: slices of the port's name and protocol count, each with its own port number, so a named
        target port may differ from pod to pod; an endpoint is one address and port, however often
        it is listed, and its best state counts.
Rule 3: the endpoints of this node are chosen by themselves, for traffic policy Local.
Rule 4: of the ready ones those that the topology hints give to this node (see topology); when they
        that terminate must serve, all of them do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..model.services import Endpoint, EndpointSlice, ServicePort
from .address import canonical
from .topology import Hints, hints, nearest

READY, DRAINING = 2, 1


Backend = tuple[str, int]  # address and port: no NamedTuple, which Python's collector never lets go of


class Choice(NamedTuple):
    """Sorted, without duplicates. ``nearby``: may be on this node, whatever their state; ``here``: are."""

    cluster: tuple[Backend, ...] = ()
    local: tuple[Backend, ...] = ()
    nearby: tuple[str, ...] = ()
    here: tuple[str, ...] = ()


def choose(
    slices: Iterable[EndpointSlice], port: ServicePort, family: str, node: str, zone: str = ""
) -> Choice:
    """The endpoints of one service port in one family ("IPv4" or "IPv6"), seen from ``node`` in ``zone``."""
    states: dict[Backend, int] = {}
    hinted: dict[Backend, Hints] = {}
    here: set[Backend] = set()
    nearby: set[str] = set()
    for number, endpoint in _candidates(slices, port, family):
        address = canonical(endpoint.addresses[0])  # they are interchangeable: kube-proxy's choice
        backend = (address, number)
        state = _state(endpoint)
        if state >= states.get(backend, 0):
            states[backend] = state
        if endpoint.hints is not None and endpoint.ready:
            hinted[backend] = hints(endpoint.hints)
        where = endpoint.node_name
        if where == node:
            here.add(backend)
        if not where or where == node:
            nearby.add(address)
    ours = {backend: states[backend] for backend in here}
    cluster = _best(states)
    if len(hinted) == len(cluster):  # every ready one has hints, or nobody is ready
        cluster = tuple(sorted(nearest(hinted, node, zone))) if hinted else cluster
    return Choice(cluster, _best(ours), tuple(sorted(nearby)), tuple(sorted({at for at, _ in here})))


def _candidates(
    slices: Iterable[EndpointSlice], port: ServicePort, family: str
) -> Iterator[tuple[int, Endpoint]]:
    """(port number, endpoint) of the slices that offer this port."""
    for found in slices:
        if found.address_type != family:
            continue
        for offered in found.ports:
            if offered.port and offered.name == port.name and offered.protocol == port.protocol:
                for endpoint in found.endpoints:
                    if endpoint.addresses:
                        yield offered.port, endpoint


def _state(endpoint: Endpoint) -> int:
    conditions = endpoint.conditions
    if conditions.ready is not False:
        return READY
    return DRAINING if endpoint.serving and endpoint.terminating else 0


def _best(states: dict[Backend, int]) -> tuple[Backend, ...]:
    level = max(states.values(), default=0)
    return tuple(sorted(b for b, state in states.items() if state == level)) if level else ()

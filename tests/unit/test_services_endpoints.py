"""Slices → the endpoints of one service port (reference: kube-proxy's endpoint choice)."""

from __future__ import annotations

from typing import Any

import pytest

from netplane.model.base import amend
from netplane.model.services import EndpointHints, EndpointPort, EndpointSlice, HintName, ServicePort
from netplane.services.endpoints import Choice, choose
from tests.services_kit import endpoint, endpoints

HTTP = ServicePort(port=80, name="http")


def on(number: int | None, name: str = "http", protocol: str = "TCP") -> tuple[EndpointPort, ...]:
    return (EndpointPort(port=number, name=name, protocol=protocol),)


def one(address: str, **state: Any) -> EndpointSlice:
    return endpoints(endpoint(address, "n2", **state), name=address.replace(":", "-"), ports=on(8080))


CASES: dict[str, tuple[list[EndpointSlice], list[tuple[str, int]]]] = {
    "unknown conditions count as ready": ([one("10.0.0.1")], [("10.0.0.1", 8080)]),
    "ready ones only": ([one("10.0.0.1", ready=False), one("10.0.0.2", ready=True)], [("10.0.0.2", 8080)]),
    "none ready: those that serve while they terminate": (
        [
            one("10.0.0.1", ready=False, serving=True, terminating=True),
            one("10.0.0.2", ready=False, serving=False, terminating=True),
            one("10.0.0.3", ready=False, serving=True, terminating=False),
        ],
        [("10.0.0.1", 8080)],
    ),
    "one ready: nobody who terminates": (
        [one("10.0.0.1", ready=False, serving=True, terminating=True), one("10.0.0.2")],
        [("10.0.0.2", 8080)],
    ),
    "none at all": ([one("10.0.0.1", ready=False)], []),
    "the same address and port in two slices is one, in its best state": (
        [endpoints(endpoint("10.0.0.1", ready=False), name="a", ports=on(8080)), one("10.0.0.1")],
        [("10.0.0.1", 8080)],
    ),
    "a named target port may differ from slice to slice": (
        [
            endpoints("10.0.0.1", name="a", ports=on(8080)),
            endpoints("10.0.0.2", name="b", ports=on(9090)),
            endpoints("10.0.0.1", name="c", ports=on(9090)),
        ],
        [("10.0.0.1", 8080), ("10.0.0.1", 9090), ("10.0.0.2", 9090)],
    ),
    "another name, protocol or family, or no number, is not this port": (
        [
            endpoints("10.0.0.1", name="a", ports=on(8080, "https")),
            endpoints("10.0.0.2", name="b", ports=on(8080, "http", "UDP")),
            endpoints("fd00::1", name="c", ports=on(8080)),
            endpoints("10.0.0.3", name="d", ports=on(None)),
        ],
        [],
    ),
    "sorted": ([one("10.0.0.9"), one("10.0.0.3")], [("10.0.0.3", 8080), ("10.0.0.9", 8080)]),
}


@pytest.mark.parametrize("case", CASES, ids=CASES)
def test_choice(case: str) -> None:
    slices, expected = CASES[case]
    assert list(choose(slices, HTTP, "IPv4", "n1").cluster) == expected


def test_the_local_list_is_chosen_by_itself() -> None:
    """A ready one elsewhere does not stop a terminating one here from serving policy Local."""
    here = endpoint("10.0.0.1", "n1", ready=False, serving=True, terminating=True)
    slices = [endpoints(here, endpoint("10.0.0.2", "n2"), ports=on(8080))]
    assert choose(slices, HTTP, "IPv4", "n1") == Choice(
        cluster=(("10.0.0.2", 8080),), local=(("10.0.0.1", 8080),), nearby=("10.0.0.1",), here=("10.0.0.1",)
    )


def test_an_endpoint_without_a_node_may_be_here_but_is_not_local() -> None:
    found = choose([endpoints("10.0.0.1", ports=on(8080))], HTTP, "IPv4", "n1")
    assert (found.local, found.nearby) == ((), ("10.0.0.1",))


def hinted(address: str, zone: str = "", node: str = "", **state: Any) -> Any:
    zones, nodes = ((HintName(name=n),) if n else () for n in (zone, node))
    return amend(endpoint(address, "n2", **state), hints=EndpointHints(for_zones=zones, for_nodes=nodes))


NEAR: dict[str, tuple[list[Any], list[str]]] = {
    "this node before this zone": (
        [hinted("10.0.0.1", "z1", "n1"), hinted("10.0.0.2", "z1", "n2")],
        ["10.0.0.1"],
    ),
    "nobody hinted to this node: this zone": (
        [hinted("10.0.0.1", "z1", "n3"), hinted("10.0.0.2", "z2", "n2")],
        ["10.0.0.1"],
    ),
    "one without hints: all": ([hinted("10.0.0.1", "z1"), hinted("10.0.0.2")], ["10.0.0.1", "10.0.0.2"]),
    "no hint to this zone: all": (
        [hinted("10.0.0.1", "z2"), hinted("10.0.0.2", "z3")],
        ["10.0.0.1", "10.0.0.2"],
    ),
    "one that is not ready needs no hint": (
        [hinted("10.0.0.1", "z1"), hinted("10.0.0.2", "z2"), hinted("10.0.0.3", ready=False)],
        ["10.0.0.1"],
    ),
    "nobody ready: whoever serves, wherever": (
        [hinted("10.0.0.1", "z2", ready=False, serving=True, terminating=True)],
        ["10.0.0.1"],
    ),
}


@pytest.mark.parametrize("case", NEAR, ids=NEAR)
def test_topology_hints(case: str) -> None:
    given, expected = NEAR[case]
    found = choose([endpoints(*given, ports=on(8080))], HTTP, "IPv4", "n1", "z1")
    assert [address for address, _ in found.cluster] == expected


def test_without_a_zone_of_its_own_a_node_follows_no_zone_hints() -> None:
    given = endpoints(hinted("10.0.0.1", "z1"), hinted("10.0.0.2", "z2"), ports=on(8080))
    assert len(choose([given], HTTP, "IPv4", "n1").cluster) == 2

"""Nodes in, facts out: tables over the overlay's pure functions."""

from __future__ import annotations

from typing import Any

import pytest

from netplane.model.base import ObjectMeta, amend
from netplane.model.errors import Invalid
from netplane.model.facts import Address, Fdb, Link, Neighbour, Route, Scope, Sysctl
from netplane.model.nodes import Condition, Node, NodeAddress, NodeSpec, NodeStatus
from netplane.model.own import ALLOCATED
from netplane.model.snapshot import Snapshot
from netplane.overlay.room import MTU_ANNOTATION, OverlayRoom, pod_mtu, vtep_mac
from netplane.reconcile.base import Event

ROOM = OverlayRoom("a")


def node(name: str, ips: str = "", cidrs: str = "", mtu: str = "", deleted: str = "") -> Node:
    return Node(
        metadata=ObjectMeta(
            name=name, annotations={MTU_ANNOTATION: mtu} if mtu else {}, deletion_timestamp=deleted
        ),
        spec=NodeSpec(pod_cidrs=tuple(cidrs.split())),
        status=NodeStatus(
            addresses=(
                NodeAddress(type="Hostname", address=name),
                *(NodeAddress(type="InternalIP", address=ip) for ip in ips.split()),
            )
        ),
    )


def refused(of: Node) -> Node:
    """One whose pod CIDRs another node holds."""
    condition = Condition(type=ALLOCATED, status="False", message="overlaps 10.244.0.0/16 of Node first")
    return amend(of, status=amend(of.status, conditions=(condition,)))


A = node("a", "192.0.2.1 2001:db8::1", "10.244.1.0/24 fd00:10:244:1::/64")
B = node("b", "192.0.2.2 2001:db8::2", "10.244.2.0/24 fd00:10:244:2::/64")


def render(scope: str, *nodes: Node, room: OverlayRoom = ROOM) -> list[Any]:
    return list(room.render(Scope("overlay", scope), Snapshot.of(nodes)))


def of(kind: type[Any], facts: list[Any]) -> list[Any]:
    return [f for f in facts if isinstance(f, kind)]


def test_our_own_side_is_one_device_for_both_inner_families() -> None:
    facts = render("", A, B)
    (link,) = of(Link, facts)
    assert (link.name, link.kind, link.mtu, link.mac) == ("npvx0", "vxlan", 1450, vtep_mac("a"))
    assert dict(link.options) == {"id": 1, "port": 8472, "local": "192.0.2.1", "learning": 0, "udp_csum": 0}
    assert list(link.options) == sorted(link.options)
    assert [f.address for f in of(Address, facts)] == ["10.244.1.0/32", "fd00:10:244:1::/128"]
    assert {(f.name, f.value) for f in of(Sysctl, facts)} == {
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/npvx0/rp_filter", "2"),
    }


def test_a_remote_node_is_an_entry_neighbours_and_onlink_routes() -> None:
    mac = vtep_mac("b")
    assert render("b", A, B) == [
        Fdb(link="npvx0", mac=mac, dst="192.0.2.2"),
        Neighbour(link="npvx0", address="10.244.2.0", mac=mac),
        Route(dst="10.244.2.0/24", link="npvx0", via="10.244.2.0", onlink=True),
        Neighbour(link="npvx0", address="fd00:10:244:2::", mac=mac),
        Route(dst="fd00:10:244:2::/64", link="npvx0", via="fd00:10:244:2::", onlink=True),
    ]


@pytest.mark.parametrize(
    ("mine", "theirs", "prefer", "device", "dst", "mtu"),
    [
        ("192.0.2.1 2001:db8::1", "192.0.2.2 2001:db8::2", 4, "npvx0", "192.0.2.2", 1450),
        ("192.0.2.1 2001:db8::1", "192.0.2.2 2001:db8::2", 6, "npvx0", "2001:db8::2", 1430),
        ("2001:db8::1", "192.0.2.2 2001:db8::2", 4, "npvx0", "2001:db8::2", 1430),
        ("192.0.2.1 2001:db8::1", "2001:db8::2", 4, "npvx1", "2001:db8::2", 1430),
        ("192.0.2.1 2001:db8::1", "192.0.2.2", 6, "npvx1", "192.0.2.2", 1450),
    ],
    ids=["both, IPv4 first", "both, IPv6 preferred", "we have IPv6 only", "they have IPv6 only", "IPv4 only"],
)
def test_the_underlay_is_a_family_that_both_have(
    mine: str, theirs: str, prefer: int, device: str, dst: str, mtu: int
) -> None:
    a, b = node("a", mine, "10.244.1.0/24"), node("b", theirs, "10.244.2.0/24")
    room = OverlayRoom("a", prefer=prefer)
    facts = render("", a, b, room=room) + render("b", a, b, room=room)
    (entry,) = of(Fdb, facts)
    assert (entry.link, entry.dst) == (device, dst)
    assert {link.name: link.mtu for link in of(Link, facts)}[device] == mtu
    assert {route.link for route in of(Route, facts)} == {device}


@pytest.mark.parametrize(
    "other",
    [
        node("b", "192.0.2.2", ""),
        node("b", "", "10.244.2.0/24"),
        node("b", "192.0.2.2", "10.244.2.0/24", deleted="2026-01-01T00:00:00Z"),
        node("c", "192.0.2.2", "10.244.2.0/24"),
        refused(node("b", "192.0.2.2", "10.244.2.0/24")),
    ],
    ids=["no pod CIDR", "no address", "being deleted", "gone", "refused"],
)
def test_a_node_that_is_not_ready_has_no_facts(other: Node) -> None:
    assert render("b", A, other) == []


def test_nothing_is_wanted_until_we_are_registered_ourselves() -> None:
    assert render("", B) == [] and render("b", B) == []
    assert render("b", node("a", "192.0.2.1"), B) == []


def test_a_smaller_underlay_of_the_other_side_limits_its_routes() -> None:
    small = node("b", "192.0.2.2", "10.244.2.0/24", mtu="1400")
    (route,) = of(Route, render("b", A, small))
    assert route.mtu == 1350
    large = node("b", "192.0.2.2", "10.244.2.0/24", mtu="9000")
    (route,) = of(Route, render("b", A, large))
    assert route.mtu == 0


def test_an_inner_family_that_we_lack_is_left_out() -> None:
    only4 = node("a", "192.0.2.1", "10.244.1.0/24")
    assert [r.dst for r in of(Route, render("b", only4, B))] == ["10.244.2.0/24"]


def test_without_ipv6_in_the_kernel_nothing_of_it_is_rendered() -> None:
    room = OverlayRoom("a", ipv6=False)
    facts = render("", A, B, room=room) + render("b", A, B, room=room)
    assert facts and not any(":" in str(getattr(f, "address", getattr(f, "dst", ""))) for f in facts)
    assert not any("ipv6" in f.name for f in of(Sysctl, facts))


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (
            (A, node("b", "192.0.2.1", "10.244.2.0/24")),
            "node b: has the InternalIP 192.0.2.1 of a; each needs its own",
        ),
        ((A, node("b", "192.0.2.2", "10.244.0.0/16")), "pod CIDR 10.244.0.0/16 overlaps 10.244.1.0/24"),
        ((node("a", "192.0.2.1", "10.244.1.0/24"), node("b", "2001:db8::2", "10.244.2.0/24")), "no tunnel"),
        ((A, node("b", "192.0.2.2", "10.244.2.0/24", mtu="big")), "'big', not a number"),
        (
            (A, node("b", "192.0.2.2", "fd00:2::/64", mtu="1320")),
            "1320 is too small for IPv6 pods, which need 1330",
        ),
    ],
    ids=["same address", "overlap", "no family", "broken annotation", "MTU below IPv6's"],
)
def test_what_can_be_no_overlay_is_refused_with_its_reason(nodes: tuple[Node, ...], reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        render("b", *nodes)


def test_scopes_name_what_an_event_touches() -> None:
    snapshot = Snapshot.of((A, B))
    everything = {Scope("overlay"), Scope("overlay", "b")}
    assert set(ROOM.scopes(None, snapshot)) == everything
    assert set(ROOM.scopes(Event(None, A), snapshot)) == everything
    assert set(ROOM.scopes(Event(B, None), Snapshot.of((A,)))) == {Scope("overlay", "b")}
    moved = node("b", "192.0.2.9", "10.244.2.0/24")
    assert set(ROOM.scopes(Event(B, moved), snapshot)) == {Scope("overlay", "b")}


def test_a_heartbeat_touches_nothing() -> None:
    ready = amend(B.status, conditions=(Condition(type="Ready", status="True"),))
    assert list(ROOM.scopes(Event(B, amend(B, status=ready)), Snapshot.of((A, B)))) == []


def test_a_vtep_mac_is_stable_unicast_and_locally_administered() -> None:
    macs = {vtep_mac(f"node-{i}") for i in range(1000)}
    assert len(macs) == 1000 and vtep_mac("node-1") in macs
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)


def test_pod_mtu_leaves_room_for_the_tunnel() -> None:
    assert (pod_mtu(1500, 4), pod_mtu(1500, 6), pod_mtu(9000, 4)) == (1450, 1430, 8950)


def test_a_refusal_that_comes_or_goes_is_looked_at() -> None:
    snapshot = Snapshot.of([A, B])
    assert list(ROOM.scopes(Event(B, refused(B)), snapshot)) == [Scope("overlay", "b")]
    assert render("", refused(A), B) == []

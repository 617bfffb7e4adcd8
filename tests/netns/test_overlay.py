"""Pods on two nodes through the tunnel, over both underlay families, on the real kernel.

pod-a 10.244.1.5, fd00:10:244:1::5          pod-b 10.244.2.5, fd00:10:244:2::5
  │ eth0                                        │ eth0
node-a                                        node-b
  npbr0 .1, ::1   npvx0 (VNI 1)                 npbr0 .1, ::1   npvx0 (VNI 1)
  uplink 192.0.2.1, 2001:db8::1                 uplink 192.0.2.2, 2001:db8::2
  └──────────────── wire: a bridge in a namespace of its own ────────────────┘
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from netplane.kernel import netns, sysctl, underlay
from netplane.kernel.rtnetlink import LinkDriver
from netplane.model.base import ObjectMeta
from netplane.model.errors import KernelError
from netplane.model.facts import Address, Link, Plan, Route, Sysctl
from netplane.model.nodes import Node, NodeAddress, NodeSpec, NodeStatus
from netplane.model.snapshot import Snapshot
from netplane.overlay.room import MTU_ANNOTATION, OverlayRoom, pod_mtu
from netplane.reconcile.base import Event

pytestmark = pytest.mark.root
FAMILIES = {"IPv4 underlay": 4, "IPv6 underlay": 6}


class Host:
    """One node: its namespace, its driver, and one pod."""

    def __init__(self, number: int, wire: str, make: Callable[[str], str], prefer: int) -> None:
        self.name = "ab"[number - 1]
        self.netns, self.pod = make(f"node-{self.name}"), make(f"pod-{self.name}")
        self.room = OverlayRoom(self.name, prefer=prefer)
        self.number = number
        self.plug(wire)
        self.driver = netns.call(self.netns, LinkDriver)
        self.addresses = netns.call(self.netns, underlay.node_addresses)
        self.mtu = netns.call(self.netns, underlay.underlay_of, self.addresses[0])[1]
        self.driver.apply(Plan(add=self.pod_facts(pod_mtu(self.mtu, prefer))))

    def plug(self, wire: str) -> None:
        port = f"port{self.number}"
        home = os.open(self.netns, os.O_RDONLY)
        peer = ("peer", "name", "uplink", "netns", f"/proc/{os.getpid()}/fd/{home}")
        netns.run(wire, "ip", "link", "add", port, "type", "veth", *peer)
        os.close(home)
        netns.run(wire, "ip", "link", "set", port, "master", "wire", "up")
        for address in (f"192.0.2.{self.number}/24", f"2001:db8::{self.number}/64"):
            netns.run(self.netns, "ip", "address", "add", address, "dev", "uplink", "nodad")
        netns.run(self.netns, "ip", "link", "set", "uplink", "up")

    def pod_facts(self, mtu: int) -> tuple[Any, ...]:
        n, pod = self.number, self.pod
        options = (("hairpin", 1), ("peer", "eth0"), ("peer_netns", pod))
        veth = Link(
            name="npv00000000001",
            kind="veth",
            alias="netplane:cni",
            mtu=mtu,
            master="npbr0",
            options=options,
        )
        return (
            Link(name="npbr0", kind="bridge", alias="netplane:cni", mtu=mtu),
            veth,
            Address(link="npbr0", address=f"10.244.{n}.1/24"),
            Address(link="npbr0", address=f"fd00:10:244:{n}::1/64"),
            Address(link="eth0", netns=pod, address=f"10.244.{n}.5/24"),
            Address(link="eth0", netns=pod, address=f"fd00:10:244:{n}::5/64"),
            Route(dst="0.0.0.0/0", link="eth0", via=f"10.244.{n}.1", netns=pod),
            Route(dst="::/0", link="eth0", via=f"fd00:10:244:{n}::1", netns=pod),
        )

    def node(self, addresses: list[str] | None = None) -> Node:
        found = tuple(NodeAddress(type="InternalIP", address=a) for a in addresses or self.addresses)
        cidrs = (f"10.244.{self.number}.0/24", f"fd00:10:244:{self.number}::/64")
        return Node(
            metadata=ObjectMeta(name=self.name, annotations={MTU_ANNOTATION: str(self.mtu)}),
            spec=NodeSpec(pod_cidrs=cidrs),
            status=NodeStatus(addresses=found),
        )

    def sync(self, snapshot: Snapshot) -> None:
        """What the loop does: every scope's facts, less what the kernel holds."""
        scopes = self.room.scopes(None, snapshot)
        wanted = {f.key: f for scope in scopes for f in self.room.render(scope, snapshot)}
        pods = {f.key for f in self.pod_facts(0)}
        have = {key: mark for key, mark in self.driver.observe().items() if key not in pods}
        self.driver.apply(
            Plan(
                add=tuple(f for key, f in wanted.items() if key not in have),
                change=tuple(f for key, f in wanted.items() if key in have and have[key] != f.mark),
                remove=tuple(key for key in have if key not in wanted),
            )
        )
        lasting = {f.key: f.mark for f in wanted.values() if not isinstance(f, Sysctl)}
        left = {key: mark for key, mark in self.driver.observe().items() if key not in pods}
        assert left == lasting, "a second look finds more to do"


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def hosts(request: pytest.FixtureRequest, make_netns: Callable[[str], str]) -> Iterator[list[Host]]:
    wire = make_netns("wire")
    netns.run(wire, "ip", "link", "add", "wire", "up", "type", "bridge")
    made = [Host(n, wire, make_netns, request.param) for n in (1, 2)]
    snapshot = Snapshot.of([h.node() for h in made])
    for host in made:
        host.sync(snapshot)
    yield made
    for host in made:
        host.driver.close()


def ping(host: Host, address: str, *options: str) -> None:
    netns.run(host.pod, "ping", "-c1", "-W5", *options, address)


def refused(host: Host, address: str, *options: str) -> None:
    with pytest.raises(KernelError):
        netns.run(host.pod, "ping", "-c1", "-W0.3", *options, address)


def send_megabyte(source: Host, target: Host, address: str) -> int:
    """Bytes that arrive at a server in the target's pod."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = netns.call(target.pod, socket.socket, family)
    with server:
        server.settimeout(10)
        server.bind((address, 7000))
        server.listen()
        client = netns.call(source.pod, socket.socket, family)
        with client:
            client.settimeout(10)
            client.connect((address, 7000))
            sender = threading.Thread(target=lambda: (client.sendall(bytes(1 << 20)), client.close()))
            sender.start()
            connection, _ = server.accept()
            received = 0
            with connection:
                while chunk := connection.recv(1 << 16):
                    received += len(chunk)
            sender.join()
    return received


def test_pods_reach_each_other_in_both_families(hosts: list[Host]) -> None:
    a, b = hosts
    for address in ("10.244.2.5", "fd00:10:244:2::5"):
        ping(a, address)
        assert send_megabyte(a, b, address) == 1 << 20
    for address in ("10.244.1.5", "fd00:10:244:1::5"):
        ping(b, address)


def test_a_node_itself_reaches_remote_pods_through_the_tunnel(hosts: list[Host]) -> None:
    for address in ("10.244.2.5", "fd00:10:244:2::5"):
        netns.run(hosts[0].netns, "ping", "-c1", "-W1", address)


def test_the_largest_packet_passes_whole_and_one_more_byte_does_not(hosts: list[Host]) -> None:
    a, _ = hosts
    mtu = pod_mtu(1500, a.room.prefer)
    for address, headers in (("10.244.2.5", 28), ("fd00:10:244:2::5", 48)):
        ping(a, address, "-M", "do", "-s", str(mtu - headers))
        refused(a, address, "-M", "do", "-s", str(mtu - headers + 1))


def test_a_smaller_underlay_on_the_other_side_is_told_to_the_sender(hosts: list[Host]) -> None:
    a, b = hosts
    small = b.node()
    small.metadata.annotations[MTU_ANNOTATION] = "1400"
    a.sync(Snapshot.of([a.node(), small]))
    size = str(pod_mtu(1400, a.room.prefer) - 28 + 1)
    refused(a, "10.244.2.5", "-M", "do", "-s", size)
    assert f"mtu {pod_mtu(1400, a.room.prefer)}" in netns.run(a.pod, "ip", "route", "get", "10.244.2.5")
    ping(a, "10.244.2.5", "-M", "do", "-s", str(int(size) - 1))


def test_a_node_that_changes_its_address_is_followed(hosts: list[Host]) -> None:
    a, b = hosts
    for old, new in (("192.0.2.2/24", "192.0.2.22/24"), ("2001:db8::2/64", "2001:db8::22/64")):
        netns.run(b.netns, "ip", "address", "del", old, "dev", "uplink")
        netns.run(b.netns, "ip", "address", "add", new, "dev", "uplink", "nodad")
    refused(a, "10.244.2.5")
    moved = b.node(["192.0.2.22", "2001:db8::22"])
    snapshot = Snapshot.of([a.node(), moved])
    assert [s.name for s in a.room.scopes(Event(b.node(), moved), snapshot)] == ["b"]
    before = index_of(b, "npvx0")
    for host in hosts:
        host.sync(snapshot)
    assert index_of(b, "npvx0") == before, "the device was made again"
    ping(a, "10.244.2.5")
    ping(a, "fd00:10:244:2::5")


def index_of(host: Host, name: str) -> int:
    return netns.call(host.netns, socket.if_nametoindex, name)


def test_a_node_that_leaves_takes_its_routes_and_entries_along(hosts: list[Host]) -> None:
    a, _ = hosts
    assert "10.244.2.0/24" in netns.run(a.netns, "ip", "route")
    a.sync(Snapshot.of([a.node()]))
    for command in ("ip route", "ip -6 route", "ip neigh", "bridge fdb show dev npvx0"):
        shown = netns.run(a.netns, *command.split())
        assert "244.2" not in shown and "244:2:" not in shown and "dst " not in shown, shown
    refused(a, "10.244.2.5")
    assert index_of(a, "npvx0")


def test_ipv6_that_is_switched_off_is_said_and_the_rest_works(make_netns: Callable[[str], str]) -> None:
    path = make_netns("node")
    sysctl.write([("net/ipv6/conf/all/disable_ipv6", "1")], path)
    reason = sysctl.ipv6_missing(path)
    assert "disable_ipv6 is 1" in reason
    node = Node(
        metadata=ObjectMeta(name="a"),
        spec=NodeSpec(pod_cidrs=("10.244.1.0/24", "fd00:10:244:1::/64")),
        status=NodeStatus(addresses=(NodeAddress(type="InternalIP", address="192.0.2.1"),)),
    )
    room = OverlayRoom("a", ipv6=not reason)
    snapshot = Snapshot.of([node])
    facts = tuple(f for scope in room.scopes(None, snapshot) for f in room.render(scope, snapshot))
    driver = netns.call(path, LinkDriver)
    driver.apply(Plan(add=facts))
    assert driver.verify(facts) == []
    driver.close()

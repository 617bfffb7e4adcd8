"""A node with services of its own and real packets, for tests of their rules.

  client                         node "n1"                              pods on npbr0
192.0.2.2/24 ── c0 ═══ n0 ── 192.0.2.1/24    10.244.1.1/24 ─┬─ a  10.244.1.11   fd01::11
2001:db8::2/64              2001:db8::1/64    fd01::1/64    ├─ b  10.244.1.12   fd01::12
                                                            └─ c  10.244.1.13   fd01::13
services: 10.96.0.0/16, fd96::/112; each pod answers on 8080 with its name and whom it saw
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from netplane.kernel import netns
from netplane.kernel.nftables import NftDriver
from netplane.model.base import Object
from netplane.model.facts import Chain, Element, Fact, Plan, Set
from netplane.model.snapshot import Snapshot
from netplane.services import ServicesRoom
from tests.services_kit import diff

VIP = {4: "10.96.0.1", 6: "fd96::1"}
NODE = {4: "192.0.2.1", 6: "2001:db8::1"}
CLIENT = {4: "192.0.2.2", 6: "2001:db8::2"}
PODS = {"a": 11, "b": 12, "c": 13}
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def pod_ip(name: str, family: int) -> str:
    return {4: "10.244.1.{}", 6: "fd01::{}"}[family].format(PODS[name])


class Answering(threading.Thread):
    """Answers TCP and UDP on port 8080 of a pod: its name, and the address that it saw."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(daemon=True)
        self.pod = name
        self.tcp, self.udp = netns.call(path, self._sockets)
        self.stopped = threading.Event()
        self.start()

    def _sockets(self) -> tuple[socket.socket, socket.socket]:
        tcp = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
        udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        udp.bind(("::", 8080))
        return tcp, udp

    def run(self) -> None:
        kept: list[socket.socket] = []
        while not self.stopped.is_set():
            for ready in select.select([self.tcp, self.udp, *kept], [], [], 0.2)[0]:
                if ready is self.tcp:
                    conn, peer = self.tcp.accept()
                    conn.sendall(self.answer(peer))
                    kept.append(conn)
                elif ready is self.udp:
                    _, peer = self.udp.recvfrom(64)
                    self.udp.sendto(self.answer(peer), peer)
                elif data := ready.recv(64):
                    ready.sendall(data)
                else:
                    kept.remove(ready)
                    ready.close()
        for sock in (self.tcp, self.udp, *kept):
            sock.close()

    def answer(self, peer: tuple[str, int]) -> bytes:
        return f"{self.pod} {peer[0].removeprefix('::ffff:')}".encode()


class Node:
    """The node's nftables, held to what the objects mean, as the agent does."""

    def __init__(self, path: str, node_ips: tuple[str, ...]) -> None:
        self.path = path
        self.room = ServicesRoom(
            "n1", node_ips, ("10.244.0.0/16", "fd01::/48"), ("10.96.0.0/16", "fd96::/112")
        )
        self.start()

    def start(self) -> None:
        self.driver = netns.call(self.path, NftDriver)

    def wanted(self, *objects: Object) -> list[Fact]:
        snapshot = Snapshot.of(objects)
        return [f for s in self.room.scopes(None, snapshot) for f in self.room.render(s, snapshot)]

    def sync(self, *objects: Object) -> Plan:
        facts = [f for f in self.wanted(*objects) if isinstance(f, (Chain, Set, Element))]
        plan = diff(self.driver.observe(), facts)
        self.driver.apply(plan)
        return plan


class Net:
    def __init__(self, make: Callable[[str], str]) -> None:
        self.ns = {name: make(name) for name in ("client", "node", *PODS)}
        node, client = self.ns["node"], self.ns["client"]
        self.ip(node, "link add n0 type veth peer name c0 netns CLIENT", "link add npbr0 type bridge")
        # the node asks for neighbours from npbr0's link-local address, which must not wait for DAD
        netns.run(node, "sysctl", "-qw", "net.ipv6.conf.npbr0.accept_dad=0")
        self.ip(client, *self.addresses("c0", (f"{CLIENT[4]}/24", f"{CLIENT[6]}/64")))
        self.ip(client, f"route add default via {NODE[4]}", f"route add default via {NODE[6]}")
        self.ip(node, *self.addresses("n0", (f"{NODE[4]}/24", f"{NODE[6]}/64")))
        self.ip(node, *self.addresses("npbr0", ("10.244.1.1/24", "fd01::1/64")))
        self.ip(node, f"route add default via {CLIENT[4]}", f"route add default via {CLIENT[6]}")
        netns.run(node, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for name in PODS:
            self.pod(name)
        self.node = Node(node, (NODE[4], NODE[6]))
        self.servers = [Answering(self.ns[name], name) for name in PODS]

    def pod(self, name: str) -> None:
        self.ip(self.ns["node"], f"link add v{name} type veth peer name eth0 netns {name}")
        self.ip(self.ns["node"], f"link set v{name} master npbr0 up")
        self.ip(self.ns["node"], f"link set v{name} type bridge_slave hairpin on")
        inside = (f"{pod_ip(name, 4)}/24", f"{pod_ip(name, 6)}/64")
        self.ip(self.ns[name], *self.addresses("eth0", inside))
        self.ip(self.ns[name], "route add default via 10.244.1.1", "route add default via fd01::1")

    def ip(self, path: str, *lines: str) -> None:
        for line in lines:
            words = line.split()
            if "netns" in words:
                words[-1] = self.ns[words[-1].lower()]
            netns.run(path, "ip", *words)

    @staticmethod
    def addresses(link: str, addresses: tuple[str, str]) -> Iterator[str]:
        yield f"link set {link} up"
        yield f"addr add {addresses[0]} dev {link}"
        yield f"addr add {addresses[1]} dev {link} nodad"

    def tcp(self, who: str, address: str, port: int = 80, timeout: float = 3.0) -> str:
        """Connect, return "<pod> <address it saw>"."""
        with self.connect(who, address, port, timeout) as sock:
            return sock.recv(64).decode()

    def connect(self, who: str, address: str, port: int = 80, timeout: float = 3.0) -> socket.socket:
        return netns.call(self.ns[who], socket.create_connection, (address, port), timeout)

    def udp(self, who: str, address: str, port: int = 80) -> str:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with netns.call(self.ns[who], socket.socket, family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.connect((address, port))
            sock.send(b"?")
            return sock.recv(64).decode()

    def warm(self) -> None:
        """Until every pod answers the node directly (neighbours, multicast snooping)."""
        deadline = time.monotonic() + 10
        for name in PODS:
            for family in (4, 6):
                while True:
                    try:
                        self.tcp("node", pod_ip(name, family), 8080, timeout=0.5)
                        break
                    except OSError:
                        assert time.monotonic() < deadline, f"pod {name} never answered"

    def close(self) -> None:
        for server in self.servers:
            server.stopped.set()
        for server in self.servers:
            server.join()


@pytest.fixture(name="net")
def services_net(make_netns: Callable[[str], str]) -> Iterator[Net]:
    built = Net(make_netns)
    built.warm()
    yield built
    built.close()

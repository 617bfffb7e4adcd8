"""The same packets down both paths, and what comes out of each, byte for byte.

outside ── wire ──┬── node-1: npbr0 ── a, b        twice: one cluster with the fast path, one without
                  └── node-2: npbr0 ── far
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from netplane.cni.names import bridge_mac
from netplane.lab import Lab
from netplane.lab.settings import Settings

from ..datapath_world import eventually, remembered, verdicts, wait_hooked
from ..packet_cases import Case, cases, frame, ordinary, packet
from ..packet_ends import (
    Flow,
    Raw,
    answered,
    is_sum_right,
    mac_of,
    no_limit_on_errors,
    parse_ends,
    settled,
    silence,
)

pytestmark = pytest.mark.root
FAMILIES, PROTOCOLS, PORT = ("IPv4", "IPv6"), ("tcp", "udp"), 8080
PUBLISHED = """
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  clusterIPs: ["10.96.0.NUMBER", "fd00:10:96::NUMBER"]
  selector: {app: NAME}
  ports:
  - {name: tcp, port: 80, targetPort: 8080, nodePort: 300NUMBER}
  - {name: udp, protocol: UDP, port: 80, targetPort: 8080, nodePort: 300NUMBER}
"""
# who sends, who receives, and to which address and port
WAYS = {
    "same node": ("a", "b", "b", PORT),
    "other node": ("a", "far", "far", PORT),
    "service, same node": ("a", "b", "VIP 11", 80),
    "service, other node": ("a", "far", "VIP 12", 80),
    "outside": ("a", "outside", "outside", PORT),
    "node port": ("outside", "far", "node-1", 30012),
}


@pytest.fixture(scope="module")
def both(make_module_lab: Any) -> tuple[Lab, Lab]:
    fast, kernel = (_lab(make_module_lab, mode) for mode in ("fast", "kernel"))
    wait_hooked(fast)
    assert [pod.ips for pod in fast.pods] == [pod.ips for pod in kernel.pods]
    return fast, kernel


def _lab(make_lab: Any, mode: str) -> Lab:
    lab: Lab = make_lab(nodes=2, dual_stack=True, settings=Settings(agent_args=("--datapath", mode)))
    for node in lab.nodes:  # one after the other: so they get the same addresses in both
        node.agent.start().wait()
    near, other = lab.nodes
    pods = [node.add_pod(n, labels={"app": n}) for node, n in ((near, "a"), (near, "b"), (other, "far"))]
    for place in (*pods, lab.outside):
        silence(place)
    for number, name in (("11", "b"), ("12", "far")):
        lab.netplane("apply", "-f", "-", input=PUBLISHED.replace("NAME", name).replace("NUMBER", number))
    for node in lab.nodes:
        node.agent.wait()
    no_limit_on_errors((*lab.nodes, *pods, lab.outside))
    return lab


class Session:
    """An established flow of one lab, both directions of it by hand."""

    def __init__(self, lab: Lab, way: str, family: str, protocol: str, port: int) -> None:
        self.lab = lab
        sender, receiver, target, dport = WAYS[way]
        self.ends = [Raw(_place(lab, name), family) for name in (sender, receiver)]
        # the tunnel's packets where they arrive: at the node that has the pod "far"
        self.wire = Raw(lab.nodes[1], "IPv4") if receiver == "far" else None
        nodes = [bytes.fromhex(mac_of(node, "eth0").replace(":", "")) for node in lab.nodes]
        labels = (b"sender", b"target", b"node-1", b"node-2")
        self.names = dict(zip((*(end.mac for end in self.ends), *nodes), labels, strict=True))
        source = _address(lab, sender, family)
        hops = [_hop(lab, name) for name in (sender, receiver)]
        away = Flow(*self.ends, hops[0], source, _address(lab, target, family), port, dport, protocol)
        seen = self._first(away)
        came_from, reached, chosen, offered = parse_ends(seen)
        self.port, self.masked = chosen, chosen != port
        self.drawn = {chosen: port}
        back = Flow(*self.ends[::-1], hops[1], reached, came_from, offered, chosen, protocol, self.masked)
        self.flows = (away, back)
        self._answer()

    def _first(self, away: Flow) -> bytes:
        extra = {"flags": "S", "seq": 1000} if away.protocol == "tcp" else {}
        away.sender.send(frame(away, packet(away, b"", **extra)))
        away.extra = {"seq": 1001, "ack": 5001} if away.protocol == "tcp" else {}

        def arrived() -> bytes | None:
            ports = [
                one
                for one in away.receiver.drain()
                if _plain(one, away.protocol) and parse_ends(one)[3] == PORT
            ]
            return ports[0] if ports else None

        found: bytes = eventually(arrived, what="the flow's first packet")
        return found

    def _answer(self) -> None:
        away, back = self.flows
        if away.protocol == "tcp":
            back.sender.send(frame(back, packet(back, b"", flags="SA", seq=5000, ack=1001)))
            back.extra = {"seq": 5001, "ack": 1001}
            eventually(back.receiver.drain, what="the answer")
        self.warm()

    def warm(self) -> None:
        for number in range(6):
            for flow in self.flows[:: -1 if self.flows[0].protocol == "udp" else 1]:
                mark = b"warm-%06d" % number
                flow.sender.send(ordinary(flow, mark + b"." * 1200))
                flow.receiver.gather(mark)

    def pass_on(self, flow: Flow, case: Case, mark: bytes) -> tuple[list[bytes], list[bytes], list[bytes]]:
        """What arrives, what comes back to the sender, and what went around it in the tunnel."""
        for place in (*self.ends, self.wire):
            if place is not None:
                place.drain()
        for data in case.frames:
            flow.sender.send(data, case.offload)
        flow.sender.send(ordinary(flow, mark))
        drawn = self.flows[0].sport if self.masked and flow is self.flows[0] else None
        arrived = [settled(one, flow.receiver.mac, drawn) for one in flow.receiver.gather(mark)]
        back = [answered(one, flow.sender.mac, self.drawn) for one in flow.sender.drain()]
        outer = [_outer(one) for one in self.wire.drain() if one[36:38] == b"\x21\x18"] if self.wire else []
        return self._named(arrived), self._named(back), outer

    def _named(self, frames: list[bytes]) -> list[bytes]:
        """By names for MACs that differ between labs; the order is that of the bytes."""
        return sorted(one[:6] + self.names.get(one[6:12], one[6:12]) + one[12:] for one in frames)

    def close(self) -> None:
        for end in (*self.ends, self.wire):
            if end is not None:
                end.close()


def _place(lab: Lab, name: str) -> Any:
    return lab.place(name) if name in ("outside", "node-1") else lab.place(f"default/{name}")


def _address(lab: Lab, name: str, family: str) -> str:
    if name.startswith("VIP"):
        return {"IPv4": "10.96.0.", "IPv6": "fd00:10:96::"}[family] + name[4:]
    if name in ("outside", "node-1"):
        several = lab.plan.outside if name == "outside" else lab.nodes[0].addresses
        return next(ip for ip in several if (":" in ip) == (family == "IPv6"))
    found: str = _place(lab, name).ip_of(family)
    return found


def _hop(lab: Lab, name: str) -> bytes:
    mac = mac_of(lab.nodes[0], "eth0") if name == "outside" else bridge_mac(_place(lab, name).node.name)
    return bytes.fromhex(mac.replace(":", ""))


def _plain(one: bytes, protocol: str) -> bool:
    return (one[23] if one[12:14] == b"\x08\x00" else one[20]) == {"tcp": 6, "udp": 17}[protocol]


def _outer(one: bytes) -> bytes:
    """The outer header without what the kernel draws: identification, port, and the sums of both."""
    return one[14:18] + one[20:24] + one[26:34] + one[36:40] + one[42:50]


class Difference(NamedTuple):
    case: str
    what: str
    fast: list[str]
    kernel: list[str]


def compare(sessions: list[Session], direction: int) -> list[Difference]:
    """A packet whose checksum is wrong may come out twice over: the kernel does not translate it, the
    fast path does, and leaves it as wrong as it was. No receiver takes either."""
    found = []
    flows = [session.flows[direction] for session in sessions]
    for number, pair in enumerate(zip(*(cases(flow) for flow in flows), strict=True)):
        mark = b"mark-%06d" % number
        fast, kernel = (s.pass_on(f, case, mark) for s, f, case in zip(sessions, flows, pair, strict=True))
        for what, one, other in zip(("arrives", "comes back", "outer"), fast, kernel, strict=True):
            if one != other and any(map(is_sum_right, (*one, *other))):
                found.append(Difference(pair[0].name, what, [x.hex() for x in one], [x.hex() for x in other]))
    return found


@contextlib.contextmanager
def routed(both: tuple[Lab, Lab]) -> Iterator[None]:
    """Without br_netfilter, which makes a switched frame of what a service sends back to the same bridge."""
    names = [f"net.bridge.bridge-nf-call-{name}" for name in ("iptables", "ip6tables")]
    nodes = [lab.nodes[0] for lab in both]
    for node in nodes:
        node.run("sysctl", "-eqw", *(f"{name}=0" for name in names))
    try:
        yield
    finally:
        for node in nodes:
            node.run("sysctl", "-eqw", *(f"{name}=1" for name in names))


def _cases() -> Iterator[Any]:
    """All; on ordinary days UDP on three of the ways: what is not of TCP in it is the same on all."""
    daily = {("other node", "IPv6"), ("service, other node", "IPv4"), ("outside", "IPv4")}
    for way, family, protocol in itertools.product(WAYS, FAMILIES, PROTOCOLS):
        every_day = protocol == "tcp" or (way, family) in daily
        name = f"{way}-{family}-{protocol}"
        yield pytest.param(way, family, protocol, id=name, marks=() if every_day else pytest.mark.slow)


@pytest.mark.parametrize(("way", "family", "protocol"), list(_cases()))
def test_the_same_comes_out_of_both(both: tuple[Lab, Lab], way: str, family: str, protocol: str) -> None:
    with routed(both) if way == "service, same node" else contextlib.nullcontext():
        compared(both, way, family, protocol)


def compared(both: tuple[Lab, Lab], way: str, family: str, protocol: str) -> None:
    port = 41000 + 100 * list(WAYS).index(way) + 10 * FAMILIES.index(family) + PROTOCOLS.index(protocol)
    for direction in (1, 0):
        sessions = [Session(lab, way, family, protocol, port + 2 * direction) for lab in both]
        node, before = both[0].nodes[0], verdicts(both[0].nodes[0])["fast"]
        try:
            assert [one for one in remembered(node, sessions[0].port) if one["current"]]
            assert compare(sessions, direction) == []
            assert verdicts(node)["fast"] > before + 20
        finally:
            for session in sessions:
                session.close()

"""Bandwidth, spoof protection, isolation, sysctls, routes and kinds of interfaces on the real agent.

outside (ns) ── wire ── node-1 (ns) ── npbr0, br-own, or none ── pods a, b (ns)
192.168.77.1            192.168.77.11                            10.244.0.x, or 10.88.0.x
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from netplane.kernel import netns
from netplane.lab import Lab
from netplane.lab.runner import until
from tests.cnirun import OWN, Cni, plain

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
MakeLab = Callable[..., Lab]
MBIT = 1_000_000
BRIDGED = {"ipam": OWN, "isDefaultGateway": True, "bridge": "br-own"}


@pytest.fixture(scope="module")
def lab(make_module_lab: MakeLab) -> Lab:
    lab = make_module_lab(nodes=1)
    lab.start_agents()
    return lab


def pings(at: str, to: str) -> bool:
    return " 1 received" in netns.run(at, "ping", "-c", "1", "-w", "2", to, check=False)


def reached(at: str, *targets: str) -> list[str]:
    """Which of them answer; all are asked at once, for a second: silence is waited for once."""
    words = [["ping", "-c", "1", "-w", "1", to] for to in targets]
    asked = [netns.popen(at, argv, stdout=subprocess.PIPE, text=True) for argv in words]
    said = [process.communicate(timeout=10)[0] for process in asked]
    return [to for to, text in zip(targets, said, strict=True) if " 1 received" in text]


# --- bandwidth -----------------------------------------------------------------------------------


def rate(sender: str, receiver: str, to: str) -> float:
    """Mbit/s that 0.7 s of TCP carry; what the bucket's burst lets through at first is not counted."""
    server = netns.call(receiver, lambda: socket.create_server((to, 0)))
    with server, netns.call(sender, socket.create_connection, server.getsockname()) as client:
        taker, _ = server.accept()
        client.settimeout(0.05)
        taker.setblocking(False)
        begin, counted, data = time.monotonic(), 0, b"x" * 16384
        while (now := time.monotonic()) < begin + 1:
            with suppress(OSError):
                client.send(data)
            with suppress(BlockingIOError):
                got = len(taker.recv(1 << 20))
                counted += got if now > begin + 0.3 else 0
        taker.close()
        return counted * 8 / 0.7 / MBIT


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_bandwidth_holds_and_goes(lab: Lab, make_netns: MakeNetns, way: str) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    limit = {f"{way}Rate": 20 * MBIT, f"{way}Burst": 100_000}
    mine = plain(cni.add(a, {"runtimeConfig": {"bandwidth": limit}}))
    other = plain(cni.add(b))
    ways = {"ingress": (b, a, mine[0]), "egress": (a, b, other[0])}
    assert 10 < rate(*ways.pop(way)) < 24
    assert rate(*ways.popitem()[1]) > 60
    cni.delete(a)
    cni.delete(b)
    assert "tbf" not in lab.nodes[0].run("tc", "qdisc")


def test_a_pod_that_removes_its_bucket_is_limited_all_the_same(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    limit = {"egressRate": 20 * MBIT, "egressBurst": 100_000}
    cni.add(a, {"runtimeConfig": {"bandwidth": limit}})
    other = plain(cni.add(b))
    netns.run(a, "tc", "qdisc", "del", "dev", "eth0", "root")
    assert rate(a, b, other[0]) < 26
    cni.delete(a)
    cni.delete(b)


# --- spoofing and isolation ----------------------------------------------------------------------


def frame(at: str, dst: str, src: str, kind: int, payload: bytes) -> None:
    """Send one frame as it is."""
    packed = bytes.fromhex(dst.replace(":", "")) + bytes.fromhex(src.replace(":", ""))
    raw = packed + struct.pack(">H", kind) + payload

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("eth0", 0))
            sock.send(raw)

    netns.call(at, send)


class Ears:
    """What comes to a pod's eth0, and what it sends."""

    def __init__(self, at: str) -> None:
        self.sock = netns.call(at, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.sock.bind(("eth0", 3))
        self._frames: list[bytes] = []

    def hear(self, words: bytes, seconds: float = 2) -> bool:
        """Whether a frame with these bytes was among it, or comes in time."""
        deadline = time.monotonic() + seconds
        while not any(words in one for one in self._frames):
            self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                self._frames.append(self.sock.recv(2000))
            except TimeoutError:
                return False
        return True


@contextmanager
def heard(at: str) -> Iterator[Ears]:
    ears = Ears(at)
    with ears.sock:
        yield ears


def ipv4(src: str, dst: str, payload: bytes) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 28 + len(payload), 1, 0, 64, 17, 0)
    head += socket.inet_aton(src) + socket.inet_aton(dst)
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return (
        head[:10]
        + struct.pack(">H", total)
        + head[12:]
        + struct.pack(">HHHH", 9, 9, 8 + len(payload), 0)
        + payload
    )


def ipv6(src: str, dst: str, payload: bytes) -> bytes:
    addresses = socket.inet_pton(socket.AF_INET6, src) + socket.inet_pton(socket.AF_INET6, dst)
    return struct.pack(">IHBB", 6 << 28, len(payload), 59, 64) + addresses + payload


def arp(mac: str, src: str, dst: str) -> bytes:
    sender = bytes.fromhex(mac.replace(":", "")) + socket.inet_aton(src)
    return struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + sender + b"\0" * 6 + socket.inet_aton(dst) + b"MARK"


@pytest.mark.parametrize("protected", [True, False])
def test_a_pod_speaks_for_itself_alone(lab: Lab, make_netns: MakeNetns, protected: bool) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    result = cni.add(a, {**BRIDGED, "macspoofchk": protected})
    other = cni.add(b, BRIDGED)
    mac, hers = result["interfaces"][2]["mac"], other["interfaces"][2]["mac"]
    mine, to = plain(result), plain(other)
    assert pings(a, to[0]) and pings(a, to[1]) and pings(a, "10.88.0.1")
    false = "02:00:00:00:66:66"
    with heard(b) as ears:
        for kind, words in (
            (0x0800, ipv4(mine[0], to[0], b"TRUE4")),
            (0x86DD, ipv6(mine[1], to[1], b"TRUE6")),
        ):
            frame(a, hers, mac, kind, words)
            assert ears.hear(words[-5:])
        lies = [
            (mac, 0x0800, ipv4("10.88.0.77", to[0], b"LIE04")),
            (mac, 0x86DD, ipv6("fd00:88::77", to[1], b"LIE06")),
            (false, 0x0800, ipv4(mine[0], to[0], b"LIE4M")),
            (false, 0x88B5, b"LIEMC"),
            (mac, 0x0806, arp(mac, "10.88.0.1", to[0])),
            (mac, 0x0806, arp(false, mine[0], to[0])),
        ]
        for source, kind, payload in lies:
            frame(a, hers, source, kind, payload)
        frame(a, hers, mac, 0x0800, ipv4(mine[0], to[0], b"AFTER"))
        assert ears.hear(b"AFTER")
        came = [lie for lie in lies if ears.hear(lie[2][-24:], 0.02)]
        assert came == ([] if protected else lies)
    cni.delete(a, BRIDGED)
    cni.delete(b, BRIDGED)


@pytest.mark.parametrize("network", [{}, BRIDGED], ids=["node", "own"])
def test_isolated_pods_reach_the_world_and_not_each_other(
    lab: Lab, make_netns: MakeNetns, network: dict[str, Any]
) -> None:
    cni, a, b, c = Cni(lab), make_netns("a"), make_netns("b"), make_netns("c")
    alone = {**network, "portIsolation": True, "ipMasq": True}
    cni.add(a, alone)
    second = plain(cni.add(b, alone))
    third = plain(cni.add(c, network))
    assert not reached(a, *second)
    for to in (*third, "192.168.77.1"):
        assert pings(a, to)
    if network:  # not by the gateway either
        netns.run(a, "ip", "route", "add", f"{second[0]}/32", "via", "10.88.0.1")
        assert not reached(a, second[0])
    for pod in (a, b, c):
        cni.delete(pod, network)


# --- tuning, routes, several addresses -------------------------------------------------------------


def test_sysctls_are_set_in_the_pod_and_only_there(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a = Cni(lab), make_netns("a")
    cni.add(a, {"sysctl": {"net.core.somaxconn": "777", "net/ipv4/conf/IFNAME/arp_filter": "1"}})
    assert netns.run(a, "sysctl", "-n", "net.core.somaxconn", "net.ipv4.conf.eth0.arp_filter").split() == [
        "777",
        "1",
    ]
    assert lab.nodes[0].run("sysctl", "-n", "net.core.somaxconn").strip() != "777"
    cni.delete(a)
    for name in ("kernel.msgmax", "net/core/netdev_max_backlog", "net/../kernel/msgmax"):
        answer = cni.call("ADD", a, {"sysctl": {name: "1"}})
        assert answer["code"] == 7 and name in answer["msg"]


def test_routes_keep_their_properties(lab: Lab, make_netns: MakeNetns) -> None:
    routes = [
        {"dst": "10.1.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 50},
        {"dst": "fd00:1::/32", "mtu": 1300},
        {"dst": "10.2.0.0/16", "gw": "10.88.0.9", "table": 77},
        {"dst": "10.3.0.0/16", "scope": 253},
    ]
    cni, a = Cni(lab), make_netns("a")
    network = {**BRIDGED, "ipam": {**OWN, "routes": routes}}
    result = cni.add(a, network)
    assert [r for r in result["routes"] if r["dst"] not in ("0.0.0.0/0", "::/0")] == routes
    shown = netns.run(a, "ip", "route", "show", "table", "all")
    assert "10.1.0.0/16 via 10.88.0.1 dev eth0 proto 78 metric 50 mtu 1300 advmss 1200" in shown
    assert "10.2.0.0/16 via 10.88.0.9 dev eth0 table 77" in shown
    assert "10.3.0.0/16 dev eth0 proto 78 scope link" in shown
    assert "fd00:1::/32 via fd00:88::1 dev eth0 proto 78 metric 1024 mtu 1300" in netns.run(
        a, "ip", "-6", "route"
    )
    cni.delete(a, network)
    old = cni.add(a, {**network, "cniVersion": "1.0.0"})
    assert {"dst": "10.1.0.0/16"} in old["routes"]
    cni.delete(a, network)


def test_several_addresses_from_several_ranges(lab: Lab, make_netns: MakeNetns) -> None:
    ranges = [
        [{"subnet": "10.90.0.0/30"}, {"subnet": "10.91.0.0/24", "rangeStart": "10.91.0.100"}],
        [{"subnet": "10.92.0.0/24", "gateway": "10.92.0.254"}],
    ]
    network = {"ipam": {"ranges": ranges}, "bridge": "br-many", "isGateway": True}
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    assert [ip["address"] for ip in cni.add(a, network)["ips"]] == ["10.90.0.2/30", "10.92.0.1/24"]
    asked = {**network, "runtimeConfig": {"ips": ["10.92.0.50"]}}
    assert [ip["address"] for ip in cni.add(b, asked)["ips"]] == ["10.91.0.100/24", "10.92.0.50/24"]
    assert pings(a, "10.92.0.50") and pings(a, "10.92.0.254")
    for pod in (a, b):
        cni.delete(pod, network)
    prepended = {**network, "runtimeConfig": {"ipRanges": [[{"subnet": "10.93.0.0/24"}]]}}
    assert plain(cni.add(a, prepended))[0] == "10.93.0.2"
    cni.delete(a, prepended)


def test_an_address_asked_for_and_held_names_its_holder_and_an_empty_range_is_50(
    lab: Lab, make_netns: MakeNetns
) -> None:
    network = {"ipam": {"ranges": [[{"subnet": "10.94.0.0/30"}]]}, "bridge": "br-small", "name": "small"}
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    assert cni.call("STATUS", "", network) == ""
    cni.add(a, network)
    answer = cni.call("ADD", b, {**network, "runtimeConfig": {"ips": ["10.94.0.2"]}})
    assert answer["code"] == 11 and "10.94.0.2 is held by pod default/ns-a" in answer["msg"]
    status = cni.call("STATUS", "", network)
    assert status["code"] == 50 and "1 of 1 addresses in use" in status["msg"]
    cni.delete(a, network)
    assert cni.call("STATUS", "", network) == ""


def test_status_tells_what_limits_the_pods_that_run(lab: Lab, make_netns: MakeNetns) -> None:
    """51, not 50: somebody's link has the bridge's name, and the pods that are there reach nobody either."""
    cni, a, node = Cni(lab), make_netns("a"), lab.nodes[0]
    cni.add(a)
    assert cni.call("STATUS", "") == ""
    taken = "ip link add npbr0 type veth peer name x0"  # the agent may be there first with its own
    node.run("sh", "-c", f"until {taken} 2>/dev/null; do ip link del npbr0; done")
    status = cni.call("STATUS", "")
    assert status["code"] == 51 and "npbr0" in status["msg"], status
    assert not reached(a, "192.168.77.1")
    assert cni.call("STATUS", "", {**BRIDGED, "name": "other"}) == ""  # has a bridge of its own
    node.run("ip", "link", "del", "npbr0")
    until(lambda: cni.call("STATUS", "") == "", "the bridge", 20)
    assert pings(a, "192.168.77.1")
    cni.delete(a)


@pytest.mark.parametrize(
    ("breakage", "mend", "words"),
    [
        ("sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1", "net/ipv4/ip_forward is 0"),
        ("nft flush chain inet netplane cni-masquerade", "true", "cni-masquerade"),
        ("ip addr del 10.244.0.1/24 dev npbr0", "true", "10.244.0.1/24"),
        ("ip link set npbr0 down", "true", "npbr0"),
    ],
    ids=["forwarding", "masquerade", "the gateway's address", "the bridge is down"],
)  # fmt: skip
def test_status_51_names_each_part_of_the_base(lab: Lab, breakage: str, mend: str, words: str) -> None:
    cni, node = Cni(lab), lab.nodes[0]
    status: Any = ""
    for _ in range(20):  # the agent mends what it notices: now and then before it is asked
        node.run("sh", "-c", breakage, check=False)
        status = cni.call("STATUS", "")
        if status:
            break
    assert status and status["code"] == 51 and words in status["msg"], status
    node.run("sh", "-c", mend)
    until(lambda: cni.call("STATUS", "") == "", "the base", 20)


# --- kinds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [{}, {"ipam": OWN, "ipMasq": True}], ids=["node", "own"])
def test_ptp_is_routed_without_a_bridge(lab: Lab, make_netns: MakeNetns, network: dict[str, Any]) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    if network:
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        network = {**network, "ipam": {**OWN, "routes": routes}}
    network = {**network, "kind": "ptp"}
    result = cni.add(a, network)
    assert [i.get("sandbox", "") for i in result["interfaces"]] == ["", a]
    assert [ip["interface"] for ip in result["ips"]] == [1, 1]
    assert all(ip["address"].endswith(("/32", "/128")) for ip in result["ips"])
    assert " master npbr0 " not in lab.nodes[0].run("ip", "link", "show", result["interfaces"][0]["name"])
    for to in (*plain(cni.add(b, network)), "192.168.77.1", "fd00:77::1"):
        assert pings(a, to)
    assert cni.call("CHECK", a, {**network, "prevResult": result}) == ""
    for pod in (a, b):
        cni.delete(pod, network)


def test_ptp_reaches_its_subnet_without_a_default_route(lab: Lab, make_netns: MakeNetns) -> None:
    """As the ptp plugin has it: what the network is needs no ``routes``, what is beyond does."""
    cni, a, b, network = Cni(lab), make_netns("a"), make_netns("b"), {"kind": "ptp", "ipam": OWN}
    result = cni.add(a, network)
    assert result["routes"] == []
    beside = plain(cni.add(b, network))
    assert reached(a, *beside, "192.168.77.1") == beside
    assert cni.call("CHECK", a, {**network, "prevResult": result}) == ""
    for pod in (a, b):
        cni.delete(pod, network)


OUT = {"ipam": {**OWN, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}, "ipMasq": True}
OTHER = {"type": "netplane", "ranges": [[{"subnet": "10.87.0.0/24"}], [{"subnet": "fd00:87::/64"}]]}


@pytest.mark.parametrize(
    "second",
    [{}, {"kind": "ptp"}, {"ipam": OTHER, "bridge": "br-2", "isDefaultGateway": True, "ipMasq": True}],
    ids=["node", "ptp", "own"],
)
@pytest.mark.parametrize(
    "first",
    [{}, {**OUT, "bridge": "br-1", "isGateway": True}, {**OUT, "kind": "ptp"}],
    ids=["node", "own", "ptp"],
)
def test_a_pod_of_two_networks_keeps_its_first_way_out(
    lab: Lab, make_netns: MakeNetns, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """`podman run --network a,b`: each has a default route. The second's counts once the first is gone."""
    cni, a, outside = Cni(lab), make_netns("a"), ["192.168.77.1", "fd00:77::1"]
    second = {**second, "name": "second"}
    results = [cni.add(a, first), cni.add(a, second, IFNAME="eth1")]
    for version in ("-4", "-6"):
        assert " dev eth0 " in netns.run(a, "ip", version, "route", "get", outside[version == "-6"])
    assert {route["priority"] for route in results[1]["routes"]} == {1, 1025}
    assert reached(a, *outside) == outside
    for network, result, ifname in zip((first, second), results, ("eth0", "eth1"), strict=True):
        assert cni.call("CHECK", a, {**network, "prevResult": result}, IFNAME=ifname) == ""
    cni.delete(a, first)
    assert reached(a, *outside) == outside
    cni.delete(a, second, IFNAME="eth1")


def test_macvlan_is_on_the_masters_segment(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a, mac = Cni(lab), make_netns("a"), "02:00:00:00:00:77"
    network = {
        "kind": "macvlan",
        "master": "eth0",
        "mode": "bridge",
        "mtu": 1400,
        "ipam": {"ranges": [[{"subnet": "192.168.77.0/24", "rangeStart": "192.168.77.200"}]]},
        "runtimeConfig": {"mac": mac},
    }
    result = cni.add(a, network)
    (interface,) = result["interfaces"]
    assert (interface["mac"], interface["mtu"], interface["sandbox"]) == (mac, 1400, a)
    assert pings(a, "192.168.77.1")
    assert cni.call("CHECK", a, {**network, "prevResult": result}) == ""
    cni.delete(a, network)
    assert "eth0" not in netns.run(a, "ip", "link")
    default = {
        **network,
        "master": "",
        "ipam": {},
        "runtimeConfig": {},
    }  # the default route's link, no address
    bare = cni.add(a, default)
    assert bare["ips"] == [] and "macvlan" in netns.run(a, "ip", "-d", "link", "show", "eth0")
    cni.delete(a, default)
    answer = cni.call("ADD", a, {**network, "master": "nolink"})
    assert answer["code"] == 7 and "no link nolink" in answer["msg"]


@pytest.mark.parametrize("kind", ["bridge", "ptp", "macvlan"])
def test_a_small_mtu_is_for_ipv4_alone(lab: Lab, make_netns: MakeNetns, kind: str) -> None:
    cni, a = Cni(lab), make_netns("a")
    four, six = [{"subnet": "10.89.0.0/24"}], [{"subnet": "fd00:89::/64"}]
    own = {"bridge": {"bridge": "br-mtu", "isGateway": True}, "macvlan": {"master": "eth0"}}.get(kind, {})
    network = {"kind": kind, "mtu": 576, "ipam": {"ranges": [four]}, **own}
    assert cni.add(a, network)["interfaces"][-1]["mtu"] == 576
    assert "mtu 576" in netns.run(a, "ip", "link", "show", "eth0")
    assert kind == "macvlan" or pings(a, "10.89.0.1")
    cni.delete(a, network)
    answer = cni.call("ADD", a, {**network, "ipam": {"ranges": [four, six]}})
    assert answer["code"] == 7 and "mtu: 576: fd00:89::" in answer["msg"]
    assert not records(lab) and "eth0" not in netns.run(a, "ip", "link")


def test_promiscuous_and_hairpin_exclude_each_other(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a = Cni(lab), make_netns("a")
    answer = cni.call("ADD", a, {**BRIDGED, "promiscMode": True, "hairpinMode": True})
    assert answer["code"] == 7 and "promiscMode, hairpinMode" in answer["msg"]
    cni.add(a, {**BRIDGED, "promiscMode": True})
    assert "PROMISC" in lab.nodes[0].run("ip", "link", "show", "br-own")
    assert "hairpin off" in lab.nodes[0].run("ip", "-d", "link", "show", "master", "br-own")
    cni.delete(a, BRIDGED)
    answer = cni.call("ADD", a, {"promiscMode": True})
    assert answer["code"] == 7 and "npbr0" in answer["msg"]


def test_aliases_are_in_the_record(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a = Cni(lab), make_netns("a")
    cni.add(a, {"runtimeConfig": {"aliases": {"net": ["web", "www"]}, "cgroupPath": "/pods/x"}})
    (record,) = [r for r in records(lab) if r["spec"]["netns"] == a]
    assert record["spec"]["aliases"] == ["web", "www"]
    cni.delete(a)


def records(lab: Lab) -> list[dict[str, Any]]:
    text = lab.netplane("get", "Attachment", "-o", "json")
    doc = json.loads(text) if text.strip() else {}
    found: list[dict[str, Any]] = doc.get("items", [doc] if doc else [])
    return found

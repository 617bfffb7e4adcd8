"""The bridge of a network of its own: one that somebody else made, and whose address it has.

node-1 (ns) ── br-their (made by hand, with a port of its own) ── pods a, b (ns)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from netplane.kernel import netns
from netplane.lab import Lab
from netplane.lab.node import Node
from tests.cnirun import OWN, Cni, plain
from tests.netns.test_cni_chain import EVERYTHING, difference, host_state
from tests.netns.test_cni_features import pings, records
from tests.netns.test_cni_ports import mapped, port, seen, serving

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
MakeLab = Callable[..., Lab]
THEIRS = {"ipam": OWN, "isDefaultGateway": True, "bridge": "br-their"}


@pytest.fixture(scope="module")
def lab(make_module_lab: MakeLab) -> Lab:
    lab = make_module_lab(nodes=1)
    lab.start_agents()
    lab.nodes[0].add_pod("first").delete()
    return lab


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    """With a bridge of somebody else's, which has a port, an address and settings."""
    node = lab.nodes[0]
    node.run(
        "sh", "-ec",
        "ip link add br-their address 02:00:00:00:77:77 type bridge ageing_time 12300\n"
        "ip link add port0 type veth peer name port1 && ip link set port0 master br-their\n"
        "ip addr add fd00:77:7::1/64 dev br-their nodad\n"
        "for i in br-their port0 port1; do ip link set $i up; done",
    )  # fmt: skip
    yield node
    node.run("ip", "link", "del", "br-their")
    node.run("ip", "link", "del", "port0")


def on_bridge(node: Node, name: str) -> list[str]:
    words = node.run("ip", "-o", "addr", "show", "dev", name, "scope", "global").split()
    return sorted(after for before, after in itertools.pairwise(words) if before.startswith("inet"))


# --- a bridge that was there before ---------------------------------------------------------------------


def test_a_bridge_of_somebody_else_is_used_and_left_as_it_was(
    lab: Lab, node: Node, make_netns: MakeNetns
) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    before = host_state(lab)
    result = cni.add(a, {**THEIRS, **EVERYTHING, "portIsolation": False})
    assert result["interfaces"][0] == {"name": "br-their", "mac": "02:00:00:00:77:77"}
    other = cni.add(b, THEIRS)
    for to in (*plain(other), "10.88.0.1", "fd00:88::1"):
        assert pings(a, to)
    with serving(a, 80):
        assert seen(str(lab.outside.netns), "192.168.77.11", 8100)
        assert seen(str(node.netns), "127.0.0.1", 8100)
    during = node.run("ip", "-d", "link", "show", "br-their")
    assert "ageing_time 12300" in during and "alias" not in during and "02:00:00:00:77:77" in during
    assert on_bridge(node, "br-their") == ["10.88.0.1/24", "fd00:77:7::1/64", "fd00:88::1/64"]
    checked = {**THEIRS, **EVERYTHING, "portIsolation": False, "prevResult": result}
    assert cni.call("CHECK", a, checked) == ""
    cni.delete(a, THEIRS)
    assert pings(b, "10.88.0.1") and pings(b, "fd00:88::1")
    cni.delete(b, THEIRS)
    assert difference(before, lab) == {}
    assert node.run("sysctl", "-n", "net.ipv4.conf.br-their.route_localnet").strip() == "0"


def test_what_is_on_it_already_stays(lab: Lab, node: Node, make_netns: MakeNetns) -> None:
    """The gateway's address and an open route_localnet were somebody's before, and are afterwards."""
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    node.run("ip", "addr", "add", "10.88.0.1/24", "dev", "br-their")
    node.run("sysctl", "-qw", "net.ipv4.conf.br-their.route_localnet=1")
    before = host_state(lab)
    for pod in (a, b):
        cni.add(pod, {**THEIRS, **mapped(port(8130 + (pod == b), 80))})
        assert pings(pod, "10.88.0.1")
    for pod in (a, b):
        cni.delete(pod, THEIRS)
    assert difference(before, lab) == {}
    assert node.run("sysctl", "-n", "net.ipv4.conf.br-their.route_localnet").strip() == "1"


def test_after_a_crash_and_a_restart_it_is_still_not_ours(
    lab: Lab, node: Node, make_netns: MakeNetns
) -> None:
    cni, a = Cni(lab), make_netns("a")
    before = host_state(lab)
    cni.add(a, THEIRS)
    node.agent.kill()
    node.agent.start()
    node.agent.wait()
    assert pings(a, "10.88.0.1")
    cni.delete(a, THEIRS)
    assert difference(before, lab) == {}


@pytest.mark.parametrize(
    ("make", "more", "code", "words"),
    [
        ("ip link add br-no up type veth peer name port2", {}, 7, "br-no is there and is no bridge (veth)"),
        ("ip link add br-no type bridge", {}, 11, "down; set it up: ip link set br-no up"),
        ("ip link add br-no up type bridge", {"promiscMode": True}, 7, "ip link set br-no promisc on"),
    ],
)
def test_what_cannot_be_used_is_refused_and_left(
    lab: Lab, node: Node, make_netns: MakeNetns, make: str, more: dict[str, Any], code: int, words: str
) -> None:
    cni, a = Cni(lab), make_netns("a")
    node.run(*make.split())
    before = host_state(lab)
    answer = cni.call("ADD", a, {**THEIRS, "bridge": "br-no", **more})
    assert (answer["code"], words in answer["msg"]) == (code, True), answer
    assert difference(before, lab) == {} and not records(lab)
    node.run("ip", "link", "del", "br-no")


def test_a_bridge_goes_with_the_last_pod_and_not_from_under_one_that_comes(
    lab: Lab, make_netns: MakeNetns
) -> None:
    cni, a, b, node = Cni(lab), make_netns("a"), make_netns("b"), lab.nodes[0]
    config = {"name": "own", "ipam": OWN, "isDefaultGateway": True, "bridge": "br-own"}
    with ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            cni.add(a, config)
            coming, going = threads.submit(cni.add, b, config), threads.submit(cni.delete, a, config)
            coming.result(), going.result()
            assert on_bridge(node, "br-own") == ["10.88.0.1/24", "fd00:88::1/64"]
            cni.add(a, config)
            list(threads.map(cni.delete, (a, b), (config, config)))
            assert "br-own" not in node.run("ip", "link")


# --- forceAddress ---------------------------------------------------------------------------------------


def ranged(name: str, subnet: str, **more: Any) -> dict[str, Any]:
    ipam = {"type": "netplane", "ranges": [[{"subnet": subnet, **more.pop("range", {})}]]}
    return {"name": name, "ipam": ipam, "bridge": "br-force", "isDefaultGateway": True, **more}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ranged("one", "10.61.0.0/24"), ranged("two", "10.62.0.0/24")),
        (
            ranged("one", "fd00:61::/64"),
            ranged("two", "fd00:61::/80", range={"gateway": "fd00:61::9", "rangeStart": "fd00:61::10"}),
        ),
        (
            ranged("one", "10.61.0.0/24"),
            ranged("two", "10.61.0.0/24", range={"gateway": "10.61.0.254", "rangeStart": "10.61.0.9"}),
        ),
    ],
    ids=["IPv4", "IPv6 of one subnet", "the same subnet"],
)
def test_another_address_on_the_bridge_is_an_error_or_replaced(
    lab: Lab, make_netns: MakeNetns, first: dict[str, Any], second: dict[str, Any]
) -> None:
    cni, a, b, node = Cni(lab), make_netns("a"), make_netns("b"), lab.nodes[0]
    old = cni.add(a, first)["ips"][0]["gateway"]
    kept = on_bridge(node, "br-force")
    answer = cni.call("ADD", b, second)
    gateway = second["ipam"]["ranges"][0][0].get("gateway", "10.62.0.1")
    assert answer["code"] == 7 and f"{old}/" in answer["msg"] and f"{gateway}/" in answer["msg"], answer
    assert on_bridge(node, "br-force") == kept and len(records(lab)) == 1
    cni.add(b, {**second, "forceAddress": True})
    (now,) = on_bridge(node, "br-force")
    assert now.startswith(f"{gateway}/")
    assert pings(b, gateway)
    node.agent.wait()
    assert on_bridge(node, "br-force") == [now]  # nobody brings the old one back
    cni.delete(a, first)
    assert pings(b, gateway)
    cni.delete(b, second)
    assert "br-force" not in node.run("ip", "link")


def test_of_two_networks_first_pods_at_once_one_has_the_bridge(lab: Lab, make_netns: MakeNetns) -> None:
    cni, node = Cni(lab), lab.nodes[0]
    pods = [make_netns(name) for name in "ab"]
    networks = [ranged("one", "10.61.0.0/24"), ranged("two", "10.62.0.0/24")]
    with ThreadPoolExecutor(2) as threads:
        for _ in range(5):
            answers = list(threads.map(cni.call, ("ADD", "ADD"), pods, networks))
            assert len(on_bridge(node, "br-force")) == 1, answers
            assert sum("ips" in answer for answer in answers) == 1
            assert all(answer["code"] in (7, 11) for answer in answers if "ips" not in answer), answers
            list(threads.map(cni.delete, pods, networks))


def test_those_who_force_it_at_once_and_those_who_leave_meanwhile(lab: Lab, make_netns: MakeNetns) -> None:
    """One of them moves the old network's pods; a pod that goes is none to move."""
    cni, old, new = Cni(lab), ranged("one", "10.61.0.0/24"), ranged("two", "10.62.0.0/24", forceAddress=True)
    before, after = [make_netns(f"a{i}") for i in range(4)], [make_netns(f"b{i}") for i in range(4)]
    with ThreadPoolExecutor(8) as threads:
        for pod in before:
            cni.add(pod, old)
        going = [threads.submit(cni.delete, pod, old) for pod in before[:2]]
        list(threads.map(cni.add, after, [new] * 4))
        for one in going:
            one.result()
        assert on_bridge(lab.nodes[0], "br-force") == ["10.62.0.1/24"]
        assert pings(after[0], "10.62.0.1")
        list(threads.map(cni.delete, after + before, [new] * 4 + [old] * 4))
    assert "br-force" not in lab.nodes[0].run("ip", "link") and not records(lab)


def test_two_subnets_of_ipv6_may_be_on_one_bridge(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    cni.add(a, ranged("one", "fd00:61::/64"))
    cni.add(b, ranged("two", "fd00:62::/64"))
    assert pings(a, "fd00:61::1") and pings(b, "fd00:62::1")
    cni.delete(a, ranged("one", "fd00:61::/64"))
    cni.delete(b, ranged("two", "fd00:62::/64"))


def test_an_address_that_somebody_put_there_is_not_removed(
    lab: Lab, node: Node, make_netns: MakeNetns
) -> None:
    cni, a = Cni(lab), make_netns("a")
    node.run("ip", "addr", "add", "10.63.0.1/24", "dev", "br-their")
    for force in (False, True):
        answer = cni.call("ADD", a, {**THEIRS, "forceAddress": force})
        assert answer["code"] == 7 and "10.63.0.1/24" in answer["msg"], answer
    assert "ip address del 10.63.0.1/24 dev br-their" in answer["msg"]
    assert "10.63.0.1/24" in on_bridge(node, "br-their") and not records(lab)
    assert "eth0" not in netns.run(a, "ip", "link")


@pytest.mark.parametrize("name", ["map", "tcp", "1br", "br.x-y", "10.0.0.1", "fe80"])
def test_a_bridge_may_have_any_name_that_the_kernel_takes(
    lab: Lab, node: Node, make_netns: MakeNetns, name: str
) -> None:
    """Those of nft's words, and numbers, too."""
    cni, a = Cni(lab), make_netns("a")
    network = {"ipam": OWN, "isDefaultGateway": True, "bridge": name, **EVERYTHING}
    before = host_state(lab)
    result = cni.add(a, network)
    with serving(a, 80):
        assert seen(str(node.netns), "127.0.0.1", 8100)
    assert cni.call("CHECK", a, {**network, "prevResult": result}) == ""
    cni.delete(a, network)
    assert difference(before, lab) == {}

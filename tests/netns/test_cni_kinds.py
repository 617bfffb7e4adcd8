"""What the kinds do with traffic: hairpin, macvlan's modes, ptp's limits, a bridge without addresses.

pods a, b (ns)                                    pods a, b (ns)
 eth0                                               eth0 (macvlan)
  │ veth                                             │
br-own, br-flat, or none (ptp) ── node-1 (ns)      m0 (mtu 1500) ── node-1 (ns)
                                                     │ veth
                                                    m1 ── br-seg ── segment (ns), 10.66.0.1
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.kernel import netns
from netplane.lab import Lab
from tests.cnirun import REFERENCE, Cni, plain
from tests.netns.test_cni_chain import difference, host_local, host_state, leases
from tests.netns.test_cni_features import BRIDGED, MBIT, frame, pings, rate, reached, records
from tests.netns.test_cni_ports import mapped, port, seen, serving

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
MakeLab = Callable[..., Lab]
NF = "/proc/sys/net/bridge/bridge-nf-call-iptables"
RANGE = {"subnet": "10.66.0.0/24", "rangeStart": "10.66.0.100"}
BY_RUNTIME, BY_CNI, BY_ARGS = (f"02:00:00:00:00:0{i}" for i in (1, 2, 3))
MACVLAN = {"kind": "macvlan", "master": "m0", "ipam": {"ranges": [[RANGE]]}}


@pytest.fixture(scope="module")
def lab(make_module_lab: MakeLab) -> Lab:
    lab = make_module_lab(nodes=1)
    lab.start_agents()
    lab.nodes[0].add_pod("first").delete()  # the node's bridge gets its link-local address by its first pod
    return lab


@pytest.fixture
def segment(lab: Lab, make_netns: MakeNetns) -> Iterator[str]:
    """The other end of m0: a bridge, which is no switch that sends back what it got, unless told so."""
    at, node = make_netns("segment"), str(lab.nodes[0].netns)
    netns.run(at, "ip", "link", "add", "br-seg", "up", "type", "bridge")
    netns.run(at, "ip", "addr", "add", "10.66.0.1/24", "dev", "br-seg")
    netns.run(at, "ip", "link", "add", "m1", "master", "br-seg", "up", "type", "veth", "peer", "name", "m0")
    with open(node) as holder:
        move = ["ip", "link", "set", "m0", "netns", f"/proc/self/fd/{holder.fileno()}"]
        netns.run(at, *move, pass_fds=(holder.fileno(),))
    netns.run(node, "ip", "link", "set", "m0", "up")
    yield at
    netns.run(node, "ip", "link", "del", "m0", check=False)


# --- hairpin ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("hairpin", [True, False, None])
def test_hairpin_sends_a_pods_frames_back_to_it(
    lab: Lab, make_netns: MakeNetns, hairpin: bool | None
) -> None:
    """What the mode is: a frame to all leaves the bridge by the port that it came from, too. Default: off."""
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    network = BRIDGED if hairpin is None else {**BRIDGED, "hairpinMode": hairpin}
    mac = cni.add(a, network)["interfaces"][2]["mac"]
    cni.add(b, network)
    with listener(a) as back, listener(b) as beside:
        frame(a, "ff:ff:ff:ff:ff:ff", mac, 0x88B5, b"ECHO" * 12)
        assert comes_in(beside)
        assert comes_in(back) is bool(hairpin)
    for pod in (a, b):
        cni.delete(pod, network)


def listener(at: str) -> socket.socket:
    """Hears frames of the type that is for experiments."""
    made = netns.call(at, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    made.bind(("eth0", 3))
    return made


def comes_in(at: socket.socket) -> bool:
    """Whether the frame comes in, within a moment; that it went out is heard, too."""
    deadline = time.monotonic() + 0.3
    while (left := deadline - time.monotonic()) > 0:
        at.settimeout(left)
        try:
            got, where = at.recvfrom(2000)
        except TimeoutError:
            break
        if b"ECHO" in got and where[2] != socket.PACKET_OUTGOING:
            return True
    return False


@pytest.mark.skipif(not Path(NF).exists(), reason="needs br_netfilter, which is what makes the difference")
@pytest.mark.parametrize("hairpin", [True, False, None])
def test_a_pod_reaches_itself_by_its_own_port_through_the_bridge(
    lab: Lab, make_netns: MakeNetns, hairpin: bool | None
) -> None:
    """With bridge netfilter the bridge itself translates: the flow goes out by the port that it came from.

    So a pod with ports has the mode on, unless the network says false.
    """
    cni, a, b, node = Cni(lab), make_netns("a"), make_netns("b"), lab.nodes[0]
    network = BRIDGED if hairpin is None else {**BRIDGED, "hairpinMode": hairpin}
    held = node.run("cat", NF).strip()
    node.run("sh", "-c", f"echo 1 > {NF}")
    try:
        cni.add(a, mapped(port(8300, 80), **network))
        cni.add(b, network)
        with serving(a, 80):
            assert seen(b, "192.168.77.11", 8300), "a neighbour, whatever the mode"
            assert bool(seen(a, "192.168.77.11", 8300, patience=1)) is (hairpin is not False)
        for pod in (a, b):
            cni.delete(pod, network)
    finally:
        node.run("sh", "-c", f"echo {held} > {NF}")


# --- macvlan ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "reflects", "meet"),
    [("bridge", False, True), ("private", False, False), ("private", True, False), ("vepa", False, False),
     ("vepa", True, True)],
)  # fmt: skip
def test_macvlans_of_one_master(
    lab: Lab, segment: str, make_netns: MakeNetns, mode: str, reflects: bool, meet: bool
) -> None:
    """private: never each other; vepa: by a switch that sends back (``reflects``); all reach the segment."""
    cni, a, b, network = Cni(lab), make_netns("a"), make_netns("b"), {**MACVLAN, "mode": mode}
    netns.run(
        segment, "ip", "link", "set", "m1", "type", "bridge_slave", "hairpin", "on" if reflects else "off"
    )
    cni.add(a, network)
    other = plain(cni.add(b, network))[0]
    assert f"mode {mode}" in netns.run(a, "ip", "-d", "link", "show", "eth0")
    assert pings(a, "10.66.0.1") and pings(b, "10.66.0.1")
    assert reached(a, other) == [other] * meet
    for pod in (a, b):
        cni.delete(pod, network)


@pytest.mark.usefixtures("segment")
def test_a_passthru_has_its_master_alone(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    alone = {**MACVLAN, "mode": "passthru"}
    result = cni.add(a, alone)
    shown = netns.run(a, "ip", "-d", "link", "show", "eth0")
    mac = json.loads(lab.nodes[0].run("ip", "-j", "link", "show", "m0"))[0]["address"]
    assert "mode passthru" in shown and mac in shown and result["interfaces"][0]["mac"] == mac
    assert pings(a, "10.66.0.1")
    assert cni.call("CHECK", a, {**alone, "prevResult": result}) == ""
    for second in (alone, MACVLAN):
        answer = cni.call("ADD", b, second)
        assert answer["code"] == 11 and "m0 is held by pod default/ns-a" in answer["msg"], answer
    cni.delete(a, alone)
    cni.add(b, MACVLAN)
    answer = cni.call("ADD", a, alone)
    assert answer["code"] == 11 and "m0 is held by pod default/ns-b" in answer["msg"], answer
    cni.delete(b, MACVLAN)
    answer = cni.call("ADD", a, {**alone, "runtimeConfig": {"mac": BY_RUNTIME}})
    assert answer["code"] == 7 and f"it is the master's, m0: {mac}" in answer["msg"], answer
    cni.add(a, alone)
    cni.delete(a, alone)


@pytest.mark.usefixtures("segment")
def test_an_mtu_above_the_masters_is_refused_with_both(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a = Cni(lab), make_netns("a")
    answer = cni.call("ADD", a, {**MACVLAN, "mtu": 1501})
    assert answer["code"] == 7 and "mtu: 1501 is more than 1500, the mtu of its master m0" in answer["msg"]
    assert "eth0" not in netns.run(a, "ip", "link") and not records(lab)
    for mtu in (1500, 1400):
        cni.add(a, {**MACVLAN, "mtu": mtu})
        assert f"mtu {mtu}" in netns.run(a, "ip", "link", "show", "eth0")
        cni.delete(a, MACVLAN)


# --- whose MAC -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network", [{}, BRIDGED, {"kind": "ptp"}, MACVLAN], ids=["node", "own", "ptp", "macvlan"]
)
@pytest.mark.parametrize(
    ("ways", "wanted"),
    [
        (("runtime", "cni", "args"), BY_RUNTIME),
        (("cni", "args"), BY_CNI),
        (("args",), BY_ARGS),
        (("runtime", "args"), BY_RUNTIME),
    ],
)
@pytest.mark.usefixtures("segment")
def test_the_mac_that_counts(
    lab: Lab, make_netns: MakeNetns, network: Any, ways: tuple[str, ...], wanted: str
) -> None:
    """runtimeConfig.mac before args.cni.mac before CNI_ARGS, as in the reference plugins."""
    cni, a = Cni(lab), make_netns("a")
    runtime = {"runtimeConfig": {"mac": BY_RUNTIME}} if "runtime" in ways else {}
    args = {"args": {"cni": {"mac": BY_CNI}}} if "cni" in ways else {}
    env = {"ARGS": f"IgnoreUnknown=1;MAC={BY_ARGS}"} if "args" in ways else {}
    result = cni.add(a, {**network, **runtime, **args}, **env)
    assert result["interfaces"][-1]["mac"] == wanted
    assert wanted in netns.run(a, "ip", "link", "show", "eth0")
    cni.delete(a, network)


def test_a_macvlans_address_is_reached_at_once_though_another_had_it(
    lab: Lab, make_netns: MakeNetns, segment: str
) -> None:
    """The segment is told whose the addresses are: who knows the last holder's MAC would go on using it."""
    netns.run(segment, "ip", "addr", "add", "fd66::1/64", "dev", "br-seg", "nodad")
    network = {"kind": "macvlan", "master": "m0", "ipam": {"ranges": [[RANGE], [{"subnet": "fd66::/64"}]]}}
    asked = {**network, "runtimeConfig": {"ips": ["10.66.0.100", "fd66::9"]}}
    cni = Cni(lab)
    for pod in (make_netns("a"), make_netns("b")):
        cni.add(pod, asked)
        assert reached(segment, "10.66.0.100", "fd66::9") == ["10.66.0.100", "fd66::9"]
        cni.delete(pod, asked)


# --- ptp's bandwidth -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_bandwidth_of_a_ptp_holds(lab: Lab, make_netns: MakeNetns, way: str) -> None:
    """As of the bridge; what a pod sends is limited even when it removes its own bucket."""
    cni, a, b, network = Cni(lab), make_netns("a"), make_netns("b"), {"kind": "ptp"}
    limit = {f"{way}Rate": 20 * MBIT, f"{way}Burst": 100_000}
    mine = plain(cni.add(a, {**network, "runtimeConfig": {"bandwidth": limit}}))
    other = plain(cni.add(b, network))
    ways = {"ingress": (b, a, mine[0]), "egress": (a, b, other[0])}
    limited, free = ways.pop(way), ways.popitem()[1]
    assert 10 < rate(*limited) < 24
    assert rate(*free) > 60
    if way == "egress":
        netns.run(a, "tc", "qdisc", "del", "dev", "eth0", "root")
        assert rate(*limited) < 26
    for pod in (a, b):
        cni.delete(pod, network)


# --- addresses, and none ----------------------------------------------------------------------------------


def test_addresses_stay_between_the_bounds_of_their_range(lab: Lab, make_netns: MakeNetns) -> None:
    cni, pods = Cni(lab), [make_netns(name) for name in ("a", "b", "c")]
    bounds = {"subnet": "10.68.0.0/24", "rangeStart": "10.68.0.9", "rangeEnd": "10.68.0.10"}
    network = {"ipam": {"ranges": [[bounds]]}, "bridge": "br-two", "name": "two"}
    assert [plain(cni.add(pod, network)) for pod in pods[:2]] == [["10.68.0.9"], ["10.68.0.10"]]
    answer = cni.call("ADD", pods[2], network)
    assert answer["code"] == 11 and "2 of 2 addresses in use" in answer["msg"], answer
    for pod in pods:
        cni.delete(pod, network)


def test_a_bridge_without_addresses_is_a_segment(lab: Lab, make_netns: MakeNetns) -> None:
    """As the reference bridge does it without ipam: link and bridge are up, and nothing else is given."""
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    network = {"ipam": {"type": "none"}, "bridge": "br-flat", "isGateway": True, "ipMasq": True, "mtu": 1400}
    lab.nodes[0].run("conntrack", "-F")  # what others left would end meanwhile
    before = host_state(lab)
    result = cni.add(a, network)
    assert [one["name"] for one in result["interfaces"]][::2] == ["br-flat", "eth0"]
    assert (result["ips"], result["routes"]) == ([], [])
    cni.add(b, network)
    assert "inet " not in lab.nodes[0].run("ip", "addr", "show", "br-flat")
    assert "inet " not in netns.run(a, "ip", "addr", "show", "eth0")
    for end, pod in ((1, a), (2, b)):
        netns.run(pod, "ip", "addr", "add", f"10.67.0.{end}/24", "dev", "eth0")
    assert pings(a, "10.67.0.2") and not pings(a, "192.168.77.1")
    assert cni.call("CHECK", a, {**network, "prevResult": result}) == ""
    lab.nodes[0].run("ip", "link", "set", result["interfaces"][1]["name"], "nomaster")
    assert cni.call("CHECK", a, {**network, "prevResult": result})["code"] == 100
    assert cni.call("STATUS", "", network) == ""
    answer = cni.call("ADD", make_netns("c"), mapped(port(8301, 80), **network))
    assert answer["code"] == 7 and "the container has no IP address" in answer["msg"], answer
    for pod in (a, b):
        assert cni.call("DEL", pod, NETNS="") == ""
    lab.nodes[0].run("conntrack", "-F")  # with bridge netfilter the pings between addresses that nobody knows
    assert difference(before, lab) == {} and not records(lab)
    answer = cni.call("ADD", a, {"bridge": "br-flat"})
    assert answer["code"] == 7 and '{"type": "none"} for a segment without any' in answer["msg"]


@pytest.mark.usefixtures("segment")
@pytest.mark.parametrize(
    "network", [{}, BRIDGED, {"kind": "ptp"}, MACVLAN], ids=["node", "own", "ptp", "macvlan"]
)
def test_a_del_whose_path_leads_to_another_pod_by_now_leaves_that_one_alone(
    lab: Lab, make_netns: MakeNetns, tmp_path: Path, network: dict[str, Any]
) -> None:
    """A path is used again (ip netns, /proc/PID/ns/net), and the DEL of who had it comes late."""
    cni, a, b, path = Cni(lab), make_netns("a"), make_netns("b"), tmp_path / "path"
    limited = {"runtimeConfig": {"bandwidth": {"egressRate": 10 * MBIT, "egressBurst": 800_000}}}
    network = {**network, **limited}
    path.symlink_to(a)
    cni.add(str(path), network, CONTAINERID="first")
    result = cni.add(b, network, CONTAINERID="second")
    path.unlink()
    path.symlink_to(b)
    cni.delete(str(path), network, CONTAINERID="first")
    assert cni.call("CHECK", b, {**network, "prevResult": result}, CONTAINERID="second") == ""
    cni.delete(b, network, CONTAINERID="second")
    assert "eth0" not in netns.run(b, "ip", "link") and not records(lab)


# --- what DEL leaves -------------------------------------------------------------------------------


@pytest.mark.usefixtures("segment")
def test_after_del_of_a_macvlan_the_host_is_as_before(lab: Lab, make_netns: MakeNetns) -> None:
    """By our own record, without configuration: the link in the pod goes, too, though the pod lives on."""
    cni, a = Cni(lab), make_netns("a")
    limit = {"egressRate": 10 * MBIT, "egressBurst": 800_000}
    network = {
        **MACVLAN,
        "mtu": 1400,
        "runtimeConfig": {"bandwidth": limit},
        "sysctl": {"net.core.somaxconn": "500"},
    }
    lab.nodes[0].run("conntrack", "-F")
    before, inside = host_state(lab), netns.run(a, "ip", "-o", "link")
    result = cni.add(a, network)
    assert cni.call("CHECK", a, {**network, "prevResult": result}) == ""
    assert cni.call("DEL", a, NETNS="") == ""
    assert difference(before, lab) == {} and not records(lab)
    assert netns.run(a, "ip", "-o", "link") == inside


@pytest.mark.skipif(not Path(REFERENCE, "host-local").exists(), reason="needs containernetworking-plugins")
@pytest.mark.parametrize("kind", ["bridge", "ptp", "macvlan"])
@pytest.mark.usefixtures("segment")
def test_after_del_of_a_delegated_network_the_host_is_as_before(
    lab: Lab, make_netns: MakeNetns, tmp_path: Path, kind: str
) -> None:
    """The lease of host-local goes with the rest, by our own record, and the namespace may be gone."""
    cni, a = Cni(lab), make_netns("a")
    network: dict[str, Any] = {"kind": kind, **host_local(tmp_path)}
    if kind != "bridge":
        network = {"kind": kind, "ipam": network["ipam"]} | ({"master": "m0"} if kind == "macvlan" else {})
    if kind != "macvlan":
        network |= mapped(port(8302, 80), ipMasq=True, macspoofchk=True)
    lab.nodes[0].run("conntrack", "-F")  # what others left would end meanwhile
    before = host_state(lab)
    result = cni.add(a, network)
    assert plain(result) == leases(tmp_path) == ["10.95.0.2", "fd00:95::2"]
    assert kind == "macvlan" or difference(before, lab)
    assert cni.call("CHECK", a, {**network, "prevResult": result}) == ""
    netns.delete(a)
    assert cni.call("DEL", a, NETNS="", PATH="") == ""
    assert difference(before, lab) == {} and leases(tmp_path) == [] and not records(lab)


# --- loopback --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.3.1", "1.1.0"])
def test_loopback(lab: Lab, make_netns: MakeNetns, version: str) -> None:
    cni, a = Cni(lab), make_netns("a")
    netns.run(a, "ip", "link", "set", "lo", "down")
    config = {"kind": "loopback", "cniVersion": version}
    result = cni.call("ADD", a, config, IFNAME="lo")
    assert plain(result) == ["127.0.0.1", "::1"] and result["interfaces"][0]["name"] == "lo"
    assert pings(a, "127.0.0.1")
    assert cni.call("DEL", a, config, IFNAME="lo") == ""


def test_check_of_the_loopback_names_what_differs(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a = Cni(lab), make_netns("a")
    config: dict[str, Any] = {"kind": "loopback"}
    config["prevResult"] = cni.call("ADD", a, config, IFNAME="lo")
    assert cni.call("CHECK", a, config, IFNAME="lo") == ""
    for breakage, words in (
        ("ip addr del ::1/128 dev lo", "has no address ::1/128"),
        ("ip addr del 127.0.0.1/8 dev lo", "has no address 127.0.0.1/8"),
        ("ip link set lo down", f"lo in {a} is down"),
    ):
        netns.run(a, *breakage.split())
        answer = cni.call("CHECK", a, config, IFNAME="lo")
        assert answer and answer["code"] == 100 and words in answer["msg"], answer
    netns.delete(a)
    assert "is gone" in cni.call("CHECK", a, config, IFNAME="lo")["msg"]


@pytest.mark.parametrize("disabled", ["0", "1"])
def test_the_loopback_answers_with_the_addresses_that_are_there(
    lab: Lab, make_netns: MakeNetns, disabled: str
) -> None:
    cni, a = Cni(lab), make_netns("a")
    netns.run(a, "sysctl", "-qw", f"net.ipv6.conf.lo.disable_ipv6={disabled}")
    config: dict[str, Any] = {"kind": "loopback"}
    result = cni.call("ADD", a, config, IFNAME="lo")
    assert plain(result) == ["127.0.0.1", "::1"][: 2 - int(disabled)]
    assert cni.call("CHECK", a, {**config, "prevResult": result}, IFNAME="lo") == ""

"""Pods by their traffic, with the real agent and its drivers: NAT, masquerade, and a refusal half way.

pod a (ns)        pod b (ns)                  outside (ns)
  eth0              eth0                        192.168.77.1, fd00:77::1
   │ veth            │ veth                       │
───┴── npbr0 ────────┴───  node-1 (ns)  ── wire ──┘
       10.244.0.1/24               192.168.77.11, fd00:77::11
       fd00:10:244::1/64
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from netplane.kernel import netns
from netplane.lab import Lab
from tests.cnirun import OWN, Cni, plain
from tests.netns.test_cni_features import pings, records
from tests.netns.test_cni_ports import seen, serving

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
MakeLab = Callable[..., Lab]
OUTSIDE = ("192.168.77.1", "fd00:77::1")
ROUTED = {"ipam": {**OWN, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}
OF_ITS_OWN = {**ROUTED, "bridge": "br-own", "isGateway": True}


@pytest.fixture(scope="module")
def lab(make_module_lab: MakeLab) -> Lab:
    lab = make_module_lab(nodes=1)
    lab.start_agents()
    return lab


@pytest.fixture
def ways_back(lab: Lab) -> Iterator[None]:
    """The outside knows by which node pods are reached, so that a pod that keeps its address is answered."""
    at, (four, six) = str(lab.outside.netns), lab.nodes[0].addresses
    nets = {"10.244.0.0/16": four, "10.88.0.0/24": four, "fd00:10:244::/48": six, "fd00:88::/64": six}
    for net, via in nets.items():
        netns.run(at, "ip", "route", "add", net, "via", via)
    yield
    for net in nets:
        netns.run(at, "ip", "route", "del", net)


def test_pods_reach_each_other_and_the_node_in_both_families(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a, b, node = Cni(lab), make_netns("a"), make_netns("b"), lab.nodes[0]
    cni.add(a)
    result = cni.add(b)
    for target in (*plain(result), "10.244.0.1", "fd00:10:244::1"):
        assert pings(a, target)
    for address in plain(result):
        assert pings(str(node.netns), address)
    mtu = result["interfaces"][2]["mtu"]
    assert f"mtu {mtu}" in netns.run(b, "ip", "link", "show", "eth0")
    assert f"mtu {mtu}" in node.run("ip", "link", "show", "npbr0")
    cni.delete(a)
    cni.delete(b)
    assert result["interfaces"][1]["name"] not in node.run("ip", "link")
    assert "PERMANENT" not in node.run("ip", "neigh", "show", "dev", "npbr0")


def test_a_reply_on_the_same_bridge_comes_back_through_the_nodes_nat(lab: Lab, make_netns: MakeNetns) -> None:
    """A virtual IP whose endpoint is a neighbour: on a plain bridge the reply would take a short cut."""
    cni, a, b, node = Cni(lab), make_netns("a"), make_netns("b"), lab.nodes[0]
    cni.add(a)
    four, six = plain(cni.add(b))
    for key in ("iptables", "ip6tables"):  # else the bridge itself would hand it to nftables
        node.run("sysctl", "-qw", f"net/bridge/bridge-nf-call-{key}=0", check=False)
    rules = "add table inet t\nadd chain inet t p { type nat hook prerouting priority -101; }\n"
    rules += f"add rule inet t p ip daddr 10.99.0.1 dnat ip to {four}\n"
    rules += f"add rule inet t p ip6 daddr fd00:99::1 dnat ip6 to {six}\n"
    netns.run(str(node.netns), "nft", "-f", "-", input=rules, stdin=None)
    try:
        with serving(b, 7100):
            for virtual in ("10.99.0.1", "fd00:99::1"):
                for _ in range(3):  # a redirect after the first would lead the next astray
                    assert seen(a, virtual, 7100), virtual
    finally:
        node.run("nft", "delete", "table", "inet", "t")
    cni.delete(a)
    cni.delete(b)


@pytest.mark.usefixtures("ways_back")
@pytest.mark.parametrize("network", [{}, OF_ITS_OWN, {**ROUTED, "kind": "ptp"}], ids=["node", "own", "ptp"])
@pytest.mark.parametrize("masquerade", [True, False, None])
def test_the_outside_sees_the_node_unless_the_network_says_otherwise(
    lab: Lab, make_netns: MakeNetns, network: dict[str, Any], masquerade: bool | None
) -> None:
    """Nothing said: the node's network is masqueraded, one of its own is not. Other pods see it as it is."""
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    asked = network if masquerade is None else {**network, "ipMasq": masquerade}
    mine = plain(cni.add(a, asked))
    others = plain(cni.add(b, asked))
    hidden = masquerade if masquerade is not None else not network
    with serving(str(lab.outside.netns), 7101), serving(b, 7101):
        assert [seen(a, to, 7101) for to in OUTSIDE] == (list(lab.nodes[0].addresses) if hidden else mine)
        assert [seen(a, to, 7101) for to in others] == mine
    cni.delete(a, asked)
    with serving(b, 7101):
        assert [seen(str(lab.outside.netns), to, 7101) for to in others] == list(OUTSIDE), "b's stays"
    cni.delete(b, asked)


def test_a_pod_that_keeps_its_address_takes_nobody_elses_masquerade_away(
    lab: Lab, make_netns: MakeNetns
) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    cni.add(a, {"ipMasq": False})
    cni.add(b)
    with serving(str(lab.outside.netns), 7102):
        assert [seen(b, to, 7102) for to in OUTSIDE] == list(lab.nodes[0].addresses)
        cni.delete(a, {"ipMasq": False})
        assert [seen(b, to, 7102) for to in OUTSIDE] == list(lab.nodes[0].addresses)
    cni.delete(b)


def test_the_pod_is_in_the_store_with_its_labels(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a = Cni(lab), make_netns("a")
    labels = {"args": {"cni": {"labels": [{"key": "app", "value": "web"}]}}}
    result = cni.add(a, labels, ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0")
    shown = lab.netplane("get", "Pod", "web-0", "-n", "shop", "-o", "yaml")
    assert "app: web" in shown and all(address in shown for address in plain(result))
    cni.delete(a)
    assert "web-0" not in lab.netplane("get", "Pod", "-A")


@pytest.mark.parametrize("network", [{}, OF_ITS_OWN, {"kind": "ptp"}], ids=["node", "own", "ptp"])
def test_an_add_that_the_kernel_refuses_half_way_leaves_nothing(
    lab: Lab, make_netns: MakeNetns, network: dict[str, Any]
) -> None:
    """The pair is there and its addresses: then the pod has another default route of IPv6."""
    cni, a, node = Cni(lab), make_netns("a"), lab.nodes[0]
    cni.add(a, network)
    cni.delete(a, network)
    before = node.run("ip", "-o", "link"), node.run("nft", "list", "ruleset")
    for line in ("link add d0 up type bridge", "-6 route add default dev d0 metric 1024"):
        netns.run(a, "ip", *line.split())
    answer = cni.call("ADD", a, network)
    assert answer["code"] == 5 and "::/0" in answer["msg"], answer
    after = node.run("ip", "-o", "link"), node.run("nft", "list", "ruleset")
    assert [text.count("\n") for text in after] == [text.count("\n") for text in before]
    assert "eth0" not in netns.run(a, "ip", "link") and not records(lab)
    netns.run(a, "ip", "link", "del", "d0")
    cni.add(a, network)
    cni.delete(a, network)


@pytest.mark.parametrize(
    "network",
    [{}, OF_ITS_OWN, {"kind": "ptp"}, {**ROUTED, "kind": "macvlan", "master": "eth0"}],
    ids=["node", "own", "ptp", "macvlan"],
)
def test_a_pod_whose_namespace_has_ipv6_off_has_it_on_its_interface(
    lab: Lab, make_netns: MakeNetns, network: dict[str, Any]
) -> None:
    """As the reference plugins have it: a node may switch it off for all that is new."""
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    for key in ("all", "default"):
        netns.run(a, "sysctl", "-qw", f"net.ipv6.conf.{key}.disable_ipv6=1")
    cni.add(a, network)
    for address in plain(cni.add(b, network)):
        assert pings(a, address)
    for pod in (a, b):
        cni.delete(pod, network)

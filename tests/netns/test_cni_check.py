"""CHECK names each thing that is otherwise than ADD made it, on the node and in the pod.

node-1 (ns) ── br-own, npbr0, none (ptp), or eth0 (macvlan) ── pod a (ns)
               somebody changes one thing here ............ or here
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from netplane.kernel import netns
from netplane.lab import Lab
from netplane.lab.runner import until
from tests.cnirun import OWN, Cni, plain
from tests.netns.test_cni_ports import port
from tests.policy_world import settled

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
MakeLab = Callable[..., Lab]
RATE = 10_000_000
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}, {"dst": "10.1.0.0/16", "priority": 50, "table": 77}]
RUNTIME: dict[str, Any] = {
    "portMappings": [
        port(8200, 80),
        port(8200, 53, "udp"),
        port(8201, 80, hostIP="192.168.77.11"),
        port(8201, 80, hostIP="fd00:77::11"),
    ],
    "bandwidth": {
        "ingressRate": RATE, "ingressBurst": 800_000, "egressRate": RATE, "egressBurst": 800_000,
    },
}  # fmt: skip
ALL: dict[str, Any] = {
    "runtimeConfig": RUNTIME,
    "macspoofchk": True,
    "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"},
    "mtu": 1400,
    "ipMasq": True,
    "ipam": {**OWN, "routes": ROUTES},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "own": {**ALL, "bridge": "br-own", "isGateway": True, "portIsolation": True},
    "node": {key: value for key, value in ALL.items() if key != "ipam"} | {"ipMasq": False},
    "ptp": {**ALL, "kind": "ptp"},
    "macvlan": {
        "kind": "macvlan",
        "master": "eth0",
        "ipam": {"ranges": [[{"subnet": "192.168.77.0/24", "rangeStart": "192.168.77.200"}]]},
    },
}

IN_POD = [
    ("own", "ip addr del {ip}/24 dev eth0", "address eth0 {ip}/24"),
    ("own", "ip addr del {ip6}/64 dev eth0", "address eth0 {ip6}/64"),
    ("own", "ip route del default", "route 254 0.0.0.0/0"),
    ("own", "ip -6 route del default", "route 254 ::/0"),
    ("own", "ip route del 10.1.0.0/16 table 77", "route 77 10.1.0.0/16"),
    ("own", "sysctl -qw net.core.somaxconn=99", "is 99, not 500"),
    ("own", "sysctl -qw net.ipv4.conf.eth0.arp_filter=0", "eth0/arp_filter in"),
    ("own", "ip link set eth0 address 02:00:00:00:66:66", "02:00:00:00:66:66"),
    ("own", "ip link set eth0 mtu 1300", "1300"),
    ("own", "ip link set eth0 down", "eth0"),
    ("own", "tc qdisc del dev eth0 root", "shaper"),
    ("own", "tc qdisc replace dev eth0 root tbf rate 99mbit burst 90000 latency 25ms", "shaper"),
    ("node", "ip route del default", "route 254 0.0.0.0/0"),
    ("node", "ip addr del {ip}/32 dev eth0", "address eth0 {ip}/32"),
    ("ptp", "ip neigh del {gateway} dev eth0", "neighbour eth0 {gateway}"),
    ("macvlan", "ip addr del {ip}/24 dev eth0", "address eth0 {ip}/24"),
    ("macvlan", "ip link set eth0 type macvlan mode private", "mode"),
    ("macvlan", "ip link set eth0 address 02:00:00:00:66:66", "02:00:00:00:66:66"),
    ("macvlan", "ip link del eth0", "eth0"),
]
PORTS = "nft delete element inet netplane cni-hostports"
ON_NODE = [
    ("own", PORTS + "6 '{{ tcp . 8200 }}'", "tcp . 8200 of cni-hostports6"),
    ("own", PORTS + "4 '{{ udp . 8200 }}'", "udp . 8200 of cni-hostports4"),
    (
        "own",
        PORTS + "-at4 '{{ 192.168.77.11 . tcp . 8201 }}'",
        "192.168.77.11 . tcp . 8201 of cni-hostports-at4",
    ),
    (
        "own",
        PORTS + "-at6 '{{ fd00:77::11 . tcp . 8201 }}'",
        "fd00:77::11 . tcp . 8201 of cni-hostports-at6",
    ),
    ("own", "nft delete element inet netplane cni-masked6 '{{ {ip6} }}'", "of cni-masked6"),
    ("own", "nft flush set bridge netplane cni-limits", "limit of {host}"),
    ("own", "ip link set {host} type bridge_slave hairpin off", "hairpin"),
    ("own", "ip link set {host} type bridge_slave isolated off", "isolated"),
    ("own", "sysctl -qw net.ipv4.conf.br-own.route_localnet=0", "br-own/route_localnet is 0"),
    ("own", "ip addr del 10.88.0.1/24 dev br-own", "address br-own 10.88.0.1/24"),
    ("own", "ip link set br-own down", "br-own"),
    ("own", "ip link set {host} down", "{host}"),
    ("own", "tc qdisc replace dev {host} root tbf rate 99mbit burst 90000 latency 25ms", "shaper"),
    ("node", "nft delete element inet netplane cni-unmasked4 '{{ {ip} }}'", "of cni-unmasked4"),
    ("node", "nft flush chain inet netplane cni-masquerade", "cni-masquerade"),
    ("node", "ip link set {host} nomaster", "not npbr0"),
    ("node", "ip neigh del {ip} dev npbr0", "neighbour npbr0 {ip}"),
    ("node", "sysctl -qw net.ipv4.conf.npbr0.route_localnet=0", "npbr0/route_localnet is 0"),
    ("ptp", "ip route del {ip}/32", "route 254 {ip}/32"),
    ("ptp", "ip neigh del {ip} dev {host}", "neighbour {host} {ip}"),
    ("ptp", "ip addr del {gateway}/32 dev {host}", "address {host} {gateway}/32"),
    ("ptp", "nft flush chain netdev netplane {host}", "guard of"),
]  # fmt: skip


@pytest.fixture(scope="module")
def lab(make_module_lab: MakeLab) -> Lab:
    lab = make_module_lab(nodes=1)
    lab.start_agents()
    return lab


def words(result: Any) -> dict[str, str]:
    """What an entry of the tables may speak of."""
    four, *six = plain(result)
    hosts = [one["name"] for one in result["interfaces"] if one["name"].startswith("npv")]
    return {
        "ip": four,
        "ip6": (six or [""])[0],
        "host": (hosts or [""])[0],
        "gateway": result["ips"][0].get("gateway", ""),
    }


@pytest.mark.parametrize(
    ("name", "breakage", "named", "inside"),
    [(*one, True) for one in IN_POD] + [(*one, False) for one in ON_NODE],
)
def test_check_names_it(
    lab: Lab, make_netns: MakeNetns, name: str, breakage: str, named: str, inside: bool
) -> None:
    cni, a, network = Cni(lab), make_netns("a"), NETWORKS[name]
    result = cni.add(a, network)
    checked = {**network, "prevResult": result}
    until(lambda: cni.call("CHECK", a, checked) == "", "what the test before changed on the bridge", 20)
    known, answer = words(result), ""
    for _ in range(20):  # the agent mends what it notices: now and then before it is asked
        at = a if inside else str(lab.nodes[0].netns)
        netns.run(at, "sh", "-c", breakage.format(**known), check=False)
        answer = cni.call("CHECK", a, checked)
        if answer:
            break
    assert answer and answer["code"] == 100 and named.format(**known) in answer["msg"], answer
    cni.delete(a, network)


def test_a_record_that_somebody_deleted_is_unknown(lab: Lab, make_netns: MakeNetns) -> None:
    """3, as of what was never added; the kernel's state went with the record."""
    cni, a = Cni(lab), make_netns("a")
    result = cni.add(a)
    name = lab.netplane("get", "Attachment", "-o", "name").split()[-1].partition("/")[2]
    lab.netplane("delete", "Attachment", name)
    settled(lab)
    answer = cni.call("CHECK", a, {"prevResult": result})
    assert answer["code"] == 3 and "eth0 of container ns-a in network net" in answer["msg"], answer
    cni.delete(a)

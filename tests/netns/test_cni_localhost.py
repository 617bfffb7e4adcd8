"""A host port of a pod that a reference plugin wired, reached from the node's own localhost.

node-1 (ns)  127.0.0.1:8095 ── br-ref, or a veth of ptp ── pods a, b (ns)
                               route_localnet, and a guard of 127.0.0.0/8
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from netplane.kernel import netns
from netplane.lab import Lab
from tests.cnirun import REFERENCE, Cni
from tests.netns.test_cni_chain import theirs
from tests.netns.test_cni_ports import mapped, port, seen, serving

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not Path(REFERENCE, "bridge").exists(), reason="needs containernetworking-plugins"),
]
MakeNetns = Callable[[str], str]
MakeLab = Callable[..., Lab]


@pytest.fixture(scope="module")
def lab(make_module_lab: MakeLab) -> Lab:
    lab = make_module_lab(nodes=1)
    lab.start_agents()
    return lab


@pytest.mark.parametrize("name", ["bridge", "ptp"])
def test_a_port_of_another_plugins_interface_is_reached_from_the_nodes_localhost(
    lab: Lab, make_netns: MakeNetns, tmp_path: Path, name: str
) -> None:
    """As by the reference portmap; but pods still reach nothing at 127.0.0.1, and DEL shuts it again."""
    a, b, cni, node = make_netns("a"), make_netns("b"), Cni(lab), str(lab.nodes[0].netns)
    config = {"cniVersion": "1.0.0", "name": "list", "type": name, "bridge": "br-ref", "isGateway": True}
    ranges = [[{"subnet": "10.98.0.0/24"}], [{"subnet": "fd00:98::/64"}]]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    config["ipam"] = {
        "type": "host-local",
        "dataDir": str(tmp_path / "l"),
        "ranges": ranges,
        "routes": routes,
    }
    made = {pod: theirs(lab, name, "ADD", pod, config, REFERENCE) for pod in (a, b)}
    mine = {
        pod: {"name": "list", "cniVersion": "1.0.0", "prevResult": made[pod], **mapped(port(number, 80))}
        for pod, number in ((a, 8095), (b, 8096))
    }
    for pod in (a, b):
        cni.add(pod, mine[pod])
        assert cni.call("CHECK", pod, mine[pod]) == ""
    with serving(a, 80), serving(b, 80), serving(node, 7000):
        assert seen(node, "127.0.0.1", 8095) and seen(node, "127.0.0.1", 8096)
        assert all(seen(node, to, 8095) for to in lab.nodes[0].addresses)
        assert not seen(node, "::1", 8095, patience=0.3), "Linux has no route_localnet of IPv6"
        netns.run(a, "ip", "route", "add", "127.0.0.2/32", "via", made[a]["ips"][0]["gateway"], "dev", "eth0")
        netns.run(a, "sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
        assert not seen(a, "127.0.0.2", 7000, patience=0.3), "dropped"
        cni.delete(a, mine[a])
        assert not seen(node, "127.0.0.1", 8095, patience=0.3)
        assert seen(node, "127.0.0.1", 8096), "the other pod's stays"
        lab.nodes[0].agent.kill()
        lab.nodes[0].agent.start().wait()
        cni.delete(b, mine[b])
        assert not seen(a, "127.0.0.2", 7000, patience=0.3), "shut again"
    for pod in (a, b):
        assert theirs(lab, name, "DEL", pod, config, REFERENCE) == ""
    lab.nodes[0].run("ip", "link", "del", "br-ref", check=False)


def test_what_the_reference_portmap_opened_is_left_open(
    lab: Lab, make_netns: MakeNetns, tmp_path: Path
) -> None:
    a, cni, node = make_netns("a"), Cni(lab), str(lab.nodes[0].netns)
    config = {"cniVersion": "1.0.0", "name": "list", "type": "bridge", "bridge": "br-ref", "isGateway": True}
    config["ipam"] = {
        "type": "host-local",
        "dataDir": str(tmp_path / "l"),
        "routes": [{"dst": "0.0.0.0/0"}],
        "ranges": [[{"subnet": "10.98.0.0/24"}]],
    }
    made = theirs(lab, "bridge", "ADD", a, config, REFERENCE)
    opened = "net.ipv4.conf.br-ref.route_localnet"
    lab.nodes[0].run("sysctl", "-qw", f"{opened}=1")
    mine = {"name": "list", "cniVersion": "1.0.0", "prevResult": made, **mapped(port(8095, 80))}
    cni.add(a, mine)
    with serving(a, 80):
        assert seen(node, "127.0.0.1", 8095)
    cni.delete(a, mine)
    assert lab.nodes[0].run("sysctl", "-n", opened).strip() == "1"
    assert theirs(lab, "bridge", "DEL", a, config, REFERENCE) == ""
    lab.nodes[0].run("ip", "link", "del", "br-ref")

"""Policy of a pod that is reached from outside: by its host port, and by node ports on both nodes.

outside ── wire ──┬── node-1 ── npbr0 ── web (host port 8088 and node ports lead to its port 8080)
192.168.77.1      │   192.168.77.11
fd00:77::1        └── node-2 ── npbr0      (no endpoint: masquerades what it leads to web)
"""

from __future__ import annotations

# ruff: noqa: E501 (manifests in a line)
import functools
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from netplane.lab import Lab
from netplane.model import codec
from netplane.model.base import Key
from netplane.store import open_store

from ..policy_cases import block, np, port
from ..policy_world import settled, wait

pytestmark = pytest.mark.root
FAMILIES = pytest.mark.parametrize("family", ["IPv4", "IPv6"])
HOST_PORT, CLUSTER, LOCAL = 8088, 30080, 30081
OUTSIDE = {"IPv4": "192.168.77.1", "IPv6": "fd00:77::1"}
SERVER = """
import socket
s = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True); print("ready", flush=True)
while True:
    c, who = s.accept(); c.send(who[0].removeprefix("::ffff:").encode()); c.close()
"""


class Shop:
    """`seen` is the address that the pod sees of the outside client; "" when nothing comes through."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.store = lab, open_store(lab.store)
        self.gateway = {family: str(net[1]) for family, net in self.pod_cidrs("node-1").items()}
        self.overlay = {family: str(net[0]) for family, net in self.pod_cidrs("node-2").items()}  # to pods
        for name, number, policy in (("spread", CLUSTER, "Cluster"), ("near", LOCAL, "Local")):
            self.put({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "x"},
                      "spec": {"type": "NodePort", "selector": {"app": "web"}, "externalTrafficPolicy": policy, "ipFamilyPolicy": "PreferDualStack",
                               "ports": [{"port": 80, "targetPort": 8080, "nodePort": number}]}})  # fmt: skip
        mapped = {"portMappings": [{"hostPort": HOST_PORT, "containerPort": 8080, "protocol": "tcp"}]}
        pod = lab.nodes[0].add_pod("web", "x", {"app": "web"}, {"runtimeConfig": mapped})
        server = pod.popen("python3", "-I", "-S", "-c", SERVER, stdout=-1, text=True)
        assert server.stdout and server.stdout.readline() == "ready\n"
        for node, number in ((0, HOST_PORT), (0, LOCAL), (0, CLUSTER), (1, CLUSTER)):
            for family in OUTSIDE:
                ask = functools.partial(self.seen, node, number, family)
                wait(ask, 20, f"port {number} of node-{node + 1} answers without policy")

    def pod_cidrs(self, name: str) -> dict[str, Any]:
        """By family; who came first has the first range."""
        node: Any = self.store.get(Key("Node", "", name))
        return {f"IPv{net.version}": net for net in map(ip_network, node.pod_cidrs)}

    def put(self, doc: dict[str, Any]) -> None:
        self.store.put(codec.parse(doc))

    def allow(self, *peers: dict[str, Any], number: int = 8080) -> None:
        """Nobody but these peers, and these only at this port of the pod."""
        self.put(np("p", ingress=[{"from": list(peers), "ports": [port(number)]}] if peers else []))
        settled(self.lab)

    def seen(self, node: int, number: int, family: str) -> str:
        to = next(a for a in self.lab.nodes[node].addresses if (":" in a) == (family == "IPv6"))
        return str(self.lab.outside.python(lambda: _ask(to, number)))


def _ask(to: str, number: int) -> str:
    try:
        with socket.create_connection((to, number), 0.4) as sock:
            return sock.recv(100).decode()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def shop(make_module_lab: Callable[..., Lab]) -> Iterator[Shop]:
    lab = make_module_lab()
    lab.start_agents()
    shop = Shop(lab)
    with closing(shop.store):
        yield shop


def single(address: str) -> dict[str, Any]:
    return block(f"{address}/{ip_address(address).max_prefixlen}")


@FAMILIES
@pytest.mark.parametrize("number", [HOST_PORT, LOCAL, CLUSTER], ids=["hostPort", "Local", "Cluster"])
def test_where_the_pod_is_the_client_is_judged_by_its_own_address(
    shop: Shop, family: str, number: int
) -> None:
    shop.allow()
    assert shop.seen(0, number, family) == "", "denied by default deny"
    shop.allow(single(OUTSIDE[family]))
    sees = shop.seen(0, number, family)  # masquerade comes after policy: Cluster shows the pod its gateway
    assert sees == (shop.gateway if number == CLUSTER else OUTSIDE)[family]
    shop.allow(*map(single, (*shop.lab.nodes[0].addresses, *shop.gateway.values())))
    assert shop.seen(0, number, family) == "", "the node's address is not the client's"


@FAMILIES
@pytest.mark.parametrize("number", [HOST_PORT, LOCAL], ids=["hostPort", "Local"])
def test_the_port_that_counts_is_the_pods(shop: Shop, family: str, number: int) -> None:
    shop.allow(single(OUTSIDE[family]), number=number)
    assert shop.seen(0, number, family) == ""
    shop.allow(single(OUTSIDE[family]), number=8080)
    assert shop.seen(0, number, family) == OUTSIDE[family]


@FAMILIES
def test_through_another_node_the_client_has_that_nodes_address(shop: Shop, family: str) -> None:
    """Cluster masquerades: an ipBlock of the client does not match, one of what the pod sees does."""
    shop.allow(block("0.0.0.0/0"), block("::/0"))
    masqueraded = shop.seen(1, CLUSTER, family)
    assert masqueraded == shop.overlay[family]
    shop.allow()
    assert shop.seen(1, CLUSTER, family) == ""
    shop.allow(single(OUTSIDE[family]))
    assert shop.seen(1, CLUSTER, family) == ""
    shop.allow(single(masqueraded))
    assert shop.seen(1, CLUSTER, family) == masqueraded
    assert shop.seen(0, CLUSTER, family) == "", "where the pod is, the client is itself again"


@FAMILIES
def test_local_leads_nowhere_from_a_node_without_the_pod(shop: Shop, family: str) -> None:
    shop.allow(block("0.0.0.0/0"), block("::/0"))
    assert shop.seen(1, LOCAL, family) == ""

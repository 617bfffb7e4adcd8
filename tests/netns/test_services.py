"""Services with real packets.

The network is that of services_net: client ══ node ── pods a, b, c.
"""

from __future__ import annotations

import errno
import time
from collections import Counter

import pytest

from netplane.kernel import netns
from netplane.model.base import Object
from netplane.model.errors import KernelError
from netplane.model.facts import Chain, Element, Plan, Sysctl
from netplane.model.services import EndpointPort, ServicePort
from tests.services_kit import endpoint, endpoints, service
from tests.services_net import CLIENT, FAMILIES, NODE, VIP, Net, pod_ip

pytestmark = pytest.mark.root


def web(*pods: str, **spec: object) -> list[Object]:
    """A dual-stack service whose endpoints are these pods."""
    found: list[Object] = [service("web", (VIP[4], VIP[6]), **spec)]
    for family in (4, 6):
        if pods:
            found.append(endpoints(*(endpoint(pod_ip(p, family), "n1") for p in pods)))
    return found


@FAMILIES
def test_a_virtual_ip_spreads_over_the_endpoints_and_keeps_the_clients_address(net: Net, family: int) -> None:
    net.node.sync(*web("b", "c"))
    answers = [net.tcp("a", VIP[family]) for _ in range(60)]
    counts = Counter(answer.split()[0] for answer in answers)
    assert {answer.split()[1] for answer in answers} == {pod_ip("a", family)}
    assert set(counts) == {"b", "c"} and min(counts.values()) >= 12  # P(fewer) < 1e-5


@FAMILIES
def test_the_node_itself_reaches_a_virtual_ip(net: Net, family: int) -> None:
    net.node.sync(*web("a"))
    assert net.tcp("node", VIP[family]).startswith("a ")


@FAMILIES
def test_a_node_port_answers_from_outside_and_masquerades(net: Net, family: int) -> None:
    ports = (ServicePort(port=80, target_port=8080, node_port=30080),)
    net.node.sync(*web("a", "b", type="NodePort", ports=ports))
    gateway = {4: "10.244.1.1", 6: "fd01::1"}[family]
    seen = {net.tcp("client", NODE[family], 30080) for _ in range(20)}
    assert seen == {f"a {gateway}", f"b {gateway}"}
    with pytest.raises(ConnectionRefusedError):
        net.tcp("client", NODE[family], 80)  # the service's own port is not open on the node


@FAMILIES
def test_a_node_port_with_policy_local_keeps_the_clients_address(net: Net, family: int) -> None:
    ports = (ServicePort(port=80, target_port=8080, node_port=30080),)
    net.node.sync(*web("a", type="NodePort", ports=ports, external_traffic_policy="Local"))
    assert net.tcp("client", NODE[family], 30080) == f"a {CLIENT[family]}"


@FAMILIES
def test_a_cluster_ip_from_outside_the_cluster_is_masqueraded(net: Net, family: int) -> None:
    net.node.sync(*web("a"))
    assert net.tcp("client", VIP[family]) == f"a {({4: '10.244.1.1', 6: 'fd01::1'})[family]}"


@FAMILIES
def test_a_pod_reaches_itself_through_its_service(net: Net, family: int) -> None:
    net.node.sync(*web("a"))
    name, seen = net.tcp("a", VIP[family]).split()
    assert name == "a" and seen != pod_ip("a", family)


@FAMILIES
@pytest.mark.parametrize("who", ["a", "node", "client"])
def test_no_endpoint_refuses_at_once(net: Net, family: int, who: str) -> None:
    net.node.sync(*web())
    begin = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        net.tcp(who, VIP[family])
    assert time.monotonic() - begin < 0.5


@FAMILIES
def test_an_undefined_port_is_refused_and_an_unallocated_address_is_silent(net: Net, family: int) -> None:
    net.node.sync(*web("a"))
    with pytest.raises(ConnectionRefusedError):
        net.tcp("b", VIP[family], 81)
    with pytest.raises(TimeoutError):
        net.tcp("b", {4: "10.96.7.7", 6: "fd96::77"}[family], timeout=0.3)


@FAMILIES
def test_udp_reaches_an_endpoint_and_is_refused_without_one(net: Net, family: int) -> None:
    ports = (ServicePort(port=80, target_port=8080, protocol="UDP"),)
    offered = (EndpointPort(port=8080, protocol="UDP"),)
    objects = [service("web", (VIP[4], VIP[6]), ports=ports)]
    slices = [endpoints(endpoint(pod_ip("b", f), "n1"), ports=offered) for f in (4, 6)]
    net.node.sync(*objects, *slices)
    assert net.udp("a", VIP[family]) == f"b {pod_ip('a', family)}"
    net.node.sync(*objects)
    with pytest.raises(ConnectionRefusedError):
        net.udp("c", VIP[family])


def test_an_endpoint_that_leaves_gets_no_new_connection_and_keeps_its_old_ones(net: Net) -> None:
    net.node.sync(*web("b", "c"))
    held = [net.connect("a", VIP[4]) for _ in range(20)]
    names = Counter(sock.recv(64).decode().split()[0] for sock in held)
    assert set(names) == {"b", "c"}
    net.node.sync(*web("c"))
    assert {net.tcp("a", VIP[4]).split()[0] for _ in range(30)} == {"c"}
    for sock in held:
        sock.sendall(b"still")
        assert sock.recv(64) == b"still"
        sock.close()


def test_a_restart_adopts_the_rules_and_established_connections_live_on(net: Net) -> None:
    objects = web("b", "c")
    net.node.sync(*objects)
    handles = netns.run(net.ns["node"], "nft", "-s", "-a", "list", "ruleset")
    held = net.connect("a", VIP[4])
    assert held.recv(64)
    net.node.start()  # a new process knows nothing but what the kernel holds
    assert net.node.sync(*objects) == Plan()
    assert netns.run(net.ns["node"], "nft", "-s", "-a", "list", "ruleset") == handles
    held.sendall(b"on")
    assert held.recv(64) == b"on"
    held.close()


def test_a_refused_transaction_leaves_the_service_working(net: Net) -> None:
    net.node.sync(*web("b"))
    before = net.node.driver.observe()
    bad = Element("svc-chains4", ("tcp", "1:9"), ("goto svc-nowhere",))
    stop = ("element", "svc-services4", (VIP[4], "tcp", 80))
    with pytest.raises(KernelError) as caught:
        net.node.driver.apply(Plan(add=(bad, Chain("svc-new", ("accept",))), remove=(stop,)))
    assert caught.value.errno == errno.ENOENT
    assert net.node.driver.observe() == before
    assert net.tcp("a", VIP[4]).startswith("b ")


def test_replies_between_pods_of_one_bridge_pass_conntrack_by_the_rooms_sysctls(net: Net) -> None:
    """Without them the DNAT of such a flow is never undone, and the client hears a stranger."""
    facts = [f for f in net.node.wanted() if isinstance(f, Sysctl)]
    assert facts
    for value in ("0", None):
        for fact in facts:
            netns.run(net.ns["node"], "sysctl", "-qw", f"{fact.name.replace('/', '.')}={value or fact.value}")
        net.node.sync(*web("b"))
        if value == "0":
            with pytest.raises(TimeoutError):
                net.tcp("a", VIP[4], timeout=0.3)
        else:
            assert net.tcp("a", VIP[4]) == f"b {pod_ip('a', 4)}"

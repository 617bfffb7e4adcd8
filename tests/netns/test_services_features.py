"""The rows of kube-proxy's feature table, and Swarm's publish modes, with real packets.

  client                         node "n1"                              pods on npbr0
192.0.2.2/24 ── c0 ═══ n0 ── 192.0.2.1/24    10.244.1.1/24 ─┬─ a  10.244.1.11   fd01::11
2001:db8::2/64              2001:db8::1/64    fd01::1/64    ├─ b  10.244.1.12   fd01::12
                                                            └─ c  10.244.1.13   fd01::13
A slice may say that a pod is on node "n2": the rules treat it so, and its packets still arrive.
"""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.sctp import SCTP, SCTPChunkInit

from netplane.cluster.config import ClusterConfig
from netplane.cluster.endpoints import Endpoints
from netplane.kernel import netns
from netplane.model.base import Object, ObjectMeta, amend
from netplane.model.changes import Put
from netplane.model.facts import Plan, Scope
from netplane.model.nodes import Condition, Node
from netplane.model.pods import Pod, PodIP, PodSpec, PodStatus
from netplane.model.services import (
    ENDPOINT_MODE,
    LOAD_BALANCING,
    PROXY_NAME,
    PUBLISH_MODE,
    ClientIPConfig,
    EndpointHints,
    EndpointPort,
    HintName,
    Service,
    ServicePort,
    ServiceStatus,
    SessionAffinityConfig,
)
from netplane.model.snapshot import Snapshot
from netplane.services import ServicesRoom
from netplane.services.topology import ZONE
from tests.services_kit import endpoint, endpoints, load_balanced, service
from tests.services_net import CLIENT, FAMILIES, NODE, PODS, VIP, Net, pod_ip

pytestmark = pytest.mark.root

GATEWAY = {4: "10.244.1.1", 6: "fd01::1"}
LB = {4: "198.51.100.8", 6: "2001:db8:8::8"}
EXTERNAL = {4: "198.51.100.7", 6: "2001:db8:8::7"}
RANGE = {4: "192.0.2.0/24", 6: "2001:db8::/64"}
PORTS = (ServicePort(port=80, target_port=8080, node_port=30080),)


def placed(*pods: str, **state: bool) -> list[Object]:
    """The slices of these pods: "a" on this node, "c@n2" on another."""
    found: list[Object] = []
    for family in (4, 6):
        where = [(pod.partition("@")[0], pod.partition("@")[2] or "n1") for pod in pods]
        found.append(endpoints(*(endpoint(pod_ip(p, family), node, **state) for p, node in where)))
    return found if pods else []


def balanced(**spec: Any) -> Service:
    """A dual-stack LoadBalancer with node port 30080 and the address LB of both families."""
    spec.setdefault("ports", PORTS)
    made = service("web", VIP.values(), type="LoadBalancer", **spec)
    return amend(made, status=load_balanced(*LB.values()))


def who(answer: str) -> str:
    return answer.split(maxsplit=1)[0]


def client_of(net: Net, address: str, family: int) -> str:
    """Give the client one more address, and say it."""
    netns.run(net.ns["client"], "ip", "addr", "replace", address, "dev", "c0", *(["nodad"] * (family == 6)))
    return address.partition("/")[0]


def silent(net: Net, source: str, address: str, port: int = 80) -> None:
    with pytest.raises(TimeoutError):
        net.tcp(source, address, port, timeout=0.3)


# --- addresses --------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("place", [LB, EXTERNAL], ids=["load balancer", "external"])
def test_external_addresses_answer_pods_node_and_outside_masqueraded(
    net: Net, family: int, place: dict[int, str]
) -> None:
    net.node.sync(balanced(external_ips=tuple(EXTERNAL.values())), *placed("b"))
    for source in ("client", "a", "node"):
        assert net.tcp(source, place[family]) == f"b {GATEWAY[family]}"


@FAMILIES
def test_a_proxys_ingress_address_is_not_ours(net: Net, family: int) -> None:
    """ipMode Proxy: the load balancer wants to see the packets itself."""
    net.node.sync(amend(balanced(), status=load_balanced(*LB.values(), mode="Proxy")), *placed("b"))
    silent(net, "a", LB[family])
    assert who(net.tcp("a", VIP[family])) == "b"


@FAMILIES
def test_source_ranges_guard_the_load_balancers_address_alone(net: Net, family: int) -> None:
    lb = balanced(load_balancer_source_ranges=tuple(RANGE.values()), external_ips=tuple(EXTERNAL.values()))
    net.node.sync(lb, *placed("b"))
    assert who(net.tcp("client", LB[family])) == "b"
    silent(net, "a", LB[family])  # a pod is in no range
    for address, port in ((NODE[family], 30080), (EXTERNAL[family], 80), (VIP[family], 80)):
        assert who(net.tcp("a", address, port)) == "b"
    other = {4: "203.0.113.0/24", 6: "2001:db8:1::/64"}
    net.node.sync(
        amend(lb, spec=amend(lb.spec, load_balancer_source_ranges=tuple(other.values()))), *placed("b")
    )
    silent(net, "client", LB[family])
    assert who(net.tcp("client", NODE[family], 30080)) == "b"


def test_node_ports_answer_at_the_addresses_that_were_named(net: Net) -> None:
    second = "192.0.2.77"
    netns.run(net.ns["node"], "ip", "addr", "add", f"{second}/24", "dev", "n0")
    net.node.room = ServicesRoom(
        "n1", (NODE[4],), ("10.244.0.0/16",), ("10.96.0.0/16",), node_port_ips=(second,)
    )
    net.node.sync(service("web", (VIP[4],), type="NodePort", ports=PORTS), *placed("b")[:1])
    assert who(net.tcp("client", second, 30080)) == "b"
    with pytest.raises(ConnectionRefusedError):
        net.tcp("client", NODE[4], 30080)


def test_a_single_family_service_has_no_node_port_in_the_other(net: Net) -> None:
    net.node.sync(service("web", (VIP[6],), type="NodePort", ports=PORTS), *placed("b"))
    assert who(net.tcp("client", NODE[6], 30080)) == "b"
    with pytest.raises(ConnectionRefusedError):
        net.tcp("client", NODE[4], 30080)


def test_a_refused_service_is_not_there(net: Net) -> None:
    condition = {"type": "netplane.io/Allocated", "status": "False", "message": "10.96.0.1 is taken"}
    refused = amend(service("web", (VIP[4],)), status=ServiceStatus(conditions=(condition,)))
    net.node.sync(refused, *placed("b"))
    silent(net, "a", VIP[4])


# --- traffic policies and endpoints -----------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("affinity", ["None", "ClientIP"])
def test_external_policy_local(net: Net, family: int, affinity: str) -> None:
    lb = balanced(external_traffic_policy="Local", session_affinity=affinity)
    net.node.sync(lb, *placed("a", "c@n2"))
    for address, port in ((LB[family], 80), (NODE[family], 30080)):
        seen = {net.tcp("client", address, port) for _ in range(12)}
        assert seen == {f"a {CLIENT[family]}"}, "others keep their address and stay on this node"
    net.node.sync(lb, *placed("c@n2"))
    for address, port in ((LB[family], 80), (NODE[family], 30080)):
        silent(net, "client", address, port)  # another node has one
        assert net.tcp("b", address, port) == f"c {pod_ip('b', family)}", "pods: all endpoints, unmasked"
        assert net.tcp("node", address, port) == f"c {GATEWAY[family]}", "the node: all, masked"
    net.node.sync(lb)
    with pytest.raises(ConnectionRefusedError):
        net.tcp("client", LB[family])


@FAMILIES
def test_internal_policy_local(net: Net, family: int) -> None:
    inside = balanced(internal_traffic_policy="Local")
    net.node.sync(inside, *placed("a", "c@n2"))
    assert {who(net.tcp("b", VIP[family])) for _ in range(12)} == {"a"}
    net.node.sync(inside, *placed("c@n2"))
    silent(net, "b", VIP[family])
    assert who(net.tcp("client", NODE[family], 30080)) == "c", "on that path only"
    net.node.sync(inside)
    with pytest.raises(ConnectionRefusedError):
        net.tcp("b", VIP[family])


@FAMILIES
def test_terminating_endpoints_serve_when_nobody_is_ready(net: Net, family: int) -> None:
    leaving = {"ready": False, "serving": True, "terminating": True}
    net.node.sync(service("web", VIP.values()), *placed("a", **leaving))
    assert who(net.tcp("b", VIP[family])) == "a"
    ready = endpoints(endpoint(pod_ip("c", family), "n2"), name="ready")
    net.node.sync(service("web", VIP.values()), *placed("a", **leaving), ready)
    assert {who(net.tcp("b", VIP[family])) for _ in range(12)} == {"c"}
    net.node.sync(service("web", VIP.values()), *placed("a", **leaving | {"serving": False}))
    with pytest.raises(ConnectionRefusedError):
        net.tcp("b", VIP[family])


@FAMILIES
@pytest.mark.parametrize("by", ["for_zones", "for_nodes"])
def test_topology_hints_keep_traffic_near_unless_that_leaves_nobody(net: Net, family: int, by: str) -> None:
    def hinted(pod: str, place: str) -> Any:
        return amend(
            endpoint(pod_ip(pod, family), "n2"), hints=EndpointHints(**{by: (HintName(name=place),)})
        )

    mine = {"for_zones": "z1", "for_nodes": "n1"}[by]
    web = service("web", VIP.values(), traffic_distribution="PreferClose")
    node = Node(metadata=amend(web.metadata, namespace="", name="n1", labels={ZONE: "z1"}))
    net.node.sync(node, web, endpoints(hinted("a", mine), hinted("b", "elsewhere")))
    assert {who(net.tcp("c", VIP[family])) for _ in range(12)} == {"a"}
    net.node.sync(node, web, endpoints(hinted("a", "far"), hinted("b", "elsewhere")))
    assert {who(net.tcp("c", VIP[family])) for _ in range(30)} == {"a", "b"}


UNSERVED = {
    "headless": {"ips": ("None",)},
    "another proxy's": {"labels": {PROXY_NAME: "mesh"}},
    "external name": {"ips": (), "type": "ExternalName", "external_name": "example.org"},
}


@pytest.mark.parametrize("case", UNSERVED)
def test_what_is_not_ours_to_serve_leaves_no_trace(net: Net, case: str) -> None:
    net.node.sync()
    before = net.node.driver.observe()
    net.node.sync(service("web", **({"ips": (VIP[4],)} | UNSERVED[case])), *placed("b"))
    assert net.node.driver.observe() == before
    silent(net, "a", VIP[4])


@FAMILIES
def test_endpoints_that_are_not_ready_serve_a_service_that_publishes_them(net: Net, family: int) -> None:
    ready = Condition(type="Ready", status="False")
    ip = pod_ip("b", family)
    pod = Pod(
        metadata=ObjectMeta(name="b", namespace="default", labels={"app": "web"}),
        spec=PodSpec(node_name="n1"),
        status=PodStatus(phase="Running", pod_ips=(PodIP(ip=ip),), conditions=(ready,)),
    )
    for publish in (False, True):
        web = service("web", (VIP[family],), selector={"app": "web"}, publish_not_ready_addresses=publish)
        web = amend(web, spec=amend(web.spec, ip_families=({4: "IPv4", 6: "IPv6"}[family],)))
        made = Endpoints(ClusterConfig()).decide(Scope("endpoints", "default/web"), Snapshot.of([web, pod]))
        net.node.sync(web, *(write.object for write in made if isinstance(write, Put)))
        if publish:
            assert who(net.tcp("a", VIP[family])) == "b"
        else:
            with pytest.raises(ConnectionRefusedError):
                net.tcp("a", VIP[family])


HAIRPINS: dict[str, dict[str, Any]] = {
    "affinity": {"session_affinity": "ClientIP"},
    "policy Local": {"external_traffic_policy": "Local", "internal_traffic_policy": "Local"},
    "affinity and policy Local": {"session_affinity": "ClientIP", "external_traffic_policy": "Local"},
    "maglev": {"annotations": {LOAD_BALANCING: "maglev"}},
    "published": {"annotations": {PUBLISH_MODE: "ingress"}},
    "on the host": {"annotations": {PUBLISH_MODE: "host"}},
}


@FAMILIES
@pytest.mark.parametrize("case", HAIRPINS)
def test_a_pod_reaches_itself_by_every_way(net: Net, family: int, case: str) -> None:
    net.node.sync(balanced(**HAIRPINS[case]), *placed("a"))
    for address, port in ((VIP[family], 80), (LB[family], 80), (NODE[family], 30080)):
        name, seen = net.tcp("a", address, port).split()
        assert name == "a" and seen == GATEWAY[family], "masked, or the pod would answer itself directly"


# --- session affinity -------------------------------------------------------------------------


def sticky(timeout: int = 600) -> Service:
    chosen = SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=timeout))
    return balanced(session_affinity="ClientIP", session_affinity_config=chosen)


@FAMILIES
def test_affinity_holds_over_all_ways_to_a_service_port(net: Net, family: int) -> None:
    net.node.sync(sticky(), *placed("a", "b", "c@n2"))
    ways = ((VIP[family], 80), (LB[family], 80), (NODE[family], 30080))
    clients = [
        client_of(net, f"{CLIENT[family][:-1]}{n}/{ {4: 24, 6: 64}[family] }", family) for n in range(30, 38)
    ]
    found = {}
    for client in clients:
        names = {who(from_address(net, client, *way)) for way in ways for _ in range(3)}
        assert len(names) == 1, f"{client} was led to {names}"
        found[client] = names.pop()
    assert len(set(found.values())) > 1, "eight clients share one endpoint: P < 0.0005"


@FAMILIES
def test_affinity_survives_others_and_leaves_with_its_endpoint(net: Net, family: int) -> None:
    net.node.sync(sticky(), *placed("a", "b"))
    mine = who(net.tcp("client", VIP[family]))
    other = {"a": "b", "b": "a"}[mine]
    for pods in (("a", "b", "c"), (mine, "c"), (mine,), ("a", "b")):
        net.node.sync(sticky(), *placed(*pods))
        assert {who(net.tcp("client", VIP[family])) for _ in range(8)} == {mine}
    net.node.sync(sticky(), *placed(other))
    assert who(net.tcp("client", VIP[family])) == other
    net.node.sync(sticky(), *placed("a", "b", "c"))
    assert {who(net.tcp("client", NODE[family], 30080)) for _ in range(8)} == {other}


def test_affinity_ends_by_its_own_timeout_which_every_connection_slides(net: Net) -> None:
    net.node.sync(sticky(timeout=2), *placed("a", "b", "c"))
    mine = who(net.tcp("client", VIP[4]))
    begin = time.monotonic()
    while time.monotonic() - begin < 2.6:
        assert who(net.tcp("client", VIP[4])) == mine
        time.sleep(0.2)  # time is what this is about
    deadline = time.monotonic() + 10
    while CLIENT[4] in netns.run(
        net.ns["node"], "nft", "list", "map", "inet", "netplane", "svc-affinity4-tcp"
    ):
        assert time.monotonic() < deadline, "the client was never forgotten"
        time.sleep(0.1)


@FAMILIES
def test_affinity_of_udp(net: Net, family: int) -> None:
    ports = (ServicePort(port=80, target_port=8080, protocol="UDP", node_port=30080),)
    offered = (EndpointPort(port=8080, protocol="UDP"),)
    slices = [endpoints(*(endpoint(pod_ip(p, family), "n1") for p in PODS), ports=offered)]
    net.node.sync(amend(sticky(), spec=amend(sticky().spec, ports=ports)), *slices)
    names = {
        who(net.udp("client", *way)) for way in ((VIP[family], 80), (NODE[family], 30080)) for _ in range(6)
    }
    assert len(names) == 1


@FAMILIES
@pytest.mark.parametrize("layer", [TCP, UDP])
def test_a_rewritten_first_packet_has_the_right_checksum(net: Net, family: int, layer: Any) -> None:
    """From a wire it comes with one that is whole; sockets on a veth leave theirs to be filled in."""
    name = layer.__name__.upper()
    ports = (ServicePort(port=80, target_port=8080, protocol=name, node_port=30080),)
    offered = (EndpointPort(port=9999, protocol=name),)
    net.node.sync(
        amend(sticky(), spec=amend(sticky().spec, ports=ports)),
        endpoints(endpoint(pod_ip("b", family), "n1"), ports=offered),
    )
    number = {"TCP": socket.IPPROTO_TCP, "UDP": socket.IPPROTO_UDP}[name]
    ip = {4: IP, 6: IPv6}[family]
    with heard(net, "b", family, number) as sock:
        packet = ip(src=CLIENT[family], dst=NODE[family]) / layer(sport=4000, dport=30080)
        netns.call(net.ns["client"], send_raw, bytes(packet), NODE[family], family)
        while True:
            found, peer = sock.recvfrom(256)
            segment = layer(found[20:] if family == 4 else found)
            if segment.dport == 9999:
                break
    whole = ip(src=peer[0], dst=pod_ip("b", family)) / segment
    assert peer[0] == GATEWAY[family]
    right = segment.chksum
    del whole[layer].chksum
    assert ip(bytes(whole))[layer].chksum == right


def send_raw(packet: bytes, address: str, family: int) -> None:
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    with socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.sendto(packet, (address, 0))


def test_a_restart_adopts_affinity_source_ranges_and_hashed_slots(net: Net) -> None:
    objects = [
        amend(sticky(), spec=amend(sticky().spec, load_balancer_source_ranges=("0.0.0.0/0", "10.0.0.1/32"))),
        *placed("a", "b"),
        service("api", ("10.96.0.2",), annotations={LOAD_BALANCING: "maglev"}),
        endpoints("10.244.1.11", "10.244.1.12", of="api"),
    ]
    net.node.sync(*objects)
    net.node.start()
    assert net.node.sync(*objects) == Plan()
    net.node.sync()
    assert net.node.sync() == Plan(), "and all of it goes"


# --- publish modes, consistent slots ----------------------------------------------------------


@FAMILIES
def test_publish_mode_ingress_keeps_the_clients_address_where_an_endpoint_is_local(
    net: Net, family: int
) -> None:
    for mode in ("vip", "dnsrr"):
        notes = {PUBLISH_MODE: "ingress", ENDPOINT_MODE: mode}
        web = service("web", VIP.values(), type="NodePort", ports=PORTS, annotations=notes)
        net.node.sync(web, *placed("a", "c@n2"))
        seen = {net.tcp("client", NODE[family], 30080) for _ in range(30)}
        assert seen == {f"a {CLIENT[family]}", f"c {GATEWAY[family]}"}
        assert who(net.tcp("a", NODE[family], 30080)) in "ac", "a pod reaches itself too"


@FAMILIES
def test_publish_mode_host_answers_only_where_an_endpoint_is(net: Net, family: int) -> None:
    web = service("web", VIP.values(), type="NodePort", ports=PORTS, annotations={PUBLISH_MODE: "host"})
    net.node.sync(web, *placed("a", "c@n2"))
    for source, seen in (("client", CLIENT), ("b", {f: pod_ip("b", f) for f in (4, 6)})):
        assert {net.tcp(source, NODE[family], 30080) for _ in range(12)} == {f"a {seen[family]}"}
    net.node.sync(web, *placed("c@n2"))
    with pytest.raises(ConnectionRefusedError):
        net.tcp("client", NODE[family], 30080)  # the port is the host's own here
    assert who(net.tcp("b", VIP[family])) == "c"


@FAMILIES
def test_maglev_sends_a_client_to_one_endpoint_and_moves_only_whom_it_must(net: Net, family: int) -> None:
    web = balanced(annotations={LOAD_BALANCING: "maglev"})
    clients = [
        client_of(net, f"{CLIENT[family][:-1]}{n}/{ {4: 24, 6: 64}[family] }", family) for n in range(30, 50)
    ]

    def where() -> dict[str, str]:
        return {c: who(from_address(net, c, VIP[family], 80)) for c in clients}

    net.node.sync(web, *placed("a", "b", "c"))
    before = where()
    assert where() == before and set(before.values()) == {"a", "b", "c"}
    assert {c: who(from_address(net, c, NODE[family], 30080)) for c in clients} == before
    net.node.sync(web, *placed("a", "c"))
    moved = {c for c, pod in where().items() if pod != before[c]}
    left = {c for c, pod in before.items() if pod == "b"}
    assert left <= moved and len(moved - left) <= 3
    net.node.sync(web, *placed("a", "b", "c"))
    assert where() == before


def from_address(net: Net, source: str, address: str, port: int) -> str:
    """As Net.tcp of the client, from one of its addresses."""
    with netns.call(net.ns["client"], socket.create_connection, (address, port), 3, (source, 0)) as sock:
        found: str = sock.recv(64).decode()
        return found


# --- SCTP, which this kernel has no sockets for -------------------------------------------------


@FAMILIES
def test_sctp_is_translated_to_an_endpoint(net: Net, family: int) -> None:
    ports = (ServicePort(port=80, target_port=8080, protocol="SCTP"),)
    offered = (EndpointPort(port=9090, protocol="SCTP"),)
    for affinity in ("None", "ClientIP"):
        web = service("web", VIP.values(), ports=ports, session_affinity=affinity)
        net.node.sync(web, endpoints(endpoint(pod_ip("b", family), "n1"), ports=offered))
        with heard(net, "b", family) as sock:
            netns.call(net.ns["a"], send_init, VIP[family], 5000 + len(affinity))
            packet, peer = sock.recvfrom(256)
        sctp = packet[20:] if family == 4 else packet
        assert peer[0] == pod_ip("a", family)
        assert int.from_bytes(sctp[2:4], "big") == 9090
        assert sctp == bytes(SCTP(sctp)), "the checksum is right after the translation"


def send_init(address: str, sport: int) -> None:
    """An SCTP INIT from a raw socket of this thread's namespace."""
    chunk = SCTPChunkInit(init_tag=7, a_rwnd=65536, n_out_streams=1, n_in_streams=1)
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_SCTP) as sock:
        sock.sendto(bytes(SCTP(sport=sport, dport=80) / chunk), (address, 0))


def heard(net: Net, pod: str, family: int, protocol: int = socket.IPPROTO_SCTP) -> socket.socket:
    """A raw socket in the pod that hears a protocol."""
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    sock = netns.call(net.ns[pod], socket.socket, kind, socket.SOCK_RAW, protocol)
    sock.settimeout(3)
    return sock

"""Host ports on the real agent: from outside, from the node, from the pod itself, and after DEL.

outside (ns) ── wire ── node-1 (ns) ── npbr0 ── pods a, b (ns)
192.168.77.1            192.168.77.11           10.244.0.x
fd00:77::1              fd00:77::11             fd00:10:244::…
"""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkInitAck

from netplane.cni.ports import HostPorts
from netplane.kernel import netns
from netplane.lab import Lab
from netplane.model.base import ObjectMeta, amend
from netplane.model.own import Attachment, AttachmentIP, AttachmentSpec, PortMapping
from tests.cnirun import OWN, Cni, plain

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
MakeLab = Callable[..., Lab]


@pytest.fixture(scope="module")
def lab(make_module_lab: MakeLab) -> Lab:
    lab = make_module_lab(nodes=1)
    lab.start_agents()
    return lab


def mapped(*ports: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"runtimeConfig": {"portMappings": list(ports)}, **more}


def port(host: int, container: int, protocol: str = "tcp", **more: Any) -> dict[str, Any]:
    return {"hostPort": host, "containerPort": container, "protocol": protocol, **more}


@contextmanager
def serving(at: str, port: int, kind: int = socket.SOCK_STREAM) -> Iterator[None]:
    """Both families; answers each client with the address that it sees."""
    family = socket.AF_INET6
    server = netns.call(at, lambda: socket.socket(family, kind))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", port))
    if kind == socket.SOCK_STREAM:
        server.listen()
    thread = threading.Thread(target=_answer, args=(server, kind), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR) if kind == socket.SOCK_STREAM else None
        server.close()


def _answer(server: socket.socket, kind: int) -> None:
    try:
        while True:
            if kind == socket.SOCK_STREAM:
                client, where = server.accept()
                client.sendall(where[0].removeprefix("::ffff:").encode())
                client.close()
            else:
                _, where = server.recvfrom(100)
                server.sendto(where[0].removeprefix("::ffff:").encode(), where)
    except OSError:
        return


def seen(at: str, to: str, port: int, kind: int = socket.SOCK_STREAM, patience: float = 5) -> str:
    """From which address the server sees a client in ``at``; "" when it is refused, or nobody answers."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET

    def ask() -> str:
        with socket.socket(family, kind) as client:
            client.settimeout(patience)
            try:
                client.connect((to, port))
                client.send(b"x") if kind == socket.SOCK_DGRAM else None
                return client.recv(100).decode()
            except OSError:
                return ""

    return netns.call(at, ask)


def test_a_port_is_reached_from_everywhere_in_both_families(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    mine = plain(cni.add(a, mapped(port(8080, 80))))
    others = plain(cni.add(b))
    with serving(a, 80):
        outside = [seen(str(lab.outside.netns), to, 8080) for to in lab.nodes[0].addresses]
        assert outside == ["192.168.77.1", "fd00:77::1"]  # the client's own address is kept
        assert [seen(b, to, 8080) for to in lab.nodes[0].addresses] == others
        assert all(seen(a, to, 8080) for to in lab.nodes[0].addresses)  # the pod itself: hairpin
        assert [seen(str(lab.nodes[0].netns), to, 8080) for to in lab.nodes[0].addresses] != ["", ""]
        assert seen(str(lab.nodes[0].netns), "127.0.0.1", 8080) == "10.244.0.1"
        assert seen(a, mine[0], 80) and not seen(str(lab.outside.netns), "192.168.77.11", 8081)
    cni.delete(a)
    cni.delete(b)
    assert not seen(str(lab.outside.netns), "192.168.77.11", 8080)


def test_a_pod_does_not_reach_the_nodes_localhost(lab: Lab, make_netns: MakeNetns) -> None:
    """What makes 127.0.0.1:8080 lead to pods must not lead pods to 127.0.0.1."""
    cni, a, node = Cni(lab), make_netns("a"), str(lab.nodes[0].netns)
    cni.add(a, mapped(port(8080, 80)))
    netns.run(a, "ip", "route", "add", "127.0.0.2/32", "via", "10.244.0.1", "dev", "eth0")
    netns.run(a, "sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
    with serving(node, 7000):
        assert seen(node, "127.0.0.2", 7000)
        assert not seen(a, "127.0.0.2", 7000, patience=1), "dropped"
    cni.delete(a)


def test_host_ip_and_protocol_belong_to_the_key(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a, b, out = Cni(lab), make_netns("a"), make_netns("b"), str(lab.outside.netns)
    cni.add(a, mapped(port(9000, 80, hostIP="192.168.77.11"), port(9000, 53, "udp")))
    cni.add(b, mapped(port(9000, 80, hostIP="fd00:77::11")))
    with serving(a, 80), serving(a, 53, socket.SOCK_DGRAM):
        assert seen(out, "192.168.77.11", 9000) and not seen(out, "fd00:77::11", 9000)
        assert seen(out, "fd00:77::11", 9000, socket.SOCK_DGRAM)
        assert not seen(str(lab.nodes[0].netns), "127.0.0.1", 9000)
    for pod in (a, b):
        cni.delete(pod)


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        (port(9100, 80), port(9100, 81), True),
        (port(9100, 80), port(9100, 81, hostIP="192.168.77.11"), True),
        (port(9100, 80, hostIP="192.168.77.11"), port(9100, 81), True),
        (port(9100, 80, hostIP="0.0.0.0"), port(9100, 81, hostIP="::"), False),
        (port(9100, 80), port(9100, 81, "udp"), False),
    ],
)
def test_a_taken_port_names_who_holds_it(
    lab: Lab, make_netns: MakeNetns, first: Any, second: Any, taken: bool
) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    cni.add(a, mapped(first), ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0")
    answer = cni.call("ADD", b, mapped(second))
    if taken:
        assert answer["code"] == 11 and "held by pod shop/web-0" in answer["msg"]
        assert "9100 of this node" in answer["msg"]
    else:
        assert "ips" in answer
    cni.delete(b)
    cni.delete(a)
    cni.add(b, mapped(second))  # free again
    cni.delete(b)


def test_a_pod_of_two_networks_has_its_ports_by_the_first(lab: Lab, make_netns: MakeNetns) -> None:
    """podman asks for a container's ports in each of its networks; another container does not get them."""
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    first = mapped(port(8086, 80))
    second = {**first, "name": "second", "bridge": "br-ports", "isDefaultGateway": True, "ipam": OWN}
    cni.add(a, first)
    result = cni.add(a, second, IFNAME="eth1")
    with serving(a, 80):
        for to in lab.nodes[0].addresses:
            assert seen(str(lab.outside.netns), to, 8086)
    assert cni.call("CHECK", a, {**second, "prevResult": result}, IFNAME="eth1") == ""
    assert "eth0" in cni.call("ADD", b, second)["msg"]
    cni.delete(a, second, IFNAME="eth1")
    assert cni.call("ADD", b, second)["code"] == 11
    cni.delete(a, first)
    cni.add(b, second)
    cni.delete(b, second)


def test_a_pods_networks_may_come_all_at_once(lab: Lab, make_netns: MakeNetns) -> None:
    """go-cni attaches a container to its networks in parallel, each with the same ports and default route."""
    cni, asked = Cni(lab), mapped(port(8087, 80))
    networks = [(f"eth{i}", {**asked, "name": f"net{i}"}) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for turn in range(5):
            pod = make_netns(f"p{turn}")
            added = pool.map(lambda one, pod=pod: cni.add(pod, one[1], IFNAME=one[0]), networks)
            assert len({ip["address"] for result in added for ip in result["ips"]}) == 8
            list(pool.map(lambda one, pod=pod: cni.delete(pod, one[1], IFNAME=one[0]), networks))


def test_a_node_port_is_a_taken_port(lab: Lab, make_netns: MakeNetns) -> None:
    service = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: NodePort, ports: [{port: 80, nodePort: 30123}]}
"""
    lab.netplane("apply", "-f", "-", input=service)
    lab.nodes[0].agent.wait()
    answer = Cni(lab).call("ADD", make_netns("a"), mapped(port(30123, 80)))
    assert answer["code"] == 11 and "held by service default/web (node port)" in answer["msg"]
    lab.netplane("delete", "Service", "web")


def test_ports_survive_an_agent_and_are_held_after_it(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    cni.add(a, mapped(port(9200, 80)))
    lab.nodes[0].agent.kill()
    with serving(a, 80):
        assert seen(str(lab.outside.netns), "192.168.77.11", 9200)
        lab.nodes[0].agent.start().wait()
        assert cni.call("ADD", b, mapped(port(9200, 80)))["code"] == 11
        assert seen(str(lab.outside.netns), "192.168.77.11", 9200)
    cni.delete(a)
    assert "cni-hostports" not in lab.nodes[0].run("nft", "list", "table", "inet", "netplane")


def test_a_udp_client_that_goes_on_sending_meets_the_new_pod(lab: Lab, make_netns: MakeNetns) -> None:
    """Without forgetting the flow, conntrack leads the client past the pod, or to the last one."""
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    client = netns.call(str(lab.outside.netns), socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(1)
    client.connect(("192.168.77.11", 5353))

    def reached() -> bool:
        try:
            client.send(b"x")
            return bool(client.recv(100))
        except OSError:
            return False

    assert not reached()  # tracked, and translated to nothing
    cni.add(a, mapped(port(5353, 53, "udp")))
    with serving(a, 53, socket.SOCK_DGRAM):
        assert reached()
    cni.delete(a)
    cni.add(b, mapped(port(5353, 53, "udp")))
    with serving(b, 53, socket.SOCK_DGRAM):
        assert reached()
    cni.delete(b)
    client.close()
    assert "port=5353 " not in lab.nodes[0].run("conntrack", "-L", "-p", "udp")


def test_a_network_of_its_own_has_ports_too(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    own = {"ipam": OWN, "isDefaultGateway": True, "ipMasq": True, "bridge": "br-own"}
    mine = plain(cni.add(a, mapped(port(8088, 80), **own)))
    cni.add(b, own)
    assert mine == ["10.88.0.2", "fd00:88::2"]
    with serving(a, 80):
        for at in (str(lab.outside.netns), str(lab.nodes[0].netns), b, a):
            assert all(seen(at, to, 8088) for to in lab.nodes[0].addresses), at
        assert seen(b, mine[0], 80) == "10.88.0.3"  # neighbours see each other as they are
        assert seen(str(lab.nodes[0].netns), "127.0.0.1", 8088)
    with serving(str(lab.outside.netns), 7001):
        assert seen(a, "192.168.77.1", 7001) == "192.168.77.11"  # ipMasq
    for pod in (a, b):
        cni.delete(pod, own)
    assert "br-own" not in lab.nodes[0].run("ip", "link")


def test_an_sctp_port_leads_to_the_pod_and_back(lab: Lab, make_netns: MakeNetns) -> None:
    """INIT and INIT ACK made by scapy (a kernel may have no SCTP sockets): ports and checksums are right."""
    cni, a, out = Cni(lab), make_netns("a"), str(lab.outside.netns)
    mine = plain(cni.add(a, mapped(port(8132, 80, "sctp"))))
    init = SCTP(sport=5000, dport=8132) / SCTPChunkInit(init_tag=1, a_rwnd=9000, n_in_streams=1)
    ack = SCTP(sport=80, dport=5000, tag=1) / SCTPChunkInitAck(init_tag=2, a_rwnd=9000, n_in_streams=1)
    for to, client, pod in zip(lab.nodes[0].addresses, ("192.168.77.1", "fd00:77::1"), mine, strict=True):
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        with raw_sctp(out, family) as outside, raw_sctp(a, family) as inside:
            outside.sendto(bytes(init), (to, 0))
            assert heard_sctp(inside, client) == (5000, 80)
            inside.sendto(bytes(ack), (client, 0))
            assert heard_sctp(outside, to) == (8132, 5000), pod
    cni.delete(a)
    with raw_sctp(out, socket.AF_INET) as outside, raw_sctp(a, socket.AF_INET) as inside:
        outside.sendto(bytes(init), ("192.168.77.11", 0))
        with pytest.raises(TimeoutError):
            heard_sctp(inside, "192.168.77.1")


def raw_sctp(at: str, family: int) -> socket.socket:
    made = netns.call(at, lambda: socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_SCTP))
    made.settimeout(0.5)
    return made


def heard_sctp(at: socket.socket, source: str) -> tuple[int, int]:
    """Source and destination port of the next packet from ``source``, whose CRC32c must be right."""
    while True:
        got, where = at.recvfrom(2048)
        if where[0] == source:
            break
    packet = SCTP(got if at.family == socket.AF_INET6 else got[(got[0] & 15) * 4 :])
    chksum, packet.chksum = packet.chksum, None
    assert SCTP(bytes(packet)).chksum == chksum
    return packet.sport, packet.dport


def test_what_cannot_be_reached_is_refused(lab: Lab, make_netns: MakeNetns) -> None:
    own = {"ipam": {"type": "netplane", "ranges": [[{"subnet": "10.89.0.0/24"}]]}, "bridge": "br-four"}
    answer = Cni(lab).call("ADD", make_netns("a"), mapped(port(80, 80, hostIP="fd00:77::11"), **own))
    assert answer["code"] == 7 and "no IPv6 address" in answer["msg"]
    assert not subprocess.run(["ip", "link", "show", "br-four"], capture_output=True, check=False).stdout


def test_a_port_twice_in_one_request_is_refused_and_nothing_stays_held(
    lab: Lab, make_netns: MakeNetns
) -> None:
    cni, a = Cni(lab), make_netns("a")
    small = {"ipam": {"ranges": [[{"subnet": "10.94.1.0/30"}]]}, "bridge": "br-two", "name": "two"}
    answer = cni.call("ADD", a, mapped(port(8124, 80), port(8125, 80), port(8124, 81), **small))
    assert answer["code"] == 7 and "portMappings[2]: tcp 8124 repeats portMappings[0]" in answer["msg"]
    assert cni.call("STATUS", "", small) == ""  # the only address is free
    result = cni.add(a, mapped(port(8124, 80), port(8125, 80), **small))
    assert plain(result) == ["10.94.1.2"]
    cni.delete(a, small)


def test_the_ports_of_a_record_that_names_one_twice_go_with_it() -> None:
    """Such records are no longer made; one that is there must not keep its address for ever."""
    twice = (PortMapping(host_port=80, container_port=8080), PortMapping(host_port=80, container_port=8081))
    spec = AttachmentSpec(
        node="n", container_id="c", ifname="eth0", netns="/n", network="net", ports=twice,
        host_ifname="v", mac="02:00:00:00:00:01", ips=(AttachmentIP(address="10.0.0.2/32"),),
    )  # fmt: skip
    record, ports = Attachment(metadata=ObjectMeta(name="r"), spec=spec), HostPorts(lambda: [record])
    ports.release("r")
    ports.claim(amend(record, spec=amend(spec, ports=twice[:1])), lambda *_: "")

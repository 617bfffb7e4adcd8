"""The packet path with real agents: who is carried by it, with what rewrite, and that nothing else changes.

outside ── wire ──┬── node-1: npbr0 ── a, b
   (echo)         └── node-2: npbr0 ── far (echo)        b and far answer on TCP 8080 and UDP 5300
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path as File
from typing import Any

import pytest

from netplane.kernel import bpfhook
from netplane.lab import Lab
from netplane.lab.settings import Settings
from netplane.model.errors import KernelError
from netplane.model.services import EndpointPort, ServicePort
from netplane.store import open_store
from tests.services_kit import endpoint, endpoints, service

from ..datapath_world import Echo, Talk, eventually, hooks, remembered, talk, verdicts, wait_hooked

pytestmark = pytest.mark.root
FAMILIES = ("IPv4", "IPv6")
VIPS = {"IPv4": "10.96.7.7", "IPv6": "fd00:10:96::707"}
PORTS = (
    ServicePort(name="tcp", port=80, target_port=8080, node_port=30080),
    ServicePort(name="udp", protocol="UDP", port=53, target_port=5300, node_port=30053),
)
OFFERED = (EndpointPort(name="tcp", port=8080), EndpointPort(name="udp", protocol="UDP", port=5300))


@pytest.fixture(scope="module")
def world(make_module_lab: Any) -> Iterator[Lab]:
    lab: Lab = make_module_lab(nodes=2, dual_stack=True, settings=Settings(agent_args=("--datapath", "fast")))
    lab.start_agents()
    near, other = lab.nodes
    pods = [near.add_pod("a"), near.add_pod("b"), other.add_pod("far")]
    echoes = [Echo(place) for place in (*pods[1:], lab.outside)]
    wait_hooked(lab)
    yield lab
    for echo in echoes:
        echo.close()


def place(lab: Lab, name: str) -> Any:
    return lab.place(name) if name in ("outside", "node-1", "node-2") else lab.place(f"default/{name}")


def carried(node: Any, flow: Talk) -> list[dict[str, Any]]:
    """Talk until the node's fast path has carried some of it; its entries."""

    def look() -> list[dict[str, Any]]:
        for _ in range(20):
            flow.say()
        return [one for one in remembered(node, flow.port) if one["current"] and one["packets"]]

    found: list[dict[str, Any]] = eventually(look, what="a fast flow")
    return found


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_flow_to_a_pod_of_the_other_node_is_carried_both_ways_on_both(
    world: Lab, family: str, protocol: str
) -> None:
    far = place(world, "far")
    with talk(place(world, "a"), far.ip_of(family), protocol=protocol) as flow:
        for node, away, back in ((world.nodes[0], "pod", "tunnel"), (world.nodes[1], "tunnel", "pod")):
            carried(node, flow)
            found = {one["place"]: one for one in carried(node, flow)}
            assert set(found) == {away, back}
            assert found[away]["destination"] == far.ip_of(family) == found[away]["new_destination"]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_flow_on_one_node_goes_straight_to_the_peer(world: Lab, family: str, protocol: str) -> None:
    with talk(place(world, "a"), place(world, "b").ip_of(family), protocol=protocol) as flow:
        eventually(lambda: len(carried(world.nodes[0], flow)) == 2)
        assert all(one["peer"] and one["place"] == "pod" for one in carried(world.nodes[0], flow))


@pytest.mark.parametrize("size", [1, 1372, 1373, 9000, 60000])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_size_arrives_as_it_was_sent(world: Lab, family: str, size: int) -> None:
    """TCP cut into segments by offload or by software, and datagrams that need fragments."""
    data = bytes(i * 7 % 251 for i in range(size))
    for target in ("far", "b"):
        for protocol in ("tcp", "udp"):
            with talk(place(world, "a"), place(world, target).ip_of(family), protocol=protocol) as flow:
                for _ in range(30):
                    flow.say(data)


@pytest.fixture(scope="module", params=["b", "far"])
def served(world: Lab, request: Any) -> Iterator[str]:
    """A service with one endpoint, on this node or on the other, once node-1 knows it."""
    store = open_store(world.store)
    pod = place(world, request.param)
    for family in FAMILIES:
        name = f"web-{request.param}-{family.lower()}"
        ports = tuple(
            ServicePort(name=p.name, protocol=p.protocol, port=p.port, target_port=p.target_port)
            for p in PORTS
        )
        vip = f"{VIPS[family]}{'1' if request.param == 'b' else '2'}"
        store.put(service(name, (vip,), ports=ports))
        store.put(
            endpoints(endpoint(pod.ip_of(family), node=pod.node.name), of=name, name=name, ports=OFFERED)
        )
    for node in world.nodes:
        node.agent.wait()
    yield request.param
    store.close()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_virtual_address_is_rewritten_as_conntrack_did(
    world: Lab, served: str, family: str, protocol: str
) -> None:
    vip = f"{VIPS[family]}{'1' if served == 'b' else '2'}"
    a, pod = place(world, "a"), place(world, served)
    with talk(a, vip, {"tcp": 80, "udp": 53}[protocol], protocol) as flow:
        eventually(lambda: len(carried(world.nodes[0], flow)) == 2)
        found = {one["source"]: one for one in carried(world.nodes[0], flow)}
        away, back = found[a.ip_of(family)], found[pod.ip_of(family)]
        assert (away["destination"], away["new_destination"]) == (vip, pod.ip_of(family))
        assert (back["new_source"], back["new_destination"]) == (vip, a.ip_of(family))
        assert (away["destination_port"], away["new_destination_port"]) == (
            {"tcp": 80, "udp": 53}[protocol],
            {"tcp": 8080, "udp": 5300}[protocol],
        )


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_leaves_the_cluster_keeps_its_masquerade(world: Lab, family: str, protocol: str) -> None:
    node, a = world.nodes[0], place(world, "a")
    own, outside = (next(ip for ip in ips if (":" in ip) == (family == "IPv6"))
                    for ips in (node.addresses, world.plan.outside))  # fmt: skip
    with talk(a, outside, protocol=protocol) as flow:
        found = {one["place"]: one for one in carried(node, flow)}
        eventually(lambda: len(carried(node, flow)) == 2)
        found = {one["place"]: one for one in carried(node, flow)}
        assert found["pod"]["new_source"] == own
        assert found["wire"]["destination"] == own and found["wire"]["new_destination"] == a.ip_of(family)


def test_opening_and_closing_is_the_kernel_s(world: Lab) -> None:
    node, before = world.nodes[0], verdicts(world.nodes[0])
    far = place(world, "far").ip
    with talk(place(world, "a"), far) as flow:
        carried(node, flow)
        assert remembered(node, flow.port)
    eventually(lambda: not remembered(node, flow.port), what="forgetting a flow that was closed")
    assert verdicts(node)["control"] >= before["control"] + 3  # SYN, SYN+ACK, FIN
    tracked = node.run("conntrack", "-L", "-p", "tcp", "--sport", str(flow.port))
    assert "ESTABLISHED" not in tracked, tracked


def test_the_kernel_is_asked_again_every_second(world: Lab) -> None:
    """A rule that nobody told us of takes effect within a second; and its absence, too."""
    node, far = world.nodes[0], place(world, "far")
    with talk(place(world, "a"), far.ip) as flow:
        carried(node, flow)
        node.run("nft", "add table ip stranger; add chain ip stranger f"
                 " { type filter hook forward priority 0; };"
                 f" add rule ip stranger f tcp sport {flow.port} drop")  # fmt: skip
        try:
            eventually(lambda: not flow.answered(0.3), 3)
        finally:
            node.run("nft", "delete table ip stranger")
        assert eventually(lambda: flow.answered(1.0), 10)


def test_counters_are_kept_for_flows_and_pods(world: Lab) -> None:
    node, far = world.nodes[0], place(world, "far")
    with talk(place(world, "a"), far.ip, protocol="udp") as flow:
        carried(node, flow)
        (before,) = [one for one in remembered(node, flow.port) if one["place"] == "pod"]
        slow = sum(n for name, n in verdicts(node).items() if name in ("ask", "stale", "large"))
        for _ in range(500):
            flow.say(b"x" * 100)
        (after,) = [one for one in remembered(node, flow.port) if one["place"] == "pod"]
        slow = sum(n for name, n in verdicts(node).items() if name in ("ask", "stale", "large")) - slow
        fast = after["packets"] - before["packets"]
        assert 500 - slow <= fast <= 500
        assert after["bytes"] - before["bytes"] == fast * (100 + 28 + 14)


def test_explain_says_whether_a_flow_would_be_fast(world: Lab) -> None:
    node, program = world.nodes[0], world.settings.programs.netplane

    def explain(source: str, target: str) -> str:
        return node.run(program, "explain", source, target, "--run-dir", node.run_dir, check=False)

    a, far = place(world, "a").ip, place(world, "far").ip
    assert "fast path  yes, once it is answered" in explain(a, f"{far}:8080")
    assert "fast path  no: only TCP and UDP" in explain(a, f"{far}:8080/sctp")
    assert f"fast path  no: {far} is no pod of this node" in explain(far, f"{a}:80")


def test_the_command_lists_flows_with_their_rewrite(world: Lab) -> None:
    node, a, far = world.nodes[0], place(world, "a"), place(world, "far")
    program, where = world.settings.programs.netplane, ("--run-dir", node.run_dir)
    with talk(a, far.ip) as flow:
        carried(node, flow)
        said = node.run(program, "flows", far.ip, *where)
        assert f"tcp {a.ip}:{flow.port} → {far.ip}:8080 (pod to npvx0; " in said
        assert node.run(program, "flows", "192.0.2.9", *where).startswith("packets: fast ")
    with pytest.raises(KernelError, match="'nobody' is not an IP address"):
        node.run(program, "flows", "nobody", *where)


def test_a_guarded_pod_and_a_shaped_one_meet_their_guard_and_queue(world: Lab) -> None:
    """macspoofchk drops what is not the pod's; a limited pod gets what the limit lets through."""
    node, far, before = world.nodes[0], place(world, "far"), hooks(world.nodes[0])
    guarded = node.add_pod("guarded", config={"macspoofchk": True})
    rate = {"ingressRate": 20_000_000, "ingressBurst": 200_000}
    shaped = node.add_pod(
        "shaped", config={"runtimeConfig": {"bandwidth": rate}, "capabilities": {"bandwidth": True}}
    )
    eventually(lambda: hooks(node) == before + 1, what="the shaped pod's program")
    with talk(guarded, far.ip) as flow:
        for _ in range(20):
            flow.say()
        assert not [one for one in remembered(node, flow.port) if one["source"] == guarded.ip]
    assert hooks(node) == before + 1  # nothing stands before the guard
    with talk(shaped, far.ip) as flow:
        found = {one["place"]: one for one in carried(node, flow)}
        eventually(lambda: len(carried(node, flow)) == 2)
        found = {one["place"]: one for one in carried(node, flow)}
        assert not found["tunnel"]["peer"]  # through the device, whose queue it is
    guarded.delete()
    shaped.delete()


def test_the_programs_go_with_their_pod(world: Lab) -> None:
    node = world.nodes[0]
    before = hooks(node)
    pod = node.add_pod("passing")
    wait_hooked(world)
    assert hooks(node) == before + 1
    pod.delete()
    eventually(lambda: hooks(node) == before)
    assert node.run("conntrack", "-C").strip().isdigit()


def test_counters_agree_with_those_of_the_kernel(world: Lab) -> None:
    """What conntrack counts (nf_conntrack_acct) and what the path counts is together what was sent; the
    path counts as much for the pod as for its flow, and the veth all of it."""
    node, a, far = world.nodes[0], place(world, "a"), place(world, "far")
    node.run("sysctl", "-qw", "net.netfilter.nf_conntrack_acct=1")
    link = next(one["name"] for one in a.result["interfaces"] if one["name"].startswith("npv"))
    try:
        for _ in range(5):
            stale = verdicts(node)["stale"]
            with talk(a, far.ip, protocol="udp") as flow:
                before = node.python(port_counters, link)
                for _ in range(400):
                    flow.say(b"x" * 100)
                after = node.python(port_counters, link)
                fast = {one["place"]: (one["packets"], one["bytes"]) for one in remembered(node, flow.port)}
                tracked = node.run("conntrack", "-L", "-p", "udp", "--sport", str(flow.port))
            if verdicts(node)["stale"] == stale:
                break  # else a pod of before was still going: what is learnt anew counts from then on
        assert verdicts(node)["stale"] == stale
    finally:
        node.run("sysctl", "-qw", "net.netfilter.nf_conntrack_acct=0")
    sent, received, veth = (y - x for x, y in zip(before, after, strict=True))
    assert fast["pod"][0] == sent > 200 and fast["tunnel"][0] == received > 200
    assert 400 <= veth < 410
    counted = re.findall(r"packets=(\d+) bytes=(\d+)", tracked)
    for where, (packets, size) in zip(("pod", "tunnel"), counted, strict=True):
        assert fast[where][0] + int(packets) == 400
        assert fast[where][1] + int(size) + 14 * int(packets) == 400 * (100 + 28 + 14)


def port_counters(link: str) -> tuple[int, int, int]:
    """Packets that the pod behind this host end sent and got on the fast path, and sent by all accounts."""
    ifindex = socket.if_nametoindex(link)
    (program,) = [one for way in bpfhook.ways() for one in way.attached(ifindex, bpfhook.INGRESS)]
    (ports,) = [one for one in program.maps() if one.name == "np_ports"]
    words = memoryview(ports.get(ifindex.to_bytes(4, sys.byteorder)) or b"").cast("Q")
    veth = File("/proc/thread-self/net/dev").read_text().partition(f"{link}:")[2].split()
    return sum(words[1::5]), sum(words[3::5]), int(veth[1])


def test_flows_are_carried_around_a_tunnel_over_ipv6(make_lab: Any) -> None:
    """The VXLAN device itself puts the outer header on and takes it off."""
    fast = Settings(agent_args=("--datapath", "fast"), family="IPv6")
    lab: Lab = make_lab(nodes=2, dual_stack=False, settings=fast)
    lab.start_agents()
    a, far = (node.add_pod(name) for node, name in zip(lab.nodes, ("a", "far"), strict=True))
    echo = Echo(far)
    wait_hooked(lab)
    assert "dst fd00:77::" in lab.nodes[0].run("bridge", "fdb", "show", "dev", "npvx0")
    for protocol in ("tcp", "udp"):
        with talk(a, far.ip, protocol=protocol) as flow:
            for node, away, back in ((lab.nodes[0], "pod", "tunnel"), (lab.nodes[1], "tunnel", "pod")):
                eventually(lambda node=node, flow=flow: len(carried(node, flow)) == 2)
                found = {one["place"]: one for one in carried(node, flow)}
                assert (found[away]["source"], found[back]["source"]) == (a.ip, far.ip)
                assert found["pod"]["device"] == "npvx0"
            flow.say(b"x" * (60000 if protocol == "tcp" else 1300))
    echo.close()

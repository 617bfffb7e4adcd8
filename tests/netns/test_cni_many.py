"""More pods than one bridge has: those on the second are reached as those on the first, by all and from all.

outside ── wire ──┬── node-1: npbr0 ── a, 127 more      npbr1 ── b, c
                  └── node-2: npbr0 ── far              b and far answer on TCP 8080 and UDP 5300
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from netplane.cni.nodebridges import PODS
from netplane.kernel import netns
from netplane.lab import Lab
from netplane.lab.settings import Settings

from ..cnirun import Cni, plain
from ..datapath_world import Echo, eventually, remembered, talk
from .test_cni_chain import difference, host_state
from .test_cni_features import pings
from .test_cni_standalone import Machine

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
FAMILIES = ("IPv4", "IPv6")
PORT = {"runtimeConfig": {"portMappings": [{"hostPort": 8600, "containerPort": 8080, "protocol": "tcp"}]}}


@pytest.fixture(scope="module", params=["fast", "kernel"])
def world(make_module_lab: Any, request: Any) -> Iterator[Lab]:
    settings = Settings(agent_args=("--datapath", request.param))
    lab: Lab = make_module_lab(nodes=2, dual_stack=True, settings=settings)
    lab.start_agents()
    near, other = lab.nodes
    near.add_pod("a")
    with ThreadPoolExecutor(8) as runtime:
        for done in [runtime.submit(near.add_pod, f"idle-{n}") for n in range(1, PODS)]:
            done.result()
    near.add_pod("b", config=PORT)
    near.add_pod("c")
    other.add_pod("far")
    echoes = [Echo(place(lab, name)) for name in ("b", "far")]
    yield lab
    for echo in echoes:
        echo.close()


def place(lab: Lab, name: str) -> Any:
    return lab.place(f"default/{name}")


def ports(lab: Lab, bridge: str) -> set[str]:
    """None without the bridge."""
    text = lab.nodes[0].run("ip", "-j", "link", "show", "master", bridge, check=False)
    return {link["ifname"] for link in json.loads(text or "[]")}


def routed(lab: Lab, family: str) -> set[str]:
    found = json.loads(lab.nodes[0].run("ip", "-j", f"-{family[-1]}", "route", "show", "dev", "npbr1"))
    return {route["dst"] for route in found if route["protocol"] != "kernel"}


def test_the_first_bridge_is_full_before_there_is_a_second(world: Lab) -> None:
    results = {name: place(world, name).result for name in ("a", "b", "c")}
    bridges = {name: result["interfaces"][0] for name, result in results.items()}
    assert [bridges[name]["name"] for name in "abc"] == ["npbr0", "npbr1", "npbr1"]
    assert bridges["a"]["mac"] == bridges["b"]["mac"]  # the gateway's, whichever bridge a pod is on
    assert ports(world, "npbr1") == {"nphr1", *(results[name]["interfaces"][1]["name"] for name in "bc")}
    assert len(ports(world, "npbr0")) == PODS + 1 and "nphr0" in ports(world, "npbr0")
    for family in FAMILIES:
        assert routed(world, family) == {place(world, name).ip_of(family) for name in "bc"}
    assert "fd00:10:244" in world.nodes[0].run("ip", "-6", "addr", "show", "dev", "npbr1")


@pytest.mark.parametrize("family", FAMILIES)
def test_pods_meet_whichever_bridge_they_are_on(world: Lab, family: str) -> None:
    a, b, c, far = (place(world, name) for name in ("a", "b", "c", "far"))
    for sender in (a, c, far, b):
        for protocol in ("tcp", "udp"):
            with talk(sender, b.ip_of(family), protocol=protocol) as flow:
                flow.say(b"x" * 9000)
    with talk(b, far.ip_of(family)) as flow:
        flow.say()
    outside = {"IPv4": "192.168.77.1", "IPv6": "fd00:77::1"}[family]
    assert pings(str(b.netns), outside) and pings(str(world.nodes[0].netns), b.ip_of(family))
    gateway = next(ip["gateway"] for ip in b.result["ips"] if (":" in ip["address"]) == (family == "IPv6"))
    assert pings(str(c.netns), gateway)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fast_path_leads_from_bridge_to_bridge(world: Lab, family: str) -> None:
    if "kernel" in world.settings.agent_args:
        pytest.skip("this lab is of the kernel path")
    node, target = world.nodes[0], place(world, "b").ip_of(family)
    for sender in ("a", "c"):
        with talk(place(world, sender), target) as flow:

            def both_ways(flow: Any = flow) -> bool:
                flow.say()
                found = [f for f in remembered(node, flow.port) if f["current"] and f["packets"]]
                return len(found) == 2 and all(f["peer"] for f in found)

            eventually(both_ways, what="a fast flow")


def test_a_host_port_leads_to_the_second_bridge_from_everywhere(world: Lab) -> None:
    node = world.nodes[0]
    for sender in (node, place(world, "a"), world.outside):
        with talk(sender, "127.0.0.1" if sender is node else node.addresses[0], 8600) as flow:
            flow.say()


def test_what_somebody_takes_from_the_second_bridge_is_named_and_comes_back(world: Lab) -> None:
    node, b = world.nodes[0], place(world, "b")
    cni = Cni(world)
    config = {**PORT, "name": b.network["name"], "prevResult": b.result}
    names = {"CONTAINERID": b.container_id}
    assert cni.call("CHECK", str(b.netns), config, **names) == ""
    node.run("ip", "route", "del", f"{b.ip}/32", "dev", "npbr1")
    eventually(lambda: b.ip in routed(world, "IPv4"), what="the pod's route")
    node.run("ip", "link", "del", "npbr1")
    eventually(lambda: len(ports(world, "npbr1")) == 3, what="the bridge")
    node.agent.wait()
    with talk(place(world, "a"), b.ip) as flow:
        eventually(lambda: flow.answered(1), what="an answer")
    eventually(lambda: cni.call("CHECK", str(b.netns), config, **names) == "", what="all of it")


def test_a_second_bridge_comes_with_a_pod_and_leaves_nothing(world: Lab, make_netns: MakeNetns) -> None:
    cni, config = Cni(world), {"runtimeConfig": PORT["runtimeConfig"]}
    for name in "bc":
        place(world, name).delete()
    before = host_state(world)
    assert "npbr1" not in before["links"]
    pod = make_netns("pod")
    result = cni.add(pod, config)
    assert result["interfaces"][0]["name"] == "npbr1"
    assert pings(str(place(world, "a").netns), plain(result)[0])
    cni.delete(pod, config)
    assert host_state(world) == before


def test_the_last_pod_of_a_bridge_goes_while_its_next_comes(world: Lab, make_netns: MakeNetns) -> None:
    """At whatever moment: every pod has its network, and the last two leave nothing when they go at once."""
    cni, a = Cni(world), str(place(world, "a").netns)
    first, second = make_netns("one"), make_netns("two")
    before = host_state(world)
    cni.add(first)
    with ThreadPoolExecutor(2) as runtime:
        for turn in range(24):
            gone = runtime.submit(cni.call, "DEL", first)
            time.sleep(turn % 12 / 4000)
            result = cni.add(second)
            assert gone.result() == "" and pings(a, plain(result)[0]), turn
            first, second = second, first
        assert cni.add(second)["interfaces"][0]["name"] == "npbr1"
        assert set(runtime.map(lambda pod: cni.call("DEL", pod), (first, second))) == {""}
    assert difference(before, world) == {}


def test_an_agent_that_starts_anew_knows_which_bridges_are_full(world: Lab, make_netns: MakeNetns) -> None:
    """And where a pod has gone, the next one comes."""
    node, cni, pods = world.nodes[0], Cni(world), [make_netns("one"), make_netns("two")]
    place(world, "idle-5").delete()
    node.agent.kill()
    node.agent.start().wait()
    assert [cni.add(pod)["interfaces"][0]["name"] for pod in pods] == ["npbr0", "npbr1"]
    for pod in pods:
        cni.delete(pod)


def test_without_an_agent_the_kernel_counts(make_netns: MakeNetns, tmp_path: Path) -> None:
    """Such an ADD sees no records of others; what is no pair on the bridge is no pod."""
    machine, pods = Machine(make_netns("node"), tmp_path), [make_netns("a"), make_netns("b"), make_netns("c")]

    def bridge(pod: str) -> str:
        return str(machine("ADD", pod)["interfaces"][0]["name"])

    assert bridge(pods[0]) == "npbr0"
    lines = "".join(
        f"link add d{n} type veth peer name e{n}\nlink set d{n} master npbr0\n" for n in range(PODS - 2)
    )
    lines += "link add other type vxlan id 9 dstport 8472\nlink set other master npbr0\n"
    netns.run(machine.at, "ip", "-batch", "-", input=lines, stdin=None)
    assert [bridge(pod) for pod in pods[1:]] == ["npbr0", "npbr1"]
    assert pings(pods[2], "10.244.7.1")
    assert machine("DEL", pods[2]) == "" and "npbr1" not in netns.run(machine.at, "ip", "link")
    netns.run(machine.at, "ip", "link", "del", "d0")
    assert bridge(pods[2]) == "npbr0"

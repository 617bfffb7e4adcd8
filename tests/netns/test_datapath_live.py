"""The packet path while things change: policy, endpoints, agents that die, programs that are replaced.

outside ── wire ──┬── node-1: npbr0 ── a, b
                  └── node-2: npbr0 ── far        b and far answer on TCP 8080 and UDP 5300
"""

from __future__ import annotations

import re
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from netplane.lab import Lab
from netplane.lab.settings import Settings
from netplane.model import codec
from netplane.store import open_store

from ..datapath_world import (
    Echo,
    Steady,
    Streams,
    Talk,
    eventually,
    hooks,
    remembered,
    talk,
    verdicts,
    wait_hooked,
)

pytestmark = pytest.mark.root

DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec: {podSelector: {matchLabels: {app: NAME}}, policyTypes: [Ingress]}
"""
PUBLISHED = """
apiVersion: v1
kind: Service
metadata: {name: pub}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  selector: {app: far}
  ports:
  - {name: tcp, port: 80, targetPort: 8080, nodePort: 30080}
  - {name: udp, protocol: UDP, port: 53, targetPort: 5300, nodePort: 30053}
"""


@pytest.fixture(scope="module")
def world(make_module_lab: Any) -> Iterator[Lab]:
    yield from _world(make_module_lab, "fast")


@pytest.fixture(scope="module")
def slow_world(make_module_lab: Any) -> Iterator[Lab]:
    yield from _world(make_module_lab, "kernel")


def _world(make_lab: Any, mode: str) -> Iterator[Lab]:
    lab: Lab = make_lab(nodes=2, dual_stack=True, settings=Settings(agent_args=("--datapath", mode)))
    lab.start_agents()
    near, other = lab.nodes
    for node, name in ((near, "a"), (near, "b"), (other, "far")):
        node.add_pod(name, labels={"app": name})
    echoes = [Echo(pod) for pod in lab.pods[1:]]
    if mode == "fast":
        wait_hooked(lab)
    yield lab
    for echo in echoes:
        echo.close()


def pod(lab: Lab, name: str) -> Any:
    return lab.place(f"default/{name}")


def warm(node: Any, flow: Talk) -> None:
    """Until both directions are carried."""

    def look() -> bool:
        for _ in range(20):
            flow.say()
        return sum(1 for f in remembered(node, flow.port) if f["current"] and f["packets"]) >= 2

    eventually(look, what="a fast flow")


def apply(lab: Lab, manifest: str) -> None:
    lab.netplane("apply", "-f", "-", input=manifest)


def cut_after(lab: Lab, target: str) -> float:
    """Seconds from a policy's way into the store until an established flow to the pod is cut."""
    (policy,) = codec.parse_all(DENY.replace("NAME", target))
    with talk(pod(lab, "a"), pod(lab, target).ip) as flow, closing(open_store(lab.store)) as store:
        steady = Steady(flow)
        eventually(lambda: steady.said > 100)
        begin = time.monotonic()
        store.put(policy)
        eventually(lambda: time.monotonic() - steady.last > 0.2, what="the end of a flow that is not allowed")
        flow.close()
        store.delete(policy.key)
    for node in lab.nodes:
        node.agent.wait()
    return steady.last - begin


def test_a_policy_cuts_an_established_flow_as_fast_as_on_the_kernel_path(world: Lab, slow_world: Lab) -> None:
    for target in ("b", "far"):
        fast, slow = ([cut_after(lab, target) for _ in range(3)] for lab in (world, slow_world))
        assert statistics.median(fast) <= statistics.median(slow) + 0.1, (target, fast, slow)
    assert verdicts(world.nodes[0])["fast"] > 100
    assert hooks(slow_world.nodes[0]) == 0


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_a_node_port_is_carried_from_the_wire_into_the_tunnel_and_back(world: Lab, family: str) -> None:
    """outside → node-1's port (rewritten, masqueraded) → node-2's pod, and the same way back."""
    apply(world, PUBLISHED)
    for node in world.nodes:
        node.agent.wait()
    near = world.nodes[0]
    own = next(ip for ip in near.addresses if (":" in ip) == (family == "IPv6"))
    for protocol, port in (("tcp", 30080), ("udp", 30053)):
        flow = eventually(lambda p=protocol, n=port: _reached(world, own, n, p), what="the node port")
        warm(near, flow)
        found = {one["place"]: one for one in remembered(near, flow.port) if one["current"]}
        assert found["wire"]["new_destination"] == pod(world, "far").ip_of(family)
        assert found["wire"]["device"] == "npvx0"
        warm(near, flow)
        flow.close()


def _reached(world: Lab, own: str, port: int, protocol: str) -> Talk | None:
    try:
        flow = Talk(world.outside, own, port, protocol)
        if flow.answered(0.5):
            return flow
        flow.close()
    except OSError:
        pass
    return None


def test_an_agent_s_death_and_return_lose_nothing(world: Lab) -> None:
    near = world.nodes[0]
    with (
        talk(pod(world, "a"), pod(world, "far").ip) as flow,
        talk(pod(world, "a"), pod(world, "b").ip, protocol="udp") as datagrams,
    ):
        warm(near, flow)
        steady = [Steady(flow), Steady(datagrams)]
        before = {f["place"]: f["age"] for f in remembered(near, flow.port)}
        near.agent.kill(signal.SIGKILL)
        streams = Streams(near, near.pods)
        said = [one.said for one in steady]
        eventually(lambda: all(one.said > n + 200 for one, n in zip(steady, said, strict=True)))
        near.agent.start().wait()
        wait_hooked(world)
        fast = verdicts(near)["fast"]
        eventually(lambda: verdicts(near)["fast"] > fast + 200)
        after = {f["place"]: f["age"] for f in remembered(near, flow.port)}
        assert all(one.stop() for one in steady)
        sent, heard = streams.stop()
        assert heard == [sent] * len(near.pods) and sent > 200
    assert before and after.keys() == before.keys()


def test_switching_on_a_live_node_loses_nothing(world: Lab) -> None:
    near = world.nodes[0]
    with (
        talk(pod(world, "a"), pod(world, "far").ip) as flow,
        talk(pod(world, "a"), pod(world, "b").ip_of("IPv6"), protocol="udp") as datagrams,
    ):
        warm(near, flow)
        steady, streams = [Steady(flow), Steady(datagrams)], Streams(near, near.pods)
        for mode, there in (("kernel", False), ("auto", True)):
            near.agent.stop()
            world.settings = replace(world.settings, agent_args=("--datapath", mode))
            near.agent.start().wait()
            eventually(lambda there=there: bool(hooks(near)) == there)
            said = steady[0].said
            eventually(lambda said=said: steady[0].said > said + 200)
        wait_hooked(world)
        eventually(lambda: verdicts(near)["fast"] > 200)
        assert all(one.stop() for one in steady)
        sent, heard = streams.stop()
        assert heard == [sent] * len(near.pods) and sent > 200


@pytest.mark.parametrize("limits", [True, False], ids=["born with its queue", "chained plugins limit"])
def test_a_pods_programs_come_without_the_loss_of_a_packet(world: Lab, limits: bool) -> None:
    """1,000 packets a second to each of a flock of pods, through the moment at which they get theirs."""
    near, before = world.nodes[0], hooks(world.nodes[0])
    born = [near.add_pod(f"born-{i}", config={"capabilities": {"bandwidth": limits}}) for i in range(20)]
    streams = Streams(near, born)
    eventually(lambda: hooks(near) >= before + len(born), what="the programs of all")
    sent, heard = streams.stop()
    for one in born:
        one.delete()
    assert heard == [sent] * len(born) and sent > 300


def test_doctor_says_what_the_fast_path_has(world: Lab) -> None:
    said = world.nodes[0].run(world.settings.programs.netplane, "doctor", check=False)
    assert re.search(r"ok +packet path +6 programs", said), said


def test_clean_takes_every_program_away(world: Lab) -> None:
    near = world.nodes[0]
    near.agent.stop()
    assert hooks(near) == 4
    program = world.settings.programs.netplane
    near.run(program, "clean", "--run-dir", near.run_dir, "--state-dir", near.state_dir)
    assert hooks(near) == 0

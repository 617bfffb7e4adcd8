"""kill -9 at every step of ADD and of DEL, with an agent and without: what is left is what exists.

pod, other (ns)
  eth0
   │ veth
───┴── npbr0 ── node (ns)      `other` is there all the time and must not notice anything
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.kernel import netns

from .machine import NODE, ROOT, Machine, plain

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
MakeNetns = Callable[[str], str]
Config = dict[str, Any]
STEPS = 200  # more than there are
PORT = 8100
RATES = {"ingressRate": 80_000_000, "ingressBurst": 800_000, "egressRate": 80_000_000, "egressBurst": 800_000}
RANGES = [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]


def published(port: int) -> Config:
    ports = [{"hostPort": port, "containerPort": 80, "protocol": protocol} for protocol in ("tcp", "udp")]
    return {"portMappings": ports, "bandwidth": RATES}


FULL: Config = {
    "name": "own",
    "ipam": {"type": "netplane", "ranges": RANGES},
    "bridge": "br-own",
    "isDefaultGateway": True,
    "ipMasq": True,
    "macspoofchk": True,
    "runtimeConfig": published(PORT),
}
CONFIGS = {"plain": {}, "full": FULL}


@pytest.fixture
def machine(make_netns: MakeNetns, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(make_netns("node"), tmp_path)
    made.start()
    yield made
    made.stop()


def ready(machine: Machine, other: str, **config: Any) -> tuple[str, dict[str, Any]]:
    """An address of a pod that is not to notice anything, and the host as it is without any other."""
    machine.others = tuple(plain(machine("ADD", other, **config)))
    return machine.others[0], machine.host()


def added(machine: Machine, pod: str, config: Config) -> None:
    """With flows that are tracked."""
    assert plain(machine("ADD", pod, **config))
    machine.talk(pod, PORT, "runtimeConfig" in config)


def killed(machine: Machine, command: str, pod: str, step: int, config: Config) -> bool:
    """Whether the agent died at this step, and the next one answered the runtime's DEL."""
    if command == "DEL":
        added(machine, pod, config)
    machine.death.write_text(str(step))
    answer = machine(command, pod, **config)
    machine.death.unlink()
    if not machine.died():
        return False
    assert answer == "" or "ips" in answer or answer["code"] == 11, answer
    machine.start()
    assert machine("DEL", pod, **config) == ""
    return True


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_the_agent_killed_at_every_step(
    machine: Machine, make_netns: MakeNetns, command: str, config: Config
) -> None:
    pod, other = make_netns("pod"), make_netns("other")
    target, before = ready(machine, other)
    for step in range(1, STEPS):
        if not killed(machine, command, pod, step, config):
            break
        assert machine.host() == before, f"{command} killed at step {step}"
        netns.run(machine.at, "ping", "-c", "1", "-W", "2", target)
    assert 5 < step < STEPS - 1
    assert machine("DEL", pod, **config) == "" and machine.host() == before
    assert machine("DEL", other) == ""


@pytest.mark.parametrize(("command", "steps"), [("ADD", (2, 7, 11)), ("DEL", (3, 7, 11, 15, 19))])
def test_the_agent_killed_over_a_full_pod(
    machine: Machine, make_netns: MakeNetns, command: str, steps: tuple[int, ...]
) -> None:
    """A few steps of the walk above, for every day."""
    pod = make_netns("pod")
    _, before = ready(machine, make_netns("other"))
    for step in steps:
        assert killed(machine, command, pod, step, FULL), "the walk is shorter now: choose other steps"
        assert machine.host() == before, f"{command} killed at step {step}"


def test_the_agent_killed_over_many_dels_at_once(machine: Machine, make_netns: MakeNetns) -> None:
    """What one transaction took off is swept, and what it did not take off is whole."""
    pods = {make_netns(f"pod-{i}"): {"runtimeConfig": published(PORT + i)} for i in range(4)}
    target, before = ready(machine, make_netns("other"))
    for step in range(3, 45, 7):
        for pod, config in pods.items():
            assert plain(machine("ADD", pod, **config))
        machine.death.write_text(str(step))
        assert machine.process is not None
        machine.process.send_signal(signal.SIGSTOP)  # so that they come together
        asking = [machine.begin("DEL", pod, **config) for pod, config in pods.items()]
        time.sleep(0.3)
        machine.process.send_signal(signal.SIGCONT)
        answers = [process.communicate(timeout=60)[0] for process in asking]
        machine.death.unlink()
        assert machine.died(), "there are fewer steps now"
        assert all(not text or json.loads(text)["code"] == 11 for text in answers)
        machine.start()
        for pod, config in pods.items():
            assert machine("DEL", pod, **config) == ""
        assert machine.host() == before, f"killed at step {step}"
        netns.run(machine.at, "ping", "-c", "1", "-W", "2", target)


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_the_plugin_killed_at_any_moment_while_the_agent_lives(
    machine: Machine, make_netns: MakeNetns, command: str
) -> None:
    """The agent finishes what it has begun, and the runtime's DEL comes after it."""
    pod = make_netns("pod")
    _, before = ready(machine, make_netns("other"))
    for moment in range(24):  # of half a millisecond each
        if command == "DEL":
            added(machine, pod, FULL)
        process = machine.begin(command, pod, **FULL)
        time.sleep(moment / 2000)
        process.kill()
        with process:
            process.communicate()
        assert machine("DEL", pod, **FULL) == ""
        if moment % 4 == 3:
            assert machine.host() == before, f"{command} killed after {moment / 2 - 1.5} to {moment / 2} ms"


@pytest.mark.slow
def test_after_a_kill_in_add_the_next_start_keeps_only_what_is_whole(
    machine: Machine, make_netns: MakeNetns
) -> None:
    """Without the runtime's DEL: an ADD that was cut off is undone by the start alone."""
    pod, other = make_netns("pod"), make_netns("other")
    machine("ADD", other)
    before = machine.host()
    for step in range(1, STEPS, 3):
        machine.death.write_text(str(step))
        machine("ADD", pod)
        machine.death.unlink()
        if not machine.died():
            break
        machine.start()
        after = machine.host()
        if after != before:  # the record says Ready: all of it is there
            ip = next(o for o in machine.objects() if o == "Pod ns-pod")
            assert ip and machine("ADD", pod)["code"] == 4
        assert machine("DEL", pod) == "" and machine.host() == before, step


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_the_process_without_an_agent_killed_at_every_step(
    make_netns: MakeNetns, tmp_path: Path, command: str, config: Config
) -> None:
    machine = alone(make_netns("node"), tmp_path)
    pod, other = make_netns("pod"), make_netns("other")
    target, before = ready(machine, other)
    for step in range(1, STEPS):
        if command == "DEL":
            added(machine, pod, config)
        machine.death.write_text(str(step))
        with machine.begin(command, pod, **config) as process:
            process.communicate(timeout=60)
        machine.death.unlink()
        if process.returncode >= 0:
            break
        assert machine("DEL", pod, **config) == ""
        assert machine.host() == before, f"{command} killed at step {step}"
        netns.run(machine.at, "ping", "-c", "1", "-W", "2", target)
    assert 5 < step < STEPS - 1


def alone(at: str, work: Path) -> Machine:
    """A machine without an agent, whose helper can be killed at any step."""
    machine = Machine(at, work, standalone=True, stateDir=str(work / "state"))
    machine.netplane("install", "--cni-bin-dir", str(work / "bin"), "--cni-conf-dir", str(work / "conf"))
    machine.binary = str(work / "bin" / "netplane")
    helper = work / "bin" / "netplane-standalone"
    command = f"{sys.executable} -m tests.faults.dying {machine.death} standalone"
    helper.write_text(f"#!/bin/sh\ncd {ROOT} && exec {command}\n")
    name = socket.gethostname().lower()
    (work / "node.yaml").write_text(
        f"apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n"
        "spec: {podCIDR: 10.244.7.0/24, podCIDRs: [10.244.7.0/24]}\n"
    )
    machine.netplane("apply", "--store", machine.store, "-f", str(work / "node.yaml"))
    assert name != NODE
    return machine

"""kill -9 at every step of ADD and of DEL, with an agent and without: what is left is what exists.

pod, other (ns)
  eth0
   │ veth
───┴── npbr0 ── node (ns)      `other` is there all the time and must not notice anything
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netplane.kernel import netns

from .machine import NODE, ROOT, Machine, plain

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
MakeNetns = Callable[[str], str]
STEPS = 200  # more than there are


@pytest.fixture
def machine(make_netns: MakeNetns, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(make_netns("node"), tmp_path)
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_the_agent_killed_at_every_step(machine: Machine, make_netns: MakeNetns, command: str) -> None:
    pod, other = make_netns("pod"), make_netns("other")
    target = plain(machine("ADD", other))[0]
    before = machine.host()
    for step in range(1, STEPS):
        if command == "DEL":
            machine("ADD", pod)
        machine.death.write_text(str(step))
        answer = machine(command, pod)
        machine.death.unlink()
        if not machine.died():
            break
        assert answer == "" or "ips" in answer or answer["code"] == 11, answer
        machine.start()
        assert machine("DEL", pod) == ""
        assert machine.host() == before, f"{command} killed at step {step}"
        netns.run(machine.at, "ping", "-c", "1", "-W", "2", target)
    assert 5 < step < STEPS - 1
    assert machine("DEL", pod) == "" and machine.host() == before
    assert machine("DEL", other) == ""


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


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_the_process_without_an_agent_killed_at_every_step(
    make_netns: MakeNetns, tmp_path: Path, command: str
) -> None:
    machine = alone(make_netns("node"), tmp_path)
    pod, other = make_netns("pod"), make_netns("other")
    target = plain(machine("ADD", other))[0]
    before = machine.host()
    for step in range(1, STEPS):
        if command == "DEL":
            machine("ADD", pod)
        machine.death.write_text(str(step))
        with machine.begin(command, pod) as process:
            process.communicate(timeout=60)
        machine.death.unlink()
        if process.returncode >= 0:
            break
        assert machine("DEL", pod) == ""
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

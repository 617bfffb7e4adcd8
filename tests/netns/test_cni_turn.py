"""Addresses in turn, whoever gives them: processes without an agent, an agent, and one after the other.

pods (ns)
  eth0
   │ veth
───┴── npbr0, br-* ── node (ns)
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.machine import Machine as AgentMachine
from tests.netns.test_cni_standalone import Machine, plain

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]


@pytest.fixture
def machine(make_netns: MakeNetns, tmp_path: Path) -> Machine:
    return Machine(make_netns("node"), tmp_path)


def network(name: str, *sets: list[dict[str, str]]) -> dict[str, Any]:
    return {"name": name, "bridge": f"br-{name}", "ipam": {"ranges": list(sets)}}


BOTH = network("both", [{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}])
SMALL = network("small", [{"subnet": "10.89.0.0/30"}, {"subnet": "10.90.0.0/24"}])


def test_without_an_agent_an_address_just_given_back_rests(machine: Machine, make_netns: MakeNetns) -> None:
    """For the node's ranges and two networks' own, which do not move each other's turn."""
    pod, kept = make_netns("pod"), make_netns("kept")
    given: dict[str, list[list[str]]] = {}
    for i in range(3):
        for key, config in (("node", {}), ("both", BOTH)):
            given.setdefault(key, []).append(plain(machine("ADD", pod, **config)))
            assert machine("DEL", pod, **config) == ""
        if i == 1:
            assert plain(machine("ADD", kept, **BOTH))[0] == "10.88.0.4"
    assert given == {
        "node": [[f"10.244.7.{i}", f"fd00:7::{i}"] for i in (2, 3, 4)],
        "both": [[f"10.88.0.{i}", f"fd00:88::{i}"] for i in (2, 3, 5)],
    }
    assert machine("DEL", kept, **BOTH) == "" and not machine.attachments()


def test_each_range_of_a_set_has_its_own_turn(machine: Machine, make_netns: MakeNetns) -> None:
    a, b = make_netns("a"), make_netns("b")
    assert plain(machine("ADD", a, **SMALL)) == ["10.89.0.2"]  # all that the first has
    given = []
    for _ in range(2):
        given += plain(machine("ADD", b, **SMALL))
        assert machine("DEL", b, **SMALL) == ""
    assert machine("DEL", a, **SMALL) == ""
    assert plain(machine("ADD", a, **SMALL)) == ["10.89.0.2"]
    given += plain(machine("ADD", b, **SMALL))
    assert given == ["10.90.0.2", "10.90.0.3", "10.90.0.4"]
    assert machine("DEL", a, **SMALL) == "" == machine("DEL", b, **SMALL)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_agents_restart_keeps_the_turn(make_netns: MakeNetns, tmp_path: Path, how: signal.Signals) -> None:
    machine = AgentMachine(make_netns("node"), tmp_path)
    pod, old = make_netns("pod"), make_netns("old")
    machine.start()
    try:
        assert plain(machine("ADD", old))[0] == "10.244.0.2"
        given = []
        for _ in range(3):
            for config in ({}, BOTH):
                given += plain(machine("ADD", pod, **config))[:1]
                assert machine("DEL", pod, **config) == ""
            machine.stop(how)
            machine.start()
        assert given == ["10.244.0.3", "10.88.0.2", "10.244.0.4", "10.88.0.3", "10.244.0.5", "10.88.0.4"]
        assert machine("DEL", old) == ""
    finally:
        machine.stop(signal.SIGKILL)

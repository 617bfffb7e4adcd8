"""A namespace that vanishes during ADD, at every step of it: an answer, and a host as it was before.

pod (ns, gone at step N), other (ns)
  eth0
   │ veth, or macvlan of w0
───┴── npbr0 ── node (ns) ── w0
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.kernel import netns
from netplane.store.sqlite import SqliteStore

from .machine import Machine, plain

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
MakeNetns = Callable[[str], str]
STEPS = 200  # more than there are
MAPPED = {"hostPort": 8080, "containerPort": 80, "protocol": "udp"}
LIMIT = {"ingressRate": 8_000_000, "ingressBurst": 80_000, "egressRate": 8_000_000, "egressBurst": 80_000}
SYSCTL = {"net.core.somaxconn": "500"}
FULL = {
    "runtimeConfig": {"portMappings": [MAPPED], "bandwidth": LIMIT},
    "sysctl": SYSCTL,
    "macspoofchk": True,
}
RANGES = {"ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]}
NETWORKS: dict[str, dict[str, Any]] = {
    "bridge": FULL,
    "own": {**FULL, "ipam": RANGES, "bridge": "br-own", "isGateway": True, "ipMasq": True},
    "ptp": {**FULL, "kind": "ptp"},
    "macvlan": {"kind": "macvlan", "master": "w0", "sysctl": SYSCTL, "ipam": RANGES},
}


@pytest.fixture
def machine(make_netns: MakeNetns, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(make_netns("node"), tmp_path)
    made.fate = "tests.faults.mishap"
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("bridge", False),
        ("bridge", True),
        ("macvlan", False),
        pytest.param("own", False, marks=pytest.mark.slow),
        pytest.param("own", True, marks=pytest.mark.slow),
        pytest.param("ptp", False, marks=pytest.mark.slow),
        pytest.param("ptp", True, marks=pytest.mark.slow),
    ],
)
def test_a_namespace_that_vanishes_at_every_step_of_an_add(
    machine: Machine, make_netns: MakeNetns, name: str, held: bool
) -> None:
    """``held``: a process lives on in it, so that only its path vanishes.

    Of a macvlan nothing is on the node: without the path it goes with its namespace.
    """
    network, other, warm = NETWORKS[name], make_netns("other"), make_netns("warm")
    target = plain(machine("ADD", other))[0]
    machine("ADD", warm, **network)
    assert machine("DEL", warm, **network) == ""
    before = state(machine, SqliteStore(str(machine.state / "state.db")))
    codes: set[int] = set()
    for step in range(1, STEPS):
        pod = make_netns(f"pod{step}")
        process = netns.popen(pod, ["sleep", "600"]) if held else None
        machine.death.write_text(f"{step} vanish {pod}")
        answer = machine("ADD", pod, **network)
        if machine.death.exists():
            break
        Path(f"{machine.death}.done").unlink()
        codes.add(answer.get("code", 0))
        if "code" in answer:
            assert answer["code"] in (4, 5, 11) and pod in answer["msg"], (step, answer)
            assert machine("ADD", pod, **network)["code"] == 4
        else:
            assert machine("DEL", pod, **network) == ""
        assert_as(machine, before, step)
        if process is not None:
            assert "eth0" not in netns.run(f"/proc/{process.pid}/ns/net", "ip", "link"), step
            process.kill()
            process.wait()
    assert 5 < step < STEPS - 1 and len(codes) > 1, (step, codes)
    machine.death.unlink()
    assert machine("DEL", pod, **network) == ""
    assert_as(machine, before, 0)
    netns.run(machine.at, "ping", "-c", "1", "-W", "2", target)
    assert "Traceback" not in machine.log()


def state(machine: Machine, store: SqliteStore) -> dict[str, Any]:
    machine.objects = lambda: sorted(  # type: ignore[method-assign]
        f"{obj.KIND} {obj.name}" for obj in store.list(["Attachment", "Pod"])[0]
    )
    return machine.host()


def assert_as(machine: Machine, before: dict[str, Any], step: int) -> None:
    """As before, as soon as the kernel has taken the namespace apart, which it does by and by."""
    deadline = time.monotonic() + 5
    while (now := machine.host()) != before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert now == before, step

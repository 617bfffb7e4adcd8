"""Clocks that jump under an agent at work: pods, leases and records stay, and every verb goes on.

outside (here) ── the plugin ──> agent on node (ns) ── npbr0 ── pods old, new, gone (ns)
                                 its wall clock: the real one plus a file's seconds (clockshift.c);
                                 its boot clock: a time namespace's

A lease is tied to the boot by the boot's id, and to no clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from netplane.kernel import netns

from .machine import NODE, Machine, plain

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
YEAR = 365 * 86400
LEASE = ("get", "Lease", NODE, "-n", "kube-node-lease", "-o", "json")


@pytest.fixture
def shift(tmp_path: Path) -> Path:
    (tmp_path / "shift").write_text("0")
    return tmp_path / "shift"


@pytest.fixture
def machine(make_netns: MakeNetns, tmp_path: Path, shift: Path) -> Iterator[Machine]:
    library, source = tmp_path / "clockshift.so", Path(__file__).parent / "clockshift.c"
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    made = Machine(
        make_netns("node"), tmp_path, prefix=("env", f"LD_PRELOAD={library}", f"CLOCK_SHIFT={shift}")
    )
    made.start()
    yield made
    made.stop()


def renewed(machine: Machine) -> datetime:
    found = json.loads(machine.netplane(*LEASE, "--store", machine.store))
    return datetime.fromisoformat(found["spec"]["renewTime"])


def beats_at(machine: Machine, seconds: int) -> bool:
    """Whether the node's heartbeat comes to bear the time that the agent's clock shows."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        off = renewed(machine) - datetime.now(UTC)
        if abs(off - timedelta(seconds=seconds)) < timedelta(seconds=30):
            return True
        time.sleep(0.1)
    return False


def goes_on(machine: Machine, old: str, make_netns: MakeNetns, name: str) -> None:
    """All verbs for a new pod, a GC that must spare the old one, and the old one is reached."""
    pod, gone = make_netns(f"new-{name}"), make_netns(f"gone-{name}")
    result = machine("ADD", pod)
    assert machine("CHECK", pod, prevResult=result) == ""
    machine("ADD", gone)
    valid = [{"containerID": os.path.basename(p), "ifname": "eth0"} for p in (old, pod)]
    assert machine("GC", "", **{"cni.dev/valid-attachments": valid}) == ""
    for address in plain(result):
        netns.run(machine.at, "ping", "-c", "1", "-W", "2", address)
    assert machine("DEL", pod) == ""
    assert machine("STATUS", "") == ""
    machine.netplane("status", "--run-dir", str(machine.run_dir), "--wait", "5")


def born(machine: Machine, pod: str) -> datetime:
    """When the pod's record was made, by the agent's clock."""
    text = machine.netplane("get", "Attachment", "-o", "json", "--store", machine.store)
    (found,) = [one for one in json.loads(text)["items"] if one["spec"]["netns"] == pod]
    return datetime.fromisoformat(found["metadata"]["creationTimestamp"])


def test_a_jump_of_the_wall_clock_ends_no_lease(machine: Machine, shift: Path, make_netns: MakeNetns) -> None:
    """A year ahead, two back, and an agent that starts before its last records were made."""
    old = make_netns("old")
    result = machine("ADD", old)
    before = machine.host()
    for name, seconds in (("ahead", YEAR), ("back", -YEAR)):
        shift.write_text(str(seconds))
        pod = make_netns(name)
        assert not set(plain(machine("ADD", pod))) & set(plain(result))
        off = born(machine, pod) - datetime.now(UTC)
        assert abs(off - timedelta(seconds=seconds)) < timedelta(seconds=30), "the agent's clock has jumped"
        assert machine("DEL", pod) == ""
        goes_on(machine, old, make_netns, name)
        assert machine.host() == before
        assert machine("CHECK", old, prevResult=result) == ""
        machine.stop()
        machine.start()
        assert machine.host() == before
    assert machine("DEL", old) == "" and not machine.objects()


@pytest.mark.slow  # two heartbeats are waited for
def test_the_wall_clock_jumps_a_year_ahead_and_two_back(
    machine: Machine, shift: Path, make_netns: MakeNetns
) -> None:
    old = make_netns("old")
    result = machine("ADD", old)
    before = machine.host()
    process = machine.process
    assert beats_at(machine, 0)
    for name, seconds in (("ahead", YEAR), ("back", -YEAR)):
        shift.write_text(str(seconds))
        goes_on(machine, old, make_netns, name)
        assert machine.host() == before
        assert machine("CHECK", old, prevResult=result) == ""
        assert beats_at(machine, seconds), renewed(machine)
    assert machine.process is process and process is not None and process.poll() is None
    machine.stop()
    machine.start()  # two years "before" its last records but one
    assert machine.host() == before
    goes_on(machine, old, make_netns, "again")
    assert machine("DEL", old) == ""


def test_a_boot_clock_of_another_time_keeps_the_leases(machine: Machine, make_netns: MakeNetns) -> None:
    """Restarted where the boot was ten years ago, and then where it was just now: the boot is the same."""
    old = make_netns("old")
    result = machine("ADD", old)
    before = machine.host()
    uptime = int(float(Path("/proc/uptime").read_text().split()[0]))
    for name, offset in (("ancient", 10 * YEAR), ("young", 60 - uptime)):
        machine.stop()
        machine.prefix = ("unshare", "--time", "--boottime", str(offset), "--monotonic", str(offset), "--")
        machine.start()
        assert machine.process is not None
        clocks = os.stat(f"/proc/{machine.process.pid}/ns/time")
        assert clocks.st_ino != os.stat("/proc/self/ns/time").st_ino
        assert machine.host() == before
        assert machine("CHECK", old, prevResult=result) == ""
        goes_on(machine, old, make_netns, name)
    assert machine("DEL", old) == "" and not machine.objects()

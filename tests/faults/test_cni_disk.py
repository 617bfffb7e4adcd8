"""A disk that gets full at every write of an ADD, and within it: the real agent on a small file system.

pod, first (ns)
  eth0
   │ veth
───┴── npbr0 ── node (ns)      --state-dir and --run-dir are a tmpfs each

At each moment between two operations the file system is filled but for 0, 1, 2 … pages, so that in turn
each page that a transaction of the store needs is the one that has no place.
"""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from netplane.kernel import netns

from .machine import Machine, plain
from .mishap import fill

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
MakeNetns = Callable[[str], str]
STEPS, PAGES = 200, 64  # more than there are, and than a write needs
MAPPED = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
NETWORKS: dict[str, dict[str, Any]] = {
    "bridge": {"runtimeConfig": {"portMappings": [MAPPED]}},
    "macvlan": {"kind": "macvlan", "master": "w0", "ipam": {"ranges": [[{"subnet": "10.88.0.0/24"}]]}},
}


@pytest.fixture
def machine(make_netns: MakeNetns, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(make_netns("node"), tmp_path)
    made.fate = "tests.faults.mishap"
    disks = (made.state, made.run_dir)
    for disk in disks:
        disk.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk], check=True)
    made.start()
    yield made
    made.stop()
    for disk in disks:
        subprocess.run(["umount", disk], check=True)


def kernel(machine: Machine) -> dict[str, Any]:
    machine.objects = list  # type: ignore[method-assign, assignment]
    found = machine.host()
    del machine.objects
    return found


def truncated(machine: Machine) -> None:
    """The log ahead of the file is empty: each page that the next transaction writes needs a place."""
    with closing(sqlite3.connect(machine.state / "state.db", timeout=5)) as db:
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0


def add_with(machine: Machine, pod: str, network: dict[str, Any], step: int, pages: int) -> Any:
    """ADD while the disk gets full at this step; None when there are not so many steps."""
    truncated(machine)
    machine.death.write_text(f"{step} fill {machine.state} {pages}")
    answer = machine("ADD", pod, **network)
    if machine.death.exists():
        machine.death.unlink()
        assert machine("DEL", pod, **network) == ""
        return None
    Path(f"{machine.death}.done").unlink()
    return answer


@pytest.mark.parametrize("name", ["bridge", pytest.param("macvlan", marks=pytest.mark.slow)])
def test_the_disk_full_at_every_write_of_an_add(machine: Machine, make_netns: MakeNetns, name: str) -> None:
    """It says so and leaves nothing, though nothing can be written off either; with room again it works."""
    network, pod, first = NETWORKS[name], make_netns("pod"), make_netns("first")
    machine("ADD", first)
    machine("ADD", pod, **network)
    machine("DEL", pod, **network)
    before, records = kernel(machine), machine.objects()
    filler, refused, step, pages = machine.state / "filler", set(), 1, 0
    while (answer := add_with(machine, pod, network, step, pages)) is not None:
        if "code" in answer:
            refused.add((step, pages))
            assert answer["code"] == 11 and "state.db" in answer["msg"] and "full" in answer["msg"], answer
            assert kernel(machine) == before and "eth0" not in netns.run(pod, "ip", "link")
            filler.unlink()
            again = machine("ADD", pod, **network)
            assert "ips" in again, (step, pages, again)
            pages += 1
        else:  # with more room it succeeds, too
            step, pages = step + 2, 0  # each operation is a step before and one after
            filler.unlink()
        assert machine("DEL", pod, **network) == ""
        assert kernel(machine) == before, (step, pages)
        assert step < STEPS and pages < PAGES
    assert machine.objects() == records
    assert step > 5 and max(pages for _, pages in refused) > 1


def test_a_full_run_dir_costs_the_spare_and_nothing_else(machine: Machine, make_netns: MakeNetns) -> None:
    """There lie the socket and the spares of records: ADD, CHECK, DEL and a restart need neither's room."""
    first, pod = make_netns("first"), make_netns("pod")
    machine("ADD", first)
    before = machine.host()
    fill(machine.run_dir, 0)
    result = machine("ADD", pod)
    target = plain(result)[0]
    assert machine("CHECK", pod, prevResult=result) == ""
    assert "No space left" in machine.log() and str(machine.run_dir / "spare") in machine.log()
    machine.stop()
    machine.start()
    netns.run(machine.at, "ping", "-c", "1", "-W", "2", target)
    assert machine("DEL", pod) == "" and machine.host() == before
    (machine.run_dir / "filler").unlink()
    assert plain(machine("ADD", pod)) and machine("DEL", pod) == ""
    assert machine("DEL", first) == "" and "Traceback" not in machine.log()

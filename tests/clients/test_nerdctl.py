"""nerdctl on containerd: run, exec, a published port, restart, rm.

outside (ns) ── w0 machine ── npbr0 ── eth0 containers
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from . import containerd, image
from .machine import MACHINE, Machine, url
from .peers import program

pytestmark = [pytest.mark.root, pytest.mark.peer]
IMAGE = "localhost/web:1"


class Nerdctl:
    """nerdctl on a machine, with an image that serves "hello" on port 8080."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        # the machine has no cgroup hierarchy of its own; "native" needs no overlayfs
        self.words = [program("nerdctl"), "--snapshotter", "native", "--cgroup-manager", "cgroupfs"]
        containerd.start(machine)
        self("load", "-i", str(image.archive(machine.work / "web.tar", IMAGE)))

    def __call__(self, *words: str) -> str:
        return self.machine.run(*self.words, *words)

    def run(self, name: str, *options: str) -> dict[str, Any]:
        """Start a container on our network; what `nerdctl inspect` shows of it."""
        fixed = ("--net", "netplane", "--security-opt", "apparmor=unconfined", "--cgroupns", "host")
        self("run", "-d", "--name", name, *fixed, *options, IMAGE)
        return self.network(name)

    def network(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self("inspect", name))
        settings: dict[str, Any] = found[0]["NetworkSettings"]
        return settings


@pytest.fixture(scope="module")
def nerdctl(machine: Machine) -> Nerdctl:
    return Nerdctl(machine)


@pytest.fixture(autouse=True)
def nothing_left(nerdctl: Nerdctl) -> Iterator[None]:
    yield
    for name in nerdctl("ps", "-aq").split():
        nerdctl("rm", "-f", name)
    assert not nerdctl.machine.ports() and not nerdctl.machine.pods()


def test_two_containers_reach_each_other_and_a_port_is_reached_from_outside(nerdctl: Nerdctl) -> None:
    ports = ("-p", "18080:8080", "-p", "[::]:18080:8080")  # without an address nerdctl asks for 0.0.0.0
    first, second = nerdctl.run("first", *ports), nerdctl.run("second")
    assert first["IPAddress"].startswith("10.244.0.")
    for address in (second["IPAddress"], second["GlobalIPv6Address"]):
        assert nerdctl("exec", "first", "wget", "-qO-", url(address)) == "hello\n"
    for address in MACHINE:
        assert nerdctl.machine.fetch_outside(url(address, 18080)) == "hello\n"
    nerdctl("rm", "-f", "first")
    assert len(nerdctl.machine.ports()) == len(nerdctl.machine.pods()) == 1
    assert "18080" not in nerdctl.machine.run("nft", "list", "ruleset")


def test_a_restarted_container_is_attached_again(nerdctl: Nerdctl) -> None:
    nerdctl.run("web")
    nerdctl("restart", "-t", "0", "web")
    assert len(nerdctl.machine.ports()) == 1
    assert nerdctl.machine.fetch(url(nerdctl.network("web")["IPAddress"])) == "hello\n"

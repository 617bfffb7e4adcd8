"""podman 4 with its CNI backend: run, exec, published ports, network removal.

outside (ns) ── w0 machine ── npbr0 ── eth0 containers
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from . import image
from .machine import CONF_DIR, MACHINE, OUTSIDE, Machine, url
from .peers import PORTS, program

pytestmark = [pytest.mark.root, pytest.mark.peer]
IMAGE = "localhost/web:1"
CONTAINERS = """
[network]
network_backend = "cni"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
"""
STORAGE = """
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"""
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'


@pytest.fixture(scope="module")
def podman(machine: Machine) -> Podman:
    return Podman(machine)


class Podman:
    """podman on a machine, with an image that serves "hello" on port 8080."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.program = machine, program("podman")
        files = {"containers.conf": CONTAINERS, "storage.conf": STORAGE, "policy.json": POLICY}
        for name, text in files.items():
            machine.write(f"/etc/containers/{name}", text)
        if self("info", "--format", "{{.Host.NetworkBackend}}").strip() != "cni":
            pytest.skip("this podman has no CNI backend: podman 4 has (Debian 12)")
        self("load", "-i", str(image.archive(machine.work / "web.tar", IMAGE)))

    def __call__(self, *words: str) -> str:
        return self.machine.run(self.program, *words)

    def run(self, name: str, *options: str, network: str = "netplane") -> dict[str, Any]:
        """Start a container; its network as `podman inspect` shows it."""
        self("run", "-d", "--name", name, "--cgroups=disabled", "--network", network, *options, IMAGE)
        found: list[dict[str, Any]] = json.loads(self("inspect", name))
        networks: dict[str, dict[str, Any]] = found[0]["NetworkSettings"]["Networks"]
        return networks[network]


@pytest.fixture(autouse=True)
def nothing_left(podman: Podman) -> Iterator[None]:
    yield
    podman("rm", "-f", "-t", "0", "-a")
    assert not podman.machine.ports() and not podman.machine.pods()


def test_two_containers_have_addresses_and_reach_each_other(podman: Podman) -> None:
    first, second = podman.run("first"), podman.run("second", "--cap-add", "NET_RAW")
    assert first["Gateway"] == "10.244.0.1" and first["IPv6Gateway"] == "fd00:10:244::1"
    inside = podman("exec", "first", "ip", "-o", "addr", "show", "eth0")
    for key in ("IPAddress", "GlobalIPv6Address"):
        assert f" {first[key]}/" in inside
        assert podman.machine.fetch(url(second[key])) == "hello\n"
        assert podman("exec", "first", "wget", "-qO-", url(second[key])) == "hello\n"
    for address in OUTSIDE:
        podman("exec", "second", "ping", "-c1", "-W2", address)
    podman("rm", "-f", "-t", "0", "first")
    assert len(podman.machine.ports()) == len(podman.machine.pods()) == 1


def test_an_address_and_a_mac_that_are_asked_for_are_given(podman: Podman) -> None:
    asked = ("--ip", "10.244.0.99", "--mac-address", "02:00:5e:10:00:99")
    found = podman.run("static", *asked)
    assert (found["IPAddress"], found["MacAddress"]) == (asked[1], asked[3])


def test_a_restarted_container_is_attached_again(podman: Podman) -> None:
    podman.run("web")
    podman("restart", "-t", "0", "web")
    assert len(podman.machine.ports()) == 1
    networks = json.loads(podman("inspect", "web"))[0]["NetworkSettings"]["Networks"]
    assert podman.machine.fetch(url(networks["netplane"]["IPAddress"])) == "hello\n"


def second(podman: Podman) -> None:
    text = json.loads(podman.machine.run("cat", f"{CONF_DIR}/10-netplane.conflist"))
    podman.machine.write(f"{CONF_DIR}/30-second.conflist", json.dumps({**text, "name": "second"}))


def test_a_container_of_two_networks_is_reached_by_both(podman: Podman) -> None:
    second(podman)
    words = ("--network", "netplane,second", "-p", "18082:8080")
    podman("run", "-d", "--name", "web", "--cgroups=disabled", *words, IMAGE)
    networks = json.loads(podman("inspect", "web"))[0]["NetworkSettings"]["Networks"]
    for name in ("netplane", "second"):
        assert podman.machine.fetch(url(networks[name]["IPAddress"])) == "hello\n"
    podman("rm", "-f", "-t", "0", "web")
    podman("network", "rm", "second")


@PORTS
def test_a_published_port_is_reached_from_outside(podman: Podman) -> None:
    podman.run("web", "-p", "18080:8080")
    for address in MACHINE:
        assert podman.machine.fetch_outside(url(address, 18080)) == "hello\n"
    podman("rm", "-f", "-t", "0", "web")
    assert "18080" not in podman.machine.run("nft", "list", "ruleset")


def test_networks_are_listed_and_removed(podman: Podman) -> None:
    second(podman)
    assert "second" in podman("network", "ls", "--format", "{{.Name}}").split()
    found = podman.run("web", network="second")
    assert podman.machine.fetch(url(found["IPAddress"])) == "hello\n"
    podman("rm", "-f", "-t", "0", "web")
    podman("network", "rm", "second")
    assert podman("network", "ls", "--format", "{{.Name}}").split() == ["netplane", "podman"]
    assert "30-second.conflist" not in podman.machine.run("ls", CONF_DIR)


@pytest.mark.parametrize("name", ["quirky_einstein", "Web.1"])
def test_podmans_own_names_are_good_enough(podman: Podman, name: str) -> None:
    """Names that podman makes up have a '_', which no pod's name has."""
    found = podman.run(name)
    assert podman.machine.fetch(url(found["IPAddress"])) == "hello\n"

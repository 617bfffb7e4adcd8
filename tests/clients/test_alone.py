"""podman and cnitool on a machine that runs no agent: a network with its own ranges does without.

outside (ns) ── w0 machine ── br-alone ── eth0 containers; pods a, b (ns)      no netplane process at rest
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .cnitool import Cnitool
from .machine import BIN_DIR, CONF_DIR, MACHINE, OUTSIDE, Machine, url
from .peers import PORTS, program
from .test_podman import Podman

pytestmark = [pytest.mark.root, pytest.mark.peer]
PLUGIN: dict[str, Any] = {
    "type": "netplane",
    "bridge": "br-alone",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {
        "ranges": [[{"subnet": "10.89.0.0/24"}], [{"subnet": "fd00:89::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
    },
    "capabilities": {"portMappings": True, "ips": True, "mac": True, "aliases": True},
}


@pytest.fixture(scope="module")
def machine(bare: Machine) -> Machine:
    """As conftest's, but that nothing is started."""
    bare.install()
    return bare


@pytest.fixture(scope="module")
def podman(machine: Machine) -> Podman:
    doc = {"cniVersion": "0.4.0", "name": "alone", "plugins": [PLUGIN]}
    machine.write(f"{CONF_DIR}/30-alone.conflist", json.dumps(doc))
    return Podman(machine)


@pytest.fixture(autouse=True)
def no_agent_and_nothing_left(machine: Machine) -> Iterator[None]:
    yield
    assert not machine.ports() and not machine.pods()
    assert "br-alone" not in machine.run("ip", "-o", "link")
    assert "10.89.0." not in machine.run("nft", "list", "ruleset")
    assert not machine.run("pgrep", "-f", "netplane", check=False)


@PORTS
def test_podman_runs_containers_whose_published_port_is_reached(podman: Podman) -> None:
    machine = podman.machine
    try:
        first = podman.run("first", "-p", "18080:8080", network="alone")
        second = podman.run("second", "--cap-add", "NET_RAW", network="alone")
        assert (first["IPAddress"], first["Gateway"]) == ("10.89.0.2", "10.89.0.1")
        assert (second["IPAddress"], second["GlobalIPv6Address"]) == ("10.89.0.3", "fd00:89::3")
        for address in MACHINE:
            assert machine.fetch_outside(url(address, 18080)) == "hello\n"
        for key in ("IPAddress", "GlobalIPv6Address"):
            assert podman("exec", "second", "wget", "-qO-", url(first[key])) == "hello\n"
        for address in OUTSIDE:
            podman("exec", "second", "ping", "-c1", "-W2", address)
        podman("rm", "-f", "-t", "0", "first")
        assert "18080" not in machine.run("nft", "list", "ruleset") and len(machine.ports()) == 1
        third = podman.run("third", "-p", "18080:8080", network="alone")
        assert third["IPAddress"] == "10.89.0.4"  # the first's rests
        assert machine.fetch_outside(url(MACHINE[0], 18080)) == "hello\n"
    finally:
        podman("rm", "-f", "-t", "0", "-a")
    podman("network", "rm", "alone")
    assert "30-alone.conflist" not in machine.run("ls", CONF_DIR)


@pytest.mark.usefixtures("pods")
def test_cnitool_carries_out_every_verb(machine: Machine) -> None:
    cnitool = Cnitool(machine, "1.1.0", **PLUGIN)
    assert cnitool("status") == ""
    given = [[ip["address"] for ip in json.loads(cnitool("add", pod))["ips"]] for pod in "ab"]
    assert all(
        one.endswith(length) for pair in given for one, length in zip(pair, ("/24", "/64"), strict=True)
    )
    for address in (*OUTSIDE, *(one.partition("/")[0] for one in given[1])):
        machine.run("ip", "netns", "exec", "a", "ping", "-c1", "-W2", address)
    for pod in "ab":
        cnitool("check", pod)
    assert "eth0 exists already in /run/netns/a" in cnitool.refused("add", "a")
    machine.run("ip", "-n", "a", "addr", "del", given[0][0], "dev", "eth0")
    assert "eth0 is not as ADD made it" in cnitool.refused("check", "a")
    cnitool("del", "a")
    cnitool("del", "a")  # again: success
    cnitool("check", "b")
    cnitool("gc")  # libcni DELs what is in its cache
    assert not machine.ports() and not machine.pods()
    again = [ip["address"] for ip in json.loads(cnitool("add", "a"))["ips"]]
    assert again not in given
    machine.run("rm", "-rf", "/var/lib/cni")  # the runtime forgets it, and the pod is gone
    machine.run("ip", "netns", "delete", "a")
    cnitool("gc")
    machine.run("ip", "netns", "add", "a")


@pytest.mark.usefixtures("pods")
def test_without_ranges_of_its_own_a_network_needs_an_agent(machine: Machine) -> None:
    words = [program("cnitool"), "add", "netplane", "/run/netns/a"]
    with pytest.raises(AssertionError, match="no netplane agent at"):
        machine.run(*words, env={"CNI_PATH": BIN_DIR})

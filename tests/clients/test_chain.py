"""Ours in a list with the reference plugins, portmap, bandwidth and tuning, before and after.

outside (ns) ── w0 machine ── npbr0 ── eth0 pod a (ns), httpd on 8080
               :18080 (portmap)   └ tbf and ifb (bandwidth)
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from . import image
from .cnitool import Cnitool
from .machine import MACHINE, SOCKET, Machine, url
from .peers import plugin, program

pytestmark = [pytest.mark.root, pytest.mark.peer]
OURS = {"type": "netplane", "socket": SOCKET}
BEFORE = [{"type": "loopback"}, {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}]
AFTER = [
    {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}},
]
MEGABIT, BURST = 10**6, 10**5
SIZE = 250_000  # bytes: 2 Mbit, and so 0.6 s at what is asked for below
ASKED = {
    "portMappings": [{"hostPort": 18080, "containerPort": 8080, "protocol": "tcp"}],
    "bandwidth": {f"{way}{what}": n for way in ("ingress", "egress")
                  for what, n in (("Rate", 2 * MEGABIT), ("Burst", BURST * 8))},
}  # fmt: skip


@pytest.fixture
def cnitool(machine: Machine) -> Iterator[Cnitool]:
    """With the pod "a", which serves a big file."""
    for needed in ("loopback", "tuning", "portmap", "bandwidth"):
        plugin(needed)
    program("iptables")
    made = Cnitool(machine, "1.0.0")
    machine.run("ip", "netns", "add", "a")
    root = image.rootfs(machine.work / "pod")
    (root / "www/big").write_bytes(bytes(SIZE))
    words = ["httpd", "-f", "-h", str(root / "www"), "-p", "8080"]
    server = machine.popen("ip", "netns", "exec", "a", program("busybox"), *words)
    yield made
    machine.run("pkill", "-x", "busybox")
    server.wait(10)
    machine.run("ip", "netns", "delete", "a")


def state(machine: Machine) -> dict[str, Any]:
    """What a pod leaves on its node, but for counters and what portmap keeps for its next pod."""
    rules = machine.run("iptables-save") + machine.run("ip6tables-save")
    links = [link["ifname"] for link in json.loads(machine.run("ip", "-j", "link"))]
    return {
        "links": sorted(links),
        "rules": [line for line in rules.splitlines() if "18080" in line or "10.244.0." in line],
        "qdiscs": machine.run("tc", "qdisc").splitlines(),
        "neighbours": machine.run("ip", "neigh", "show", "dev", "npbr0", "nud", "permanent"),
        "pods": machine.pods(),
        "files": machine.run("find", "/var/lib/cni/results", check=False),
    }


def slow(machine: Machine, address: str) -> float:
    """Seconds of the big file from the pod to its node."""
    begin = time.monotonic()
    assert len(machine.fetch(f"{url(address)}big")) == SIZE
    return time.monotonic() - begin


@pytest.mark.parametrize("before", [[], BEFORE], ids=["first", "between"])
def test_the_reference_plugins_do_their_work_beside_ours(
    machine: Machine, cnitool: Cnitool, before: list[dict[str, Any]]
) -> None:
    cnitool.chain(OURS, *AFTER)
    cnitool("add", "a")
    cnitool("del", "a")  # portmap's chains stay
    clean = state(machine)
    cnitool.chain(*before, OURS, *AFTER)
    result = json.loads(cnitool("add", "a", CAP_ARGS=json.dumps(ASKED)))
    names = [(link["name"], link.get("sandbox", "")) for link in result["interfaces"]]
    shaper = next(name for name, _ in names if name.startswith("bwp"))
    lo = [("lo", "/run/netns/a")] if before else []
    ours = [("npbr0", ""), (machine.ports()[0], ""), ("eth0", "/run/netns/a")]
    assert names == [*lo, *ours, (shaper, "")]
    addresses = [ip["address"].partition("/")[0] for ip in result["ips"] if ip["interface"] == len(lo) + 2]
    assert len(addresses) == 2 and len(result["ips"]) == 2 + 2 * len(lo)
    for address in MACHINE:
        assert machine.fetch_outside(url(address, 18080)) == "hello\n"
    assert machine.run("ip", "netns", "exec", "a", "sysctl", "-n", "net.ipv4.conf.eth0.log_martians") == "1\n"
    if before:
        assert machine.run("ip", "netns", "exec", "a", "sysctl", "-n", "net.core.somaxconn") == "500\n"
    cnitool.chain(*before, OURS, *AFTER[1:])  # portmap 1.1 cannot CHECK two families
    cnitool("check", "a", CAP_ARGS=json.dumps(ASKED))
    machine.stop_agent()
    machine.start_agent()  # adopts its own and leaves theirs
    cnitool("check", "a", CAP_ARGS=json.dumps(ASKED))
    cnitool.chain(*before, OURS, *AFTER)
    for address in addresses:
        assert slow(machine, address) > 0.5
    cnitool("del", "a", CAP_ARGS=json.dumps(ASKED))
    assert state(machine) == clean


FIRST = {
    "portmap": {"type": "portmap", "capabilities": {"portMappings": True}},
    "bandwidth": {"type": "bandwidth", "capabilities": {"bandwidth": True}},
}


@pytest.mark.parametrize("name", FIRST)
def test_a_plugin_that_needs_a_result_before_it_cannot_be_the_first(
    machine: Machine, cnitool: Cnitool, name: str
) -> None:
    """By the plugin's own word, whatever follows; the runtime stops there, and ours has left nothing."""
    clean = state(machine)
    cnitool.chain(FIRST[name], OURS)
    with pytest.raises(AssertionError, match=f'plugin type="{name}".*must be called as.* chained plugin'):
        cnitool("add", "a", CAP_ARGS=json.dumps(ASKED))
    cnitool("del", "a", CAP_ARGS=json.dumps(ASKED))
    assert state(machine) == clean


def test_ours_is_the_last_of_a_list_and_keeps_what_all_others_said(
    machine: Machine, cnitool: Cnitool
) -> None:
    """bridge and host-local make the interface, portmap, bandwidth and tuning follow, then ours."""
    for needed in ("bridge", "host-local"):
        plugin(needed)
    ranges = [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd00:77::/64"}]]
    ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
    bridge = {"type": "bridge", "bridge": "br-theirs", "isGateway": True, "ipam": ipam}
    ours = {**OURS, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1400}
    asked, inside = json.dumps(ASKED), ("ip", "netns", "exec", "a")
    cnitool.chain(bridge, *AFTER)
    theirs = json.loads(cnitool("add", "a", CAP_ARGS=asked))
    cnitool("del", "a", CAP_ARGS=asked)
    clean = state(machine)
    cnitool.chain(bridge, *AFTER, ours)
    result = json.loads(cnitool("add", "a", CAP_ARGS=asked))
    names = [[one["name"][:3] for one in found["interfaces"]] for found in (theirs, result)]
    assert names[0] == names[1] == ["br-", "vet", "eth", "bwp"]
    assert [ip["address"] for ip in result["ips"]] == ["10.77.0.3/24", "fd00:77::3/64"]
    for address in MACHINE:
        assert machine.fetch_outside(url(address, 18080)) == "hello\n"
    assert machine.run(*inside, "sysctl", "-n", "net.ipv4.conf.eth0.arp_filter") == "1\n"
    assert "mtu 1400" in machine.run(*inside, "ip", "link", "show", "eth0")
    assert slow(machine, "10.77.0.3") > 0.5
    cnitool("del", "a", CAP_ARGS=asked)
    assert state(machine) == clean

    cnitool.chain(bridge, *AFTER, {**ours, "macspoofchk": True})  # bandwidth's ifb leads past the check
    with pytest.raises(AssertionError, match=r"macspoofchk: veth.* has an ingress qdisc"):
        cnitool("add", "a", CAP_ARGS=asked)
    cnitool("del", "a", CAP_ARGS=asked)
    assert state(machine) == clean
    cnitool.chain(bridge, AFTER[0], AFTER[2], {**ours, "macspoofchk": True})
    gateway = json.loads(cnitool("add", "a"))["ips"][0]["gateway"]
    machine.run(*inside, "ip", "addr", "add", "10.77.0.99/24", "dev", "eth0")
    for source, heard in (("eth0", 1), ("10.77.0.99", 0)):  # the gateway's MAC is known by the first
        said = machine.run(*inside, "ping", "-c1", "-W1", "-I", source, gateway, check=False)
        assert f" {heard} received" in said
    cnitool("del", "a")
    assert state(machine) == clean
    machine.run("ip", "link", "del", "br-theirs")

"""cnitool (libcni) with the agent's plugin: every verb, every version, the exact results.

outside (ns) ── w0 machine ── npbr0 ── eth0 pods a, b (ns)
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from .cnitool import Cnitool
from .machine import BIN_DIR, OUTSIDE, Machine
from .peers import program

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.usefixtures("pods")]


GATEWAYS = ("10.244.0.1", "fd00:10:244::1")


def inside(machine: Machine, pod: str, *words: str) -> Any:
    return json.loads(machine.run("ip", "-n", pod, "-j", *words))


def expected(machine: Machine, version: str) -> dict[str, Any]:
    """What ADD of the machine's only pod, "a", must answer in this version, by what the kernel holds."""
    links = {link["ifname"]: link for link in json.loads(machine.run("ip", "-j", "link"))}
    host = machine.ports()[0]
    eth0 = inside(machine, "a", "address", "show", "eth0")[0]
    mtu = {"mtu": 1450} if version == "1.1.0" else {}  # 1500 less VXLAN over IPv4
    assert links[host]["mtu"] == eth0["mtu"] == 1450
    found = [i for i in eth0["addr_info"] if i["scope"] == "global"]
    assert [i["prefixlen"] for i in found] == [32, 128]  # pods are routed, docs/cni.md
    addresses = [
        {"address": f"{i['local']}/{i['prefixlen']}", "gateway": gateway, "interface": 2}
        for i, gateway in zip(found, GATEWAYS, strict=True)
    ]
    if version < "1":
        addresses = [{"version": str(v), **one} for v, one in zip((4, 6), addresses, strict=True)]
    dns: dict[str, Any] = {"dns": {}} if version < "1" else {}
    return {
        "cniVersion": version,
        "interfaces": [
            {"name": "npbr0", "mac": links["npbr0"]["address"]},
            {"name": host, "mac": links[host]["address"], **mtu},
            {"name": "eth0", "mac": eth0["address"], **mtu, "sandbox": "/run/netns/a"},
        ],
        "ips": addresses,
        "routes": [{"dst": "0.0.0.0/0", "gw": GATEWAYS[0]}, {"dst": "::/0", "gw": GATEWAYS[1]}],
        **dns,
    }


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_add_check_del_in_every_version(machine: Machine, version: str) -> None:
    cnitool = Cnitool(machine, version)
    result = json.loads(cnitool("add", "a"))
    assert result == expected(machine, version)
    for address in OUTSIDE:
        machine.run("ip", "netns", "exec", "a", "ping", "-c1", "-W2", address)
    if version >= "0.4":
        cnitool("check", "a")
        machine.run("ip", "-n", "a", "link", "set", "eth0", "mtu", "1300")
        assert "eth0 is not as ADD made it" in cnitool.refused("check", "a")
    cnitool("del", "a")
    cnitool("del", "a")  # again: success
    assert not machine.ports() and not machine.pods()
    assert [link["ifname"] for link in inside(machine, "a", "link")] == ["lo"]


def test_the_list_that_install_writes_gets_the_newest_version_that_libcni_knows(machine: Machine) -> None:
    """1.1.0 here; an older libcni ignores cniVersions and takes 0.4.0: test_containerd.py."""
    env = {"CNI_PATH": BIN_DIR}
    words = [program("cnitool"), "add", "netplane", "/run/netns/a"]
    assert json.loads(machine.run(*words, env=env))["cniVersion"] == "1.1.0"
    machine.run(words[0], "del", *words[2:], env=env)
    assert not machine.ports()


def test_gc_takes_what_is_gone_and_status_tells(machine: Machine) -> None:
    """cnitool's gc gives no list: libcni DELs what is in its cache, ours what has no namespace any more."""
    cnitool = Cnitool(machine, "1.1.0")
    assert cnitool("status") == ""
    cnitool("add", "a")
    cnitool("gc")  # by the cache
    assert not machine.ports() and not machine.pods()
    for pod in ("a", "b"):
        cnitool("add", pod)
    machine.run("rm", "-rf", "/var/lib/cni")  # the runtime forgets both, and one pod is gone
    machine.run("ip", "netns", "delete", "b")
    cnitool("gc")
    assert len(machine.ports()) == len(machine.pods()) == 1
    machine.run("ip", "netns", "exec", "a", "ping", "-c1", "-W2", OUTSIDE[0])
    machine.run("ip", "netns", "add", "b")
    cnitool("del", "a")


def test_without_its_agent_add_and_status_say_so(machine: Machine) -> None:
    cnitool = Cnitool(machine, "1.1.0")
    machine.stop_agent()
    assert "no netplane agent at" in cnitool.refused("status", "a")
    assert "no netplane agent at" in cnitool.refused("add", "a")
    machine.start_agent()
    cnitool("add", "a")
    cnitool("del", "a")


def test_an_interface_that_exists_is_refused_and_stays(machine: Machine) -> None:
    cnitool = Cnitool(machine, "1.1.0")
    cnitool("add", "a")
    assert "eth0 exists already in /run/netns/a" in cnitool.refused("add", "a")
    machine.run("ip", "netns", "exec", "a", "ping", "-c1", "-W2", OUTSIDE[0])
    cnitool("del", "a")


def test_capabilities_and_arguments_reach_the_plugin(machine: Machine) -> None:
    """CAP_ARGS as runtimeConfig (declared ∩ supplied), CNI_ARGS as they are."""
    cnitool = Cnitool(machine, "1.1.0", capabilities={"ips": True, "mac": True, "dns": True})
    asked = {
        "ips": ["10.244.0.77", "fd00:10:244::77"],
        "mac": "02:00:5e:10:00:01",
        "dns": {"servers": ["192.0.2.53"], "searches": ["example.org"]},
        "aliases": ["undeclared, so never sent"],
    }
    pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=1-2-3"
    result = json.loads(cnitool("add", "a", CAP_ARGS=json.dumps(asked), CNI_ARGS=pod))
    assert [ip["address"] for ip in result["ips"]] == ["10.244.0.77/32", "fd00:10:244::77/128"]
    assert inside(machine, "a", "link", "show", "eth0")[0]["address"] == asked["mac"]
    assert result["dns"] == {"nameservers": ["192.0.2.53"], "search": ["example.org"]}
    assert machine.pods() == ["shop/web-1"]
    cnitool("del", "a")
    assert machine.pods() == []

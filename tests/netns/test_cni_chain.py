"""With other plugins: their IPAM under us, ours under them, before and after us in a list, and whole removal.

 outside (ns) ── wire ── node-1 (ns) ── npbr0, br-own, or a reference plugin's bridge ── pod a (ns)

The reference plugins (Debian's containernetworking-plugins) run in the node's namespace.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netplane.commands.install import BINARY
from netplane.kernel import netns
from netplane.lab import Lab
from netplane.lab.runner import until
from tests.cnirun import OWN, REFERENCE, Cni, plain
from tests.netns.test_cni_features import pings, records
from tests.netns.test_cni_ports import mapped, port, seen, serving

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not Path(REFERENCE, "bridge").exists(), reason="needs containernetworking-plugins"),
]
MakeNetns = Callable[[str], str]
MakeLab = Callable[..., Lab]


@pytest.fixture(scope="module")
def lab(make_module_lab: MakeLab) -> Lab:
    lab = make_module_lab(nodes=1)
    lab.start_agents()
    lab.nodes[0].add_pod("first").delete()  # the node's bridge gets its link-local address by its first pod
    return lab


@pytest.fixture
def plugins(tmp_path: Path) -> str:
    """A CNI_PATH with ours, as it is installed, and theirs."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "netplane").symlink_to(BINARY)
    return f"{tmp_path / 'bin'}:{REFERENCE}"


def theirs(lab: Lab, name: str, command: str, pod: str, config: dict[str, Any], path: str) -> Any:
    """A reference plugin, as a runtime on the node would run it."""
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": os.path.basename(pod),
        "CNI_NETNS": pod,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": path,
        "PATH": os.environ["PATH"],
    }
    binary = str(Path(REFERENCE, name))
    done = netns.call(
        str(lab.nodes[0].netns),
        lambda: subprocess.run(
            [binary], input=json.dumps(config).encode(), env=env, capture_output=True, check=False
        ),
    )
    return json.loads(done.stdout) if done.stdout.strip() else ""


# --- another plugin's IPAM under us -----------------------------------------------------------------


def host_local(tmp_path: Path) -> dict[str, Any]:
    ranges = [[{"subnet": "10.95.0.0/24"}], [{"subnet": "fd00:95::/64"}]]
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "leases"), "ranges": ranges}
    return {"ipam": ipam, "bridge": "br-del", "isDefaultGateway": True}


def leases(tmp_path: Path) -> list[str]:
    found = (tmp_path / "leases" / "net").glob("*") if (tmp_path / "leases").exists() else ()
    return sorted(p.name for p in found if p.name != "lock" and not p.name.startswith("last"))


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_addresses_from_host_local(lab: Lab, make_netns: MakeNetns, tmp_path: Path, version: str) -> None:
    """Debian's host-local knows 1.0.0: asked for 1.1.0, we speak 1.0.0 with it and 1.1.0 with the runtime."""
    cni, a = Cni(lab), make_netns("a")
    network = {**host_local(tmp_path), "cniVersion": version}
    result = cni.add(a, network)
    assert result["cniVersion"] == version
    assert [ip["address"] for ip in result["ips"]] == ["10.95.0.2/24", "fd00:95::2/64"]
    assert [ip.get("version") for ip in result["ips"]] == (["4", "6"] if version < "1" else [None, None])
    assert leases(tmp_path) == ["10.95.0.2", "fd00:95::2"]
    assert pings(a, "10.95.0.1") and pings(a, "fd00:95::1")
    if version > "0.4":
        assert cni.call("CHECK", a, {**network, "prevResult": result}) == ""
        for lease in (tmp_path / "leases" / "net").glob("[1f][0d]*"):
            lease.unlink()
        answer = cni.call("CHECK", a, {**network, "prevResult": result})
        assert "host-local" in answer["msg"]
    cni.delete(a, network)
    assert leases(tmp_path) == []


def test_an_add_that_fails_gives_the_delegates_address_back(
    lab: Lab, make_netns: MakeNetns, tmp_path: Path
) -> None:
    cni, a = Cni(lab), make_netns("a")
    netns.run(a, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    answer = cni.call("ADD", a, host_local(tmp_path))
    assert answer["code"] == 4 and "eth0 exists already" in answer["msg"]
    assert leases(tmp_path) == [] and not records(lab)
    assert "br-del" not in lab.nodes[0].run("ip", "link")


def test_del_without_configuration_gives_it_back_from_our_record(
    lab: Lab, make_netns: MakeNetns, tmp_path: Path
) -> None:
    cni, a = Cni(lab), make_netns("a")
    cni.add(a, host_local(tmp_path))
    netns.delete(a)
    assert cni.call("DEL", a, NETNS="", PATH="") == ""
    assert leases(tmp_path) == [] and not records(lab)


def test_gc_gives_it_back_and_goes_on(lab: Lab, make_netns: MakeNetns, tmp_path: Path) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    network = host_local(tmp_path)
    cni.add(a, network)
    cni.add(b, network)
    valid = [{"containerID": os.path.basename(b), "ifname": "eth0"}]
    assert cni.call("GC", "", {**network, "cni.dev/valid-attachments": valid}) == ""
    assert leases(tmp_path) == ["10.95.0.3", "fd00:95::3"]
    assert cni.call("GC", "", {**network, "cni.dev/valid-attachments": []}) == ""
    assert leases(tmp_path) == []


FAKE = """#!/usr/bin/python3
import json, os, sys
config, command = json.load(sys.stdin), os.environ["CNI_COMMAND"]
open(os.path.join(os.path.dirname(__file__), "log"), "a").write(command + "\\n")
if command == "VERSION":
    print(json.dumps({"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}))
elif command == "ADD":
    print(json.dumps({"cniVersion": "1.1.0", "ips": [{"address": "10.96.7.7/24"}], "dns": {"domain": "d"}}))
elif command == "STATUS":
    print(json.dumps({"cniVersion": "1.1.0", "code": 51, "msg": "the pool is on fire"}))
    sys.exit(1)
"""


def test_a_delegate_of_1_1_is_asked_for_status_and_gc(
    lab: Lab, make_netns: MakeNetns, tmp_path: Path
) -> None:
    binary = tmp_path / "fake-ipam"
    binary.write_text(FAKE)
    binary.chmod(0o755)
    network = {"ipam": {"type": "fake-ipam"}, "bridge": "br-fake"}
    cni, a = Cni(lab, str(tmp_path)), make_netns("a")
    result = cni.add(a, network)
    assert plain(result) == ["10.96.7.7"] and result["dns"] == {"domain": "d"}
    status = cni.call("STATUS", "", network)
    assert (status["code"], status["msg"]) == (51, "fake-ipam: the pool is on fire")
    assert cni.call("GC", "", {**network, "cni.dev/valid-attachments": []}) == ""
    assert (tmp_path / "log").read_text().split() == ["VERSION", "ADD", "STATUS", "DEL", "GC"]
    answer = cni.call("ADD", a, {"ipam": {"type": "nobody"}})
    assert answer["code"] == 7 and "nobody is not in CNI_PATH" in answer["msg"]


def test_static_addresses(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a = Cni(lab), make_netns("a")
    static = {"type": "static", "addresses": [{"address": "10.97.0.9/24", "gateway": "10.97.0.1"}]}
    network = {"ipam": {**static, "routes": [{"dst": "0.0.0.0/0"}]}, "bridge": "br-st", "isGateway": True}
    assert plain(cni.add(a, network)) == ["10.97.0.9"]
    assert pings(a, "10.97.0.1")
    assert "default via 10.97.0.1" in netns.run(a, "ip", "route")
    cni.delete(a, network)


# --- our IPAM under another plugin --------------------------------------------------------------------


@pytest.mark.parametrize("ipam", [{"type": "netplane"}, {**OWN, "routes": [{"dst": "0.0.0.0/0"}]}])
def test_the_reference_bridge_with_our_addresses(
    lab: Lab, make_netns: MakeNetns, plugins: str, ipam: dict[str, Any]
) -> None:
    a, cni = make_netns("a"), Cni(lab)
    config = {
        "cniVersion": "1.0.0",
        "name": "theirs",
        "type": "bridge",
        "bridge": "br-ref",
        "isGateway": True,
        "socket": str(lab.nodes[0].socket),
        "someKeyOfTheirs": 1,
        "ipam": ipam,
    }
    result = theirs(lab, "bridge", "ADD", a, config, plugins)
    expected = "10.88.0." if "ranges" in ipam else "10.244.0."
    assert plain(result)[0].startswith(expected), result
    (record,) = records(lab)
    assert record["spec"]["kind"] == "ipam"
    gateway = result["ips"][0]["gateway"]
    assert gateway.endswith(".1") and ("ranges" not in ipam or pings(a, gateway))
    # the same list may have our own work in it, after the bridge
    after = {"name": "theirs", "cniVersion": "1.0.0", "prevResult": result}
    assert cni.call("ADD", a, {**after, **mapped(port(8090, 80))})["ips"] == result["ips"]
    assert theirs(lab, "bridge", "CHECK", a, {**config, "prevResult": result}, plugins) == ""
    cni.delete(a, after)
    assert len(records(lab)) == 1
    assert theirs(lab, "bridge", "DEL", a, config, plugins) == ""
    assert not records(lab)
    lab.nodes[0].run("ip", "link", "del", "br-ref")


# --- after and before another plugin -------------------------------------------------------------------


def test_on_an_interface_that_another_plugin_made(
    lab: Lab, make_netns: MakeNetns, plugins: str, tmp_path: Path
) -> None:
    a, cni, node = make_netns("a"), Cni(lab), str(lab.nodes[0].netns)
    config = {"cniVersion": "1.0.0", "name": "list", "type": "bridge", "bridge": "br-ref", "isGateway": True}
    config["ipam"] = {
        "type": "host-local",
        "dataDir": str(tmp_path),
        "routes": [{"dst": "0.0.0.0/0"}],
        "ranges": [[{"subnet": "10.98.0.0/24"}]],
    }
    made = theirs(lab, "bridge", "ADD", a, config, plugins)
    before = host_state(lab)
    more = {
        "runtimeConfig": {
            "portMappings": [port(8099, 80)],
            "bandwidth": {
                "ingressRate": 10_000_000,
                "ingressBurst": 800_000,
                "egressRate": 10_000_000,
                "egressBurst": 800_000,
            },
        },
        "macspoofchk": True,
        "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"},
        "mtu": 1400,
    }
    mine = {"name": "list", "cniVersion": "1.0.0", **more, "prevResult": made}
    result = cni.add(a, mine)
    assert {k: v for k, v in result.items() if k != "dns"} == {k: v for k, v in made.items() if k != "dns"}
    with serving(a, 80):
        assert seen(str(lab.outside.netns), "192.168.77.11", 8099) == "192.168.77.1"
    assert "mtu 1400" in netns.run(a, "ip", "link", "show", "eth0")
    assert netns.run(a, "sysctl", "-n", "net.ipv4.conf.eth0.arp_filter").strip() == "1"
    assert "tbf" in netns.run(node, "tc", "qdisc") and "tbf" in netns.run(a, "tc", "qdisc")
    pods = lab.netplane("get", "Pod", "-A", "-o", "wide")
    assert plain(made)[0] in pods
    assert cni.call("CHECK", a, {**mine, "prevResult": result}) == ""
    cni.delete(a, mine)
    assert difference(before, lab) == {}
    assert theirs(lab, "bridge", "DEL", a, config, plugins) == ""
    lab.nodes[0].run("ip", "link", "del", "br-ref")


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_a_chains_result_says_what_we_changed_and_nothing_else(
    lab: Lab, make_netns: MakeNetns, version: str
) -> None:
    """The kernel has a new MAC and MTU, so the previous result would be wrong. mtu is of 1.1.0."""
    a, cni, mac = make_netns("a"), Cni(lab), "02:00:00:00:00:99"
    netns.run(a, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
    netns.run(a, "ip", "link", "set", "eth0", "up")
    first = {"name": "other", "mac": "02:00:00:00:00:01"}
    inside = {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": a}
    before = {"cniVersion": version, "interfaces": [first, inside], "ips": [], "dns": {}}
    mine = {"cniVersion": version, "prevResult": before, "runtimeConfig": {"mac": mac}, "mtu": 1400}
    result = cni.add(a, mine)
    shown = netns.run(a, "ip", "link", "show", "eth0")
    assert mac in shown and "mtu 1400" in shown
    mtu = {"mtu": 1400} if version == "1.1.0" else {}
    assert result["interfaces"] == [first, {**inside, "mac": mac, **mtu}]
    cni.delete(a, mine)
    plain_chain = {"cniVersion": version, "prevResult": before}
    assert cni.add(a, plain_chain)["interfaces"] == [first, inside]
    cni.delete(a, plain_chain)


def test_reference_plugins_after_us(lab: Lab, make_netns: MakeNetns, plugins: str) -> None:
    a, cni, node = make_netns("a"), Cni(lab), str(lab.nodes[0].netns)
    result = cni.add(a, {"cniVersion": "1.0.0"})
    common = {"cniVersion": "1.0.0", "name": "net", "prevResult": result}
    limit = {"ingressRate": 10_000_000, "ingressBurst": 800_000}
    shaped = theirs(lab, "bandwidth", "ADD", a, {**common, "type": "bandwidth", **limit}, plugins)
    assert shaped["ips"] == result["ips"], shaped
    assert "tbf" in netns.run(node, "tc", "qdisc")
    tuned = {"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}
    assert theirs(lab, "tuning", "ADD", a, {**common, **tuned}, plugins)["ips"] == result["ips"]
    assert cni.call("CHECK", a, {"cniVersion": "1.0.0", "prevResult": result}) == ""
    cni.delete(a, {"cniVersion": "1.0.0"})


# --- everything on, and everything gone ------------------------------------------------------------------


def host_state(lab: Lab) -> dict[str, str]:
    """All that a node has, without what changes by itself (indexes, handles, counters, times)."""
    node = lab.nodes[0]
    commands = {
        "links": ("ip", "-o", "link"),
        "addresses": ("ip", "-o", "addr"),
        "routes": ("ip", "route", "show", "table", "all"),
        "routes6": ("ip", "-6", "route", "show", "table", "all"),
        "neighbours": ("ip", "neigh", "show", "nud", "permanent"),
        "nft": ("nft", "list", "ruleset"),
        "qdiscs": ("tc", "qdisc"),
        "filters": ("bridge", "fdb"),
        "conntrack": ("sh", "-c", "conntrack -L -f ipv4; conntrack -L -f ipv6"),
        "files": ("find", "/var/lib/cni", "/run/netns", str(node.run_dir), str(node.state_dir), "/etc/cni"),
    }
    found = {name: node.run(*words, check=False) for name, words in commands.items()}
    # a queue's length stays once a link has had a queue, a bridge's carrier comes and goes late
    found["links"] = re.sub(
        r"^\d+: |link-netns\S* \S+|qlen \d+|NO-CARRIER,|,LOWER_UP|state \w+", "", found["links"], flags=re.M
    )
    for routes in ("routes", "routes6"):
        found[routes] = found[routes].replace(" linkdown", "")
    found["addresses"] = re.sub(r"^\d+: |valid_lft.*", "", found["addresses"], flags=re.M)
    found["qdiscs"] = re.sub(r"qdisc \S+ [0-9a-f]+:", "", found["qdiscs"])
    # a flow's state and age change; bridges tell of multicast groups by themselves (IGMP)
    found["conntrack"] = re.sub(r"^.* dst=224\.0\.0\.22 .*\n", "", found["conntrack"], flags=re.M)
    found["conntrack"] = re.sub(r"^(\S+) .*?(src=)", r"\1 \2", found["conntrack"], flags=re.M)
    # the agent itself asks its resolver at its start
    asks = rf"^udp +src={re.escape(node.addresses[0])} \S+ \S+ dport=53 .*\n"
    found["conntrack"] = re.sub(asks, "", found["conntrack"], flags=re.M)
    found["filters"] = "\n".join(line for line in found["filters"].splitlines() if "permanent" in line)
    found = {name: "\n".join(sorted(text.splitlines())) for name, text in found.items() if name != "nft"} | {
        "nft": found["nft"]
    }
    found["nft"] = re.sub(r"packets \d+ bytes \d+", "", found["nft"])
    return found


def difference(before: dict[str, str], lab: Lab) -> dict[str, set[str]]:
    """What is otherwise than before; a bridge notices within a second that its last port went."""
    deadline = time.monotonic() + 3
    while True:
        after = host_state(lab)
        lines = {key: set(before[key].splitlines()) ^ set(after[key].splitlines()) for key in before}
        found = {key: other for key, other in lines.items() if other}
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


EVERYTHING: dict[str, Any] = {
    "runtimeConfig": {
        "portMappings": [
            port(8100, 80),
            port(8100, 53, "udp"),
            port(8101, 80, "sctp"),
            port(8102, 80, hostIP="192.168.77.11"),
        ],
        "bandwidth": {
            "ingressRate": 10_000_000,
            "ingressBurst": 800_000,
            "egressRate": 10_000_000,
            "egressBurst": 800_000,
        },
        "aliases": ["web"],
    },
    "macspoofchk": True,
    "portIsolation": True,
    "sysctl": {"net.core.somaxconn": "500"},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "node": {"ipMasq": False},
    "own": {"ipam": OWN, "bridge": "br-own", "isDefaultGateway": True, "ipMasq": True},
    "ptp": {"kind": "ptp", "ipam": {**OWN, "routes": [{"dst": "0.0.0.0/0"}]}, "ipMasq": True},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_after_del_the_host_is_as_before_add(lab: Lab, make_netns: MakeNetns, name: str) -> None:
    """From our own record: DEL gets neither namespace nor previous result nor configuration."""
    cni, a = Cni(lab), make_netns("a")
    everything = {**EVERYTHING, **NETWORKS[name]}
    if name == "ptp":
        everything = {k: v for k, v in everything.items() if k != "portIsolation"}
    lab.nodes[0].run("conntrack", "-F")  # what others left would end meanwhile
    before = host_state(lab)
    result = cni.add(a, everything)
    with serving(a, 80):
        assert seen(str(lab.outside.netns), "192.168.77.11", 8100)
    seen(str(lab.outside.netns), "192.168.77.11", 8100, socket.SOCK_DGRAM, patience=0.2)
    for to in ("192.168.77.1", *(ip["gateway"] for ip in result["ips"])):  # some of it masqueraded
        pings(a, to)
        assert not seen(a, to, 9, patience=0.2) and not seen(a, to, 9, socket.SOCK_DGRAM, patience=0.2)
    during = host_state(lab)
    changed = {key for key in before if before[key] != during[key]}
    assert {"links", "nft", "neighbours", "qdiscs", "conntrack"} <= changed
    mine = set(during["conntrack"].splitlines()) - set(before["conntrack"].splitlines())
    kinds = {line.split()[0] for line in mine}
    assert {"tcp", "udp", "icmp", "icmpv6"} <= kinds and any("dport=8100" in line for line in mine)
    assert cni.call("CHECK", a, {**everything, "prevResult": result}) == ""
    assert cni.call("DEL", a, NETNS="") == ""
    assert difference(before, lab) == {}
    assert not records(lab)
    assert cni.call("DEL", a, NETNS="") == ""


@pytest.mark.parametrize(
    ("breakage", "words"),
    [
        ("tc qdisc del dev {host} root", "shaper"),
        ("nft delete element inet netplane cni-hostports4 {{ tcp . 8100 }}", "tcp . 8100 of cni-hostports4"),
        ("nft flush chain inet netplane cni-hostports", "chain cni-hostports was changed"),
        ("nft delete element inet netplane cni-masked4 {{ {ip} }}", "of cni-masked4"),
        ("nft delete element inet netplane cni-isolated4 {{ {ip} }}", "of cni-isolated4"),
        ("nft flush chain netdev netplane {host}", "guard of"),
        ("nft flush chain bridge netplane cni-limits", "chain cni-limits of table bridge netplane was"),
        ("nft delete element bridge netplane cni-limits {{ {host} }}", "limit of"),
        ("ip link set {host} nomaster", "master is none, not br-own"),
        ("ip neigh del {ip} dev br-own", "neighbour br-own"),
    ],
)  # fmt: skip
def test_check_names_what_differs(lab: Lab, make_netns: MakeNetns, breakage: str, words: str) -> None:
    cni, a = Cni(lab), make_netns("a")
    everything = {**EVERYTHING, **NETWORKS["own"]}
    result = cni.add(a, everything)
    values = {"host": result["interfaces"][1]["name"], "ip": plain(result)[0]}
    words_of_nft = breakage.format(**values).replace("{", "'{").replace("}", "}'")
    answer = ""
    for _ in range(20):  # the agent mends what it notices: now and then before it is asked
        lab.nodes[0].run("sh", "-c", words_of_nft, check=False)
        answer = cni.call("CHECK", a, {**everything, "prevResult": result})
        if answer:
            break
    assert answer and answer["code"] == 100 and words in answer["msg"], answer
    cni.delete(a, everything)


def test_the_agent_puts_limits_and_guards_back(lab: Lab, make_netns: MakeNetns) -> None:
    cni, a, node = Cni(lab), make_netns("a"), lab.nodes[0]
    everything = {**EVERYTHING, **NETWORKS["own"]}
    host = cni.add(a, everything)["interfaces"][1]["name"]

    def rules() -> list[str]:
        return [node.run("nft", "list", "table", family, "netplane") for family in ("bridge", "netdev")]

    whole = rules()
    for breakage in ("chain bridge netplane cni-limits", f"chain netdev netplane {host}"):
        node.run("nft", "flush", *breakage.split())
        until(lambda: rules() == whole, f"{breakage} mended")
    cni.delete(a, everything)


def test_a_namespace_that_goes_without_del_is_released_while_the_agent_runs(
    lab: Lab, make_netns: MakeNetns
) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    cni.add(a, mapped(port(8111, 80)))
    cni.add(b)
    netns.delete(a)
    deadline = time.monotonic() + 20
    while len(records(lab)) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [r["spec"]["netns"] for r in records(lab)] == [b]
    lab.nodes[0].agent.wait()  # no scope fails
    cni.add(make_netns("c"), mapped(port(8111, 80)))  # its port is free
    for pod in (b, b.replace("ns-b", "ns-c")):
        cni.delete(pod)


def test_a_path_that_is_unbound_while_the_namespace_lives_keeps_its_interface(
    lab: Lab, make_netns: MakeNetns
) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    cni.add(a)
    cni.add(b)
    holder = netns.popen(a, ["sleep", "60"])
    netns.delete(a)
    netns.delete(b)  # makes the agent look
    deadline = time.monotonic() + 20
    while len(records(lab)) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [r["spec"]["netns"] for r in records(lab)] == [a]
    assert pings(f"/proc/{holder.pid}/ns/net", "10.244.0.1")
    holder.kill()
    holder.wait()
    cni.delete(a)

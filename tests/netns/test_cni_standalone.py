"""CNI without an agent: the binary hands over to a process that does the work on the embedded store.

pods (ns)
  eth0
   │ veth
───┴── npbr0 ── node (ns)        no agent; state in a directory that all processes share
       10.244.7.1/24
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from netplane import standalone
from netplane.cni import names, nodebridges
from netplane.cni.frame import Frame
from netplane.cni.render import CniConfig, render_base
from netplane.kernel import netns
from netplane.kernel.rtnetlink import LinkDriver
from netplane.model import codec
from netplane.model.facts import Plan
from netplane.model.nodes import Node
from netplane.store import open_store

pytestmark = pytest.mark.root
NETPLANE = str(Path(sys.executable).parent / "netplane")
MakeNetns = Callable[[str], str]
NODE = f"""
apiVersion: v1
kind: Node
metadata: {{name: {socket.gethostname().lower()}}}
spec: {{podCIDR: 10.244.7.0/24, podCIDRs: [10.244.7.0/24, "fd00:7::/64"]}}
"""


class Machine:
    """A node without an agent, on which the plugin is installed."""

    def __init__(self, at: str, work: Path) -> None:
        self.at, self.work = at, work
        self.store = f"sqlite://{work / 'state' / 'state.db'}"
        self.config: dict[str, Any] = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "netplane",
            "socket": str(work / "run" / "cni.sock"),
            "standalone": True,
            "stateDir": str(work / "state"),
        }
        self.netplane("install", "--cni-bin-dir", str(work / "bin"), "--cni-conf-dir", str(work / "conf"))
        (work / "state").mkdir(0o700)
        with closing(open_store(self.store)) as store:
            store.put(codec.parse(yaml.safe_load(NODE)))

    def netplane(self, *words: str) -> str:
        done = subprocess.run([NETPLANE, *words], capture_output=True, text=True, timeout=60, check=False)
        assert not done.returncode, done.stderr
        return done.stdout

    def begin(self, command: str, pod: str, ifname: str = "eth0", **config: Any) -> subprocess.Popen[bytes]:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": os.path.basename(pod),
            "CNI_NETNS": pod,
            "CNI_IFNAME": ifname,
            "PATH": os.environ["PATH"],
        }
        path = self.work / f"config-{command}-{os.path.basename(pod)}-{threading.get_ident()}"
        path.write_text(json.dumps({**self.config, **config}))
        with path.open("rb") as stdin:
            return netns.popen(
                self.at,
                [str(self.work / "bin" / "netplane")],
                env=environment,
                stdin=stdin,
                stdout=subprocess.PIPE,
            )

    def __call__(self, command: str, pod: str, ifname: str = "eth0", **config: Any) -> Any:
        text = self.begin(command, pod, ifname, **config).communicate(timeout=60)[0]
        return json.loads(text) if text.strip() else ""

    def attachments(self) -> list[str]:
        with closing(open_store(self.store)) as store:
            return [record.spec.container_id for record in store.list(["Attachment"])[0]]

    def links(self) -> list[str]:
        return re.findall(r"npv[0-9a-f]{11}(?=@)", netns.run(self.at, "ip", "-o", "link"))


@pytest.fixture
def machine(make_netns: MakeNetns, tmp_path: Path) -> Machine:
    return Machine(make_netns("node"), tmp_path)


def plain(result: Any) -> list[str]:
    assert "ips" in result, result
    return [ip["address"].partition("/")[0] for ip in result["ips"]]


def test_pods_reach_each_other_and_leave_nothing(machine: Machine, make_netns: MakeNetns) -> None:
    a, b = make_netns("a"), make_netns("b")
    first, second = machine("ADD", a), machine("ADD", b)
    for target in plain(second):
        netns.run(a, "ping", "-c", "1", "-W", "2", target)
    assert machine("CHECK", a, prevResult=first) == ""
    assert machine("ADD", a)["code"] == 4
    assert machine("DEL", a) == "" == machine("DEL", a) == machine("DEL", b)
    assert not machine.links() and not machine.attachments()
    assert "PERMANENT" not in netns.run(machine.at, "ip", "neigh", "show", "dev", "npbr0")


def test_processes_at_once_give_different_addresses(machine: Machine, make_netns: MakeNetns) -> None:
    pods = [make_netns(f"p{i}") for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda pod: machine("ADD", pod), pods))
        assert len({plain(r)[0] for r in results}) == len(pods) == len(machine.links())
        valid = [{"containerID": os.path.basename(pods[0]), "ifname": "eth0"}]
        gc = {"cni.dev/valid-attachments": valid}
        assert machine("GC", pods[1], **gc) == ""
        assert machine.attachments() == [os.path.basename(pods[0])] and len(machine.links()) == 1
        assert set(pool.map(lambda pod: machine("DEL", pod), pods)) == {""}
    assert not machine.links() and not machine.attachments()


def test_where_an_agent_had_an_overlay_the_last_pod_of_a_bridge_leaves_nothing_of_it(
    machine: Machine, make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bridge's port of the overlay (nphr1) is not the agent's alone to take away."""
    machine("ADD", make_netns("a"))
    kind = ("alias", "netplane:cni", "master", "npbr0", "type", "vxlan", "id", "9", "dstport", "8472")
    netns.run(machine.at, "ip", "link", "add", "nphr0", "mtu", "1450", *kind[2:])
    netns.run(machine.at, "ip", "link", "set", "nphr0", *kind[:2])
    monkeypatch.setattr(nodebridges, "node_bridge", lambda number: names.node_bridge(number + 1))
    pod = make_netns("b")
    for command, found in (("ADD", {"npbr0", "nphr0", "npbr1", "nphr1"}), ("DEL", {"npbr0", "nphr0"})):
        config = json.dumps(machine.config).encode()
        request = Frame(command, "b", pod, "eth0", "", os.environ["PATH"], config)
        status, answer = netns.call(machine.at, standalone.carry_out, request)
        assert status == 0, answer
        assert set(re.findall(r"np[bh]r\d", netns.run(machine.at, "ip", "-br", "link"))) == found


@pytest.mark.parametrize("tunnel", [False, True])
def test_pods_and_bridges_have_the_mtu_that_an_agent_chose(
    machine: Machine, make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch, tunnel: bool
) -> None:
    """The bridge that it left says so, and stays as it is."""
    config = CniConfig(pod_mtu=1380, tunnel=tunnel)
    with closing(open_store(machine.store)) as store:
        (node,) = store.list(["Node"])[0]
    assert isinstance(node, Node)
    driver = netns.call(machine.at, LinkDriver)
    driver.apply(Plan(add=tuple(f for f in render_base(node, config) if isinstance(f, driver.accepts))))
    left = driver.observe()
    monkeypatch.setattr(nodebridges, "node_bridge", lambda number: names.node_bridge(number + 1))
    pod = make_netns("pod")
    request = Frame("ADD", "b", pod, "eth0", "", os.environ["PATH"], json.dumps(machine.config).encode())
    status, answer = netns.call(machine.at, standalone.carry_out, request)
    assert status == 0, answer
    assert {key: mark for key, mark in driver.observe().items() if key in left} == left
    driver.close()
    found = json.loads(netns.run(machine.at, "ip", "-j", "link"))
    assert {one["mtu"] for one in found if one["ifname"] != "lo"} == {1380}
    assert "npbr1" in {one["ifname"] for one in found} and " mtu 1380 " in netns.run(pod, "ip", "link")


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_what_a_killed_process_leaves_the_next_one_takes_away(
    machine: Machine, make_netns: MakeNetns, command: str
) -> None:
    pod, other = make_netns("p"), make_netns("other")
    for after_ms in (250, 350, 450):  # the moment of the kill is what varies
        if command == "DEL":
            machine("ADD", pod)
        process = machine.begin(command, pod)
        time.sleep(after_ms / 1000)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)
        assert "ips" in machine("ADD", other)
        assert machine("DEL", pod) == "" == machine("DEL", other)
        assert not machine.links() and not machine.attachments(), after_ms
        assert "PERMANENT" not in netns.run(machine.at, "ip", "neigh", "show", "dev", "npbr0")


def test_an_agent_takes_over_what_was_made_without_it(machine: Machine, make_netns: MakeNetns) -> None:
    pod, work = make_netns("p"), machine.work
    address = plain(machine("ADD", pod))[0]
    netns.run(machine.at, "ip", "link", "add", "w0", "up", "type", "bridge")
    netns.run(machine.at, "ip", "addr", "add", "192.0.2.1/24", "dev", "w0")
    node = socket.gethostname().lower()
    words = ["--node", node, "--store", machine.store, "--run-dir", str(work / "run"), "--rooms", "cni"]
    words += ["--state-dir", str(work / "state"), "--node-ip", "192.0.2.1", "--cluster-cidr", "10.244.0.0/16"]
    with (work / "agent.log").open("wb") as log:
        agent = netns.popen(machine.at, [NETPLANE, "agent", *words], stdout=log, stderr=log)
    try:
        machine.netplane("status", "--run-dir", str(work / "run"), "--wait", "20")
        netns.run(machine.at, "ping", "-c", "1", "-W", "2", address)
        other = make_netns("other")
        assert plain(machine("ADD", other))[0] != address
        assert machine("DEL", pod) == "" and machine.attachments() == [os.path.basename(other)]
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(20)
    assert machine("DEL", other) == "" and not machine.links()


def test_a_damaged_state_file_is_refused_and_the_pods_outlive_it(
    machine: Machine, make_netns: MakeNetns
) -> None:
    """Also those of a network with ranges of its own, whose addresses nothing but the records knows."""
    own = {"name": "own", "bridge": "br-own", "ipam": {"ranges": [[{"subnet": "10.88.0.0/24"}]]}}
    mapped = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}
    a, b, c = make_netns("a"), make_netns("b"), make_netns("c")
    node = plain(machine("ADD", a))[0]
    assert plain(machine("ADD", b, **own, **mapped)) == ["10.88.0.2"]
    path = machine.work / "state" / "state.db"
    path.write_bytes(b"garbage!" * 512)
    answer = machine("ADD", c, **own)
    assert answer["code"] == 7 and f"store {path} is damaged" in answer["msg"]
    assert "move it away and start again" in answer["msg"]
    path.rename(f"{path}.damaged")
    assert plain(machine("ADD", c, **own)) == ["10.88.0.3"]
    netns.run(machine.at, "ping", "-c", "1", "-W", "2", node)
    netns.run(c, "ping", "-c", "1", "-W", "2", "10.88.0.2")
    assert "held by pod" in machine("ADD", make_netns("d"), **own, **mapped)["msg"]
    for pod, network in ((a, {}), (b, own), (c, own)):
        assert machine("DEL", pod, **network) == ""
    assert not machine.links() and not machine.attachments()
    assert "cni-hostports" not in netns.run(machine.at, "nft", "list", "ruleset")


def test_two_networks_with_default_routes(machine: Machine, make_netns: MakeNetns) -> None:
    pod = make_netns("p")
    networks = {
        ifname: {
            "name": f"net{i}",
            "bridge": f"br-{i}",
            "isDefaultGateway": True,
            "ipam": {"ranges": [[{"subnet": f"10.89.{i}.0/24"}]]},
        }
        for i, ifname in enumerate(("eth0", "eth1"))
    }
    results = {ifname: machine("ADD", pod, ifname, **network) for ifname, network in networks.items()}
    assert " dev eth0 " in netns.run(pod, "ip", "route", "get", "192.0.2.9")
    for ifname, network in networks.items():
        assert machine("CHECK", pod, ifname, **network, prevResult=results[ifname]) == ""
    assert machine("DEL", pod, "eth0", **networks["eth0"]) == ""
    assert " via 10.89.1.1 dev eth1 " in netns.run(pod, "ip", "route", "get", "192.0.2.9")
    assert machine("DEL", pod, "eth1", **networks["eth1"]) == "" and not machine.links()


def test_host_locals_own_words(machine: Machine, make_netns: MakeNetns, tmp_path: Path) -> None:
    """dataDir, routes and resolvConf mean what they mean there; with ports and bandwidth beside them."""
    (tmp_path / "resolv.conf").write_text(
        "nameserver 192.0.2.53\ndomain a.net\nsearch example.org\noptions ndots:2\n"
    )
    ipam = {
        "type": "netplane",
        "ranges": [[{"subnet": "10.89.0.0/24", "rangeStart": "10.89.0.9"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.1.0.0/16", "gw": "10.89.0.7"}],
        "dataDir": str(tmp_path / "leases"),
        "resolvConf": str(tmp_path / "resolv.conf"),
    }
    pod = make_netns("p")
    network: dict[str, Any] = {
        "name": "podman",
        "bridge": "cni-podman1",
        "isGateway": True,
        "ipMasq": True,
        "stateDir": "",
        "ipam": ipam,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    }
    result = machine("ADD", pod, **network)
    assert plain(result) == ["10.89.0.9"]
    assert result["dns"] == {
        "nameservers": ["192.0.2.53"], "domain": "a.net", "search": ["example.org"], "options": ["ndots:2"],
    }  # fmt: skip
    assert (tmp_path / "leases" / "state.db").exists()
    routes = netns.run(pod, "ip", "route")
    assert "default via 10.89.0.1" in routes and "10.1.0.0/16 via 10.89.0.7" in routes
    server = netns.call(pod, socket.create_server, ("10.89.0.9", 80))
    with server, netns.call(machine.at, socket.create_connection, ("127.0.0.1", 8080), 2):
        pass
    assert machine("CHECK", pod, **{**network, "prevResult": result}) == ""
    assert machine("DEL", pod, **network) == "" and not machine.links()
    answer = machine("ADD", pod, **{**network, "ipam": {**ipam, "resolvConf": str(tmp_path / "none")}})
    assert answer["code"] == 7 and "ipam.resolvConf" in answer["msg"]
    wrong = {**network, "ipam": {**ipam, "dataDir": "leases"}}
    assert "absolute" in machine("ADD", pod, **wrong)["msg"]


def test_what_cannot_be_done_without_an_agent_is_said(machine: Machine, make_netns: MakeNetns) -> None:
    pod = make_netns("p")
    assert machine("ADD", pod, standalone=False)["code"] == 11
    assert "absolute" in machine("ADD", pod, stateDir="here")["msg"]
    nul = machine("ADD", pod, stateDir=f"{machine.work}\0x")
    assert (nul["code"], "stateDir" in nul["msg"]) == (7, True), nul
    nul = machine("ADD", pod, ipam={"type": "netplane", "dataDir": f"{machine.work}\0x"}, stateDir="")
    assert (nul["code"], "dataDir" in nul["msg"] or "absolute" in nul["msg"]) == (7, True), nul
    nul = machine("ADD", pod, socket=f"{machine.work}/none\0x")
    assert (nul["code"], "socket" in nul["msg"]) == (7, True), nul
    for wrong in ("here", "/a\0b", 7):
        assert "stateDir" in machine("ADD", pod, stateDir=wrong)["msg"]
    (machine.work / "bin" / "netplane-standalone").unlink()
    answer = machine("ADD", pod)
    assert answer["code"] == 11 and "no netplane agent" in answer["msg"]
    assert "netplane install" in answer["details"]


def test_the_link_of_another_plugin_is_not_opened(make_netns: MakeNetns, tmp_path: Path) -> None:
    """127.0.0.1 is left out for such a port: a process that ends could not shut the link again."""
    machine, pod = Machine(make_netns("node"), tmp_path), make_netns("pod")
    netns.run(pod, "ip", "link", "add", "h0", "type", "veth", "peer", "name", "eth0")
    with open(machine.at) as node:
        move = ["ip", "link", "set", "h0", "netns", f"/proc/self/fd/{node.fileno()}"]
        netns.call(pod, lambda: subprocess.run(move, check=True, pass_fds=(node.fileno(),)))
    for at, link, address in ((machine.at, "h0", "10.77.0.1/24"), (pod, "eth0", "10.77.0.2/24")):
        netns.run(at, "ip", "link", "set", link, "up")
        netns.run(at, "ip", "addr", "add", address, "dev", link)
    made = {
        "interfaces": [{"name": "eth0", "sandbox": pod}],
        "ips": [{"address": "10.77.0.2/24", "interface": 0}],
    }
    config = {
        "prevResult": made,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]},
    }
    assert "ips" in machine("ADD", pod, **config)
    assert "8080" in netns.run(machine.at, "nft", "list", "ruleset")
    assert netns.run(machine.at, "sysctl", "-n", "net.ipv4.conf.h0.route_localnet") == "0\n"
    assert machine("DEL", pod, **config) == ""


def test_a_bridge_of_somebody_else_is_used_and_left(make_netns: MakeNetns, tmp_path: Path) -> None:
    machine, pod = Machine(make_netns("node"), tmp_path), make_netns("pod")
    netns.run(machine.at, "ip", "link", "add", "br-their", "address", "02:00:00:00:77:77", "type", "bridge")
    netns.run(machine.at, "ip", "link", "set", "br-their", "up")
    config = {
        "ipam": {"type": "netplane", "ranges": [[{"subnet": "10.79.0.0/24"}]]},
        "bridge": "br-their",
        "isGateway": True,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]},
    }
    result = machine("ADD", pod, **config)
    assert result["interfaces"][0] == {"name": "br-their", "mac": "02:00:00:00:77:77"}
    netns.run(pod, "ping", "-c", "1", "-W", "2", "10.79.0.1")
    assert netns.run(machine.at, "sysctl", "-n", "net.ipv4.conf.br-their.route_localnet") == "0\n"
    assert machine("CHECK", pod, **config, prevResult=result) == ""
    assert machine("DEL", pod, **config) == ""
    assert "10.79.0.1" not in netns.run(machine.at, "ip", "addr", "show", "dev", "br-their")
    assert not machine.links() and not machine.attachments()

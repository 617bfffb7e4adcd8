"""`netplane agent --rooms services` as the proxy beside another CNI: the reference bridge plugin.

outside (client) ── wire ── node-1: agent, cni0 (bridge + host-local) ── a, b, client
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.kernel import netns
from netplane.lab.settings import Settings
from netplane.model.base import amend
from netplane.model.services import EndpointPort, ServicePort
from netplane.store import open_store
from tests.faults.test_services_live import eventually, vip
from tests.services_kit import endpoint, endpoints, service

PLUGINS = Path("/usr/lib/cni")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not (PLUGINS / "bridge").exists(), reason="apt-get install containernetworking-plugins"
    ),
]
FAMILIES = pytest.mark.parametrize("family", ["IPv4", "IPv6"])
SWITCHED = "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"
OFFERED = (EndpointPort(name="web", port=8080), EndpointPort(name="dns", protocol="UDP", port=5300))
SUBNETS = "10.244.9.0/24", "fd00:10:244:9::/64"


class Foreign:
    """A node whose pods are the bridge plugin's, and netplane's agent for services alone."""

    def __init__(self, lab: Any, place: Path) -> None:
        self.lab, self.node, self.place = lab, lab.nodes[0], place
        for name in SWITCHED:  # somebody may have turned them off
            self.node.run("sysctl", "-qw", f"{name}=0")
        self.conf = {
            **{"cniVersion": "0.4.0", "name": "theirs", "type": "bridge", "bridge": "cni0"},
            **{"isGateway": True, "hairpinMode": True},
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": subnet}] for subnet in SUBNETS],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                "dataDir": str(place / "ipam"),
            },
        }
        self.paths: dict[str, str] = {}
        self.ips: dict[str, dict[str, str]] = {}
        self.servers = []
        for name in ("a", "b", "client"):
            self.pod(name)
        for name in ("a", "b"):
            words = [
                "python3",
                "-I",
                "-S",
                str(Path(netns.__file__).parents[1] / "lab/probe.py"),
                "serve",
                name,
            ]
            server = netns.popen(self.paths[name], [*words, "--tcp", "8080", "--udp", "5300"], stdout=-1)
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            self.servers.append(server)
        self.links = self.node.run("ip", "-br", "addr")
        lab.start_agents()
        self.store = open_store(lab.store)

    def pod(self, name: str) -> None:
        """What a runtime does: a namespace, and CNI ADD of the plugin."""
        path = self.paths[name] = str(self.place / name)
        netns.create(path)
        netns.run(path, "ip", "link", "set", "lo", "up")
        words = {"COMMAND": "ADD", "CONTAINERID": name, "NETNS": path, "IFNAME": "eth0", "PATH": PLUGINS}
        env = [f"CNI_{key}={value}" for key, value in words.items()]
        result = json.loads(self.node.run("env", *env, str(PLUGINS / "bridge"), input=json.dumps(self.conf)))
        found = [ip["address"].partition("/")[0] for ip in result["ips"]]
        self.ips[name] = {"IPv6" if ":" in ip else "IPv4": ip for ip in found}

    def serve(self, name: str, address: str, *pods: str, family: str = "IPv4", **spec: Any) -> None:
        """A service with node port 30081 (IPv4) or 30082, and the kernel has it."""
        node_port = 30082 if family == "IPv6" else 30081
        ports = (
            ServicePort(name="web", port=80, node_port=node_port),
            ServicePort(name="dns", protocol="UDP", port=53),
        )
        found = [endpoint(self.ips[p][family], node="node-1") for p in pods]
        self.store.put(amend(endpoints(*found, of=name, ports=OFFERED), address_type=family))
        self.store.put(service(name, (address,), ports=ports, type="NodePort", ip_families=(family,), **spec))
        eventually(lambda: address in self.node.run("nft", "list", "table", "inet", "netplane"))

    def close(self) -> None:
        for server in self.servers:
            server.kill()
            server.wait()
        for path in self.paths.values():
            netns.delete(path)


@pytest.fixture(scope="module")
def foreign(make_module_lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    lab = make_module_lab(nodes=1, settings=Settings(agent_args=("--rooms", "services")))
    built = Foreign(lab, tmp_path_factory.mktemp("theirs"))
    yield built
    built.close()


def ask(address: str, port: int) -> str:
    """Who answered and whom it saw."""
    with socket.create_connection((address, port), 3) as conn:
        return " ".join(conn.recv(200).decode().split()[:2])


def ask_udp(address: str, port: int) -> str:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.connect((address, port))
        sock.send(b"?")
        return sock.recv(200).decode().split()[0]


@FAMILIES
def test_every_way_to_a_pod_of_the_bridge_plugin(foreign: Foreign, family: str) -> None:
    address, six = vip(foreign, family, 1), family == "IPv6"
    foreign.serve(f"web{six:d}", address, "b", family=family)
    client, b = foreign.paths["client"], foreign.paths["b"]
    assert netns.call(client, ask, address, 80).startswith(f"b {foreign.ips['client'][family]}")
    assert netns.call(client, ask_udp, address, 53) == "b"
    assert netns.call(b, ask, address, 80).startswith("b "), "itself, by hairpin"
    assert foreign.node.python(ask, address, 80).startswith("b ")
    at = next(a for a in foreign.node.addresses if (":" in a) == six)
    assert foreign.lab.outside.python(ask, at, 30081 + six).startswith("b ")
    with pytest.raises(ConnectionRefusedError):
        netns.call(client, ask, address, 81)


def test_it_spreads_and_keeps_to_its_own_things(foreign: Foreign) -> None:
    address = vip(foreign, "IPv4", 3)
    pods = (endpoint(foreign.ips[p]["IPv4"], node="node-1") for p in ("a", "b"))
    foreign.store.put(endpoints(*pods, of="both", ports=OFFERED[:1]))
    foreign.store.put(service("both", (address,), ports=(ServicePort(name="web", port=80),)))
    eventually(lambda: address in foreign.node.run("nft", "list", "table", "inet", "netplane"))
    found = {netns.call(foreign.paths["client"], ask, address, 80)[0] for _ in range(40)}
    assert found == {"a", "b"}
    assert foreign.node.run("ip", "-br", "addr") == foreign.links, "no link and no address of ours"
    tables = foreign.node.run("nft", "list", "tables").split("\n")
    assert [t for t in tables if "netplane" in t] == ["table inet netplane"]
    assert [foreign.node.run("sysctl", "-n", name).strip() for name in SWITCHED] == ["1", "1"]

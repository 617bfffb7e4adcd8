"""The binary, the socket and the facts on a real kernel, with `ip` and `nft` in the agent's place.

pod a (ns)        pod b (ns)              outside (ns)
  eth0              eth0                      w1 192.0.2.2/24, 2001:db8::2/64
   │ veth            │ veth                    │
───┴── npbr0 ────────┴───  node (ns)  ── w0 ───┘
       10.244.1.1/24            192.0.2.1/24, 2001:db8::1/64
       fd00:10:244:1::1/64
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.cni import delegate, tuning
from netplane.cni.server import CniServer
from netplane.commands.install import BINARY, install
from netplane.kernel import netns
from netplane.model.errors import Invalid
from netplane.model.facts import Address, Chain, Element, Fact, Link, Neighbour, Route, Set, Sysctl
from netplane.model.own import Attachment
from netplane.model.pods import Pod
from tests.cnihost import CONFIG, MemoryHost

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]


class IpHost(MemoryHost):
    """Applies facts with iproute2 and nft inside the node's namespace."""

    def __init__(self, node_netns: str) -> None:
        self.at = node_netns
        super().__init__()

    def apply(self, before: tuple[Fact, ...], after: tuple[Fact, ...]) -> None:
        for fact in before:
            if fact not in after and isinstance(fact, Link) and fact.kind:
                self.ip("link", "del", fact.name)
            if fact not in after and isinstance(fact, Neighbour):
                self.ip("neigh", "del", fact.address, "dev", fact.link)
        for fact in after:
            if fact not in before:
                self._add(fact)

    def ip(self, *words: str, at: str = "") -> str:
        return netns.run(at or self.at, "ip", *words)

    def _add(self, fact: Fact) -> None:
        match fact:
            case Link(kind="bridge"):
                self.ip("link", "add", fact.name, "address", fact.mac, "mtu", str(fact.mtu), "type", "bridge")
                self.ip("link", "set", fact.name, "up")
            case Link(kind="veth"):
                self._veth(fact, {k: str(v) for k, v in fact.options})
            case Link():
                self.ip("link", "set", fact.name, "up", at=fact.netns)
            case Address():
                self.ip("addr", "add", fact.address, "dev", fact.link, "nodad", at=fact.netns) if (
                    ":" in fact.address
                ) else self.ip("addr", "add", fact.address, "dev", fact.link, at=fact.netns)
            case Route():
                via = ("via", fact.via) if fact.via else ("scope", "link")
                self.ip("route", "add", fact.dst, *via, "dev", fact.link, at=fact.netns)
            case Neighbour():
                self.ip("neigh", "replace", fact.address, "lladdr", fact.mac, "dev", fact.link)
            case Sysctl():
                netns.run(self.at, "sysctl", "-qw", f"{fact.name}={fact.value}")
            case _:
                self.nft(fact)

    def _veth(self, fact: Link, options: dict[str, str]) -> None:
        peer = ("name", options["peer"], "address", options["peer_mac"], "netns", options["peer_netns"])
        mtu = ("mtu", str(fact.mtu))
        self.ip("link", "add", fact.name, "address", fact.mac, *mtu, "type", "veth", "peer", *peer, *mtu)
        self.ip("link", "set", fact.name, "master", fact.master, "alias", fact.alias, "up")
        self.ip("link", "set", fact.name, "type", "bridge_slave", "hairpin", "on")
        self.ip("link", "set", options["peer"], "up", at=options["peer_netns"])

    def nft(self, fact: Fact) -> None:
        text = "add table inet netplane\n"
        if isinstance(fact, Set):
            text += f"add set inet netplane {fact.name} {{ {'; '.join(fact.spec)}; }}\n"
        elif isinstance(fact, Element):
            text += f"add element inet netplane {fact.of} {{ {fact.item[0]} }}\n"
        elif isinstance(fact, Chain):
            hook = f"{{ type {fact.type} hook {fact.hook} priority {fact.priority}; }}"
            text += f"add chain inet netplane {fact.name} {hook}\n"
            text += "".join(f"add rule inet netplane {fact.name} {rule}\n" for rule in fact.rules)
        netns.run(self.at, "nft", "-f", "-", input=text, stdin=None)

    def netns_exists(self, path: str) -> bool:
        return netns.exists(path)

    def link_exists(self, netns_path: str, ifname: str) -> bool:
        return ifname in netns.run(netns_path, "ip", "-o", "link", "show")


class Runtime:
    """A container runtime in a few lines: the environment, stdin, and what came out."""

    def __init__(self, socket_path: str) -> None:
        self.config = {"cniVersion": "1.1.0", "name": "net", "type": "netplane", "socket": socket_path}

    def __call__(self, command: str, path: str = "", *, stdin: bytes = b"", **more: Any) -> Any:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": os.path.basename(path),
            "CNI_NETNS": path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/",
            **{k: v for k, v in more.items() if k.isupper()},
        }
        config = {**self.config, **{k: v for k, v in more.items() if not k.isupper()}}
        done = subprocess.run(
            [str(BINARY)], input=stdin or json.dumps(config).encode(), env=environment,
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        answer = json.loads(done.stdout) if done.stdout else ""
        assert done.stderr == b""
        assert done.returncode == (1 if answer and "code" in answer else 0)
        return answer


@pytest.fixture
def host(make_netns: MakeNetns) -> IpHost:
    return IpHost(make_netns("node"))


@pytest.fixture
def runtime(host: IpHost, tmp_path: Path) -> Iterator[Runtime]:
    path = str(tmp_path / "run" / "cni.sock")
    server = CniServer(path, host, CONFIG)
    server.start()
    yield Runtime(path)
    server.stop()


def test_pods_reach_each_other_and_the_node_in_both_families(
    runtime: Runtime, host: IpHost, make_netns: MakeNetns
) -> None:
    a, b = make_netns("a"), make_netns("b")
    runtime("ADD", a)
    addresses = [ip["address"].partition("/")[0] for ip in runtime("ADD", b)["ips"]]
    for target in (*addresses, "10.244.1.1", "fd00:10:244:1::1"):
        netns.run(a, "ping", "-c", "1", "-W", "2", target)
    for address in addresses:
        netns.run(host.at, "ping", "-c", "1", "-W", "2", address)
    assert "mtu 1450" in netns.run(a, "ip", "link", "show", "eth0")
    assert runtime("DEL", a) == "" == runtime("DEL", b)
    assert "npv" not in netns.run(host.at, "ip", "link")
    assert "PERMANENT" not in netns.run(host.at, "ip", "neigh")


def test_a_reply_on_the_same_bridge_comes_back_through_the_nodes_nat(
    runtime: Runtime, host: IpHost, make_netns: MakeNetns
) -> None:
    """A virtual IP whose endpoint is a neighbour: on a plain bridge the reply would take a short cut."""
    a, b = make_netns("a"), make_netns("b")
    runtime("ADD", a)
    four, six = (ip["address"].partition("/")[0] for ip in runtime("ADD", b)["ips"])
    netns.run(host.at, "sysctl", "-qw", "net/bridge/bridge-nf-call-iptables=0", check=False)
    netns.run(host.at, "sysctl", "-qw", "net/bridge/bridge-nf-call-ip6tables=0", check=False)
    rules = "add table inet t\nadd chain inet t p { type nat hook prerouting priority dstnat; }\n"
    rules += f"add rule inet t p ip daddr 10.96.0.1 dnat ip to {four}\n"
    rules += f"add rule inet t p ip6 daddr fd00:10:96::1 dnat ip6 to {six}\n"
    netns.run(host.at, "nft", "-f", "-", input=rules, stdin=None)
    for address, virtual in ((four, "10.96.0.1"), (six, "fd00:10:96::1")):
        for _ in range(3):  # a redirect after the first would lead the next astray
            _peer_of(a, b, address, by=virtual)


@pytest.mark.parametrize("masquerade", [True, False])
def test_the_outside_sees_the_node_unless_the_network_says_otherwise(
    runtime: Runtime, host: IpHost, make_netns: MakeNetns, masquerade: bool
) -> None:
    a, outside = make_netns("a"), make_netns("out")
    host.ip("link", "add", "w0", "type", "veth", "peer", "name", "w1", "netns", outside)
    for at, link, end in ((host.at, "w0", "1"), (outside, "w1", "2")):
        netns.run(at, "sysctl", "-qw", f"net/ipv6/conf/{link}/accept_dad=0")  # usable at once
        host.ip("addr", "add", f"192.0.2.{end}/24", "dev", link, at=at)
        host.ip("addr", "add", f"2001:db8::{end}/64", "dev", link, "nodad", at=at)
        host.ip("link", "set", link, "up", at=at)
    pod = [ip["address"].partition("/")[0] for ip in runtime("ADD", a, ipMasq=masquerade)["ips"]]
    host.ip("route", "add", "10.244.1.0/24", "via", "192.0.2.1", at=outside)
    host.ip("route", "add", "fd00:10:244:1::/64", "via", "2001:db8::1", at=outside)
    seen = [_peer_of(a, outside, to) for to in ("192.0.2.2", "2001:db8::2")]
    assert seen == (["192.0.2.1", "2001:db8::1"] if masquerade else pod)


def _peer_of(client: str, server: str, address: str, by: str = "") -> str:
    """The address from which a TCP server in ``server`` sees ``client``, which connects to ``by``."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = netns.call(server, lambda: socket.create_server((address, 0), family=family))
    port = listener.getsockname()[1]
    with listener, netns.call(client, socket.create_connection, (by or address, port), 2):
        peer, where = listener.accept()
        peer.close()
        return str(where[0])


def test_the_pod_is_in_the_store_with_its_labels(
    runtime: Runtime, host: IpHost, make_netns: MakeNetns
) -> None:
    labels = [{"key": "app", "value": "web"}]
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
    result = runtime("ADD", make_netns("a"), CNI_ARGS=args, args={"cni": {"labels": labels}})
    pod = host.snapshot().get(Pod, "shop", "web-0")
    assert pod is not None
    assert pod.labels == {"app": "web"}
    assert pod.ips == tuple(ip["address"].partition("/")[0] for ip in result["ips"])


def test_an_add_that_the_kernel_refuses_half_way_leaves_nothing(
    runtime: Runtime, host: IpHost, make_netns: MakeNetns
) -> None:
    a = make_netns("a")
    assert runtime("ADD", a)["ips"]
    assert runtime("DEL", a) == ""
    before = host.ip("-o", "link")
    netns.run(a, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
    assert runtime("ADD", a)["code"] == 5
    assert host.ip("-o", "link").count("\n") == before.count("\n")
    assert "eth0" not in netns.run(a, "ip", "link")
    assert not host.snapshot().count(Attachment)


def test_bad_input_gets_the_specifications_code(runtime: Runtime, make_netns: MakeNetns) -> None:
    a = make_netns("a")
    assert runtime("ADD", a, stdin=b"{")["code"] == 6
    assert runtime("ADD", a, stdin=b'{"cniVersion": "1.0.0", "a": nul}')["code"] == 6
    assert runtime("ADD", a, cniVersion="9.9.9")["code"] == 1
    assert runtime("ADD", a, CNI_CONTAINERID="/")["code"] == 4
    assert runtime("ADD", a + "-missing")["code"] == 4
    assert runtime("ADD", "/proc/self/ns/net")["code"] == 4
    assert runtime("ADD", a, socket=7)["code"] == 7
    assert runtime("ADD", a, stdin=b'{"a":"' + b"x" * (5 << 20) + b'"}')["code"] == 7
    assert runtime("ADD", a, cniVersion="0.4.0", name="")["cniVersion"] == "0.4.0"
    assert runtime("", a)["code"] == 4


def test_version_needs_no_agent() -> None:
    answer = Runtime("/nowhere")("VERSION", cniVersion="1.0.0")
    assert answer == {
        "cniVersion": "1.0.0",
        "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


def test_no_agent_is_11_and_50_with_the_socket_and_the_remedy(tmp_path: Path) -> None:
    runtime = Runtime(str(tmp_path / "cni.sock"))
    answer = runtime("ADD", "/n")
    assert answer["code"] == 11
    assert str(tmp_path / "cni.sock") in answer["msg"] and f"--run-dir {tmp_path}" in answer["details"]
    assert runtime("STATUS")["code"] == 50
    assert Runtime("/" + "x" * 200)("ADD", "/n")["code"] == 7


@pytest.mark.parametrize("accepts", [True, False], ids=["accepts and says nothing", "backlog full"])
def test_an_agent_that_hangs_is_not_waited_for_longer_than_asked(tmp_path: Path, accepts: bool) -> None:
    path = str(tmp_path / "cni.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        held = []
        while not accepts:
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            held.append(one)
            if one.connect_ex(path):
                break
        begin = time.monotonic()
        answer = Runtime(path)("ADD", "/n", NETPLANE_CNI_TIMEOUT="1")
        assert answer["code"] == 11 and "1 s" in answer["msg"]
        assert time.monotonic() - begin < 5
        for one in held:
            one.close()


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400", b"7:1:0,3:{}", b"9999999999999:"])
def test_an_agent_that_dies_or_speaks_something_else_is_11(tmp_path: Path, reply: bytes) -> None:
    path = str(tmp_path / "cni.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1 << 16)
                peer.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        assert Runtime(path)("ADD", "/n")["code"] == 11
        thread.join()


def test_the_socket_is_roots_alone_and_has_one_agent(runtime: Runtime, host: IpHost) -> None:
    path = runtime.config["socket"]
    assert os.stat(path).st_mode & 0o777 == 0o600
    with pytest.raises(Invalid, match="another agent"):
        CniServer(path, host).start()


def test_a_dead_agents_socket_is_taken_over_and_a_file_is_not(host: IpHost, tmp_path: Path) -> None:
    path = str(tmp_path / "cni.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    server = CniServer(path, host)
    server.start()
    server.stop()
    Path(path).write_text("precious")
    with pytest.raises(Invalid, match="not a socket"):
        CniServer(path, host).start()
    assert Path(path).read_text() == "precious"


def test_the_administrators_list_of_sysctls_is_read_at_each_add(
    runtime: Runtime, host: IpHost, make_netns: MakeNetns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, listed = make_netns("a"), tmp_path / "allowlist.conf"
    monkeypatch.setattr(tuning, "ALLOWED", str(listed))
    sysctl = {"sysctl": {"net.core.somaxconn": "500"}}
    listed.write_bytes(b"# allowed \xff\n^net\\.ipv4\\.\n")
    answer = runtime("ADD", a, **sysctl)
    assert answer["code"] == 7 and f"somaxconn is not in the list of allowed names {listed}" in answer["msg"]
    listed.write_text("^net\\.ipv4\\.\nsomax[conn\n")
    answer = runtime("ADD", a, **sysctl)
    assert answer["code"] == 7 and f"{listed}, line 2: 'somax[conn' is not a reg" in answer["msg"], answer
    assert not host.snapshot().count(Attachment)
    listed.write_text("somaxconn$\n")
    assert runtime("ADD", a, **sysctl)["ips"]
    assert runtime("DEL", a) == ""


def test_a_nul_in_a_path_is_one_clear_error(
    runtime: Runtime, host: IpHost, make_netns: MakeNetns, tmp_path: Path
) -> None:
    a = make_netns("a")
    asked = {"ipam": {"type": "netplane", "ranges": [[{"subnet": "10.71.0.0/24"}]]}, "bridge": "br-nul"}
    answer = runtime("ADD", a, **{**asked, "ipam": {**asked["ipam"], "resolvConf": f"{tmp_path}\0x"}})
    assert answer["code"] == 7 and "ipam.resolvConf: holds a NUL" in answer["msg"]
    assert not host.snapshot().count(Attachment)


HANGS = """#!/bin/sh
echo $CNI_COMMAND >> "$0.log"
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["1.1.0"]}' ;;
*) [ ! -e "$0.$CNI_COMMAND" ] || sh -c 'sleep 60; echo' "$0" ;;
esac
"""


def test_an_ipam_plugin_that_hangs_is_the_one_that_is_named(
    runtime: Runtime, host: IpHost, make_netns: MakeNetns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ADD and what undoes it share the time that the binary waits; a DEL after it begins anew."""
    monkeypatch.setattr(delegate, "PATIENCE", 0.7)
    monkeypatch.setattr(delegate, "BUDGET", 1.2)
    binary, a = tmp_path / "slow-ipam", make_netns("a")
    binary.write_text(HANGS)
    binary.chmod(0o755)
    for verb in ("ADD", "DEL"):
        Path(f"{binary}.{verb}").touch()
    words = {"ipam": {"type": "slow-ipam"}, "bridge": "br-slow", "CNI_PATH": str(tmp_path)}
    begin = time.monotonic()
    answer = runtime("ADD", a, **words, NETPLANE_CNI_TIMEOUT="3")
    assert answer["code"] == 11 and "ipam.type slow-ipam: did not answer ADD in 0.7 s" in answer["msg"]
    answer = runtime("DEL", a, **words, NETPLANE_CNI_TIMEOUT="3")
    assert answer["code"] == 11 and "ipam.type slow-ipam: did not answer DEL in 0.7 s" in answer["msg"]
    assert time.monotonic() - begin < 4
    Path(f"{binary}.DEL").unlink()
    assert runtime("DEL", a, **words, NETPLANE_CNI_TIMEOUT="3") == ""
    assert Path(f"{binary}.log").read_text().split() == ["VERSION", "ADD", "DEL", "DEL", "DEL"]
    assert not host.snapshot().count(Attachment)
    running = subprocess.run(["pgrep", "-f", str(binary)], capture_output=True, check=False)
    assert not running.stdout  # what it started does not run on


def test_install_puts_a_working_plugin_there(tmp_path: Path) -> None:
    program, configuration = install(tmp_path / "bin", tmp_path / "conf", tmp_path / "run")
    install(tmp_path / "bin", tmp_path / "conf", tmp_path / "run")
    assert sorted(p.name for p in tmp_path.glob("*/*")) == [
        "10-netplane.conflist",
        "netplane",
        "netplane-standalone",
    ]
    assert program.stat().st_mode & 0o777 == 0o755
    doc = json.loads(configuration.read_text())
    assert doc["plugins"][0]["socket"] == f"{tmp_path}/run/cni.sock"
    answer = subprocess.run(
        [program], input=b"{}", env={"CNI_COMMAND": "VERSION"}, capture_output=True, check=True
    )
    assert "1.1.0" in json.loads(answer.stdout)["supportedVersions"]

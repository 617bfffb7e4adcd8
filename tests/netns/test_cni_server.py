"""The binary and the socket: what is answered to whom, whatever is asked, and by whatever listens.

runtime ── netplane (the binary) ── unix socket ── CniServer, whose host remembers instead of doing

What an agent does with its drivers is shown by the other modules here.
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
from netplane.lab.runner import until
from netplane.model.errors import Invalid
from netplane.model.own import Attachment
from tests.cnihost import CONFIG, MemoryHost

from ..programs import program

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]


class NetnsHost(MemoryHost):
    """Namespaces are real; what would be done in them is remembered."""

    def netns_exists(self, path: str, cookie: int = 0) -> bool:
        return netns.exists(path) and cookie in (0, netns.cookie(path))

    def netns_cookie(self, path: str) -> int:
        return netns.cookie(path)


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
def host() -> NetnsHost:
    return NetnsHost()


@pytest.fixture
def runtime(host: NetnsHost, tmp_path: Path) -> Iterator[Runtime]:
    path = str(tmp_path / "run" / "cni.sock")
    server = CniServer(path, host, CONFIG)
    server.start()
    yield Runtime(path)
    server.stop()


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


def test_the_socket_is_roots_alone_and_has_one_agent(runtime: Runtime, host: NetnsHost) -> None:
    path = runtime.config["socket"]
    assert os.stat(path).st_mode & 0o777 == 0o600
    with pytest.raises(Invalid, match="another agent"):
        CniServer(path, host).start()


def test_a_dead_agents_socket_is_taken_over_and_a_file_is_not(host: NetnsHost, tmp_path: Path) -> None:
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


def test_an_add_that_nobody_waits_for_is_not_done_after_its_del(
    host: NetnsHost, tmp_path: Path, make_netns: MakeNetns
) -> None:
    """As when the agent stood still and takes up both at once: the ADD waits, for its DEL (us) came first."""
    server, a = CniServer(str(tmp_path / "cni.sock"), host, CONFIG), make_netns("a")
    server.start()
    runtime = Runtime(server.path)
    key = os.path.basename(a)
    with server.verbs._locks.hold(key):
        words = {"COMMAND": "ADD", "CONTAINERID": key, "NETNS": a, "IFNAME": "eth0", "PATH": "/"}
        environment = {f"CNI_{word}": value for word, value in words.items()}
        with program(BINARY, stdin=subprocess.PIPE, env=environment) as plugin:
            assert plugin.stdin is not None
            plugin.stdin.write(json.dumps(runtime.config))
            plugin.stdin.close()
            until(lambda: server.verbs._locks._held[key].users == 2, "the ADD")
    until(lambda: not server.verbs._locks.busy(), "its end")
    assert not host.snapshot().by(Attachment, "node", host.node)
    assert "ips" in runtime("ADD", a)
    server.stop()


def test_the_administrators_list_of_sysctls_is_read_at_each_add(
    runtime: Runtime, host: NetnsHost, make_netns: MakeNetns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    runtime: Runtime, host: NetnsHost, make_netns: MakeNetns, tmp_path: Path
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
    runtime: Runtime, host: NetnsHost, make_netns: MakeNetns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

"""The CNI binary with the real agent: the whole way, and kill -9 at any point of it.

pods p0 … p7 (ns)
  eth0
   │ veth
───┴── npbr0 ── node (ns) ── w0 ═ w1     the agent runs in the node's namespace
       10.244.x.1/24         192.0.2.1/24, 2001:db8::1/64
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from netplane.commands.install import BINARY
from netplane.kernel import netns

from ..datapath_world import eventually

pytestmark = pytest.mark.root
NETPLANE = str(Path(sys.executable).parent / "netplane")
MakeNetns = Callable[[str], str]


SLOW = """#!/bin/sh
echo $CNI_COMMAND >> "$0.log"
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["1.1.0"]}' ;;
ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.77.0.5/24"}]}' ;;
DEL) while [ -e "$0.hangs" ]; do sleep 0.05; done ;;
esac
"""


class Bed:
    """One node with its agent, which can be killed and started again, and a runtime."""

    def __init__(self, at: str, work: Path) -> None:
        self.at, self.work, self.run_dir = at, work, work / "run"
        self.process: subprocess.Popen[bytes] | None = None
        self.config = {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "netplane",
            "socket": str(self.run_dir / "cni.sock"),
        }

    def start(self, wait: bool = True) -> None:
        options = {
            "--node": "n1",
            "--store": f"sqlite://{self.work / 'state.db'}",
            "--run-dir": str(self.run_dir),
            "--state-dir": str(self.work / "state"),
            "--node-ip": "192.0.2.1,2001:db8::1",
            "--cluster-cidr": "10.244.0.0/16,fd00:10:244::/48",
            "--service-cidr": "10.96.0.0/16,fd00:10:96::/112",
            "--rooms": "cni,overlay,services,dns",
        }
        words = [word for pair in options.items() for word in pair]
        with (self.work / "agent.log").open("ab") as log:
            self.process = netns.popen(self.at, [NETPLANE, "agent", *words], stdout=log, stderr=log)
        if wait:
            self.netplane("status", "--run-dir", str(self.run_dir), "--wait", "20")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    def netplane(self, *words: str) -> str:
        done = subprocess.run([NETPLANE, *words], capture_output=True, text=True, timeout=60, check=False)
        log = self.work / "agent.log"
        assert not done.returncode, done.stderr + (log.read_text()[-2000:] if log.exists() else "")
        return done.stdout

    def attachments(self) -> list[dict[str, Any]]:
        store = f"sqlite://{self.work / 'state.db'}"
        text = self.netplane("get", "Attachment", "-o", "json", "--store", store)
        doc = json.loads(text) if text.strip() else {}
        items: list[dict[str, Any]] = doc.get("items", [doc] if doc else [])
        return items

    def begin(self, command: str, pod: str) -> subprocess.Popen[bytes]:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": os.path.basename(pod),
            "CNI_NETNS": pod,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.work),
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={os.path.basename(pod)}",
            "NETPLANE_CNI_TIMEOUT": "20",
        }
        binary = subprocess.Popen(
            [str(BINARY)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert binary.stdin is not None
        binary.stdin.write(json.dumps(self.config).encode())
        binary.stdin.close()
        return binary

    def cni(self, command: str, pod: str) -> Any:
        with self.begin(command, pod) as binary:
            assert binary.stdout is not None
            text = binary.stdout.read()
        return json.loads(text) if text else ""

    def links(self) -> list[str]:
        return re.findall(r"npv[0-9a-f]{11}(?=@)", netns.run(self.at, "ip", "-o", "link"))


@pytest.fixture
def bed(make_netns: MakeNetns, tmp_path: Path) -> Iterator[Bed]:
    at = make_netns("node")
    netns.run(at, "ip", "link", "add", "w0", "type", "veth", "peer", "name", "w1")
    netns.run(at, "ip", "addr", "add", "192.0.2.1/24", "dev", "w0")
    netns.run(at, "ip", "addr", "add", "2001:db8::1/64", "dev", "w0", "nodad")
    for link in ("w0", "w1"):
        netns.run(at, "ip", "link", "set", link, "up")
    made = Bed(at, tmp_path)
    made.start()
    yield made
    made.stop(signal.SIGKILL)


def plain(result: Any) -> list[str]:
    assert "ips" in result, result
    return [ip["address"].partition("/")[0] for ip in result["ips"]]


def test_pods_are_attached_reach_each_other_and_leave_nothing(bed: Bed, make_netns: MakeNetns) -> None:
    a, b = make_netns("a"), make_netns("b")
    first, second = bed.cni("ADD", a), bed.cni("ADD", b)
    assert len(plain(first)) == 2
    for target in plain(second):
        netns.run(a, "ping", "-c", "1", "-W", "2", target)
    check = {**bed.config, "prevResult": first}
    bed.config, before = check, bed.config
    assert bed.cni("CHECK", a) == ""
    bed.config = before
    assert bed.cni("ADD", a)["code"] == 4
    assert bed.cni("DEL", a) == "" == bed.cni("DEL", a) == bed.cni("DEL", b)
    assert not bed.links() and not bed.attachments()
    assert "PERMANENT" not in netns.run(bed.at, "ip", "neigh", "show", "dev", "npbr0")


def test_many_at_once_are_all_different_and_all_gone(bed: Bed, make_netns: MakeNetns) -> None:
    pods = [make_netns(f"p{i}") for i in range(24)]
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda pod: bed.cni("ADD", pod), pods))
        assert len({plain(r)[0] for r in results}) == len(pods) == len(bed.links())
        assert set(pool.map(lambda pod: bed.cni("DEL", pod), pods)) == {""}
    assert not bed.links() and not bed.attachments()


def test_an_agent_killed_and_started_again_loses_no_packet(bed: Bed, make_netns: MakeNetns) -> None:
    a, b = make_netns("a"), make_netns("b")
    bed.cni("ADD", a)
    target = plain(bed.cni("ADD", b))[0]
    ping = netns.popen(a, ["ping", "-i", "0.02", "-w", "30", target], stdout=subprocess.PIPE)
    bed.stop(signal.SIGKILL)
    bed.start()
    ping.send_signal(signal.SIGINT)
    summary = ping.communicate(timeout=10)[0].decode()
    assert " 0% packet loss" in summary
    assert bed.cni("DEL", a) == "" == bed.cni("DEL", b)


def test_a_pod_that_went_while_the_agent_was_down_is_released_at_start(
    bed: Bed, make_netns: MakeNetns
) -> None:
    gone, stays = make_netns("gone"), make_netns("stays")
    bed.cni("ADD", gone)
    bed.cni("ADD", stays)
    bed.stop()
    netns.delete(gone)
    bed.start()
    assert [a["spec"]["containerID"] for a in bed.attachments()] == ["ns-stays"]
    assert len(bed.links()) == 1
    assert bed.cni("DEL", gone) == "" == bed.cni("DEL", stays)


def test_killed_while_another_plugin_does_not_take_its_address_back(bed: Bed, make_netns: MakeNetns) -> None:
    """It is asked again: the record stays, not the interface."""
    pod, binary = make_netns("pod"), bed.work / "slow-ipam"
    binary.write_text(SLOW)
    binary.chmod(0o755)
    bed.config |= {"ipam": {"type": binary.name}, "bridge": "br-slow", "cni.dev/valid-attachments": []}
    assert plain(bed.cni("ADD", pod)) == ["10.77.0.5"]
    hangs, asked = Path(f"{binary}.hangs"), Path(f"{binary}.log")
    hangs.touch()
    with bed.begin("DEL", pod):
        eventually(lambda: "DEL" in asked.read_text(), what="the plugin's DEL")
        bed.stop(signal.SIGKILL)
    hangs.unlink()
    bed.start()
    assert not bed.links() and [one.get("phase", "Pending") for one in bed.attachments()] == ["Pending"]
    assert bed.cni("GC", pod) == "" and not bed.attachments()
    assert asked.read_text().split()[-2:] == ["DEL", "GC"] and asked.read_text().count("DEL") == 2


def test_a_path_that_leads_to_the_node_by_now_is_a_pod_that_went(
    bed: Bed, make_netns: MakeNetns, tmp_path: Path
) -> None:
    """/proc/PID/ns/net, once the number is another process's: the node gets no interface of a pod."""
    pod, path = make_netns("pod"), tmp_path / "path"
    path.symlink_to(pod)
    assert len(plain(bed.cni("ADD", str(path)))) == 2
    bed.stop()
    netns.run(bed.at, "ip", "route", "add", "default", "via", "192.0.2.254")
    path.unlink()
    path.symlink_to(bed.at)
    netns.delete(pod)
    bed.start()
    assert not bed.attachments() and not bed.links()
    assert "eth0" not in netns.run(bed.at, "ip", "link")
    assert "via 192.0.2.254" in netns.run(bed.at, "ip", "route")
    assert "somebody else" not in (bed.work / "agent.log").read_text(), "no route came and went"
    assert bed.cni("DEL", str(path)) == ""


@pytest.mark.parametrize("running", [True, False])
def test_a_namespace_made_anew_at_a_pods_path_is_another_pods(
    bed: Bed, make_netns: MakeNetns, running: bool
) -> None:
    """`ip netns del x; ip netns add x`: the old pod is released, and its interface made in no stranger's."""
    pod = make_netns("pod")
    held = plain(bed.cni("ADD", pod))
    if not running:
        bed.stop()
    netns.delete(pod)
    netns.create(pod)
    if running:
        eventually(lambda: not bed.attachments(), what="its release")
        assert "eth0" not in netns.run(pod, "ip", "link")
    else:
        bed.start()
    assert not bed.attachments() and not bed.links()
    assert bed.cni("ADD", pod).keys() >= {"ips"} and len(bed.links()) == 1
    assert held[0] not in netns.run(pod, "ip", "addr"), "it goes to the end of the queue"
    assert bed.cni("DEL", pod) == ""


def test_killed_in_the_middle_of_adds_nothing_is_lost_or_leaked(bed: Bed, make_netns: MakeNetns) -> None:
    """Whatever the kill met: after a restart and the runtime's DELs the node is as at first."""
    pods = [make_netns(f"p{i}") for i in range(8)]
    for after_ms in (1, 4, 10, 25):
        binaries = [bed.begin("ADD", pod) for pod in pods]
        time.sleep(after_ms / 1000)  # the moment of the kill is what varies, nothing waits for it
        bed.stop(signal.SIGKILL)
        for binary in binaries:
            assert binary.stdout is not None
            with contextlib.closing(binary.stdout):
                binary.wait(30)
        bed.start()
        whole = bed.attachments()
        assert all(a.get("phase") == "Ready" for a in whole)
        assert len(bed.links()) == len(whole)
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda pod: bed.cni("DEL", pod), pods)) == {""}
        assert not bed.links() and not bed.attachments()
    assert len(plain(bed.cni("ADD", pods[0]))) == 2

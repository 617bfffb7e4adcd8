"""The lab itself, on the real kernel, without agents: topology, programs, teardown, crashes.

outside (.1, internet) ── wire: br0 ──┬── node-1 (.11)
                                      └── node-2 (.12)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netplane.kernel import netns
from netplane.lab import Lab, Settings, traces
from netplane.lab.place import Place
from netplane.lab.runner import pids, until
from netplane.lab.settings import Programs
from netplane.model.errors import Invalid, KernelError, Unavailable

pytestmark = pytest.mark.root
MakeLab = Callable[..., Lab]


def ask(place: Place, *words: str | int) -> dict[str, Any]:
    process = place.probe(*words)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    return dict(json.loads(out.splitlines()[-1]))


def serve(place: Place, *words: str | int) -> subprocess.Popen[Any]:
    process = place.probe("serve", *words)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def gone(pid: int) -> bool:
    """Ended, though perhaps not yet reaped by whoever inherited it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture(scope="module")
def wired(make_module_lab: MakeLab) -> Lab:
    return make_module_lab()


@pytest.mark.parametrize("target", ["192.168.77.12", "fd00:77::12", "203.0.113.1", "2001:db8::1"])
def test_a_node_reaches_the_other_node_and_the_internet(wired: Lab, target: str) -> None:
    answer = ask(wired.nodes[0], "ping", target, 3)
    assert answer["lost"] == 0 and answer["p50_us"] > 0


def test_the_outside_reaches_a_server_on_a_node_and_is_seen_as_itself(wired: Lab) -> None:
    serve(wired.nodes[0], "n1", "--tcp", 8080, "--udp", 8081)
    for host, peer in (("192.168.77.11", "192.168.77.1"), ("fd00:77::11", "fd00:77::1")):
        answer = ask(wired.outside, "connect", host, 8080, 20)
        assert (answer["names"], answer["peers"], answer["errors"]) == ({"n1": 20}, [peer], [])


def test_a_stream_counts_what_was_lost_and_only_that(wired: Lab) -> None:
    serve(wired.nodes[1], "n2", "--tcp", 9090, "--udp", 9090)
    streams = [wired.nodes[0].probe("stream", kind, "192.168.77.12", 9090) for kind in ("udp", "tcp")]
    for stream in streams:
        assert stream.stdout and stream.stdout.readline() == "ready\n"
    drop = "table ip t { chain c { type filter hook input priority 0; udp dport 9090 drop; }; }"
    wired.nodes[1].run("nft", "-f", "-", input=drop)
    time.sleep(0.1)  # how long the loss lasts is what is tested
    wired.nodes[1].run("nft", "delete", "table", "ip", "t")
    udp, tcp = (json.loads(stream.communicate("", timeout=10)[0]) for stream in streams)
    assert 10 < udp["lost"] < udp["sent"]
    assert tcp["sent"] > 10 and tcp["lost"] == 0 and tcp["errors"] == []


def test_a_place_runs_functions_scripts_and_programs(wired: Lab, tmp_path: Path) -> None:
    node = wired.nodes[0]
    inside = node.python(os.readlink, "/proc/thread-self/ns/net")
    assert inside == node.python("import os; print(os.readlink('/proc/self/ns/net'))").strip()
    assert inside != os.readlink("/proc/thread-self/ns/net")
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:])")
    assert node.python(script, "a", 1) == "['a', '1']\n"
    with pytest.raises(KernelError, match=r"ip link show nosuch in node-1.*does not exist"):
        node.run("ip", "link", "show", "nosuch")
    with pytest.raises(Unavailable, match=r"no end after 0.1 s"):
        node.run("sleep", "60", timeout=0.1)


def test_a_name_that_is_not_there_says_what_is(wired: Lab) -> None:
    with pytest.raises(Invalid, match="has no 'node-9'; it has node-1, node-2"):
        wired.node("node-9")
    assert wired.place("outside") is wired.outside


def test_nothing_of_a_lab_is_left(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=1)
    process = lab.nodes[0].popen("sleep", "600")
    namespaces = list((lab.home / "ns").iterdir())
    assert len(namespaces) == 3 and process.pid in pids(namespaces)
    lab.down()
    assert process.poll() is not None
    assert not lab.home.exists() and not traces.mounts(lab.home)
    lab.down()


def test_what_left_its_process_group_is_ended_too(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=1)
    lab.nodes[0].run("sh", "-c", "setsid sleep 600 >/dev/null 2>&1 </dev/null &")
    (daemon,) = until(lambda: pids([lab.nodes[0].netns]), "a process in node-1")
    lab.down()
    assert gone(daemon)


def test_a_single_stack_lab_has_no_address_of_the_other_family(make_lab: MakeLab) -> None:
    lab = make_lab(1, False, Settings(family="IPv6", mtu=1400))
    addresses = lab.nodes[0].run("ip", "-o", "address", "show", "scope", "global")
    assert "fd00:77::11/64" in addresses and "192.168" not in addresses
    assert "mtu 1400" in lab.nodes[0].run("ip", "link", "show", "eth0")


def test_a_name_is_taken_once_and_a_bad_one_is_refused(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=0)
    with pytest.raises(Unavailable, match=f"netplane lab down {lab.name}"):
        Lab(nodes=0, settings=Settings(name=lab.name)).up()
    Lab(nodes=0, settings=Settings(name=lab.name)).down()  # never came up: not its to take away
    assert lab.outside.run("true") == "" and lab.home.exists()
    with pytest.raises(Invalid, match=r"not '../x'"):
        Lab(settings=Settings(name="../x"))
    with pytest.raises(Invalid, match="0 to 200 nodes, not 300"):
        Lab(nodes=300)


def test_a_pod_that_cannot_be_attached_leaves_nothing(make_lab: MakeLab, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    plugin.write_text(
        '#!/bin/sh\necho \'{"code": 11, "msg": "no address", "details": "10.244.0.0/24"}\'; exit 1'
    )
    plugin.chmod(0o755)
    lab = make_lab(nodes=1, settings=Settings(programs=Programs(cni=plugin)))
    with pytest.raises(
        Unavailable, match=r"CNI ADD of pod default/web: no address: 10.244.0.0/24 \(code 11\)"
    ):
        lab.nodes[0].add_pod("web")
    assert lab.pods == [] and not list((lab.home / "pods").iterdir())
    assert not netns.exists(lab.namespace("pod.default.web"))


RESULT = {
    "cniVersion": "1.1.0",
    "ips": [
        {"address": "10.244.0.5/24", "gateway": "10.244.0.1", "interface": 2},
        {"address": "fd00:10:244::5/64", "gateway": "fd00:10:244::1", "interface": 2},
    ],
}


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    """A plugin that prints RESULT and writes down how it was called."""
    plugin = tmp_path / "plugin"
    (tmp_path / "result").write_text(json.dumps(RESULT))
    plugin.write_text(
        f"#!/bin/sh\n{{ env | grep ^CNI_ | sort; cat; echo; }} >>{tmp_path}/calls\n"
        f"[ $CNI_COMMAND = ADD ] && cat {tmp_path}/result\nexit 0\n"
    )
    plugin.chmod(0o755)
    return plugin


def test_a_pod_is_attached_as_a_runtime_does_it(make_lab: MakeLab, recorder: Path) -> None:
    lab = make_lab(nodes=1, settings=Settings(programs=Programs(cni=recorder)))
    pod = lab.nodes[0].add_pod("web-1", labels={"app": "web"})
    assert pod.ips == ("10.244.0.5", "fd00:10:244::5") and pod.ip_of("IPv6") == "fd00:10:244::5"
    assert pod.run("cat", "/etc/resolv.conf").splitlines()[:3] == [
        "nameserver 10.244.0.1",
        "nameserver fd00:10:244::1",
        "search default.svc.cluster.local svc.cluster.local cluster.local",
    ]
    with pytest.raises(Invalid, match="has a pod default/web-1 already"):
        lab.nodes[0].add_pod("web-1")
    pod.delete()
    add, delete = (recorder.parent / "calls").read_text().split("CNI_ARGS=")[1:]
    assert add.startswith("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-1;K8S_POD_INFRA")
    config = json.loads(add.splitlines()[-1])
    assert config["socket"] == str(lab.nodes[0].socket) and config["cniVersion"] == "1.1.0"
    assert config["args"]["cni"]["labels"] == [{"key": "app", "value": "web"}]
    assert json.loads(delete.splitlines()[-1])["prevResult"] == RESULT
    assert f"CNI_NETNS={pod.netns}" in delete and not netns.exists(pod.netns) and lab.pods == []


BRIDGE = Path("/usr/lib/cni/bridge")


@pytest.mark.peer
@pytest.mark.skipif(not BRIDGE.exists(), reason="apt-get install containernetworking-plugins")
def test_pods_of_the_reference_bridge_plugin_meet(make_lab: MakeLab, tmp_path: Path) -> None:
    """The lab's side of CNI is right when a plugin that is not ours works in it."""
    settings = Settings(programs=Programs(cni=BRIDGE))
    node = make_lab(nodes=1, settings=settings).nodes[0]
    pool = [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:10:244::/64"}]]
    ipam = {"type": "host-local", "dataDir": str(tmp_path), "ranges": pool}
    bridge = {"cniVersion": "1.0.0", "type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CNI_PATH", str(BRIDGE.parent))
        a, b = (node.add_pod(name, config=bridge) for name in ("a", "b"))
        serve(b, "b", "--tcp", 80)
        for family in ("IPv4", "IPv6"):
            answer = ask(a, "connect", b.ip_of(family), 80, 5)
            assert (answer["names"], answer["peers"]) == ({"b": 5}, [a.ip_of(family)]), answer
        a.cni("CHECK", prevResult=a.result)
        a.delete()
    assert node.pods == [b]


LIVE = """
import os, signal, sys, time
from netplane.kernel import netns
from netplane.lab import Lab
signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup, or a shell's "&", has them ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
netns.make_private(mounts=True, network=True)
with Lab(nodes=1) as lab:
    print(lab.home, lab.nodes[0].popen("sleep", "600").pid, flush=True)
    {rest}
"""


STAYS = "while True: time.sleep(0.05)"  # a signal that comes just before a sleep waits for its end


def start(rest: str) -> tuple[subprocess.Popen[str], Path, int]:
    argv = [sys.executable, "-c", LIVE.format(rest=rest)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    home, pid = process.stdout.readline().split()
    return process, Path(home), int(pid)


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_takes_the_lab_away_before_the_program_ends(sig: signal.Signals) -> None:
    process, home, pid = start(STAYS)
    process.send_signal(sig)
    process.communicate(timeout=20)
    assert process.returncode != 0 and gone(pid) and not home.exists()


def test_a_lab_of_a_living_process_is_shown_as_its_own_and_left_alone() -> None:
    process, home, pid = start(STAYS)
    assert f"lab {home.name}  held by process {process.pid}" in command("ls").stdout
    assert f"held by process {process.pid}" in command("down", home.name).stderr
    assert not gone(pid) and home.exists()
    process.terminate()
    process.communicate(timeout=20)


def test_an_exception_takes_the_lab_away_and_is_told() -> None:
    process, home, pid = start("raise ValueError('mine')")
    assert "ValueError: mine" in process.communicate(timeout=20)[1]
    assert gone(pid) and not home.exists()


def test_kill_9_leaves_an_empty_directory_that_the_next_lab_sweeps(make_lab: MakeLab) -> None:
    process, home, pid = start(STAYS)
    process.kill()
    process.communicate(timeout=20)
    until(lambda: gone(pid), "the death of the lab's program")
    assert list(home.iterdir()) == [] and not traces.mounts(home)
    make_lab(nodes=0)
    assert not home.exists()


def test_a_lab_that_persists_is_found_and_taken_away_by_another_process(recorder: Path) -> None:
    settings = Settings(name=f"keep{os.getpid()}", persist=True, programs=Programs(cni=recorder))
    script = (
        "import sys; from netplane.lab import Lab, Settings; from netplane.lab.settings import Programs;"
        "from pathlib import Path; lab = Lab(settings=Settings(sys.argv[1], persist=True, "
        "programs=Programs(cni=Path(sys.argv[2])))).up();"
        "lab.nodes[0].add_pod('web'); print(lab.nodes[0].popen('sleep', '600', stdout=-3).pid)"
    )
    argv = [sys.executable, "-c", script, settings.name, str(recorder)]
    pid = int(subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout)
    lab = Lab.open(settings)
    try:
        assert not gone(pid)
        assert lab.place("web").name == "default/web"
        assert lab.describe()["pods"] == {"default/web": {"node": "node-1", "ips": lab.pods[0].ips}}
        assert ask(lab.nodes[0], "ping", "192.168.77.12", 1)["lost"] == 0
        (lab.home / "lab.json").write_text("{")  # what a crash may leave
    finally:
        traces.remove(lab.home)
    assert gone(pid) and not lab.home.exists() and not traces.mounts(lab.home)
    with pytest.raises(Invalid, match=f"no lab '{settings.name}'"):
        Lab.open(settings)


GROUP = "import click; from netplane.commands import lab; g = click.Group(); lab.register(g); g()"


def command(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", GROUP, "lab", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def test_the_command_line_makes_shows_enters_and_takes_away() -> None:
    name = f"cli{os.getpid()}"
    try:
        up = command("up", name, "--nodes", "1", "--family", "IPv6", "--no-agents")
        assert up.stdout.splitlines()[1].split() == ["node-1", "fd00:77::11"], up
        shown = json.loads(command("ls", "-o", "json").stdout)
        assert {"name": name, "families": ["IPv6"]}.items() <= next(
            lab for lab in shown if lab["name"] == name
        ).items()
        inside = command(
            "exec", "--lab", name, "node-1", "--", "sh", "-c", "ip -br -6 addr show eth0; exit 7"
        )
        assert "fd00:77::11/64" in inside.stdout and inside.returncode == 7
        assert "has no 'node-9'" in command("exec", "--lab", name, "node-9", "--", "true").stderr
        assert "is a lab at" in command("up", name).stderr
    finally:
        assert command("down", name).returncode == 0
    assert not (Settings().root / name).exists() and command("down", name).returncode == 0

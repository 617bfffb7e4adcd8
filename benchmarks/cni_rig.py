"""What bench_cni measures: our plugin with its agent, and the reference plugins, each on a node of its own.

Every node is a network namespace with an uplink; pods' namespaces are shared by all, because a pod is
attached by one plugin at a time. The compiled spawner (spawn.c) runs and times the plugins.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netplane.cni.config import CAPABILITIES
from netplane.commands.install import BINARY
from netplane.kernel import netns

HERE = Path(__file__).parent
DATAPATH = os.environ.get("NETPLANE_BENCH_DATAPATH", "auto")  # as agents have it
PEER = Path("/usr/lib/cni")
NETPLANE = str(Path(sys.executable).parent / "netplane")
RATE = {
    "ingressRate": 100_000_000,
    "ingressBurst": 1_000_000,
    "egressRate": 100_000_000,
    "egressBurst": 1_000_000,
}
PORT = {"hostPort": "@port", "containerPort": 80, "protocol": "tcp"}  # spawn.c gives each pod its own


@dataclass(frozen=True)
class Plugin:
    """A list of plugins on a node: (configuration, program) in the order of ADD."""

    name: str
    node: str
    chain: tuple[tuple[Path, Path], ...]
    agent: int = 0  # its process, when there is one


@dataclass(frozen=True)
class Times:
    """Milliseconds of each pod, and pods per second of the whole batch; of each pod in the middle, what
    processor time it took the agent (ms), and how often one of its threads had to wait."""

    each: list[float]
    rate: float
    work: float = 0.0
    waits: float = 0.0

    @property
    def p50(self) -> float:
        return statistics.median(self.each)

    @property
    def p99(self) -> float:
        return sorted(self.each)[max(0, int(len(self.each) * 0.99) - 1)]


def _memory(directory: Path) -> None:
    """A new directory, of a file system in memory."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(directory)], check=True)


def _ticks() -> tuple[int, int]:
    """What the processors have spent at work, and idle, in hundredths of a second."""
    user, nice, system, idle, wait, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    return user + nice + system + irq + soft, idle + wait


def _spent(pid: int) -> tuple[float, float]:
    """Of a process until now: ms of processor time, and how often a thread of it gave the processor up."""
    work = waits = 0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):  # a thread that is gone
            work += int((task / "schedstat").read_text().split()[0])
            waits += int((task / "status").read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return work / 1e6, waits


class Rig:
    """The work directory, the spawner and the pods' namespaces. The caller's mounts are a benchmark's own.

    What plugins and agents keep lies on the machine's disk; what the spawner itself writes for each pod lies
    in memory: a new file may cost a millisecond (ext4 passes over what was deleted in the last seconds).
    """

    def __init__(self, work: Path) -> None:
        self.work, self.spawner = work, work / "spawn"
        self._files = work / "spawned"
        _memory(self._files)
        source = str(HERE / "spawn.c")
        subprocess.run(["cc", "-O2", "-Wall", "-std=gnu11", "-o", str(self.spawner), source], check=True)
        self._pods = 0

    def pods(self, count: int) -> None:
        """At least so many pods' namespaces."""
        for i in range(self._pods, count):
            netns.create(self.work / f"pod-{i}")
        self._pods = max(count, self._pods)

    def close(self) -> None:
        subprocess.run(["umount", str(self._files)], check=True)
        for path in [*self.work.glob("pod-*"), *self.work.glob("node-*")]:
            netns.delete(path)

    def calm(self) -> None:
        """Return when the processors have nothing to do, or after ten seconds: what a batch leaves to the
        kernel and to agents (links' memory, programs for pods) is not the next one's."""
        give_up, before = time.monotonic() + 10, _ticks()
        while time.monotonic() < give_up:
            time.sleep(0.2)
            now = _ticks()
            busy, idle = (a - b for a, b in zip(now, before, strict=True))
            if busy <= 0.1 * idle:
                return
            before = now

    def run(self, plugin: Plugin, command: str, count: int, at_once: int = 1, first: int = 0) -> Times:
        """One batch; SystemExit with what a plugin said when any run failed."""
        files = self._files / plugin.name.replace(" ", "").replace("/", "")
        files.mkdir(exist_ok=True)
        argv = [str(self.spawner), command, str(count), str(at_once), str(first), str(self.work / "pod-")]
        words = [str(path) for pair in plugin.chain for path in pair]
        env = {"CNI_PATH": str(PEER), "PATH": os.environ["PATH"]}
        output, before = subprocess.PIPE, _spent(plugin.agent)
        process = netns.popen(plugin.node, [*argv, str(files), *words], env=env, stdout=output, text=True)
        lines = process.communicate(timeout=300)[0].split("\n")
        rows = [line.split() for line in lines if line]
        failed = sum(status != "0" for word, status in rows if word != "total")
        if failed:
            said = [p.read_text()[:300] for p in files.glob("result-*" if command == "ADD" else "out-*")]
            raise SystemExit(f"cni: {failed} of {count} {command} of {plugin.name} failed: "
                             f"{next((text for text in said if 'code' in text), '')}")  # fmt: skip
        work, waits = ((b - a) / count for a, b in zip(before, _spent(plugin.agent), strict=True))
        each = [int(word) / 1e3 for word, _ in rows if word != "total"]
        return Times(each, count / (int(rows[-1][1]) / 1e6), work, waits)

    def node(self, name: str) -> str:
        """A node's namespace with an uplink that has an address."""
        path = self.work / f"node-{name}"
        netns.create(path)
        netns.run(path, "ip", "link", "set", "lo", "up")
        netns.run(path, "ip", "link", "add", "w0", "type", "veth", "peer", "name", "w1")
        netns.run(path, "ip", "addr", "add", "192.0.2.1/24", "dev", "w0")
        for link in ("w0", "w1"):
            netns.run(path, "ip", "link", "set", link, "up")
        return str(path)

    def config(self, name: str, **keys: Any) -> Path:
        path = self.work / f"{name}.json"
        path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "net", **keys}))
        return path

    def floor(self) -> Plugin:
        """What the harness and a program's start cost: a static program that answers VERSION."""
        return Plugin("floor", self.node("floor"), ((self.config("floor", type="x"), BINARY),))

    def bridge(self, name: str, *chained: str) -> Plugin:
        """bridge + host-local, and what is chained after it."""
        work = str(self.work / f"host-local-{name}")
        ipam = {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/20"}]], "dataDir": work}
        keys = {"bridge": "peer0", "isDefaultGateway": True, "hairpinMode": True, "ipam": ipam}
        more: dict[str, dict[str, Any]] = {
            "portmap": {"snat": True, "runtimeConfig": {"portMappings": [PORT]}},
            "bandwidth": {"runtimeConfig": {"bandwidth": RATE}},
            "firewall": {},
        }
        chain = [(self.config(name, type="bridge", ipMasq=bool(chained), **keys), PEER / "bridge")]
        for plugin in chained:
            chain.append((self.config(f"{name}-{plugin}", type=plugin, **more[plugin]), PEER / plugin))
        return Plugin("+".join(["bridge+host-local", *chained]), self.node(name), tuple(chain))

    @contextmanager
    def ours(self, name: str = "netplane", *words: str) -> Iterator[Plugin]:
        """Our plugin with ports, bandwidth and masquerade, as far as it has them, and a running agent
        (with these words on its command line)."""
        node, run_dir = self.node(name), self.work / f"run-{name}"
        _memory(run_dir)  # as /run is
        asked = {"portMappings": [PORT], "bandwidth": RATE}
        runtime = {key: value for key, value in asked.items() if key in CAPABILITIES}
        keys = {"type": "netplane", "socket": str(run_dir / "cni.sock"), "ipMasq": True}
        path = self.config(name, runtimeConfig=runtime, **keys)
        agent = self._agent(node, name, run_dir, words)
        try:
            yield Plugin(name, node, ((path, BINARY),), agent.pid)
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(30)
            subprocess.run(["umount", str(run_dir)], check=True)

    def _agent(self, node: str, name: str, run_dir: Path, more: tuple[str, ...]) -> subprocess.Popen[Any]:
        options = {
            "--node": "n1",
            "--store": f"sqlite://{self.work / name}.db",
            "--run-dir": str(run_dir),
            "--state-dir": str(self.work / f"state-{name}"),
            "--node-ip": "192.0.2.1",
            "--cluster-cidr": "10.244.0.0/16",
            "--node-mask": "20",
            "--service-cidr": "10.96.0.0/16",
            "--datapath": DATAPATH,
        }
        words = [*(word for pair in options.items() for word in pair), *more]
        log = self.work / f"agent-{name}.log"
        with log.open("wb") as out:
            agent = netns.popen(node, [NETPLANE, "agent", *words], stdout=out, stderr=out)
        wait = [NETPLANE, "status", "--run-dir", str(run_dir), "--wait", "30"]
        waited = subprocess.run(wait, capture_output=True, text=True, check=False)
        if waited.returncode:
            raise SystemExit(f"cni: the agent is not ready: {waited.stderr}{log.read_text()}")
        return agent

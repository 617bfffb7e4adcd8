"""CNI ADD and DEL: ours (the binary and a running agent) beside bridge + host-local, in one run.

One at a time (p50) and 200 at 32 in parallel (per second), IPv4, default route, hairpin. Ours includes
masquerade and the Pod object; the peer has neither. Everything happens in namespaces of its own.
Peer: Debian's containernetworking-plugins (apt-get install containernetworking-plugins).
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from netplane.commands.install import BINARY
from netplane.kernel import netns

HERE = Path(__file__).parent
PEER = Path("/usr/lib/cni")
SERIAL, PARALLEL, AT_ONCE = 50, 200, 32
INSIDE = "NETPLANE_BENCH_INSIDE"


class Plugin(NamedTuple):
    name: str
    program: Path
    config: Path
    netns: str  # the node's


class Times(NamedTuple):
    """Milliseconds of each run, and runs per second of the whole batch."""

    each: list[float]
    rate: float

    @property
    def p50(self) -> float:
        return statistics.median(self.each)


def main() -> int:
    """Print the figures; 0 when all runs succeeded. Starts itself again in private namespaces."""
    if os.geteuid() != 0:
        print("cni: needs root: skipped")
        return 0
    if os.environ.get(INSIDE) != "1":
        command = [sys.executable, "-m", "benchmarks.bench_cni"]
        return subprocess.run(
            command, env={**os.environ, INSIDE: "1"}, cwd=HERE.parent, check=False
        ).returncode
    netns.make_private(mounts=True, network=True)
    with tempfile.TemporaryDirectory(prefix="npbench") as work:
        run(Path(work))
    return 0


def run(work: Path) -> dict[str, tuple[float, float]]:
    """Measure in ``work``; {claim: (ours, peer)}, NaN where the peer is missing. Prints a line each."""
    spawn = work / "spawn"
    subprocess.run(["cc", "-O2", "-Wall", "-o", str(spawn), str(HERE / "spawn.c")], check=True)
    try:
        for i in range(PARALLEL):
            netns.create(work / f"pod-{i}")
        peer = _measure(spawn, _peer(work), work) if (PEER / "bridge").exists() else None
        with _agent(work) as ours:
            mine = _measure(spawn, ours, work)
        return _report(mine, peer)
    finally:
        for path in [*work.glob("pod-*"), *work.glob("node-*")]:
            netns.delete(path)


def _measure(spawn: Path, plugin: Plugin, work: Path) -> dict[str, Times]:
    def batch(command: str, count: int, at_once: int) -> Times:
        return _batch(spawn, plugin, work, (command, count, at_once))

    batch("ADD", 3, 1)  # the bridge, caches
    batch("DEL", 3, 1)
    return {
        "ADD": batch("ADD", SERIAL, 1),
        "DEL": batch("DEL", SERIAL, 1),
        "ADD x": batch("ADD", PARALLEL, AT_ONCE),
        "DEL x": batch("DEL", PARALLEL, AT_ONCE),
    }


def _batch(spawn: Path, plugin: Plugin, work: Path, what: tuple[str, int, int]) -> Times:
    command, count, at_once = what
    output = work / "output"
    output.unlink(missing_ok=True)
    argv = [str(spawn), command, str(count), str(at_once), str(work / "pod-"), str(plugin.config)]
    process = netns.popen(
        plugin.netns,
        [*argv, str(output), str(plugin.program)],
        env={"CNI_PATH": str(PEER), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = process.communicate(timeout=300)[0].split("\n")
    rows = [line.split() for line in lines if line]
    failed = sum(status != "0" for word, status in rows if word != "total")
    if failed:
        shown = output.read_text()[:400] if output.exists() else ""
        raise SystemExit(f"cni: {failed} of {count} {command} of {plugin.name} failed: {shown}")
    each = [int(word) / 1e3 for word, _ in rows if word != "total"]
    return Times(each, count / (int(rows[-1][1]) / 1e6))


def _report(mine: dict[str, Times], peer: dict[str, Times] | None) -> dict[str, tuple[float, float]]:
    if peer is None:
        print("cni: no peer: apt-get install containernetworking-plugins")
    found = {}
    for command in ("ADD", "DEL"):
        a, b = mine[command].p50, peer[command].p50 if peer else float("nan")
        print(f"cni {command} one at a time, p50: {a:.2f} ms, bridge + host-local {b:.2f} ms: {a / b:.2f} x")
        found[f"{command} p50"] = (a, b)
    for command in ("ADD", "DEL"):
        a, b = mine[f"{command} x"].rate, peer[f"{command} x"].rate if peer else float("nan")
        print(
            f"cni {PARALLEL} {command}, {AT_ONCE} at a time: {a:.0f}/s, bridge + host-local {b:.0f}/s:"
            f" {a / b:.2f} x"
        )
        found[f"{command} rate"] = (a, b)
    return found


def _node(path: Path) -> str:
    """A node's namespace with an uplink that has an address."""
    netns.create(path)
    netns.run(path, "ip", "link", "set", "lo", "up")
    netns.run(path, "ip", "link", "add", "w0", "type", "veth", "peer", "name", "w1")
    netns.run(path, "ip", "addr", "add", "192.0.2.1/24", "dev", "w0")
    for link in ("w0", "w1"):
        netns.run(path, "ip", "link", "set", link, "up")
    return str(path)


def _peer(work: Path) -> Plugin:
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.244.1.0/24"}]],
        "dataDir": str(work / "host-local"),
    }
    config = {
        "cniVersion": "1.0.0",
        "name": "peer",
        "type": "bridge",
        "bridge": "peer0",
        "isDefaultGateway": True,
        "hairpinMode": True,
        "ipam": ipam,
    }
    path = work / "peer.json"
    path.write_text(json.dumps(config))
    return Plugin("bridge + host-local", PEER / "bridge", path, _node(work / "node-peer"))


@contextmanager
def _agent(work: Path) -> Iterator[Plugin]:
    node, run_dir = _node(work / "node-ours"), work / "run"
    config = {"cniVersion": "1.0.0", "name": "net", "type": "netplane", "socket": str(run_dir / "cni.sock")}
    (work / "ours.json").write_text(json.dumps(config))
    netplane = str(Path(sys.executable).parent / "netplane")
    options = {
        "--node": "n1",
        "--store": f"sqlite://{work / 'state.db'}",
        "--run-dir": str(run_dir),
        "--state-dir": str(work / "state"),
        "--node-ip": "192.0.2.1",
        "--cluster-cidr": "10.244.0.0/16",
        "--service-cidr": "10.96.0.0/16",
        "--rooms": "cni",
    }
    words = [word for pair in options.items() for word in pair]
    with (work / "agent.log").open("wb") as log:
        agent = netns.popen(node, [netplane, "agent", *words], stdout=log, stderr=log)
    try:
        waited = subprocess.run(
            [netplane, "status", "--run-dir", str(run_dir), "--wait", "30"],
            capture_output=True,
            text=True,
            check=False,
        )
        if waited.returncode:
            raise SystemExit(
                f"cni: the agent is not ready: {waited.stderr}{(work / 'agent.log').read_text()}"
            )
        yield Plugin("netplane", BINARY, work / "ours.json", node)
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(30)


if __name__ == "__main__":
    sys.exit(main())

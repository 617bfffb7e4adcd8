"""The packet path in C beside the kernel path, flannel's way and the bare hosts, on one wire in one run.

Every figure is measured in turns: each round has one of every world, in changing order, right after each
other; ratios are medians of the rounds' ratios to our own kernel path, which the bars are about. Latencies
are with both ends on one CPU (work, not wake-ups), volumes with one on each. What goes from pod to pod of
a node is hardly more than copying, and with two CPUs one stream takes twice as long as the next, whichever
way it goes: there the bar is about both ends on one CPU, where streams are alike. Nothing leaves the machine:
the wire is a veth and a bridge, which carries packets of 64 KB whole, and has no cost of its own to save.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from netplane.kernel import netns

from .cni_rig import Rig
from .path_rig import HERE, Meter, World, map_memory, worlds

ROUNDS, ADDS = 11, 20
STREAMS = 3  # of each world in a round, since one differs from the next
INSIDE = "NETPLANE_BENCH_INSIDE"
WHAT = {  # (end, what): amount
    ("other", "connect"): 400,
    ("other", "rr"): 2000,
    ("other", "bulk"): 512,
    ("other", "work"): 512,
    ("other", "flood"): 150,
    ("other6", "connect"): 400,
    ("other6", "rr"): 2000,
    ("other6", "bulk"): 512,
    ("same", "connect"): 400,
    ("same", "rr"): 2000,
    ("same", "bulk"): 512,
    ("same", "work"): 512,
    ("same", "lone"): 2000,
    ("same", "alone"): 150,
    ("vip", "rr"): 2000,
    ("vip", "work"): 512,
}
UNITS = {"connect": "µs", "rr": "µs", "bulk": "Gbit/s", "work": "Gbit/s", "flood": "k/s"}
NAMES = {
    "connect": "connect p50",
    "rr": "request-response p50",
    "bulk": "bulk",
    "work": "bulk, on one CPU",
    "flood": "UDP, 64 bytes",
}
ENDS = {"other": "other node", "other6": "other node, IPv6", "same": "same node"}
Found = dict[tuple[str, str, str], list[tuple[float, ...]]]  # (end, what, world)


def main() -> int:
    """Print the figures; 0 when every bar is met. Starts itself again in private namespaces."""
    if os.geteuid() != 0:
        print("path: needs root: skipped")
        return 0
    if os.environ.get(INSIDE) != "1":
        env = {**os.environ, INSIDE: "1"}
        command = [sys.executable, "-m", "benchmarks.bench_path"]
        return subprocess.run(command, env=env, cwd=HERE.parent, check=False).returncode
    netns.make_private(mounts=True, network=True)
    with tempfile.TemporaryDirectory(prefix="npbench") as work:
        with worlds() as made:
            found = measure(Meter(Path(work)), made)
            memory = map_memory(made["fast"])
        report = Report(found)
        report.wire()
        report.rest(memory, adds(Path(work)))
    return 0 if report.met else 1


def measure(meter: Meter, made: dict[str, World]) -> Found:
    found: Found = {}
    for number in range(ROUNDS):
        for (end, what), amount in WHAT.items():
            names = [name for name in made if end in made[name].ends]
            for turn in range(number, number + (STREAMS if what in ("bulk", "work") else 1)):
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    found.setdefault((end, what, name), []).append(meter.run(what, made[name], end, amount))
    return found


def adds(work: Path) -> float:
    """CNI ADD with the fast path on / off, as the median of rounds in turn."""
    rig, ratios = Rig(work), []
    try:
        rig.pods(ADDS)
        with (
            rig.ours("fast", "--datapath", "fast") as fast,
            rig.ours("kernel", "--datapath", "kernel") as kernel,
        ):
            for number in range(ROUNDS):
                p50 = {}
                for plugin in (fast, kernel) if number % 2 else (kernel, fast):
                    p50[plugin.name] = rig.run(plugin, "ADD", ADDS).p50
                    rig.run(plugin, "DEL", ADDS)
                ratios.append(p50["fast"] / p50["kernel"])
    finally:
        rig.close()
    return statistics.median(ratios)


class Report:
    """Prints lines; remembers whether every bar was met."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self.met = True

    def figure(self, end: str, what: str, name: str, at: int = 0) -> float:
        return statistics.median(one[at] for one in self._found[end, what, name])

    def ratio(self, mine: tuple[str, str, str], peer: tuple[str, str, str], at: int = 0) -> float:
        pairs = zip(self._found[mine], self._found[peer], strict=True)
        return statistics.median(one[at] / other[at] for one, other in pairs)

    def judge(self, what: str, ratio: float, bar: float, most: bool) -> None:
        good = ratio <= bar if most else ratio >= bar
        self.met = self.met and good
        sign = "<=" if most else ">="
        print(f"  {what:42} {ratio:5.2f} x  bar {sign} {bar:.2f}: {'OK' if good else 'missed'}")

    def figures(self, end: str, what: str, names: tuple[str, ...]) -> None:
        parts = []
        for name in names:
            ratio = self.ratio((end, what, name), (end, what, "kernel"))
            parts.append(f"{name} {self.figure(end, what, name):.1f} ({ratio:.2f})")
        print(f"  {NAMES[what]:22} {UNITS[what]:7} {'  '.join(parts)}")

    def wire(self) -> None:
        print(f"path: median of {ROUNDS} rounds in turn; in brackets the ratio to our kernel path")
        print("to a pod of the other node")
        for what in ("connect", "rr", "bulk", "work", "flood"):
            self.figures("other", what, ("fast", "kernel", "flannel", "host"))
        print("to a pod of the other node, by IPv6")
        for what in ("connect", "rr", "bulk"):
            self.figures("other6", what, ("fast", "kernel"))
        print("to a pod of the same node")
        for what in ("connect", "rr", "bulk", "work"):
            self.figures("same", what, ("fast", "kernel", "flannel"))
        print("fast / kernel")
        for end, what, bar in (
            ("other", "connect", 0.85), ("other", "rr", 0.75), ("other", "bulk", 1.15),
            ("other", "flood", 1.3),
            ("other6", "connect", 0.85), ("other6", "rr", 0.75), ("other6", "bulk", 1.15),
            ("same", "connect", 1.0), ("same", "rr", 1.0), ("same", "work", 1.0),
        ):  # fmt: skip
            ratio = self.ratio((end, what, "fast"), (end, what, "kernel"))
            self.judge(f"{ENDS[end]}, {NAMES[what]}", ratio, bar, what in ("connect", "rr"))
        for end, what in (("other", "bulk"), ("same", "work")):
            ratio = self.ratio((end, what, "fast"), (end, what, "kernel"), at=1)
            self.judge(f"{ENDS[end]}, CPU time a byte", ratio, 1.0, True)

    def rest(self, memory: int, added: float) -> None:
        latency = 1 / self.ratio(("vip", "rr", "fast"), ("other", "rr", "fast"))
        self.judge("fast: VIP / direct, request-response", latency, 0.95, False)
        volume = self.ratio(("vip", "work", "fast"), ("other", "work", "fast"))
        self.judge("fast: VIP / direct, bulk, on one CPU", volume, 0.95, False)
        missed = self.ratio(("same", "lone", "fast"), ("same", "lone", "kernel"))
        self.judge("every packet a miss: request-response", missed, 1.02, True)
        missed = 1 / self.ratio(("same", "alone", "fast"), ("same", "alone", "kernel"))
        self.judge("every packet a miss: time of a UDP packet", missed, 1.02, True)
        print(f"  ADD with / without: {added:.2f} x; memory of a node's maps: {memory / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())

"""CNI ADD and DEL: ours (the binary and a running agent) beside the reference plugins, in one run.

Peers: bridge + host-local alone, and chained with portmap, bandwidth and firewall. Ours does the whole
chain's work and writes the Pod object. IPv4, default route, hairpin. Ours and the peers run in turn, so
that all see the same machine; medians over all rounds. Everything happens in namespaces of its own.
Peers: Debian's containernetworking-plugins and iptables (make .venv/.peers).
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from netplane.cni.config import CAPABILITIES
from netplane.kernel import netns

from .cni_floor import Floor
from .cni_rig import DATAPATH, HERE, PEER, Plugin, Rig, Times

ROUNDS, SERIAL, PARALLEL, AT_ONCE = 3, 20, 200, 32
FEW, MANY, GROWTH = 10, 1000, 20  # the floor's bridge has at most 1,023 ports
CHAIN = ("portmap", "bandwidth", "firewall")
INSIDE = "NETPLANE_BENCH_INSIDE"
Found = dict[tuple[str, str], list[Times]]  # (plugin, what)
Growth = dict[str, tuple[float, float]]  # ms with few pods and with many, by what was measured


def main() -> int:
    """Print the figures; 0 when every bar is met. Starts itself again in private namespaces."""
    if os.geteuid() != 0:
        print("cni: needs root: skipped")
        return 0
    if os.environ.get(INSIDE) != "1":
        command = [sys.executable, "-m", "benchmarks.bench_cni"]
        env = {**os.environ, INSIDE: "1"}
        return subprocess.run(command, env=env, cwd=HERE.parent, check=False).returncode
    netns.make_private(mounts=True, network=True)
    with tempfile.TemporaryDirectory(prefix="npbench") as work:
        return run(Path(work))


def run(work: Path) -> int:
    rig = Rig(work)
    try:
        rig.pods(PARALLEL)
        plain, chain = _peers(rig)
        with rig.ours() as ours:
            found: Found = {}
            for plugin in filter(None, (ours, plain, chain)):
                _both(rig, plugin, {}, "warm", 2, 1)  # the bridge, chains, caches
            for _ in range(ROUNDS):
                for plugin in filter(None, (ours, plain, chain)):
                    _both(rig, plugin, found, "serial", SERIAL, 1)
                for plugin in filter(None, (ours, plain)):
                    _both(rig, plugin, found, "parallel", PARALLEL, AT_ONCE)
                    _both(rig, plugin, found, "burst", PARALLEL, PARALLEL)
            spawn = rig.run(rig.floor(), "VERSION", 100)
        growth = _growth(rig, plain is not None)
        return _report(found, (ours, plain, chain), spawn, growth)
    finally:
        rig.close()


def _peers(rig: Rig) -> tuple[Plugin | None, Plugin | None]:
    if not (PEER / "bridge").exists():
        print("cni: no peer: apt-get install containernetworking-plugins")
        return None, None
    plain, chain = rig.bridge("plain"), rig.bridge("chain", *CHAIN)
    if shutil.which("iptables") is None:
        print("cni: no peer portmap and firewall: apt-get install iptables")
        return plain, None
    try:
        _both(rig, chain, {}, "try", 1, 1)
    except SystemExit as exc:
        print(f"cni: the chain does not work on this kernel: {exc}")
        with suppress(SystemExit):
            rig.run(chain, "DEL", 1)
        return plain, None
    return plain, chain


def _both(rig: Rig, plugin: Plugin, found: Found, what: str, count: int, at_once: int) -> None:
    for command in ("ADD", "DEL"):
        rig.calm()
        times = rig.run(plugin, command, count, at_once)
        found.setdefault((plugin.name, f"{command} {what}"), []).append(times)


def _growth(rig: Rig, peer: bool) -> Growth:
    """p50 of ADD and of DEL on a node with few pods and on one with many, in turn; of the kernel's part where
    so many are on one bridge; and the peer's."""
    rig.pods(MANY + FEW + GROWTH)
    with rig.ours("few") as few, rig.ours("many") as many:
        floors = Floor(rig, "floor f", range(MANY, MANY + FEW)), Floor(rig, "floor m", range(MANY))
        found = _few_and_many(rig, few, many, floors)
        for floor in floors:
            floor.close()
    if peer:
        theirs = _few_and_many(rig, rig.bridge("few peers"), rig.bridge("many peers"))
        found |= {f"{command} of the peer": both for command, both in theirs.items()}
    return found


def _few_and_many(rig: Rig, few: Plugin, many: Plugin, floors: tuple[Floor, ...] = ()) -> Growth:
    first = MANY + FEW
    rig.run(few, "ADD", FEW, AT_ONCE, first=MANY)
    rig.run(many, "ADD", MANY, AT_ONCE)
    found: dict[str, tuple[list[Times], list[Times]]] = {}
    for _ in range(3 * ROUNDS):
        for which, plugin in enumerate((few, many)):
            for command in ("ADD", "DEL"):
                rig.calm()
                times = rig.run(plugin, command, GROWTH, 1, first=first)
                found.setdefault(command, ([], []))[which].append(times)
        for which, floor in enumerate(floors):
            for command, times in zip(("ADD", "DEL"), floor.turn(first, GROWTH), strict=True):
                found.setdefault(f"{command} of one bridge", ([], []))[which].append(times)
    rig.run(many, "DEL", MANY, AT_ONCE)
    rig.run(few, "DEL", FEW, AT_ONCE, first=MANY)
    return {what: (_p50(few), _p50(many)) for what, (few, many) in found.items()}


def _p50(rounds: list[Times]) -> float:
    return statistics.median(ms for times in rounds for ms in times.each)


def _rate(rounds: list[Times]) -> float:
    return statistics.median(times.rate for times in rounds)


class Report:
    """Prints lines; remembers whether every bar was met."""

    def __init__(self) -> None:
        self.met = True

    def line(self, what: str, figures: str, ratio: float, bar: str, good: bool) -> None:
        self.met = self.met and good
        print(f"  {what:32} {figures:46} {ratio:6.2f} x  bar {bar}: {'OK' if good else 'below the bar'}")


def _report(
    found: Found,
    plugins: tuple[Plugin, Plugin | None, Plugin | None],
    spawn: Times,
    growth: Growth,
) -> int:
    ours, plain, chain = (plugin.name if plugin else "" for plugin in plugins)
    missing = [name for name in ("portMappings", "bandwidth") if name not in CAPABILITIES]
    whole = (
        f"; NOT with {' and '.join(missing)}, which it does not have" if missing else ", a port, bandwidth"
    )
    print(f"cni: ours with masquerade{whole}, --datapath {DATAPATH}; median of {ROUNDS} rounds in turn")
    print(f"  floor: spawn of a static program {spawn.p50:.2f} ms")
    report = Report()
    for command, share in (("ADD", 1 / 3), ("DEL", 1.0)):
        mine = _p50(found[ours, f"{command} serial"])
        for peer, most in ((plain, share), (chain, 1 / 15 if command == "ADD" else 1.0)):
            if peer:
                theirs = _p50(found[peer, f"{command} serial"])
                title = f"{command} p50 / {'chain' if peer == chain else 'bridge + host-local'}"
                figures = f"{mine:.2f} ms / {theirs:.2f} ms"
                report.line(title, figures, mine / theirs, f"<= {most:.2f}", mine <= most * theirs)
    for command, aim in (("ADD", 5), ("DEL", 10)):
        if plain:
            mine, theirs = (_rate(found[p, f"{command} parallel"]) for p in (ours, plain))
            title, figures = f"{PARALLEL} {command} at {AT_ONCE}, rate", f"{mine:.0f}/s / {theirs:.0f}/s"
            report.line(title, figures, mine / theirs, f">= 3 (aim {aim})", mine >= 3 * theirs)
    for command in ("ADD", "DEL"):
        rounds = found[ours, f"{command} parallel"]
        work, waits = (statistics.median(getattr(t, what) for t in rounds) for what in ("work", "waits"))
        print(f"  {f'the agent, for each {command}':32} {work:.2f} ms of processor time, {waits:.0f} waits")
    for command in ("ADD", "DEL"):
        rounds = found[ours, f"{command} burst"]
        worst = statistics.median(times.p99 for times in rounds)
        theirs = statistics.median(t.p99 for t in found[plain, f"{command} burst"]) if plain else math.nan
        figures = f"{worst:.0f} ms / {theirs:.0f} ms; p50 {_p50(rounds):.0f} ms"
        title = f"{PARALLEL} {command} at once, p99"
        report.line(title, figures, worst / theirs, "< 1000 ms", worst < 1000)
    _report_growth(report, growth)
    return 0 if report.met else 1


def _report_growth(report: Report, growth: Growth) -> None:
    for what, (few, many) in growth.items():
        title, figures = f"{what} p50, {MANY:,} pods / {FEW}", f"{many:.2f} ms / {few:.2f} ms"
        if what in ("ADD", "DEL"):
            report.line(title, figures, many / few, "<= 1.25", many <= 1.25 * few)
        else:
            print(f"  {title:44} {figures:34} {many / few:6.2f} x")


if __name__ == "__main__":
    sys.exit(main())

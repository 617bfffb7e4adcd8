"""A volume's life through the CSI socket, beside csi-driver-host-path and the system calls below it; then
data through volumes (volumes_data.py).

Who is compared takes turns in every round; figures are medians.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from netplane.kernel import netns

from . import volumes_data
from . import volumes_rig as rig

ROUNDS, EACH = 10, 10  # 100 volumes
LARGE = 10 << 10  # MiB that an image is to hold, as claims usually ask; a sparse file


def main() -> int:
    netns.make_private(mounts=True, network=False)
    with tempfile.TemporaryDirectory(prefix="bench-volumes-", dir="/var/tmp") as place:
        home = Path(place)
        try:
            cycles(home)
            volumes_data.measure(home)
        finally:
            rig.end_all()
    return 0


def timed(action: Callable[[int], object], numbers: range) -> list[float]:
    """Milliseconds of each."""
    found = []
    for number in numbers:
        begin = time.perf_counter()
        action(number)
        found.append((time.perf_counter() - begin) * 1e3)
    return found


def cycles(home: Path) -> None:
    sizes = [16, min(LARGE, shutil.disk_usage(home).free >> 21)]  # at most half of what is free
    plain, mute, other = (
        rig.ours(home / "ours", "directory"),
        rig.Mute(home / "mute"),
        rig.peer(home / "peer"),
    )
    floor, here = rig.Floor(home / "floor"), rig.Handlers(home / "here")
    players: dict[str, Callable[[int], object]] = {
        "floor": floor.cycle,
        "directory": plain.cycle,
        "gRPC": mute.cycle,
        "sync": rig.Log(home / "log").cycle,
    }
    images = [rig.ours(home / f"image-{size}", "image", size * rig.MIB) for size in sizes]
    for size, image in zip(sizes, images, strict=True):
        below = rig.ImageFloor(home / f"floor-{size}", size * rig.MIB)
        players |= {f"image {size}": image.cycle, f"floor {size}": below.cycle}
        players[f"mkfs {size}"] = lambda _, below=below: below.mkfs()  # type: ignore[misc]
    if other is not None:
        players["peer"] = other.cycle
    found: dict[str, list[float]] = {name: [] for name in (*players, "handlers")}
    for turn in range(ROUNDS):
        numbers = range(turn * EACH, (turn + 1) * EACH)
        for name, play in players.items():
            found[name] += timed(play, numbers)
        asked = [here.requests(number) for number in numbers]
        found["handlers"] += timed(lambda i, asked=asked: here.cycle(asked[i]), range(EACH))  # type: ignore[misc]
    ms = {name: statistics.median(times) for name, times in found.items()}
    ms |= {f"{name} at once": at_once(driver) for name, driver in (("directory", plain), ("gRPC", mute))}
    for driver in (plain, mute, other, *images):
        if driver is not None:
            driver.end()
    report(ms, sizes)


def at_once(driver: rig.Driver) -> float:
    """Milliseconds of each of 100 lives, 32 lived at a time; the median of three such hundreds."""
    rounds = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        for turn in range(3):
            begin = time.perf_counter()
            list(pool.map(driver.cycle, range(1000 + turn * 100, 1100 + turn * 100)))
            rounds.append((time.perf_counter() - begin) * 1e3 / 100)
    return statistics.median(rounds)


CLIENTS = 32


def report(ms: dict[str, float], sizes: list[int]) -> None:
    """Medians in milliseconds, by player."""
    print(
        f"volumes: create + stage + publish + unpublish + unstage + delete, {ROUNDS * EACH} of each in turn"
    )
    line("floor: mkdir and two binds by system calls", ms["floor"])
    line("gRPC: the same messages to a server that does nothing", ms["gRPC"])
    line("durable: an entry synced by create and by delete", ms["sync"])
    line("directory", ms["directory"])
    own = ms["directory"] - ms["gRPC"]
    line("without gRPC / floor", own / ms["floor"], "x  must <= 2")
    line("without gRPC and durable entries / floor", (own - ms["sync"]) / ms["floor"], "x")
    line("directory, called in one process: no gRPC", ms["handlers"])
    line("  / floor", ms["handlers"] / ms["floor"], "x")
    line("  / (floor + durable)", ms["handlers"] / (ms["floor"] + ms["sync"]), "x")
    line("directory / (floor + gRPC)", ms["directory"] / (ms["floor"] + ms["gRPC"]), "x")
    line(f"directory, {CLIENTS} at once, each", ms["directory at once"])
    line(f"gRPC, {CLIENTS} at once, each", ms["gRPC at once"])
    for size in sizes:
        image_report(ms, size)
    if "peer" in ms:
        line("csi-driver-host-path", ms["peer"])
        line("directory / csi-driver-host-path", ms["directory"] / ms["peer"], "x")
    else:
        print(f"  {rig.HOW}")


def image_report(ms: dict[str, float], size: int) -> None:
    """Where an image's time goes; the parts are of one run, so they add up."""
    whole, floor, mkfs = ms[f"image {size}"], ms[f"floor {size}"], ms[f"mkfs {size}"]
    parts = {
        "mkfs": mkfs,
        "the kernel's loop, mounts, sync and unlink": floor - mkfs,
        "gRPC": ms["gRPC"],
        "ours": whole - floor - ms["gRPC"],
    }
    line(f"image of {size:,} MiB, ext4", whole)
    for name, part in parts.items():
        line(f"  {name}", part, f"ms  {part / whole:4.0%}")
    line("floor, the same mkfs and system calls", floor)
    line("without gRPC / floor", (whole - ms["gRPC"]) / floor, "x")


def line(what: str, figure: float, unit: str = "ms") -> None:
    print(f"  {what:56}{figure:6.2f} {unit}")

"""A volume's life through the CSI socket, beside csi-driver-host-path and the system calls below it; and
data through an image volume beside the file system below it.

Who is compared takes turns in every round; figures are medians.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from netplane.kernel import netns

from . import volumes_rig as rig

ROUNDS, EACH = 10, 10  # 100 volumes
FILES, SIZE = 5, 128  # MiB of data
DATA_ROUNDS = 60
IMAGE = 10  # GiB that an image is to hold, as claims usually ask; a sparse file


def main() -> int:
    netns.make_private(mounts=True, network=False)
    with tempfile.TemporaryDirectory(prefix="bench-volumes-", dir="/var/tmp") as place:
        home = Path(place)
        cycles(home)
        data(home)
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
    gib = min(IMAGE, shutil.disk_usage(home).free >> 31)  # at most half of what is free
    plain = rig.ours(home / "ours", "directory")
    image = rig.ours(home / "image", "image", gib << 30)
    mute, other = rig.Mute(home / "mute"), rig.peer(home / "peer")
    floor, image_floor = rig.Floor(home / "floor"), rig.ImageFloor(home / "image-floor", gib << 30)
    here = rig.Handlers(home / "here")
    players: dict[str, Callable[[int], object]] = {
        "floor": floor.cycle,
        "directory": plain.cycle,
        "gRPC": mute.cycle,
        "sync": rig.Log(home / "log").cycle,
        "image": image.cycle,
        "image floor": image_floor.cycle,
        "mkfs": lambda _: image_floor.mkfs(),
    }
    if other is not None:
        players["peer"] = other.cycle
    found: dict[str, list[float]] = {name: [] for name in (*players, "handlers")}
    for turn in range(ROUNDS):
        numbers = range(turn * EACH, (turn + 1) * EACH)
        for name, play in players.items():
            found[name] += timed(play, numbers)
        asked = [here.requests(number) for number in numbers]
        found["handlers"] += timed(lambda i, asked=asked: here.cycle(asked[i]), range(EACH))
    ms = {name: statistics.median(times) for name, times in found.items()}
    ms |= {f"{name} at once": at_once(driver) for name, driver in (("directory", plain), ("gRPC", mute))}
    for driver in (plain, image, mute, other):
        if driver is not None:
            driver.end()
    report(ms, gib)


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


def report(ms: dict[str, float], gib: int) -> None:
    """Medians in milliseconds, by player."""
    print(
        f"volumes: create + stage + publish + unpublish + unstage + delete, {ROUNDS * EACH} of each in turn"
    )
    line("floor: mkdir and two binds by system calls", ms["floor"])
    line("gRPC: the same messages to a server that does nothing", ms["gRPC"])
    line("durable: an entry synced by create and by delete", ms["sync"])
    line("directory", ms["directory"])
    must("directory / (floor + gRPC)", ms["directory"] / (ms["floor"] + ms["gRPC"]), "<= 2")
    line("directory, called in one process: no gRPC", ms["handlers"])
    line("  / floor", ms["handlers"] / ms["floor"], "x")
    line("  / (floor + durable)", ms["handlers"] / (ms["floor"] + ms["sync"]), "x")
    line("(directory - gRPC) / floor", (ms["directory"] - ms["gRPC"]) / ms["floor"], "x")
    line(f"directory, {CLIENTS} at once, each", ms["directory at once"])
    line(f"gRPC, {CLIENTS} at once, each", ms["gRPC at once"])
    image_report(ms, gib)
    if "peer" in ms:
        line("csi-driver-host-path", ms["peer"])
        line("directory / csi-driver-host-path", ms["directory"] / ms["peer"], "x")
    else:
        print(f"  {rig.HOW}")


def image_report(ms: dict[str, float], gib: int) -> None:
    """Where an image's time goes; the parts are of one run, so they add up."""
    whole, floor, mkfs = ms["image"], ms["image floor"], ms["mkfs"]
    parts = {
        "mkfs": mkfs,
        "the kernel's loop, mounts, sync and unlink": floor - mkfs,
        "gRPC": ms["gRPC"],
        "ours": whole - floor - ms["gRPC"],
    }
    line(f"image of {gib} GiB, ext4", whole)
    for name, part in parts.items():
        line(f"  {name}", part, f"ms  {part / whole:4.0%}")
    line("floor, the same mkfs and system calls", floor)
    line("image / (its floor + gRPC)", whole / (floor + ms["gRPC"]), "x")


def must(what: str, figure: float, bar: str) -> None:
    line(what, figure, f"x  must {bar}")


def line(what: str, figure: float, unit: str = "ms") -> None:
    print(f"  {what:56}{figure:6.2f} {unit}")


# --- data -------------------------------------------------------------------------------------------


def data(home: Path) -> None:
    """Sequential direct I/O of files on the disk, of the same files through their bind, and in an image.

    Where a file lies may make twice as much as what it is reached through, so there are several of each.
    """
    directory, image = (rig.ours(home / f"data-{name}", name) for name in ("directory", "image"))
    places = {}
    for name, driver in (("directory", directory), ("image", image)):
        volume = driver.create("v", 2 * FILES * SIZE * rig.MIB)
        places[name] = driver.home / "target"
        driver.publish(volume, places[name])
        if driver is directory:
            places["disk"] = driver.home / "root" / "csi" / "data" / volume / "tree"
    mover, rates = rig.Mover(SIZE * rig.MIB), dict[tuple[str, str], list[float]]()
    names = list(places)
    apart = {name: 2 * i for i, name in enumerate(names)}  # no file twice in one turn
    for turn in range(-FILES, DATA_ROUNDS):  # before the first, files take their blocks
        names.append(names.pop(0))  # nobody is always first
        for kind in ("write", "read"):
            for name in names:
                rate = mover.rate(kind, places[name] / f"file-{(turn + apart[name]) % FILES}")
                if turn >= 0:
                    rates.setdefault((kind, name), []).append(rate)
    for driver in (directory, image):
        driver.withdraw("vol-" + hashlib.sha256(b"v").hexdigest()[:32], driver.home / "target")
        driver.end()
    print(f"volumes: {FILES} files of {SIZE} MiB with direct I/O, in turn, beside the file system below")
    for kind in ("write", "read"):
        below = rates[kind, "disk"]
        for name, bar in (("directory", "1.0 (+- 0.05)"), ("image", "0.9")):
            here = rates[kind, name]
            ratio = statistics.median(here) / statistics.median(below)
            both = f"{statistics.median(here):.0f} / {statistics.median(below):.0f} MiB/s"
            print(f"  {kind:5}  {name:9}  {both:20}  {ratio:5.2f} x  must >= {bar}")

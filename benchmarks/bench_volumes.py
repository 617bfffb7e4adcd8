"""A volume's life through the CSI socket, beside csi-driver-host-path and the system calls below it; and
data through an image volume beside the file system below it.

Who is compared takes turns in every round; figures are medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from netplane.kernel import netns

from . import volumes_rig as rig

ROUNDS, EACH = 10, 10  # 100 volumes
SIZE = 256  # MiB of data
DATA_ROUNDS = 9


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
    plain, image = rig.ours(home / "ours", "directory"), rig.ours(home / "image", "image")
    mute, other = rig.Mute(home / "mute"), rig.peer(home / "peer")
    floor, image_floor = rig.Floor(home / "floor"), rig.ImageFloor(home / "image-floor")
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
    found: dict[str, list[float]] = {name: [] for name in players}
    for turn in range(ROUNDS):
        for name, play in players.items():
            found[name] += timed(play, range(turn * EACH, (turn + 1) * EACH))
    ms = {name: statistics.median(times) for name, times in found.items()}
    ms |= {f"{name} at once": at_once(driver) for name, driver in (("directory", plain), ("gRPC", mute))}
    for driver in (plain, image, mute, other):
        if driver is not None:
            driver.end()
    report(ms)


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


def report(ms: dict[str, float]) -> None:
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
    line(f"directory, {CLIENTS} at once, each", ms["directory at once"])
    line(f"gRPC, {CLIENTS} at once, each", ms["gRPC at once"])
    image_report(ms)
    if "peer" in ms:
        line("csi-driver-host-path", ms["peer"])
        line("directory / csi-driver-host-path", ms["directory"] / ms["peer"], "x")
    else:
        print(f"  {rig.HOW}")


def image_report(ms: dict[str, float]) -> None:
    """Where an image's time goes; the parts are of one run, so they add up."""
    whole, floor, mkfs = ms["image"], ms["image floor"], ms["mkfs"]
    parts = {
        "mkfs": mkfs,
        "the kernel's loop, mounts, sync and unlink": floor - mkfs,
        "gRPC": ms["gRPC"],
        "ours": whole - floor - ms["gRPC"],
    }
    line("image, ext4", whole)
    for name, part in parts.items():
        line(f"  {name}", part, f"ms  {part / whole:4.0%}")
    line("floor, the same mkfs and system calls", floor)
    line("without gRPC / floor", (whole - ms["gRPC"]) / floor, "x")


def line(what: str, figure: float, unit: str = "ms") -> None:
    print(f"  {what:56}{figure:6.2f} {unit}")


# --- data -------------------------------------------------------------------------------------------


def data(home: Path) -> None:
    """Sequential direct I/O of one file on the disk, bound, and in an image."""
    places = {"disk": home / "disk"}
    places["disk"].mkdir()
    drivers = []
    for name in ("directory", "image"):
        driver = rig.ours(home / f"data-{name}", name)
        volume = driver.create("v", 2 * SIZE * rig.MIB)
        places[name] = driver.home / "target"
        driver.publish(volume, places[name])
        drivers.append((driver, volume))
    rates: dict[tuple[str, str], list[float]] = {}
    for turn in range(DATA_ROUNDS + 1):
        for kind in ("write", "read"):
            for name, place in places.items():
                rate = SIZE * _io(kind, place / "file")
                if turn:  # the first takes the blocks
                    rates.setdefault((kind, name), []).append(rate)
    for driver, volume in drivers:
        driver.withdraw(volume, driver.home / "target")
        driver.end()
    print(f"volumes: {SIZE} MiB by dd with direct I/O, in turn, beside the same on the file system below")
    for kind in ("write", "read"):
        below = rates[kind, "disk"]
        for name, must in (("directory", "1.0"), ("image", "0.9")):
            here = rates[kind, name]
            ratio = statistics.median(a / b for a, b in zip(here, below, strict=True))
            both = f"{statistics.median(here):.0f} / {statistics.median(below):.0f} MiB/s"
            print(f"  {kind:5}  {name:9}  {both:20}  {ratio:5.2f} x  must >= {must}")


def _io(kind: str, file: Path) -> float:
    if kind == "read":
        return rig.dd(f"if={file}", "of=/dev/null", "iflag=direct")
    return rig.dd("if=/dev/zero", f"of={file}", f"count={SIZE}", "oflag=direct", "conv=notrunc,fdatasync")

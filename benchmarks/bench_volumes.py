"""A volume's life through the CSI socket, beside csi-driver-host-path and the system calls below it; and
data through an image volume beside the file system below it.

Who is compared takes turns in every round; figures are medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from netplane.kernel import netns
from storageplane.host import images

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
    floor = rig.Floor(home / "floor")
    blank = home / "blank"

    def mkfs(_number: int) -> None:
        images.make(blank, 16 * rig.MIB, "ext4")
        blank.unlink()

    players: dict[str, Callable[[int], object]] = {
        "floor": floor.cycle,
        "directory": plain.cycle,
        "image": image.cycle,
        "gRPC": mute.cycle,
        "sync": rig.Log(home / "log").cycle,
        "mkfs": mkfs,
    }
    if other is not None:
        players["peer"] = other.cycle
    found: dict[str, list[float]] = {name: [] for name in players}
    for turn in range(ROUNDS):
        for name, play in players.items():
            found[name] += timed(play, range(turn * EACH, (turn + 1) * EACH))
    for driver in (plain, image, mute, other):
        if driver is not None:
            driver.end()
    report({name: statistics.median(times) for name, times in found.items()})


CALLS = 6  # create, stage, publish, unpublish, unstage, delete
RECORDS = 3.5  # that a life syncs: begun, ready, condemned; and the removal of one


def report(ms: dict[str, float]) -> None:
    """Medians in milliseconds, by player."""
    print(
        f"volumes: create + stage + publish + unpublish + unstage + delete, {ROUNDS * EACH} of each in turn"
    )
    print(f"  floor: mkdir and two binds by system calls  {ms['floor']:6.2f} ms")
    print(f"  gRPC: {CALLS} calls that do nothing              {CALLS * ms['call']:6.2f} ms")
    print(f"  durable: {RECORDS} records, synced              {RECORDS * ms['record']:6.2f} ms")
    own = ms["directory"] - CALLS * ms["call"]
    print(f"  directory                                   {ms['directory']:6.2f} ms")
    print(f"    without gRPC / floor                      {own / ms['floor']:6.2f} x  must <= 2")
    rest = own - RECORDS * ms["record"]
    print(f"    without gRPC and durable records / floor  {rest / ms['floor']:6.2f} x")
    print(f"  image, ext4                                 {ms['image']:6.2f} ms")
    print(f"    mkfs {ms['mkfs']:.2f} ms, its share                 {ms['mkfs'] / ms['image']:6.0%}")
    if "peer" in ms:
        print(f"  csi-driver-host-path                        {ms['peer']:6.2f} ms")
        print(f"    directory / csi-driver-host-path          {ms['directory'] / ms['peer']:6.2f} x")
    else:
        print(f"  {rig.HOW}")


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

"""Data through a volume beside the file system below it: the same blocks of the disk, reached in either way.

Where a file lies on a disk may make twice as much as what it is reached through. So what a file in an image
takes is held against the very blocks of the image that it lies on, and a bound directory's file against
itself. By fio, which keeps the disk busy and is what the bars are about, and by dd, which waits for every
block before it asks for the next.
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import volumes_rig as rig

FILES, SIZE = 5, 128  # MiB of each
DEPTH = 16  # blocks of 1 MiB that fio has under way
PASSES = 4  # over a file by one fio: disks are fast at first
HOW = "fio is not here: `make .venv/.peers` installs it"
KINDS = ("write", "read")


class Stretch(NamedTuple):
    """Of a file; bytes."""

    file: Path
    at: int
    size: int


Pairs = dict[str, list[tuple[Stretch, Stretch]]]  # a volume's name: through it, and the same blocks below
Tool = Callable[[str, Stretch], float]  # "write" or "read": MiB a second


def measure(home: Path) -> None:
    """Print the ratios; everything lies beneath ``home``."""
    need, free = 3 * FILES * SIZE, shutil.disk_usage(home).free // rig.MIB
    if need > free:
        print(f"volumes: data needs {need} MiB beneath {home}, and {free} are free; left out")
        return
    drivers = {name: rig.ours(home / f"data-{name}", name) for name in ("directory", "image")}
    volumes = {}
    for name, driver in drivers.items():
        volumes[name] = driver.create("v", 2 * FILES * SIZE * rig.MIB)
        driver.publish(volumes[name], driver.home / "target")
        for number in range(FILES):
            for _ in range(2):  # the second time its blocks are there
                dd("write", Stretch(driver.home / "target" / f"file-{number}", 0, SIZE * rig.MIB))
    data = {name: driver.home / "root" / "csi" / "data" / volumes[name] for name, driver in drivers.items()}
    pairs: Pairs = {
        "directory": [
            (whole(file), whole(data["directory"] / "tree" / file.name))
            for file in files(drivers["directory"])
        ],
        "image": [
            pair for file in files(drivers["image"]) if (pair := in_image(file, data["image"] / "image"))
        ],
    }
    if shutil.which("fio"):
        compare(pairs, fio, 6, f"by fio, {DEPTH} blocks of 1 MiB at a time", barred=True)
    else:
        print(f"  {HOW}")
    compare(pairs, dd, 6, "by dd, one block of 1 MiB at a time", barred=False)
    for name, driver in drivers.items():
        driver.withdraw(volumes[name], driver.home / "target")
        driver.end()


def files(driver: rig.Driver) -> list[Path]:
    return [driver.home / "target" / f"file-{number}" for number in range(FILES)]


def whole(file: Path) -> Stretch:
    return Stretch(file, 0, SIZE * rig.MIB)


def in_image(file: Path, image: Path) -> tuple[Stretch, Stretch] | None:
    """The longest run of a file's blocks, in the file and in the image, by whole MiB; None: it has none."""
    done = subprocess.run(["filefrag", "-v", str(file)], capture_output=True, text=True, check=True)
    size, at, below = longest(done.stdout)
    return (Stretch(file, at, size), Stretch(image, below, size)) if size else None


def longest(said: str) -> tuple[int, int, int]:
    """(bytes by whole MiB, where in the file, where below) of the longest run that filefrag says."""
    runs = re.findall(r"^ *\d+: +(\d+)\.\. *\d+: +(\d+)\.\. *\d+: +(\d+):", said, re.MULTILINE)
    block = re.search(r"blocks? of (\d+) bytes", said)
    if not runs or not block:
        return 0, 0, 0
    size, at, below = max((int(length), int(logical), int(physical)) for logical, physical, length in runs)
    each = int(block[1])
    return size * each // rig.MIB * rig.MIB, at * each, below * each


def compare(pairs: Pairs, tool: Tool, rounds: int, how: str, barred: bool) -> None:
    """Ratios are medians of those of either way to one file, one right after the other."""
    print(f"volumes: {FILES} files of {SIZE} MiB {how}, direct I/O, beside the same blocks below")
    for kind in KINDS:
        for name, must in (("directory", "1.0"), ("image", "0.9")):
            both = pairs[name]
            if not both:
                print(f"  {kind:5}  {name:9}  no file lies in one piece of a MiB; left out")
                continue
            rates: tuple[list[float], list[float]] = ([], [])
            for turn in range(rounds * FILES):
                for which in (0, 1) if turn % 2 else (1, 0):  # nobody is always first
                    rates[which].append(tool(kind, both[turn % len(both)][which]))
            ratio = statistics.median(through / below for through, below in zip(*rates, strict=True))
            figures = "{:.0f} / {:.0f} MiB/s".format(*map(statistics.median, rates))
            bar = f"  must >= {must}" if barred else ""
            print(f"  {kind:5}  {name:9}  {figures:20}  {ratio:5.2f} x{bar}")


def fio(kind: str, stretch: Stretch) -> float:
    """fio's own figure, the sync at the end of writing included."""
    words = {
        "name": kind, "rw": kind, "filename": stretch.file, "offset": stretch.at, "size": stretch.size,
        "bs": "1M", "direct": 1, "ioengine": "libaio", "iodepth": DEPTH, "overwrite": 1,
        "loops": PASSES, "end_fsync": int(kind == "write"), "output-format": "json",
    }  # fmt: skip
    command = ["fio", *(f"--{word}={value}" for word, value in words.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return float(job[kind]["io_bytes"]) / rig.MIB / (float(job["job_runtime"]) / 1e3)


def dd(kind: str, stretch: Stretch) -> float:
    """One dd, from its start to its end; what it writes it syncs."""
    file, at, size = stretch
    words = [f"if={file}", "of=/dev/null", f"skip={at}", "iflag=direct,skip_bytes"]
    if kind == "write":
        words = [
            "if=/dev/zero",
            f"of={file}",
            f"seek={at}",
            "oflag=direct,seek_bytes",
            "conv=notrunc,fdatasync",
        ]
    begin = time.perf_counter()
    subprocess.run(["dd", *words, "bs=1M", f"count={size // rig.MIB}", "status=none"], check=True)
    return size / rig.MIB / (time.perf_counter() - begin)

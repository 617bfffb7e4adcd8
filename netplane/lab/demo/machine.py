"""What the machine holds that could be ours: surveyed before and after, so that a trace shows."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from ..traces import mounts

Survey = dict[str, frozenset[str]]
PLACES = ("/run/netplane", "/run/storageplane", "/var/lib/netplane", "/var/lib/storageplane", "/var/lib/cni")


def survey(home: Path) -> Survey:
    """Links and nft tables of this network namespace, mounts of this one and of process 1's, loop
    devices, files and processes that name the lab's directory."""
    return {
        "link": _words(["ip", "-o", "link"], 1),
        "nft table": _lines(["nft", "list", "tables"]),
        "mount": frozenset(mounts(Path("/"))),
        "mount of process 1": frozenset(mounts(home, "1")),
        "loop device": frozenset(_loops(home)),
        "file": frozenset(_files(home)),
        "process": frozenset(_processes(home)),
    }


def left(before: Survey, after: Survey) -> list[str]:
    """What is there now and was not before, as "kind name"."""
    return [f"{kind} {name}" for kind in after for name in sorted(after[kind] - before[kind])]


def _lines(argv: list[str]) -> frozenset[str]:
    out = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    return frozenset(line.strip() for line in out.splitlines())


def _words(argv: list[str], column: int) -> frozenset[str]:
    return frozenset(line.split()[column].rstrip(":").partition("@")[0] for line in _lines(argv))


def _loops(home: Path) -> Iterable[str]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = path.read_text().strip()
        except OSError:  # detached meanwhile
            continue
        if backing.startswith(f"{home}/"):
            yield f"{path.parts[3]} on {backing}"


def _files(home: Path) -> Iterable[str]:
    """What stands where a daemon of ours would put it, the lab's directory, and an empty root of labs."""
    for place in (*map(Path, PLACES), home):
        if place.exists():
            yield str(place)
            yield from map(str, place.glob("*"))
    if home.parent.exists() and not any(home.parent.iterdir()):
        yield str(home.parent)


def _processes(home: Path) -> Iterable[str]:
    """Children of this process, and whatever names the lab's directory on its command line."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # it ended meanwhile
            continue
        ours = f"{home}/" in command or int(parent) == os.getpid()
        if ours and int(path.name) != os.getpid():
            yield f"{path.name}: {command[:120]}"

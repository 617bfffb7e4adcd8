"""Taking a lab away, and saying what of it is left: from its directory alone, after any crash.

Rule 1: processes first, then mounts, then files; a file is removed only where nothing is mounted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from ..kernel import netns
from ..model.errors import KernelError, Unavailable
from .runner import kill_all


def mounts(beneath: Path, pid: str = "self") -> list[str]:
    """The mount points at or beneath a directory, innermost and latest first."""
    root = str(beneath).rstrip("/")
    text = Path(f"/proc/{pid}/mountinfo").read_text()
    points = (line.split(" ")[4].encode().decode("unicode_escape") for line in text.splitlines())
    return [p for p in points if p == root or p.startswith(f"{root}/")][::-1]


def remove(home: Path) -> None:
    """Take away all that is beneath a lab's directory, and it. Raises Unavailable, KernelError."""
    namespaces = list((home / "ns").glob("*")) if (home / "ns").is_dir() else []
    kill_all(namespaces)
    for path in namespaces:
        netns.delete(path)
    unmount(home)
    if home.exists():
        shutil.rmtree(home)
    with contextlib.suppress(OSError):  # not empty: another lab lives there
        home.parent.rmdir()


def unmount(home: Path) -> None:
    """Unmount everything at or beneath ``home``; lazily, for a dying process may still be there."""
    points = mounts(home)
    if points:
        done = subprocess.run(["umount", "-l", "--", *points], capture_output=True, text=True, check=False)
        if mounts(home):
            raise KernelError(16, f"unmount what is beneath {home}", done.stderr.strip())


def mount_private(home: Path) -> None:
    """A tmpfs at ``home`` that only this mount namespace sees: it goes when we go. Raises KernelError."""
    argv = ["mount", "-t", "tmpfs", "-o", "mode=0755", "netplane-lab", str(home)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(1, f"mount a tmpfs at {home}", done.stderr.strip())


def sweep(root: Path) -> None:
    """Remove the empty directories that killed processes' labs (`name-PID`) left beneath ``root``."""
    for path in root.glob("*-*") if root.is_dir() else ():
        pid = path.name.rpartition("-")[2]
        if pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(OSError):  # not empty: not what we mean
                path.rmdir()


def claim(home: Path) -> None:
    """Make a lab's directory; its name is the lab's. Raises Unavailable when it is taken."""
    home.parent.mkdir(parents=True, exist_ok=True)
    try:
        home.mkdir(mode=0o755)
    except FileExistsError:
        raise Unavailable(
            f"there is a lab at {home} already: take it away with 'netplane lab down {home.name}'"
        ) from None

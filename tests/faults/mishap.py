"""Run netplane's agent with a mishap in it, at the N-th moment between two operations (`dying.OPERATIONS`).

    python -m tests.faults.mishap FILE agent …

Nothing is counted until FILE exists. It holds N, what happens then, and to which path:

    N vanish PATH           the network namespace at PATH is unbound and removed
    N fill PATH PAGES       the file system at PATH is full but for so many pages of 4 KiB, until the
                            file `filler` there is removed

FILE is renamed to FILE.done when it has happened. The step is the moment before an operation or after it.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from netplane.cli import main
from netplane.kernel import netns

from .dying import OPERATIONS, Death

PAGE = 4096


class Mishap(Death):
    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self._file, self._lock, self._count = file, threading.Lock(), 0

    def step(self) -> None:
        with self._lock:
            if not self._file.exists():
                self._count = 0
                return
            self._count += 1
            at, what, path, *more = self._file.read_text().split()
            if self._count == int(at):
                vanish(path) if what == "vanish" else fill(Path(path), int(more[0]))
                self._file.rename(f"{self._file}.done")


def vanish(path: str) -> None:
    netns.delete(path)


def fill(inside: Path, pages: int) -> None:
    """Leave room for ``pages`` and nothing more; what is smaller than a page takes a page there (tmpfs)."""
    filler = inside / "filler"
    filler.unlink(missing_ok=True)
    filler.touch()  # before counting: it has a place of its own
    left = os.statvfs(inside).f_bavail * os.statvfs(inside).f_frsize // PAGE - pages
    if left > 0:
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, left * PAGE)


if __name__ == "__main__":
    mishap = Mishap(Path(sys.argv[1]))
    for place in OPERATIONS:
        mishap.sow(*place)
    sys.argv[1:] = sys.argv[2:]
    main()

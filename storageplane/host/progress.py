"""Programs that may take long (mkfs, cp, resize2fs), and how far they are while they run.

Rule 1: a program is given up when it has written nothing for its time, never because there is much to write.
Rule 2: it speaks the language that we read (LC_ALL=C), which spares it looking for another, too.
Rule 3: after a second, and then less and less often, a log line says how much it has written, and whoever
        asked (`telling`) is told; `running` is what a scrape sees.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

FIRST, SELDOM = 1.0, 30.0  # seconds until the first word; between two of them at most
WORDS = 1 << 20  # bytes of what a program says are read
_lock = threading.Lock()
_running: dict[int, Work] = {}
_paths: dict[tuple[str, str], str] = {}  # (program, PATH): its path


class Work(NamedTuple):
    """One program at work. ``object``: its last argument; ``written`` and ``total`` in bytes, 0: unknown."""

    program: str
    object: str
    written: int
    total: int
    seconds: float

    def __str__(self) -> str:
        done = f"{100 * min(self.written, self.total) // self.total} %, " if self.total else ""
        return f"{done}{_size(self.written)} in {self.seconds:.0f} s"


Tell = Callable[[Work], None]
_told: ContextVar[tuple[int, Tell] | None] = ContextVar("told", default=None)


@contextmanager
def telling(total: int, tell: Tell) -> Iterator[None]:
    """What runs inside, in this thread, is told of. ``total``: bytes that there will be; 0: unknown."""
    token = _told.set((total, tell))
    try:
        yield
    finally:
        _told.reset(token)


def running() -> list[Work]:
    """Every program that is at work now."""
    with _lock:
        return list(_running.values())


def finished(argv: tuple[str, ...], patience: float) -> subprocess.CompletedProcess[str]:
    """Run a program to its end. Raises FileNotFoundError, TimeoutExpired after ``patience`` idle seconds."""
    said = [os.memfd_create("out"), os.memfd_create("err")]
    try:
        with subprocess.Popen(
            argv, executable=_path(argv[0]), stdin=subprocess.DEVNULL, stdout=said[0], stderr=said[1],
            env={**os.environ, "LC_ALL": "C"},
        ) as process:  # fmt: skip
            try:
                _await(process, argv, patience)
            except BaseException:
                process.kill()
                raise
            finally:
                with _lock:
                    _running.pop(process.pid, None)
        words = [os.pread(fd, WORDS, 0).decode(errors="replace") for fd in said]
    finally:
        for fd in said:
            os.close(fd)
    return subprocess.CompletedProcess(argv, process.returncode, *words)


def _path(program: str) -> str:
    """Where it was found last, so that the new process looks nowhere else; its name, where it is not."""
    key = (program, os.environ.get("PATH", ""))
    found = _paths.get(key)
    if found is None or not os.path.exists(found):
        found = shutil.which(program)
        if found is None:
            return program
        _paths[key] = found
    return found


def _await(process: subprocess.Popen[bytes], argv: tuple[str, ...], patience: float) -> None:
    begin = moved = time.monotonic()
    written, pause, told = 0, FIRST, _told.get()
    while not _ended(process.pid, min(pause, patience)):
        now, have = time.monotonic(), _written(process.pid)
        if have == written and now - moved >= patience:
            raise subprocess.TimeoutExpired(argv, patience)
        moved = now if have != written else moved
        written, pause = have, min(SELDOM, now - begin)
        work = Work(argv[0], argv[-1], written, told[0] if told else 0, now - begin)
        with _lock:
            _running[process.pid] = work
        log.info("%s %s: %s", work.program, work.object, work)
        if told is not None:
            told[1](work)


def _ended(pid: int, seconds: float) -> bool:
    """Wait for a child's end, and no longer: subprocess, given a timeout, looks only now and then."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(pidfd)


def _written(pid: int) -> int:
    """Bytes that a process has written, by proc_pid_io(5); copy_file_range counts too."""
    try:
        words = Path(f"/proc/{pid}/io").read_text().split()
    except OSError:
        return 0
    return int(words[words.index("wchar:") + 1])


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"

"""Programs in namespaces: started, found again by namespace, and ended for certain.

Rule 1: a program of a lab that does not persist dies with us, even by SIGKILL (PR_SET_PDEATHSIG).
        The kernel sends that signal when the *thread* that forked ends (prctl(2)), so one thread,
        which lives as long as the lab, starts everything.
Rule 2: every program leads a process group of its own: Ctrl-C at the terminal is ours to handle.
Rule 3: what runs in a lab is what the kernel says is in its namespaces; no list of ours is needed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ..kernel import netns
from ..model.errors import KernelError, Unavailable

T = TypeVar("T")
Process = subprocess.Popen[Any]


class Runner:
    """Starts programs from its one thread. ``persist``: they outlive us."""

    def __init__(self, persist: bool = False) -> None:
        self._persist = persist
        self._home = f"/proc/{os.getpid()}/task/{os.getpid()}/ns/net"
        # We may die before setpriv has asked for the signal: then the program has another parent.
        self._unless_orphaned = ("sh", "-c", f'[ "$PPID" = {os.getpid()} ] && exec "$@"', "sh")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netplane-lab")
        self._started: list[Process] = []

    def popen(self, path: Path, argv: Iterable[str | Path], **options: Any) -> Process:
        """Start a program in the namespace at ``path``; options are subprocess.Popen's."""
        command = [str(part) for part in argv]
        if self._persist:
            options["start_new_session"] = True
        else:
            options["process_group"] = 0
            command = ["setpriv", "--pdeathsig", "KILL", "--", *self._unless_orphaned, *command]
        process = self._thread.submit(self._spawn, path, command, options).result()
        self._started = [p for p in self._started if p.poll() is None] + [process]
        return process

    def _spawn(self, path: Path, argv: list[str], options: dict[str, Any]) -> Process:
        netns.enter(path)
        try:
            return subprocess.Popen(argv, **options)
        finally:
            netns.enter(self._home)  # or the thread would keep the namespace alive

    def close(self) -> None:
        """End everything that was started here and still runs, then the thread."""
        for process in self._started:
            end(process)
        self._started = []
        self._thread.shutdown()


def end(process: Process, sig: int = signal.SIGKILL) -> None:
    """Send ``sig`` to the process's group and wait for the process. Gone already: fine."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, sig)
    process.wait(10)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


def finish(process: Process, what: str, timeout: float, check: bool) -> str:
    """Wait for a program started with text pipes; its stdout. Raises KernelError, Unavailable."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        end(process)
        raise Unavailable(f"{what}: no end after {timeout:g} s") from None
    except BaseException:
        end(process)
        raise
    if check and process.returncode:
        reason = (err or out or "").strip() or f"exit status {process.returncode}"
        raise KernelError(5, what, reason)
    return str(out)


def pids(paths: Iterable[Path]) -> list[int]:
    """The processes whose network namespace is one that these paths hold."""
    wanted = {_identity(path) for path in paths if netns.exists(path)}
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if _identity(entry / "ns/net") in wanted:
                    found.append(int(entry.name))
            except OSError:
                continue  # it ended, or it is a kernel thread
    return found


def kill_all(paths: Iterable[Path], timeout: float = 10) -> None:
    """SIGKILL every process in these namespaces until there is none. Raises Unavailable."""
    ours = _identity(Path("/proc/self/ns/net"))
    paths = [path for path in paths if netns.exists(path) and _identity(path) != ours]
    deadline = time.monotonic() + timeout
    while left := [pid for pid in pids(paths) if pid != os.getpid()]:
        if time.monotonic() > deadline:
            raise Unavailable(f"processes {left} of the lab do not end")
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.005)


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def until(probe: Callable[[], T], what: str, timeout: float = 10, pause: float = 0.05) -> T:
    """Call ``probe`` until it gives something true; that. Raises Unavailable, naming ``what``."""
    deadline = time.monotonic() + timeout
    while not (value := probe()):
        if time.monotonic() > deadline:
            raise Unavailable(f"{what}: not within {timeout:g} s (last: {value!r})")
        time.sleep(pause)
    return value

"""Lives of `storageplane csi`, forked from one process that has imported it: starting Python takes a third
of a second, and a run of the tests has a thousand of them.

    python -m tests.csi.nursery     for each line on stdin, [log, death, argv] in JSON, a pid on stdout

The parent's half is `Life`. What a line starts does what the program of that name does; ``death`` is the
file of `dying`, or "".
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
_lock = threading.Lock()


class Life:
    """A process, as far as a driver needs subprocess.Popen of it."""

    def __init__(self, log: Path, argv: list[str], death: Path | None = None) -> None:
        with _lock:
            nursery = _nursery()
            assert nursery.stdin and nursery.stdout
            nursery.stdin.write(json.dumps([str(log), str(death or ""), argv]) + "\n")
            nursery.stdin.flush()
            self.pid = int(nursery.stdout.readline())
        self._fd = -1
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            self._fd = os.pidfd_open(self.pid)

    def kill(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        """Raises TimeoutExpired."""
        if self._fd >= 0:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            if not poll.poll(timeout * 1000):
                raise subprocess.TimeoutExpired("storageplane csi", timeout)
            os.close(self._fd)
            self._fd = -1


@functools.cache
def _nursery() -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    made = subprocess.Popen(
        [sys.executable, "-m", "tests.csi.nursery"], stdin=pipe, stdout=pipe, text=True, cwd=ROOT
    )
    atexit.register(made.wait, 10)
    atexit.register(made.kill)  # first
    return made


def serve() -> None:
    from storageplane import cli
    from storageplane.csi import server  # noqa: F401 - imported once, for all of them

    from . import dying

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    for line in sys.stdin:
        log, death, argv = json.loads(line)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _streams(log)
        if death:
            dying.sow(Path(death))
        sys.argv = ["storageplane", *argv]
        try:
            cli.main()
        except SystemExit as exc:
            os._exit(exc.code if isinstance(exc.code, int) else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)


def _streams(log: str) -> None:
    """Nothing to read, and all that is said goes to the log."""
    null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for here, there in ((null, 0), (out, 1), (out, 2)):
        os.dup2(here, there)
    os.close(null)
    os.close(out)


if __name__ == "__main__":
    serve()

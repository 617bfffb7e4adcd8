"""Run netplane with a death in it: SIGKILL at the N-th operation on the store or on the kernel.

    python -m tests.faults.dying FILE agent …      the agent
    python -m tests.faults.dying FILE standalone   the process that serves a machine without one

Nothing is counted until FILE exists; it holds N. An operation counts when it begins and when it is done,
so that every gap between two of them is met.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from netplane import standalone
from netplane.cli import main
from netplane.kernel import sysctl
from netplane.kernel.ctnetlink import Tracker
from netplane.kernel.nft_batch import Batches
from netplane.kernel.nft_limit import LimitDriver
from netplane.kernel.nftables import Nft
from netplane.kernel.nlsocket import Socket
from netplane.spare import Spare
from netplane.store.sqlite import SqliteStore

OPERATIONS: list[tuple[Any, str]] = [
    (SqliteStore, "write"),
    (Socket, "send"),
    (Socket, "make_pair"),
    (Socket, "begin_pair"),
    (Nft, "run"),
    (Batches, "apply"),
    (LimitDriver, "_commit"),
    (Tracker, "delete"),
    (Tracker, "dump"),
    (sysctl, "write"),
    (standalone.Journal, "add"),
    (standalone.Journal, "clear"),
    (Spare, "keep"),
    (Spare, "drop"),
    (Spare, "gone"),
]


class Death:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._count = 0

    def step(self) -> None:
        if not self._file.exists():
            return
        with self._lock:
            self._count += 1
            if self._count >= int(self._file.read_text()):
                os.kill(os.getpid(), signal.SIGKILL)

    def sow(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def dying(*args: Any, **options: Any) -> Any:
            self.step()
            result = real(*args, **options)
            self.step()
            return result

        setattr(owner, name, dying)


if __name__ == "__main__":
    death = Death(Path(sys.argv[1]))
    for place in OPERATIONS:
        death.sow(*place)
    if sys.argv[2] == "standalone":
        sys.exit(standalone.main())
    sys.argv[1:] = sys.argv[2:]
    main()

"""Run netplane's agent with edges that open late: long after all rooms are in sync.

python -m tests.faults.late FILE agent …      FILE holds the seconds
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from netplane.agent import Agent
from netplane.cli import main
from netplane.cni.server import CniServer


def delay(owner: Any, name: str, seconds: float) -> None:
    real = getattr(owner, name)

    def late(*args: Any) -> Any:
        time.sleep(seconds)
        return real(*args)

    setattr(owner, name, late)


if __name__ == "__main__":
    wait = float(Path(sys.argv[1]).read_text())
    delay(Agent, "_open_edges", wait)  # before the first is tried
    delay(CniServer, "start", wait)  # while it is tried: what a crash left is undone there
    sys.argv[1:] = sys.argv[2:]
    main()

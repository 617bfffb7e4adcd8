"""Programs that a test starts and that end with it, whatever becomes of the test."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def program(*argv: str | Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """With a pipe for its output; ``options`` are subprocess.Popen's. Still there at the end: killed.

    Popen's own end of a `with` waits for the program, for ever when a test failed before it was told to end.
    """
    with subprocess.Popen(argv, **{"stdout": subprocess.PIPE, "text": True} | options) as process:
        try:
            yield process
        finally:
            process.kill()

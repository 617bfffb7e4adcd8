"""The identity of one agent: random, kept in its state directory, locked while it lives."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path

from ..model.errors import Invalid, Unavailable


class Instance:
    """``id`` is the same after a restart, kill -9 included: that is how a restart is recognised.

    Raises Invalid when a living agent uses the same state directory, Unavailable when it cannot be
    written. The lock goes with the process, or with `close`.
    """

    def __init__(self, state_dir: str | Path) -> None:
        path = Path(state_dir) / "instance"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise Unavailable(f"state directory {state_dir}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise Invalid(
                f"state directory {state_dir} is in use by another agent; give each its own --state-dir"
            ) from None
        self.id = self._read() or self._write()

    def _read(self) -> str:
        text = os.pread(self._fd, 64, 0).decode("ascii", "replace").strip()
        return text if len(text) == 32 and text.isalnum() else ""

    def _write(self) -> str:
        made = uuid.uuid4().hex
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{made}\n".encode(), 0)
        os.fsync(self._fd)
        return made

    def close(self) -> None:
        os.close(self._fd)

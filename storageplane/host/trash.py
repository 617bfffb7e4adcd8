"""Data that was deleted, kept for a grace period: moved by rename, removed when its time is over.

    ROOT/csi/trash/SECONDS-NAME     SECONDS: when it was thrown away (Unix time)

Rule 1: without a grace period nothing is kept: `take` removes at once.
Rule 2: what cannot lie in the trash (memory, which is mounted) is removed at once too.
Rule 3: to take something back, stop the driver, move it to csi/data and write nothing: its record is gone,
        so create the volume anew under its old name; it finds the data that is there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from netplane.model.errors import KernelError, NetplaneError

from .. import backends
from . import mountinfo, tree


class Trash:
    """``folder`` is beneath ``root``; ``grace`` in seconds."""

    def __init__(self, root: Path, folder: str, grace: float) -> None:
        self._root, self._folder, self._grace = root, folder, grace

    @property
    def keeps(self) -> bool:
        return self._grace > 0

    def take(self, path: str) -> None:
        """Throw away what lies at a path beneath the root; gone already: fine. Raises KernelError(EBUSY)."""
        whole = str(self._root / path)
        if not self._grace or mountinfo.beneath(whole):
            backends.erase(self._root, path)
            return
        tree.make(self._root, self._folder, 0o700)
        backends.refuse_used(self._root, path)
        name = f"{int(time.time())}-{os.path.basename(path)}"
        with (
            tree.parent(self._root, path) as (source, old),
            tree.parent(self._root, f"{self._folder}/{name}") as (target, new),
        ):
            try:
                os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
            except FileNotFoundError:
                pass
            except OSError as exc:
                raise KernelError(exc.errno or 5, f"move {whole} to the trash") from exc

    def empty(self) -> Iterator[str]:
        """Remove what has lain there for the grace period. In words, what was done."""
        for name in self._names():
            thrown, _, what = name.partition("-")
            if not thrown.isdigit() or time.time() - int(thrown) < self._grace:
                continue
            try:
                backends.erase(self._root, f"{self._folder}/{name}")
                yield f"removed {what} from the trash"
            except NetplaneError as exc:
                yield f"could not remove {what} from the trash: {exc}"

    def pause(self) -> float:
        """Seconds until a look is worth while."""
        return min(max(self._grace / 4, 0.2), 60.0) if self._grace else 3600.0

    def _names(self) -> list[str]:
        try:
            return sorted(os.listdir(self._root / self._folder))
        except FileNotFoundError:
            return []

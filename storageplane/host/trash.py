"""Data that was deleted, kept for a grace period: moved by rename, removed when its time is over.

    FOLDER/SECONDS-NAME             SECONDS: when it was thrown away (Unix time)
    FOLDER.notes/SECONDS-NAME.json  what it was, for whoever takes it back

Rule 1: without a grace period nothing is kept: `take` removes at once.
Rule 2: what cannot lie in the trash (memory, which is mounted) is removed at once too.
Rule 3: nobody takes out what somebody else is removing: both hold the folder's lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from netplane.model.errors import KernelError, NetplaneError, NotFound

from .. import backends
from . import mountinfo, tree
from .durable import Shelf

STALE = 60.0  # seconds
ADVICE = "it was damaged; the data beside it is whole: move it by hand, or remove the file"


class Thrown(msgspec.Struct, frozen=True, kw_only=True):
    """``name``: what it was called; ``since``: Unix time; ``about``: what it was, for its owner."""

    name: str
    since: float
    about: str = ""

    @property
    def item(self) -> str:
        return f"{int(self.since)}-{self.name}"


class Trash:
    """``folder`` is beneath ``root``; ``grace`` in seconds."""

    def __init__(self, root: Path, folder: str, grace: float = 0.0) -> None:
        self._root, self.folder, self._grace = root, folder, grace
        self._notes = Shelf(root / f"{folder}.notes", Thrown, ADVICE)

    @property
    def keeps(self) -> bool:
        return self._grace > 0

    def take(self, path: str, about: Callable[[], str] = str) -> None:
        """Throw away what lies at a path beneath the root; gone already: fine. Raises KernelError(EBUSY)."""
        whole = str(self._root / path)
        if not self._grace or mountinfo.beneath(whole):
            backends.erase(self._root, path)
            return
        if not os.path.lexists(whole):
            return
        backends.refuse_used(self._root, path)
        tree.make(self._root, self.folder, 0o700)
        thrown = Thrown(name=os.path.basename(path), since=time.time(), about=about())
        with self._alone():
            self._notes.open()
            self._notes.put(thrown.item, thrown)
            self._move(path, f"{self.folder}/{thrown.item}", f"move {whole} to the trash")

    def restore(self, item: str, path: str) -> None:
        """Put back what was thrown away; done already: fine. Raises NotFound."""
        with self._alone():
            if os.path.lexists(self._root / path):
                return
            if not os.path.lexists(self._root / self.folder / item):
                raise NotFound(f"{item} is not in the trash {self._root / self.folder} (any more)")
            tree.make(self._root, os.path.dirname(path), 0o755)
            self._move(f"{self.folder}/{item}", path, f"move {item} from the trash")
            tree.kept(self._root, os.path.dirname(path))  # before it is forgotten, and said to be back
            self._forget(item)

    def _move(self, path: str, to: str, what: str) -> None:
        with tree.parent(self._root, path) as (source, old), tree.parent(self._root, to) as (target, new):
            try:
                os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
            except FileNotFoundError:
                pass
            except OSError as exc:
                raise KernelError(exc.errno or 5, what) from exc

    def all(self) -> list[Thrown]:
        """What lies here, the oldest first."""
        return [self.find(item) for item in self._items()]

    def find(self, name: str) -> Thrown:
        """By its name, of several the last, or by SECONDS-NAME. Raises NotFound."""
        items = [item for item in self._items() if name in (item, item.partition("-")[2])]
        if not items:
            raise NotFound(f"{name} is not in the trash {self._root / self.folder}")
        thrown, _, called = items[-1].partition("-")
        return self._notes.get(items[-1]) or Thrown(name=called, since=float(thrown))

    def empty(self, chosen: Callable[[Thrown], bool] | None = None) -> Iterator[str]:
        """Remove what has lain there for the grace period, or is ``chosen``. In words, what was done."""
        over = chosen or self.over
        here = self._items()
        for thrown in self._notes.all():
            if thrown.item not in here and time.time() - thrown.since > STALE:
                self._notes.remove(thrown.item)  # of a crash before the data was moved
        for item in self._items():
            try:
                thrown = self.find(item)
                if not over(thrown):
                    continue
                with self._alone():
                    backends.erase(self._root, f"{self.folder}/{item}")
                    self._forget(item)
                yield f"removed {thrown.name} from the trash"
            except NetplaneError as exc:
                yield f"could not remove {item} from the trash: {exc}"

    def over(self, thrown: Thrown) -> bool:
        """Whether its grace period is."""
        return time.time() - thrown.since >= self._grace

    def _forget(self, item: str) -> None:
        if self._notes.path(item).exists():
            self._notes.remove(item)

    def pause(self) -> float:
        """Seconds until a look is worth while."""
        return min(max(self._grace / 4, 0.2), 60.0) if self._grace else 3600.0

    def _items(self) -> list[str]:
        try:
            found = os.listdir(self._root / self.folder)
        except FileNotFoundError:
            return []
        return sorted(name for name in found if name.partition("-")[0].isdigit())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            fd = os.open(self._root / self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                raise NotFound(f"there is no trash {self._root / self.folder}") from None
            raise KernelError(exc.errno or 5, f"open the trash {self._root / self.folder}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

"""What is published on this node, one file per pod: written before anything is done, removed last.

Rule 1: a record names everything that its publication makes, so whoever finds it can take all away,
        without the Pod object and whatever step a crash fell on.
Rule 2: a record is durable before anything is done about it (see `durable`).
Rule 3: it holds keys, never contents: no secret is ever in it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ..host.durable import Shelf

ADVICE = "it was damaged; unmount what lies beneath the root by hand, then remove the file"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One pod's publication. ``keys`` in the order in which they are made."""

    uid: str
    namespace: str
    name: str
    node: str = ""
    target: str = ""  # real and absolute; "" when nothing is bound anywhere
    keys: tuple[tuple[str, str], ...] = ()
    sources: tuple[str, ...] = ()  # absolute paths of what is shown
    exclusive: tuple[str, ...] = ()  # ReadWriteOncePod volumes, by name
    modes: dict[str, str] = {}  # the access mode in which each persistent volume is used, by name
    leaving: bool = False  # unpublishing has begun: nobody repairs it any more


class Journal:
    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._shelf = Shelf(self.root / "published", Record, ADVICE)
        self.folder = self._shelf.folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time on this root, over processes."""
        self.root.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            self._shelf.open()
            yield
        finally:
            os.close(fd)

    def read(self, uid: str) -> Record | None:
        return self._shelf.get(uid)

    def records(self) -> list[Record]:
        """Every readable record."""
        return self._shelf.all()

    def damaged(self) -> list[str]:
        """What is wrong with each record that cannot be read."""
        return self._shelf.damaged()

    def write(self, record: Record) -> None:
        self._shelf.put(record.uid, record)

    def remove(self, uid: str) -> None:
        self._shelf.remove(uid)

    def user_of(self, path: str) -> str:
        """Who has this path published here: "pod NS/NAME", or "". A damaged record may mean any path."""
        for record in self.records():
            if any(s == path or s.startswith(path + "/") for s in record.sources):
                return f"pod {record.namespace}/{record.name}"
        return next((f"an unknown pod ({why})" for why in self.damaged()), "")

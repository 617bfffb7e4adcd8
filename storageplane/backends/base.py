"""What every backend gives: one volume's data made, copied, grown, measured and let go.

Rule: every verb may have been done before, wholly or in part; doing it again finishes it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from netplane.model.storage_facts import Mount

OVERCOMMIT = "user.storageplane.overcommit"


class Place(NamedTuple):
    """One volume or snapshot: what lies in the directory ``home`` (relative to ``root``, made already)."""

    root: Path
    home: str
    size: int = 0
    fstype: str = ""
    block: bool = False
    overcommit: bool = False

    @property
    def path(self) -> Path:
        return self.root / self.home


class Usage(NamedTuple):
    """Bytes; what a user of the volume may fill, not what the disk below has."""

    total: int
    used: int


class Backend(Protocol):
    name: str
    enforced: bool  # a write beyond the size fails
    draws: str  # "disk" or "memory": what a size is promised from; "": nothing is promised
    images: bool  # it has a file system of its own, or raw blocks

    def lacking(self, root: Path, fstype: str) -> str:
        """Why it cannot be had beneath this root; "" when it can."""
        ...

    def least(self, fstype: str) -> int: ...

    def content(self, place: Place) -> Path:
        """The file or directory that is the data; absent: not made, or lost."""
        ...

    def make(self, place: Place) -> None:
        """Raises KernelError (ENOSPC), Invalid for a size it cannot have, Unavailable without its tool."""
        ...

    def copy(self, source: Place, place: Place) -> None:
        """A copy that shares blocks where it can."""
        ...

    def grow(self, place: Place) -> None:
        """Up to ``place.size``; nothing ever shrinks."""
        ...

    def mount(self, place: Place, target: str, options: tuple[str, ...]) -> Mount:
        """The fact that shows the data at ``target``; options are mount flags."""
        ...

    def filled(self, place: Place) -> bool:
        """Whether what was just mounted takes all of its size already; raw blocks are not asked."""
        ...

    def grow_shown(self, place: Place, target: str) -> None:
        """After `grow`, let what is mounted at ``target`` take it."""
        ...

    def usage(self, place: Place) -> Usage | None:
        """What statvfs of the mount would not tell truthfully; None: it does."""
        ...

    def promised(self, root: Path, homes: Sequence[str]) -> int:
        """Bytes that the volumes in these homes may take beyond what they have."""
        ...

    def costs(self, source: Place) -> int:
        """Bytes that a copy of this takes of what may be promised: those that are copied, or, of blocks that
        the copy will share, those that a rewrite of the source needs then. Nothing where it overcommits.
        """
        ...

    def let_go(self, place: Place) -> None:
        """Before the home is removed: what would hold it. Raises KernelError(EBUSY) while in use."""
        ...


def mark(path: Path, place: Place) -> None:
    """What overcommits says so, and reserves nothing."""
    with suppress(OSError):  # no xattrs: it reserves, which errs to the safe side
        if place.overcommit:
            os.setxattr(path, OVERCOMMIT, b"true")


def marked(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, OVERCOMMIT))
    except OSError:
        return False

"""A directory of the root's own file system: as fast as that, no limit, and it says so."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from netplane.model.errors import Invalid
from netplane.model.storage_facts import Mount

from ..host import images, tree
from .base import Place, Usage


class InDirectory:
    name = "directory"
    enforced = False
    draws = ""
    images = False

    def lacking(self, root: Path, fstype: str) -> str:
        del root, fstype
        return ""

    def least(self, fstype: str) -> int:
        del fstype
        return 0

    def content(self, place: Place) -> Path:
        return place.path / "tree"

    def make(self, place: Place) -> None:
        tree.make(place.root, f"{place.home}/tree", 0o777)

    def copy(self, source: Place, place: Place) -> None:
        if self.content(place).exists():
            return
        fresh = f"{place.home}/tree.new"
        tree.remove(place.root, fresh)
        tree.make(place.root, fresh, 0o777)
        images.copy_tree(self.content(source), place.root / fresh)
        with tree.translated(f"copy to {place.path}"):
            os.rename(place.root / fresh, self.content(place))

    def grow(self, place: Place) -> None:
        pass  # the size is only recorded

    def mount(self, place: Place, target: str, options: tuple[str, ...]) -> Mount:
        if options:
            raise Invalid(
                f"mount_flags {', '.join(options)}: a {self.name} volume takes none; use backend image"
            )
        return Mount(target=target, source=str(self.content(place)))

    def filled(self, place: Place) -> bool:
        del place
        return True

    def grow_shown(self, place: Place, target: str) -> None:
        pass

    def usage(self, place: Place) -> Usage | None:
        del place
        return None

    def promised(self, root: Path, homes: Sequence[str]) -> int:
        del root, homes
        return 0

    def costs(self, source: Place) -> int:
        """Nothing where files share their blocks: a directory was promised none to write them again."""
        return 0 if source.overcommit else copied(source.root, self.content(source))

    def let_go(self, place: Place) -> None:
        pass


def copied(root: Path, folder: Path) -> int:
    """Bytes that a copy of a directory takes on the disk of ``root``."""
    if images.shares_blocks(root):
        return 0
    taken = 0
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            with suppress(OSError):  # it went meanwhile
                taken += os.lstat(os.path.join(top, name)).st_blocks * 512
    return taken

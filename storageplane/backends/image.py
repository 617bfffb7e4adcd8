"""A sparse file with a file system in it, or raw blocks, on a loop device: its size is a wall.

Rule 1: `df` tells the truth, since the file system is as large as the volume.
Rule 2: the file is the reservation: what it may still take is its size less its blocks. One whose class
        allows overcommit carries an extended attribute that says so, and reserves nothing. A block that
        it shares (with its snapshot) is none of its own: written again, it is a new one.
Rule 3: ext4 grows while mounted only with CAP_SYS_RESOURCE; without it, when it is next staged.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from netplane.model.storage_facts import Mount

from ..host import extents, images, loops
from .base import Place, Usage, mark, marked


class InImage:
    name = "image"
    enforced = True
    draws = "disk"
    images = True

    def lacking(self, root: Path, fstype: str) -> str:
        del root
        if not os.path.exists("/dev/loop-control"):
            return "there is no /dev/loop-control: load the kernel's loop module"
        if not images.tools(fstype):
            return f"mkfs.{fstype} is needed (Debian: {images.PACKAGE[fstype]})"
        return ""

    def least(self, fstype: str) -> int:
        return images.SMALLEST.get(fstype, 0)

    def content(self, place: Place) -> Path:
        return place.path / "image"

    def make(self, place: Place) -> None:
        images.make(self.content(place), place.size, place.fstype)
        mark(self.content(place), place)

    def copy(self, source: Place, place: Place) -> None:
        images.copy(self.content(source), self.content(place), place.fstype)
        images.grow(self.content(place), place.size)
        mark(self.content(place), place)

    def grow(self, place: Place) -> None:
        images.grow(self.content(place), place.size)

    def mount(self, place: Place, target: str, options: tuple[str, ...]) -> Mount:
        images.grow_unmounted(place.fstype, self.content(place))  # a clone may be larger than its source
        flags = (*images.OPTIONS.get(place.fstype, ()), *options)
        return Mount(target=target, source=str(self.content(place)), fstype=place.fstype, options=flags)

    def filled(self, place: Place) -> bool:
        return images.filled(place.fstype, self.content(place))

    def grow_shown(self, place: Place, target: str) -> None:
        device = loops.find(self.content(place))
        if not device:
            return
        loops.resize(device)
        if not place.block:
            images.grow_filesystem(place.fstype, device, target)

    def usage(self, place: Place) -> Usage | None:
        """Only raw blocks need it."""
        if not place.block:
            return None
        found = os.stat(self.content(place))
        return Usage(found.st_size, min(found.st_blocks * 512, found.st_size))

    def promised(self, root: Path, homes: Sequence[str]) -> int:
        made = [image for home in homes if (image := root / home / "image").exists()]
        sharing = bool(made) and images.shares_blocks(root)
        return sum(_left(image, sharing) for image in made)

    def costs(self, source: Place) -> int:
        image = self.content(source)
        if source.overcommit or marked(image):
            return 0
        try:
            blocks = os.stat(image).st_blocks * 512
            return max(0, blocks - extents.shared(image)) if images.shares_blocks(source.root) else blocks
        except FileNotFoundError:
            return 0

    def let_go(self, place: Place) -> None:
        image = self.content(place)
        if loops.refuse_used(image):
            loops.detach(image)


def _left(image: Path, sharing: bool) -> int:
    if marked(image):
        return 0
    try:
        found = os.stat(image)
        own = found.st_blocks * 512 - (extents.shared(image) if sharing else 0)
    except FileNotFoundError:
        return 0
    return max(0, found.st_size - max(0, own))

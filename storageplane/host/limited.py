"""A file system in a sparse file that has exactly so much room: the limit of an emptyDir on disk.

Rule 1: what counts is what a user can write. ext4 takes some of an image for itself, so the image is made,
        what it has free is read from its superblock, and it is made again by the difference larger.
Rule 2: it appears under its name whole, by rename. It needs no journal: it goes with its pod.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from netplane.model.errors import KernelError

from . import images
from .tree import translated

BLOCK = 4096  # bytes; 1024 below SMALL, where every block counts
SMALL = 4 << 20
INODE_EVERY = 16384  # bytes; 64 times that above 64 GiB
LARGE = 64 << 30
FEWEST = 64  # inodes
LEAST = 65536  # bytes of room; a smaller limit gets these
NEAR = 16 * BLOCK  # more room than was asked for
TRIES = 8


def make(image: Path, room: int) -> None:
    """An ext4 image with ``room`` bytes free, or a few blocks more. There already: fine.

    Raises KernelError (ENOSPC, EFBIG), Unavailable without mkfs.ext4.
    """
    if image.exists():
        return
    fresh = image.with_name(f"{image.name}.new")
    room = max(room, LEAST)
    size = _rounded(room + room // 40 + (1 << 20))
    for _ in range(TRIES):
        _format(fresh, size, room)
        more = _rounded(room) - usable(fresh)
        if -NEAR <= more <= 0:
            _settle(fresh, image)
            return
        size += more
    raise KernelError(errno.EINVAL, f"make image {image}", f"no ext4 has exactly {room} bytes of room")


def _settle(fresh: Path, image: Path) -> None:
    with translated(f"make image {image}"), open(fresh, "rb") as file:
        os.fsync(file.fileno())
        os.replace(fresh, image)


def _rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _format(fresh: Path, size: int, room: int) -> None:
    with translated(f"make image {fresh}"), open(fresh, "wb") as file:
        file.truncate(size)
    inodes = max(FEWEST, size // (INODE_EVERY * (64 if room > LARGE else 1)))
    without = "^has_journal,^resize_inode"
    lazily = "lazy_itable_init=1,nodiscard"
    how = (
        "-q",
        "-F",
        "-m",
        "0",
        "-b",
        str(1024 if room < SMALL else BLOCK),
        "-N",
        str(inodes),
        "-O",
        without,
        "-E",
        lazily,
    )
    images.run("mkfs.ext4", *how, str(fresh), package="e2fsprogs")


def usable(image: Path) -> int:
    """Bytes that users of an ext4 image can write, by its superblock.

    The kernel keeps a fiftieth, at most 4096 blocks, for itself (ext4_calculate_resv_clusters).
    Source: Linux Documentation/filesystems/ext4/globals.rst.
    """
    with translated(f"read {image}"), open(image, "rb") as file:
        file.seek(1024)
        raw = file.read(1024)
    blocks, free = (_wide(raw, low, high) for low, high in ((0x4, 0x150), (0xC, 0x158)))
    block = 1024 << int(struct.unpack_from("<I", raw, 0x18)[0])
    return (free - min(blocks // 50, 4096)) * block


def _wide(raw: bytes, low: int, high: int) -> int:
    return int(struct.unpack_from("<I", raw, low)[0]) | int(struct.unpack_from("<I", raw, high)[0]) << 32

"""What of a file's blocks is another file's too (reflinks, snapshots), as its file system says.

Source: kernel Documentation/filesystems/fiemap.rst.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

FIEMAP = 0xC020660B  # linux/fs.h
_HEAD, _EXTENT = struct.Struct("=QQIIII"), struct.Struct("=QQQ16xI12x")
_LAST, _SHARED = 0x1, 0x2000  # linux/fiemap.h
_MANY = 1024  # extents at a time


def shared(path: Path) -> int:
    """Bytes of a file that lie in blocks which it shares; 0 where its file system cannot say."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _shared(fd)
    except OSError:
        return 0
    finally:
        os.close(fd)


def _shared(fd: int) -> int:
    buffer = bytearray(_HEAD.size + _MANY * _EXTENT.size)
    found, start = 0, 0
    while True:
        _HEAD.pack_into(buffer, 0, start, (1 << 64) - 1 - start, 0, 0, _MANY, 0)
        fcntl.ioctl(fd, FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        for at in range(count):
            logical, _, length, flags = _EXTENT.unpack_from(buffer, _HEAD.size + at * _EXTENT.size)
            found += length if flags & _SHARED else 0
            start = logical + length
        if count == 0 or flags & _LAST:
            return found

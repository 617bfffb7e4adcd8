"""One pod's publication is worked on by one process at a time; different pods never wait for each other.

Rule 1: the lock is a byte of ROOT/lock, chosen by the pod's UID: no file of its own that could be left.
        It belongs to an open file (F_OFD_SETLK, Linux 3.15), so threads exclude each other too, and a
        kill lets go. The journal's own lock on that file (flock) is another one.
Rule 2: a pod's lock is taken before the journal's, never the other way round.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from netplane.model.errors import KernelError, Unavailable

SETLK, SETLKW = 37, 38  # F_OFD_SETLK, F_OFD_SETLKW
SPAN = 1 << 40  # bytes to choose from; nobody writes them


@contextmanager
def alone(root: Path, uid: str, wait: bool = True) -> Iterator[None]:
    """Raises Unavailable when somebody else has it and ``wait`` is off."""
    place = int.from_bytes(hashlib.sha256(uid.encode()).digest()[:8]) % SPAN
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0)  # struct flock
    root.mkdir(parents=True, exist_ok=True)
    fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _take(fd, SETLKW if wait else SETLK, request)
        yield
    finally:
        os.close(fd)


def _take(fd: int, how: int, request: bytes) -> None:
    try:
        fcntl.fcntl(fd, how, request)
    except BlockingIOError:
        raise Unavailable("the pod is being published or unpublished right now") from None
    except OSError as exc:
        raise KernelError(exc.errno or errno.EIO, "lock a pod's publication") from exc

"""A FUSE file system with an empty root directory, and nothing else: it is there to be killed.

    python -m tests.mounts.fuse_server DIR [ERRNO]

Prints "ready" once it is mounted. From SIGUSR1 on it answers GETATTR and STATFS with ERRNO, and prints
"broken". The protocol is that of linux/fuse.h 7.31: INIT, GETATTR, STATFS, and ENOENT or ENOSYS for the rest.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys
from collections.abc import Callable

from netplane.reconcile.signals import on_signals

LOOKUP, FORGET, GETATTR, STATFS, INIT, INTERRUPT, BATCH_FORGET = 1, 2, 3, 17, 26, 36, 42
MODE = 0o40755
broken: list[int] = []


def main() -> None:
    def told(_: int) -> None:
        broken.append(int(sys.argv[2]))
        print("broken", flush=True)

    on_signals(told, signal.SIGUSR1)
    serve(sys.argv[1], lambda opcode, node, _: answer(opcode, node))


def serve(place: str, answer: Callable[[int, int, bytes], tuple[int, bytes]]) -> None:
    """Mount and answer until it is unmounted. ``answer``: by opcode, node and body, an errno and a body."""
    fuse = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fuse},rootmode={MODE:o},user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"test", os.fsencode(place), b"fuse", 0, options) < 0:
        raise OSError(ctypes.get_errno(), "mount")
    print("ready", flush=True)
    while True:
        try:
            asked = os.read(fuse, 1 << 20)
        except OSError as exc:
            if exc.errno == errno.ENODEV:  # unmounted
                return
            raise
        _, opcode, unique, node, _ = struct.unpack_from("<IIQQI", asked)
        if opcode not in (FORGET, INTERRUPT, BATCH_FORGET):
            error, body = answer(opcode, node, asked[40:])
            os.write(fuse, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)


def answer(opcode: int, node: int) -> tuple[int, bytes]:
    if opcode == INIT:
        return 0, struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, 0)
    if opcode in (GETATTR, STATFS) and broken:
        return broken[0], b""
    if opcode == STATFS:
        return 0, struct.pack("<5Q10I", 0, 0, 0, 0, 0, 4096, 255, 4096, *[0] * 7)
    if opcode == GETATTR:  # never cached, so that every look asks us
        return 0, struct.pack("<QII6Q10I", 0, 0, 0, node, 0, 0, 0, 0, 0, 0, 0, 0, MODE, 2, 0, 0, 0, 4096, 0)
    return (errno.ENOENT if opcode == LOOKUP else errno.ENOSYS), b""


if __name__ == "__main__":
    main()

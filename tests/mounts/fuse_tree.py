"""A FUSE file system that holds directories and knows no flags of rename, as nfs, 9p and ceph know none.

    python -m tests.mounts.fuse_tree DIR

Prints "ready" once it is mounted. The protocol is that of linux/fuse.h 7.31; RENAME2 and what else is not
here is ENOSYS.
"""

from __future__ import annotations

import errno
import struct
import sys

from . import fuse_server
from .fuse_server import GETATTR, LOOKUP

SETATTR, MKDIR, RMDIR, RENAME, OPENDIR, RELEASEDIR = 4, 9, 11, 12, 27, 29
MODE, UID, GID = 1, 2, 4  # bits of SETATTR
nodes: dict[int, list[int]] = {1: [0o755, 0, 0]}  # mode, uid, gid
names: dict[tuple[int, bytes], int] = {}


def attributes(node: int) -> bytes:
    mode, uid, gid = nodes[node]
    return struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, 0o40000 | mode, 2, uid, gid, 0, 4096, 0)


def entry(node: int) -> tuple[int, bytes]:
    return 0, struct.pack("<4Q2I", node, 0, 0, 0, 0, 0) + attributes(node)


def answer(opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
    if opcode == LOOKUP:
        found = names.get((node, body.rstrip(b"\0")))
        return entry(found) if found else (errno.ENOENT, b"")
    if opcode == MKDIR:
        fresh = max(nodes) + 1
        nodes[fresh] = [struct.unpack_from("<I", body)[0] & 0o7777, 0, 0]
        names[node, body[8:].rstrip(b"\0")] = fresh
        return entry(fresh)
    if opcode == RENAME:
        old, new = body[8:].split(b"\0")[:2]
        names[struct.unpack_from("<Q", body)[0], new] = names.pop((node, old))
        return 0, b""
    if opcode == RMDIR:
        del names[node, body.rstrip(b"\0")]
        return 0, b""
    if opcode == SETATTR:
        valid, mode, uid, gid = struct.unpack_from("<I64xI4xII", body)
        if valid & MODE:
            nodes[node][0] = mode & 0o7777
        if valid & UID:
            nodes[node][1] = uid
        if valid & GID:
            nodes[node][2] = gid
    if opcode in (GETATTR, SETATTR):
        return 0, struct.pack("<QII", 0, 0, 0) + attributes(node)
    if opcode in (OPENDIR, RELEASEDIR):
        return 0, bytes(16) if opcode == OPENDIR else b""
    return fuse_server.answer(opcode, node)


if __name__ == "__main__":
    fuse_server.serve(sys.argv[1], answer)

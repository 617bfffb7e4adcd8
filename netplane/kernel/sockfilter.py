"""Which packets a socket wants (classic BPF, socket(7)), so that nobody is woken for those of others."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from collections.abc import Iterable

LOAD_WORD, LOAD_HALF, LOAD_BYTE, JUMP_EQUAL, GIVE = 0x20, 0x28, 0x30, 0x15, 0x06  # linux/bpf_common.h
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h


def big(number: int, size: int = 2) -> int:
    """So many bytes of the machine's order as the filter loads them: in network order."""
    return int.from_bytes(number.to_bytes(size, sys.byteorder), "big")


def pass_only(sock: socket.socket, code: Iterable[tuple[int, int, int, int]]) -> None:
    """``code``: operation, jump when true, jump when false, operand; GIVE 0 drops."""
    program = b"".join(struct.pack("=HBBI", *one) for one in code)
    kept = ctypes.create_string_buffer(program, len(program))
    words = struct.pack("@HP", len(program) // 8, ctypes.addressof(kept))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, words)

"""A thread that listens to a netlink socket until it is closed: for the monitors of links and of nftables."""

from __future__ import annotations

import os
import socket
import threading
from typing import Self

from .ready import readable

OVERRUN = "overrun"  # what a callback is told when events were lost
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h


class Monitor:
    """Subclasses bind ``sock`` before `start`, and read it in `_hear`, which a thread of its own calls."""

    def __init__(self, name: str, sock: socket.socket, buffer: int) -> None:
        self._sock = sock
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        self._wake, self._stop = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        os.write(self._stop, b"x")
        if self._thread.is_alive():
            self._thread.join()
        self._sock.close()
        os.close(self._wake)
        os.close(self._stop)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> None:
        while self._wake not in readable(self._sock.fileno(), self._wake):
            self._hear()

    def _closing(self, seconds: float) -> bool:
        """Wait so long; True as soon as the monitor is being closed."""
        return bool(readable(self._wake, timeout=seconds))

    def _hear(self) -> None:
        """There is something to read."""
        raise NotImplementedError

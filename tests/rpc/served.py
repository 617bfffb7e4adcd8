"""What the server is tested with: a handful of methods, here or in a program of their own.

python -m tests.rpc.served PATH
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from storageplane.rpc.codes import Code, Failed
from storageplane.rpc.server import Method, Server

SOON = 10.0  # seconds
MIB = 1 << 20


class Methods:
    """Wait blocks until ``gate`` is set; ``begun`` has the messages of the calls that were begun."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: list[bytes] = []
        self.ended: list[bytes] = []
        self.more = threading.Condition()

    def all(self) -> dict[str, Method]:
        calls = {"Echo": self.echo, "Wait": self.wait, "Fail": self.fail, "Bug": self.bug, "Grow": self.grow}
        found = {f"/t.T/{name}": Method(bytes, call, bytes) for name, call in calls.items()}
        return {**found, "/t.T/Typed": Method(json.loads, self.echo, lambda what: json.dumps(what).encode())}

    def echo(self, message: Any) -> Any:
        return message

    def wait(self, message: bytes) -> bytes:
        with self.more:
            self.begun.append(message)
            self.more.notify_all()
        self.gate.wait(SOON)
        with self.more:
            self.ended.append(message)
            self.more.notify_all()
        return message

    def until(self, what: list[bytes], count: int) -> None:
        with self.more:
            assert self.more.wait_for(lambda: len(what) >= count, SOON), what

    def fail(self, message: bytes) -> bytes:
        raise Failed(Code.OUT_OF_RANGE, message.decode())

    def bug(self, message: bytes) -> bytes:
        raise ZeroDivisionError(f"secret {message!r}")

    def grow(self, message: bytes) -> bytes:
        """So many bytes."""
        return bytes(int(message))


def main() -> None:
    server = Server(4)
    server.serve(Methods().all())
    server.start(Path(sys.argv[1]))
    signal.sigwait({signal.SIGTERM})
    sys.exit(not server.stop(1, 1))


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()

"""A server in this process, and one in a program of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from storageplane.rpc.server import PATIENCE, Server

from .served import SOON, Methods
from .wire import Wire

MOST = 4


class Served(Methods):
    def __init__(self, path: Path, most: int = MOST, patience: float = PATIENCE) -> None:
        super().__init__()
        self.path = path
        self.server = Server(most, patience)
        self.server.serve(self.all())
        self.server.start(path)

    def channel(self) -> grpc.Channel:
        """With a connection of its own."""
        return grpc.insecure_channel(f"unix:{self.path}", [("grpc.use_local_subchannel_pool", 1)])


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "s.sock")
    yield served
    served.gate.set()
    assert served.server.stop(SOON, SOON)
    assert not [one for one in threading.enumerate() if one.name == "rpc"]


@pytest.fixture
def hurried(tmp_path: Path) -> Iterator[Served]:
    """A server that waits a second and a half for what a client owes it."""
    served = Served(tmp_path / "h.sock", patience=1.5)
    yield served
    served.gate.set()
    assert served.server.stop(SOON, SOON)


@pytest.fixture
def wire(served: Served) -> Iterator[Wire]:
    with Wire(served.path) as wire:
        yield wire


class Program:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = subprocess.Popen([sys.executable, "-m", "tests.rpc.served", str(path)])
        give_up = time.monotonic() + SOON
        while not path.exists():
            assert time.monotonic() < give_up and self.process.poll() is None
            time.sleep(0.01)
        self.answers()

    def connect(self) -> socket.socket:
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        found.settimeout(SOON)
        found.connect(str(self.path))
        return found

    def answers(self) -> None:
        """Somebody else's call is answered."""
        give_up = time.monotonic() + SOON
        while True:
            try:
                with Wire(self.path) as wire:
                    assert wire.call(b"still here").data[5:] == b"still here"
                    return
            except ConnectionRefusedError:  # bound, and not listening yet
                assert time.monotonic() < give_up

    def memory(self) -> float:
        """MiB that are resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """Whatever a test does to it, it answers afterwards, and ends when it is told to."""
    program = Program(tmp_path / "p.sock")
    before = program.memory()
    yield program
    program.answers()
    assert program.memory() < before + 90
    program.process.terminate()
    assert program.process.wait(SOON) == 0

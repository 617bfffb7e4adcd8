"""Flows that can be watched: echo servers and open connections in a lab, and what is remembered of them."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from netplane.health import ask_agent
from netplane.kernel import bpfhook
from netplane.lab import Lab

TCP, UDP = 8080, 5300


def eventually(condition: Callable[[], Any], seconds: float = 10.0, what: str = "it") -> Any:
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up, f"{what} did not come about"
        time.sleep(0.01)
    return found


class Echo:
    """Answers on TCP and UDP in a place, in both families, with what it was sent."""

    def __init__(self, place: Any) -> None:
        self.peers: set[str] = set()
        self._stream, self._datagram = place.python(_listen)
        for serve in (self._accept, self._answer):
            threading.Thread(target=serve, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, peer = self._stream.accept()
                self.peers.add(peer[0].removeprefix("::ffff:"))
                threading.Thread(target=self._echo, args=(sock,), daemon=True).start()

    def _echo(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := sock.recv(1 << 16):
                sock.sendall(data)

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = self._datagram.recvfrom(1 << 16)
                self.peers.add(peer[0].removeprefix("::ffff:"))
                self._datagram.sendto(data, peer)

    def close(self) -> None:
        self._stream.close()
        self._datagram.close()


def _listen() -> tuple[socket.socket, socket.socket]:
    found = []
    for kind, port in ((socket.SOCK_STREAM, TCP), (socket.SOCK_DGRAM, UDP)):
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::", port))
        found.append(sock)
    found[0].listen(64)
    return found[0], found[1]


class Talk:
    """An open flow from a place to an echo server: `say` sends and expects it back."""

    def __init__(self, place: Any, host: str, port: int, protocol: str = "tcp") -> None:
        self.protocol = protocol
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        self.sock: socket.socket = place.python(socket.socket, family, kind)
        self.sock.settimeout(5)
        self.sock.connect((host, port))
        self.port = self.sock.getsockname()[1]

    def say(self, data: bytes = b"hello") -> None:
        self.sock.sendall(data)
        found = b""
        while len(found) < len(data):
            piece = self.sock.recv(1 << 16)
            assert piece, "the other side closed"
            found += piece
        assert found == data

    def answered(self, seconds: float) -> bool:
        """Whether something sent now comes back in time."""
        self.sock.settimeout(seconds)
        try:
            self.sock.sendall(b"x")
            return bool(self.sock.recv(1 << 16))
        except OSError:
            return False
        finally:
            self.sock.settimeout(5)

    def close(self) -> None:
        self.sock.close()


@contextlib.contextmanager
def talk(place: Any, host: str, port: int = 0, protocol: str = "tcp") -> Iterator[Talk]:
    made = Talk(place, host, port or {"tcp": TCP, "udp": UDP}[protocol], protocol)
    try:
        yield made
    finally:
        made.close()


def remembered(node: Any, port: int = 0) -> list[dict[str, Any]]:
    """What a node remembers (`netplane flows`); with ``port``, of the flow that has it at one of its ends."""
    fields = ("source_port", "destination_port", "new_source_port", "new_destination_port")
    found = ask_agent(node.run_dir, "/flows")["flows"]
    return [flow for flow in found if not port or port in [flow[field] for field in fields]]


def verdicts(node: Any) -> dict[str, int]:
    found: dict[str, int] = ask_agent(node.run_dir, "/flows")["verdicts"]
    return found


def hooks(node: Any) -> int:
    """How many devices of the node have a program of ours at their ingress."""
    return int(node.python(lambda: sum(_ours(ifindex) for ifindex, _ in socket.if_nameindex())))


def _ours(ifindex: int) -> int:
    found = [one for way in bpfhook.ways() for one in way.attached(ifindex, bpfhook.INGRESS)]
    for one in found:
        one.close()
    return sum(one.name.startswith("np_from_") for one in found)


def wait_hooked(lab: Lab) -> None:
    """Until every pod's host end has its programs: that follows its ADD a moment later."""
    for node in lab.nodes:
        eventually(lambda node=node: hooks(node) >= 2 + len(node.pods), what="the programs on every port")


class Steady:
    """Something said on a flow every millisecond until `stop`, which gives what was lost."""

    def __init__(self, flow: Talk, size: int = 64) -> None:
        self._flow, self._size, self._stopping = flow, size, threading.Event()
        self.said, self.problem, self.last = 0, "", time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(0.001):
                self._flow.say(self.said.to_bytes(8, "big").ljust(self._size, b"."))
                self.said, self.last = self.said + 1, time.monotonic()
        except (OSError, AssertionError) as exc:
            self.problem = repr(exc)

    def stop(self) -> int:
        self._stopping.set()
        self._thread.join(10)
        assert not self.problem, self.problem
        return self.said


class Streams:
    """A thousand datagrams a second from a node to each of its pods until `stop`."""

    def __init__(self, node: Any, pods: list[Any]) -> None:
        self._heard = [pod.python(_deaf) for pod in pods]
        self._to = [(pod.ip, UDP + 1) for pod in pods]
        self._sock: socket.socket = node.python(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._stopping, self._sent = threading.Event(), 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(0.0005):
            for address in self._to:
                self._sock.sendto(b"x", address)
            self._sent += 1

    def stop(self) -> tuple[int, list[int]]:
        """How many were sent to each, and how many each has got."""
        self._stopping.set()
        self._thread.join(10)
        self._sock.close()
        return self._sent, [_count(sock) for sock in self._heard]


def _deaf() -> socket.socket:
    """A socket that keeps what it gets."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    sock.bind(("0.0.0.0", UDP + 1))
    sock.setblocking(False)
    return sock


def _count(sock: socket.socket) -> int:
    number = 0
    with sock, contextlib.suppress(BlockingIOError):
        while sock.recv(16):
            number += 1
    return number

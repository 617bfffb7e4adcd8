"""The agent's end of the CNI binary: a unix socket, a thread per request in hand, one answer each.

Rule 1: only root (and the agent's own user) may speak: the socket has mode 0600, and the kernel is asked
        who connected.
Rule 2: whatever happens, the runtime gets CNI's JSON, never a traceback and never silence.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..model.errors import Invalid, NetplaneError
from . import delegate
from . import frame as wire
from .errors import ENVIRONMENT, INTERNAL, NEWEST, Refused, code_of, error_json
from .host import Host
from .render import CniConfig
from .request import parse, version_of
from .verbs import Verbs

log = logging.getLogger(__name__)
RECONCILE = 60.0  # seconds between looks for namespaces that went without DEL
PATIENCE = 30  # seconds for the other end to send its request and to take its answer, each time
_PATIENCE = struct.pack("@ll", PATIENCE, 0)  # struct timeval


class CniServer:
    """Answers CNI on the unix socket ``path``. ``start`` needs a host whose snapshot is synced."""

    def __init__(self, path: str, host: Host, config: CniConfig | None = None, workers: int = 32) -> None:
        self.path = path
        self.verbs = Verbs(host, config or CniConfig())
        self._listener: socket.socket | None = None
        self._look = threading.Event()
        self._stopping = False
        self._keeper = threading.Thread(target=self._keep, name="cni-keeper", daemon=True)
        self._threads = [
            threading.Thread(target=self._accept, name=f"cni-{i}", daemon=True) for i in range(workers)
        ]

    def start(self) -> None:
        """Undo what a crash left, then listen. Raises Unavailable, or Invalid when another agent does."""
        self.verbs.recover()
        self._listener = _listen(self.path)
        for thread in (*self._threads, self._keeper):
            thread.start()

    def stop(self) -> None:
        """Take no more requests, finish those in hand."""
        if self._listener is None:
            return
        self._stopping = True
        self._look.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        for thread in (*self._threads, self._keeper):
            thread.join()
        self._listener.close()
        Path(self.path).unlink(missing_ok=True)
        self._listener = None

    def look(self) -> None:
        """Some link went: release those whose namespace went without its DEL, so that nobody makes it again
        in another at the same path. What that owes to other plugins is seen to soon."""
        with delegate.unasked():
            self._tidy(self.verbs.reconcile)
        self._look.set()

    def _tidy(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception as exc:
            log.warning("looking for namespaces that are gone: %s", exc)

    def _keep(self) -> None:
        """Every while release what outlives its namespace; then, and after a look, see to what is owed."""
        while not self._stopping:
            looked = self._look.wait(RECONCILE)
            self._look.clear()
            if not (looked or self._stopping):
                self._tidy(self.verbs.reconcile)
            if not self._stopping:
                self._tidy(self.verbs.pay)

    def _accept(self) -> None:
        """Every thread waits for a connection of its own: the kernel wakes one, and nothing is handed on."""
        assert self._listener is not None
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            _limit(connection)
            try:
                raw = _receive(connection)
            except (OSError, Invalid) as exc:
                log.warning("a CNI request was not received: %s", exc)
                return
            if not raw:
                return
            try:
                given_up = functools.partial(_given_up, connection)
                connection.sendall(_stranger(connection) or self.answer(raw, given_up))
            except OSError as exc:
                log.warning("the answer to a CNI request was not taken (%s); the runtime will DEL", exc)

    def answer(self, raw: bytes, given_up: Callable[[], bool] = lambda: False) -> bytes:
        """One whole request frame into one answer frame; never raises. ``given_up`` as in `Verbs.run`."""
        frame = wire.Frame("")
        try:
            frame = wire.parse(raw)
            request = parse(frame)
            if frame.command != "DEL":  # a path under /proc may mean us by the time of DEL
                _check_own_namespace(request.netns)
            result = self.verbs.run(request, given_up)
            return wire.answer(0, msgspec.json.encode(result) + b"\n" if result is not None else b"")
        except Exception as exc:
            return _failure(exc, frame.command, version_of(frame.config))


def _failure(error: Exception, command: str, version: str) -> bytes:
    if not isinstance(error, NetplaneError | OSError):
        log.error("CNI %s failed unexpectedly", command, exc_info=error)
    elif code_of(error, command) != INTERNAL:
        log.info("CNI %s refused: %s", command, error)
    return wire.answer(1, msgspec.json.encode(error_json(error, command, version or NEWEST)) + b"\n")


def _check_own_namespace(path: str) -> None:
    with contextlib.suppress(OSError):
        if path and os.path.samestat(os.stat(path), _own_namespace()):
            raise Refused(ENVIRONMENT, f"CNI_NETNS: {path} is the node's own network namespace")


@functools.cache
def _own_namespace() -> os.stat_result:
    """A process stays where it was started."""
    return os.stat("/proc/self/ns/net")


def _stranger(connection: socket.socket) -> bytes:
    """What another user is told, whatever became of the socket's mode; b"" for root and our own."""
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user in (0, os.geteuid()):
        return b""
    refused = Refused(ENVIRONMENT, f"this agent answers root and user {os.geteuid()}, not user {user}")
    return _failure(refused, "", "")


def _given_up(connection: socket.socket) -> bool:
    """Whether the other end is closed for both ways."""
    poll = select.poll()
    poll.register(connection, 0)
    return bool(poll.poll(0))


def _limit(connection: socket.socket) -> None:
    """By the kernel, not by settimeout(), with which every call would be two and the socket never wait."""
    for way in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, way, _PATIENCE)


def _receive(connection: socket.socket) -> bytes:
    """One frame; b"" when the other end said nothing (a probe)."""
    raw = bytearray()
    whole = None
    while whole is None or len(raw) < whole:
        piece = connection.recv(1 << 16)
        if not piece:
            if raw:
                raise Invalid(f"the request ends after {len(raw)} bytes")
            return b""
        raw += piece
        whole = wire.expected(bytes(raw[:16])) if whole is None else whole
    return bytes(raw)


def _listen(path: str) -> socket.socket:
    """A listening socket of mode 0600; a dead agent's file is taken away, a living one's is not."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _alive(path):
            raise Invalid(f"{path}: another agent answers there; use another --run-dir, or stop it")
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise Invalid(f"{path}: is there and is not a socket; use another --run-dir")
            os.unlink(path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        os.fchmod(listener.fileno(), 0o600)  # before bind: the file never has another mode
        listener.bind(path)
        listener.listen(1024)
    except BaseException:
        listener.close()
        raise
    return listener


def _alive(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except TimeoutError:
            return True
        except OSError:
            return False
        return True

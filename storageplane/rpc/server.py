"""Threads that carry calls out, on top of csrc/rpc, which has the sockets, HTTP/2 and gRPC's framing.

Rule 1: a thread is made when a call comes and no other thread is left to wait for the next, so one call after
        another is one thread, whose memory is still in the processor's caches.
Rule 2: so many calls at a time; more wait, in order. One thread more keeps the sockets served meanwhile.
Rule 3: whatever a call raises, its client gets an answer and its thread goes on.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from netplane.model.errors import Invalid, Unavailable

from .codes import Code, Failed

try:
    from ._unary import ffi, lib

    LACKING = ""
except ImportError as exc:
    LACKING = f"serving gRPC needs nghttp2: apt install libnghttp2-dev, then build again ({exc})"

log = logging.getLogger(__name__)
PATIENCE = 30.0  # seconds


class Method(NamedTuple):
    """``call`` raises `Failed`; anything else is a bug of it, and its client is told no more than that."""

    decode: Callable[[bytes], Any]
    call: Callable[[Any], Any]
    encode: Callable[[Any], bytes]


class Server:
    """``most``: calls at a time. ``patience``: seconds in which a client has said its whole message, and then
    has read the answer. Raises Unavailable where it was built without nghttp2.
    """

    def __init__(self, most: int, patience: float = PATIENCE) -> None:
        if LACKING:
            raise Unavailable(LACKING)
        self._methods: dict[bytes, Method] = {}
        self._most = most
        self._patience = patience
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._handle = ffi.NULL  # while it does not serve

    def serve(self, methods: Mapping[str, Method]) -> None:
        """By path, "/package.Service/Method"; before `start`."""
        self._methods |= {path.encode(): method for path, method in methods.items()}

    def start(self, path: Path) -> None:
        """Listen at a path that is free, for root alone. Raises Invalid; Unavailable without resources."""
        listener, error = _listener(path), ffi.new("int *")
        self._handle = lib.np_rpc_open(listener.detach(), self._most, int(self._patience * 1e3), error)
        if self._handle == ffi.NULL:
            raise Unavailable(f"{path} cannot be served: {os.strerror(-error[0])}")
        if not self._hire():
            self._close()
            raise Unavailable(f"{path} cannot be served: no thread can be made; are there too many?")

    def stop(self, grace: float, patience: float) -> bool:
        """No new call; those here have ``grace`` seconds to be answered, then all is closed. Again: nothing.

        What is still carried out goes on to its end, and is waited for, ``patience`` seconds at most. False:
        it has not ended; its thread and what it needs stay until the process ends.
        """
        if self._handle == ffi.NULL:
            return True
        left = lib.np_rpc_stop(self._handle, int(grace * 1e3), int(patience * 1e3))
        if left:
            log.warning("%d calls have not ended", left)
            return False
        while self._threads:
            with self._lock:
                last = self._threads.pop()
            last.join()
        self._close()
        return True

    def _close(self) -> None:
        handle, self._handle = self._handle, ffi.NULL
        lib.np_rpc_close(handle)

    def _hire(self) -> bool:
        """One more thread, unless there are enough; False: none can be had now, and the others go on."""
        with self._lock:
            if len(self._threads) > self._most:
                return True
            made = threading.Thread(target=self._work, name="rpc", daemon=True)
            try:
                made.start()
            except RuntimeError as exc:  # a limit of processes or of memory
                log.warning("calls wait for those that run: %s", exc)
                return False
            self._threads.append(made)
            return True

    def _work(self) -> None:
        request = ffi.new("struct np_rpc_request *")
        while lib.np_rpc_next(self._handle, request) == 0:
            if request.lonely:
                self._hire()
            message = ffi.buffer(request.message, request.size)[:]
            code, answer = self._carry_out(ffi.string(request.path), message)
            lib.np_rpc_reply(self._handle, request.token, code, answer, len(answer))

    def _carry_out(self, path: bytes, message: bytes) -> tuple[int, bytes]:
        """The answer's status and its bytes: a message, or why not."""
        method = self._methods.get(path)
        if method is None:
            return Code.UNIMPLEMENTED, b"this method is not served here"
        try:
            request = method.decode(message)
        except Exception as exc:
            log.info("%s: %s", path.decode(), exc)
            return Code.INTERNAL, b"the request's message cannot be decoded"
        try:
            return Code.OK, method.encode(method.call(request))
        except Failed as exc:
            return exc.code, str(exc).encode(errors="replace")
        except BaseException:
            log.exception("%s", path.decode())
            return Code.UNKNOWN, b"the call failed; see the server's log"


def _listener(path: Path) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    found.setblocking(False)
    before = os.umask(0o177)
    try:
        found.bind(str(path))
        found.listen(socket.SOMAXCONN)  # who finds it full is refused, and comes back in a second
    except OSError as exc:
        found.close()
        raise Invalid(f"{path} cannot be listened on: {exc.strerror}") from exc
    finally:
        os.umask(before)
    return found

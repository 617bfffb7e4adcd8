"""A client that sends what it is told to, frame by frame, and shows what comes back."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

SOON = 10.0  # seconds
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
Pairs = list[tuple[str, str]]


@dataclass
class Answer:
    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    reset: int | None = None
    ended: bool = False

    @property
    def status(self) -> str:
        """grpc-status, of trailers or of an answer that is trailers only."""
        return (self.trailers or self.headers).get("grpc-status", "")

    @property
    def message(self) -> str:
        return (self.trailers or self.headers).get("grpc-message", "")


class Wire:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.socket.settimeout(SOON)
        self.h2 = H2Connection(
            H2Configuration(
                client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
            )
        )
        self.h2.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.goaway: int | None = None  # its error code
        self.flush()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def begin(self, path: str = "/t.T/Echo", end: bool = False, **other: str | None) -> int:
        """Send the headers of a call; the stream. ``other``: headers instead (None: without)."""
        headers = {
            ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
            "te": "trailers", "content-type": "application/grpc",
            **{name.replace("_", "-").replace("--", ":"): value for name, value in other.items()},
        }  # fmt: skip
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        pairs = [(name, value) for name, value in headers.items() if value is not None]
        self.h2.send_headers(stream, pairs, end_stream=end)
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, end: bool = True) -> None:
        """As DATA frames, waiting for room where there is none; no more once the call was answered."""
        while len(data) > (room := min(self.h2.local_flow_control_window(stream), 16384)):
            if room:
                self.h2.send_data(stream, data[:room])
                data = data[room:]
                self.flush()
            elif self.answers[stream].reset is None:
                self.hear()
            else:
                return
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def call(self, message: bytes = b"hello", path: str = "/t.T/Echo", **other: str | None) -> Answer:
        stream = self.begin(path, **other)
        self.send(stream, framed(message))
        return self.answer(stream)

    def answer(self, stream: int) -> Answer:
        found = self.answers[stream]
        while not found.ended and found.reset is None:
            assert self.hear(), f"hung up: {found}"
        return found

    def hear(self, reads: bool = True) -> bool:
        """Take what comes; False: the server has hung up. Raises TimeoutError."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            return False
        try:
            events = self.h2.receive_data(data) if data else []
        except ProtocolError:  # what this client did is what it complains of
            return False
        for event in events:
            self._take(event, reads)
        self.flush()
        return bool(data)

    def _take(self, event: Event, reads: bool) -> None:
        if isinstance(event, ConnectionTerminated):
            self.goaway = int(event.error_code or 0)
        found = self.answers.get(getattr(event, "stream_id", None) or 0)
        if found is None:
            return
        if isinstance(event, ResponseReceived):
            found.headers = _texts(event.headers)
        elif isinstance(event, TrailersReceived):
            found.trailers = _texts(event.headers)
        elif isinstance(event, DataReceived):
            found.data += event.data
            if reads and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamReset):
            found.reset = int(event.error_code)
        elif isinstance(event, StreamEnded):
            found.ended = True

    def hung_up(self) -> bool:
        """Whether the server hangs up, soon."""
        try:
            while self.hear():
                pass
        except (BrokenPipeError, ConnectionResetError):
            pass
        return True

    def rest(self) -> bytes:
        """What is sent until the server hangs up, as it comes."""
        found = b""
        while data := self.socket.recv(1 << 16):
            found += data
        return found


def _texts(pairs: object) -> dict[str, str]:
    return {bytes(name).decode(): bytes(value).decode() for name, value in pairs}  # type: ignore[attr-defined]


def framed(message: bytes, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(message)) + message


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of each."""
    while data:
        size = int.from_bytes(data[:3])
        yield data[3], data[4], int.from_bytes(data[5:9]), data[9 : 9 + size]
        data = data[9 + size :]

"""Peers that mean harm, or are broken: the server holds a bounded amount for them, and serves the others.

The fixture `program` measures its memory, makes somebody else's call and ends it after every test.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from .conftest import Program
from .served import MIB
from .wire import PREFACE, Wire, frame, framed

PING, SETTINGS, RESET, HEADERS, CONTINUATION, PRIORITY, UPDATE, DATA = 6, 4, 3, 1, 9, 2, 8, 0
HELD = 64 * MIB  # NP_RPC_HELD


def pour(wire: Wire, pieces: Iterator[bytes]) -> None:
    """Without reading, until all is sent, the server hangs up, or takes no more."""
    wire.socket.settimeout(1)
    with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
        for piece in pieces:
            wire.socket.sendall(piece)


def opened(number: int, path: str = "/t.T/Echo", more: bytes = b"") -> bytes:
    """A call's headers, spelt out: no table of HPACK is needed. ``more``: encoded ones."""
    pairs = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "x",
        "content-type": "application/grpc",
    }  # fmt: skip
    block = b"".join(b"\0" + spelt(name) + spelt(value) for name, value in pairs.items())
    return frame(HEADERS, 4, 2 * number + 1, block + more)


def spelt(text: str) -> bytes:
    """RFC 7541, 5.2; at most 16,510 bytes."""
    size = len(text)
    if size < 127:
        return bytes([size]) + text.encode()
    return bytes([127, size - 127 & 127 | 128, size - 127 >> 7]) + text.encode()


FLOODS: dict[str, Callable[[int], bytes]] = {
    "pings": lambda _: frame(PING, 0, 0, bytes(8)) * 100,
    "settings": lambda _: frame(SETTINGS, 0, 0, struct.pack(">HI", 3, 100) * 20) * 50,
    "empty settings": lambda _: frame(SETTINGS, 0, 0) * 100,
    "windows": lambda _: frame(UPDATE, 0, 0, struct.pack(">I", 1)) * 100,
    "priorities": lambda i: frame(PRIORITY, 0, 2 * i + 1, struct.pack(">IB", 0, 7)),
    "calls and resets": lambda i: opened(i) + frame(RESET, 0, 2 * i + 1, struct.pack(">I", 8)),
    "calls without an end": opened,
    "calls of no message": lambda i: opened(i) + frame(DATA, 1, 2 * i + 1),
    "frames of no kind": lambda _: frame(77, 0, 0, bytes(100)) * 100,
    "an empty frame of data": lambda i: (opened(0) if i == 0 else frame(DATA, 0, 1)) * (100 if i else 1),
    "a block without an end": lambda i: (
        frame(HEADERS, 0, 1) if i == 0 else frame(CONTINUATION, 0, 1, b"\0\1x\1y" * 3000)
    ),
    "empty pieces of a block": lambda i: (
        frame(HEADERS, 0, 1, b"\0") if i == 0 else frame(CONTINUATION, 0, 1) * 100
    ),
    "one header without an end": lambda i: (
        frame(HEADERS, 0, 1, b"\0\1x\x7f\xff\xff\xff\x07")
        if i == 0
        else frame(CONTINUATION, 0, 1, bytes(16000))
    ),
    "more than its window": lambda i: opened(0) if i == 0 else frame(DATA, 0, 1, bytes(16384)),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_frames(program: Program, name: str) -> None:
    with Wire(program.path) as wire:
        pour(wire, (FLOODS[name](i) for i in range(20_000)))
        program.answers()


def test_bytes_that_are_nothing(program: Program) -> None:
    chance = random.Random(7)
    for _ in range(50):
        for start in (b"", PREFACE, PREFACE + frame(SETTINGS, 0, 0)):
            with Wire(program.path) as wire:
                wire.socket.close()
            with Wire.__new__(Wire) as bare:
                bare.socket = program.connect()
                pour(bare, iter([start + chance.randbytes(chance.randrange(3000))]))


def test_a_request_of_http1(program: Program) -> None:
    with program.connect() as bare:
        bare.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while bare.recv(4096):  # its settings at most, then it hangs up
            pass


def test_half_a_request_is_held_and_forgotten_with_its_client(program: Program) -> None:
    before = program.descriptors()
    for _ in range(100):
        with Wire(program.path) as wire:
            wire.send(wire.begin(), framed(bytes(1000))[:500], end=False)
    for _ in range(100):  # headers that are cut off
        with program.connect() as bare:
            bare.sendall(PREFACE + frame(SETTINGS, 0, 0) + opened(0)[:20])
    program.answers()
    assert program.descriptors() <= before + 1


def test_more_connections_than_there_may_be(program: Program) -> None:
    """Who comes is let in, and the idle one that was silent longest goes."""
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(program.path)) for _ in range(400)]
        assert wires[-1].call().status == "0"
        assert program.descriptors() < 300
        assert wires[0].hung_up() and wires[0].goaway == 0


def test_connections_that_all_have_calls_keep_others_out_until_one_goes(program: Program) -> None:
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(program.path)) for _ in range(256)]
        for wire in wires:
            wire.begin()
            assert wire.hear()  # its settings: it was let in
        late = stack.enter_context(Wire(program.path))
        stream = late.begin()
        late.send(stream, framed(b"late"))
        late.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.answer(stream)
        wires[3].socket.close()
        late.socket.settimeout(10)
        assert late.answer(stream).data[5:] == b"late"


def test_more_calls_of_a_connection_than_there_may_be(program: Program) -> None:
    with Wire(program.path) as wire:
        while wire.h2.remote_settings.max_concurrent_streams != 100:
            wire.hear()
        pour(wire, (opened(i) for i in range(101)))
        wire.socket.settimeout(10)
        data = wire.rest()
        goaway = b"\7\0\0\0\0\0" + struct.pack(">II", 199, 1)  # PROTOCOL_ERROR: it knew
        assert goaway in data


def test_more_calls_than_its_client_knew_of(program: Program) -> None:
    with program.connect() as bare:
        bare.sendall(PREFACE + frame(SETTINGS, 0, 0) + b"".join(opened(i) for i in range(101)))
        data = b""
        refused = frame(RESET, 0, 201, struct.pack(">I", 7))  # REFUSED_STREAM: it may come again
        while refused not in data:
            data += bare.recv(65536)


def hung_up(bare: socket.socket, *pieces: bytes) -> bool:
    """Whether the server closes the connection by what comes; False: it is silent."""
    bare.settimeout(2)
    try:
        for piece in pieces:
            bare.sendall(piece)
        while bare.recv(65536):
            pass
    except TimeoutError:
        return False
    except (BrokenPipeError, ConnectionResetError):
        pass
    return True


def test_ten_thousand_frames_in_a_second_that_carry_no_call(program: Program) -> None:
    nothing, start = frame(UPDATE, 0, 0, struct.pack(">I", 1)) * 1000, PREFACE + frame(SETTINGS, 0, 0)
    with program.connect() as few, program.connect() as many:
        assert not hung_up(few, start, *[nothing] * 9)
        assert hung_up(many, start, *[nothing] * 25)  # in two seconds at most


def test_64_kib_of_one_block(program: Program) -> None:
    """As they are counted (RFC 9113 6.5.2): one byte may be a header of 60. Or as they come, for a call that
    is refused, of which nothing is counted."""
    start = PREFACE + frame(SETTINGS, 0, 0)
    refused = frame(HEADERS, 0, 201) + frame(CONTINUATION, 0, 201, b"\0\1x\1y" * 3200) * 5
    with program.connect() as less, program.connect() as more, program.connect() as other:
        assert not hung_up(less, start, opened(0, more=b"\x90" * 900))
        assert hung_up(more, start, opened(0, more=b"\x90" * 2000))
        assert hung_up(other, start, *(opened(i) for i in range(100)), refused)


def test_the_paths_of_calls_without_an_end(program: Program) -> None:
    """10,000 of 16 KB, of which it keeps no more than a method's name may have."""
    before = program.memory()
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            bare = stack.enter_context(program.connect())
            calls = (opened(i, "/" + "x" * 15900) for i in range(100))
            bare.sendall(PREFACE + frame(SETTINGS, 0, 0) + b"".join(calls))
        program.answers()
        assert program.memory() < before + 40


def test_all_messages_together_are_bounded(program: Program) -> None:
    """Clients that send all but the last byte: those beyond 64 MiB are told to come again."""
    with contextlib.ExitStack() as stack:
        codes = []
        for _ in range(20):
            wire = stack.enter_context(Wire(program.path))
            stream = wire.begin()
            wire.send(stream, framed(bytes(4 * MIB))[:-1], end=False)
            codes.append(wire.answers[stream].status)
        assert codes == [""] * (HELD // (4 * MIB)) + ["14"] * 4


def test_answers_that_nobody_reads_are_bounded(program: Program) -> None:
    with contextlib.ExitStack() as stack:
        found = set()
        for _ in range(30):
            wire = stack.enter_context(Wire(program.path))
            streams = [wire.begin("/t.T/Grow") for _ in range(4)]
            for stream in streams:
                wire.send(stream, framed(str(MIB).encode()))
            for _ in range(8):
                wire.socket.settimeout(0.02)
                with contextlib.suppress(TimeoutError):
                    wire.hear(reads=False)
            found |= {wire.answers[stream].status for stream in streams}
        assert "14" in found


def test_a_server_without_descriptors_goes_on_when_it_has_some(program: Program) -> None:
    import resource

    resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, (program.descriptors() + 3, 4096))
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(program.path)) for _ in range(20)]
        assert wires[0].call().status == "0"
        resource.prlimit(program.process.pid, resource.RLIMIT_NOFILE, (1024, 4096))
        assert all(wire.call().status == "0" for wire in wires)

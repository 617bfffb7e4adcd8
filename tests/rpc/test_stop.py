"""The end: no new call, answers for those that are here, nothing left; and what is said without nghttp2."""

from __future__ import annotations

import importlib
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from netplane.model.errors import Unavailable
from storageplane.rpc import server

from ..descriptors import held
from .conftest import Served
from .served import SOON
from .wire import Wire, framed, frames


@pytest.fixture
def alone(tmp_path: Path) -> Served:
    """A server that the test stops."""
    return Served(tmp_path / "s.sock")


def threads() -> int:
    return len([one for one in threading.enumerate() if one.name == "rpc"])


def stopping(served: Served, grace: float, patience: float) -> tuple[threading.Thread, list[bool]]:
    told: list[bool] = []
    thread = threading.Thread(target=lambda: told.append(served.server.stop(grace, patience)))
    thread.start()
    return thread, told


def test_at_rest_it_ends_at_once(alone: Served) -> None:
    with Wire(alone.path) as wire:
        assert wire.call().status == "0"
        begin = time.monotonic()
        assert alone.server.stop(SOON, SOON)
        assert time.monotonic() - begin < SOON / 2
        assert wire.hung_up() and wire.goaway == 0
    assert threads() == 0


def test_what_is_under_way_is_answered_and_nothing_new_is_begun(alone: Served) -> None:
    with Wire(alone.path) as wire, Wire(alone.path) as idle:
        assert idle.call().status == "0"
        streams = [wire.begin("/t.T/Wait") for _ in range(10)]  # more than run at a time
        for stream in streams:
            wire.send(stream, framed(b"x"))
        alone.until(alone.begun, 4)
        thread, told = stopping(alone, SOON, SOON)
        assert idle.hung_up()
        with pytest.raises(ConnectionRefusedError):
            Wire(alone.path)
        wire.send(wire.begin("/t.T/Wait"), framed(b"too late"))
        alone.gate.set()
        sent = list(frames(wire.rest()))  # h2 takes nothing any more after a GOAWAY
        thread.join(SOON)
    assert told == [True] and threads() == 0 and alone.begun == [b"x"] * 10
    goaways = [payload for kind, _, _, payload in sent if kind == 7]
    assert goaways == [struct.pack(">II", streams[-1], 0)]
    trailers = [stream for kind, flags, stream, _ in sent if kind == 1 and flags & 1]
    assert sorted(trailers) == streams


def test_after_the_grace_it_hangs_up_and_waits_for_what_runs(alone: Served) -> None:
    with Wire(alone.path) as wire:
        for _ in range(6):
            wire.send(wire.begin("/t.T/Wait"), framed(b"x"))
        alone.until(alone.begun, 4)
        thread, told = stopping(alone, 0.1, SOON)
        assert wire.hung_up()
        assert not alone.ended and not told
        alone.gate.set()
        thread.join(SOON)
    assert told == [True] and threads() == 0
    assert len(alone.ended) == 4  # those that had not begun never did


def test_what_does_not_end_is_told_of(alone: Served, caplog: pytest.LogCaptureFixture) -> None:
    with Wire(alone.path) as wire:
        wire.send(wire.begin("/t.T/Wait"), framed(b"x"))
        alone.until(alone.begun, 1)
        assert not alone.server.stop(0, 0.05)
        assert "1 calls have not ended" in caplog.text
    alone.gate.set()
    alone.until(alone.ended, 1)  # its answer is nobody's, and harms nobody
    give_up = time.monotonic() + SOON
    while threads() and time.monotonic() < give_up:
        time.sleep(0.01)
    assert threads() == 0


def test_a_client_that_does_not_read_delays_the_end_by_the_grace(alone: Served) -> None:
    with Wire(alone.path) as wire:
        stream = wire.begin("/t.T/Grow")
        wire.send(stream, framed(b"1000000"))
        while not wire.answers[stream].data:
            wire.hear(reads=False)
        begin = time.monotonic()
        assert alone.server.stop(0.3, SOON)
        assert 0.25 < time.monotonic() - begin < SOON / 2


def test_grpcios_client_comes_back(alone: Served) -> None:
    """Calls over a channel go on when a server is replaced by the next on the same path."""
    with alone.channel() as channel:
        call = channel.unary_unary("/t.T/Echo")
        assert call(b"one", timeout=SOON) == b"one"
        alone.server.stop(SOON, SOON)
        alone.path.unlink()
        following = Served(alone.path)
        assert call(b"two", timeout=SOON, wait_for_ready=True) == b"two"
        following.server.stop(SOON, SOON)


def test_many_starts_and_ends_under_load_leave_nothing(tmp_path: Path) -> None:
    before, path = held(), tmp_path / "s.sock"
    over = threading.Event()

    def press(_: int) -> int:
        answered = 0
        while not over.is_set():
            with suppress(ConnectionError, FileNotFoundError), Wire(path) as wire:
                streams = [wire.begin() for _ in range(3)]
                for stream in streams:
                    wire.send(stream, framed(b"x"))
                while not all(wire.answers[stream].ended for stream in streams) and wire.hear():
                    pass
                answered += sum(wire.answers[stream].ended for stream in streams)
        return answered

    with ThreadPoolExecutor(4) as pool:
        clients = pool.map(press, range(4))
        for _ in range(20):
            served = Served(path)
            time.sleep(0.05)  # under load
            assert served.server.stop(SOON, SOON)
            path.unlink()
        over.set()
        assert sum(clients) > 20
    assert threads() == 0 and held() == before


@pytest.fixture
def without() -> Iterator[None]:
    """As it was built without nghttp2."""
    name = "storageplane.rpc._unary"
    kept, sys.modules[name] = sys.modules[name], None  # type: ignore[assignment]
    importlib.reload(server)
    yield
    sys.modules[name] = kept
    importlib.reload(server)


@pytest.mark.usefixtures("without")
def test_without_nghttp2_one_line_says_what_to_do(tmp_path: Path) -> None:
    from storageplane import doctor

    with pytest.raises(Unavailable, match="nghttp2: apt install libnghttp2-dev, then build again") as caught:
        server.Server(1)
    assert "\n" not in str(caught.value)
    assert [line for _, line in doctor.findings(tmp_path) if "libnghttp2-dev" in line]

"""Clients that begin and do not go on: each is waited for so long, and whoever owes nothing for ever."""

from __future__ import annotations

import contextlib
import socket

from .conftest import Served
from .served import MIB, SOON
from .test_floods import HEADERS, SETTINGS, opened
from .wire import PREFACE, Wire, frame, framed


def test_a_message_that_does_not_end_is_answered_when_its_time_is_over(hurried: Served) -> None:
    with Wire(hurried.path) as idle, Wire(hurried.path) as wire:
        assert idle.call().status == "0"
        none, half = wire.begin(), wire.begin()
        wire.send(half, framed(b"hello")[:7], end=False)
        running = wire.begin("/t.T/Wait")
        wire.send(running, framed(b"runs"))
        hurried.until(hurried.begun, 1)
        for stream in (none, half):
            answer = wire.answer(stream)
            assert (answer.status, answer.message) == ("4", "its message did not come in time")
        hurried.gate.set()
        assert wire.answer(running).status == "0"  # what it takes to carry a call out is nobody's debt
        assert wire.call(b"next").status == "0" and idle.call().status == "0"
        assert not hurried.ended[1:]


def test_a_message_that_comes_late_is_taken(hurried: Served) -> None:
    with Wire(hurried.path) as wire:
        first = wire.begin()  # for which the clock ticks
        second = wire.begin()
        wire.send(second, framed(b"second"), end=False)
        wire.send(first, framed(b"first"))
        assert wire.answer(first).status == "0"
        wire.send(second, b"")
        assert wire.answer(second).data[5:] == b"second"
        third = wire.begin()
        assert wire.answer(third).status == "4"


def test_headers_that_do_not_end_are_hung_up_on(hurried: Served) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bare:
        bare.connect(str(hurried.path))
        bare.settimeout(SOON)
        bare.sendall(PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, 0, 1, opened(0)[9:]))
        while bare.recv(4096):
            pass


def test_who_does_not_read_its_answer_is_hung_up_on(hurried: Served) -> None:
    with Wire(hurried.path) as wire:
        stream = wire.begin("/t.T/Grow")
        wire.send(stream, framed(str(4 * MIB).encode()))
        with contextlib.suppress(BrokenPipeError):
            while wire.hear(reads=False):  # the bytes are taken, but no window is opened
                pass
        assert len(wire.answers[stream].data) == 65535


def test_as_many_connections_as_there_may_be_do_not_keep_others_out(hurried: Served) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(256):
            wire = stack.enter_context(Wire(hurried.path))
            wire.send(wire.begin(), framed(bytes(1000))[:500], end=False)
        late = stack.enter_context(Wire(hurried.path))
        assert late.call(b"late").data[5:] == b"late"

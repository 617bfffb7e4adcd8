"""What is on the wire: the requests that gRPC over HTTP/2 allows, those that it does not, and the answers."""

from __future__ import annotations

import time

import pytest

from .conftest import Served
from .served import MIB
from .wire import Wire, framed


def test_an_answer_is_headers_a_message_and_trailers(wire: Wire) -> None:
    answer = wire.call(b"hello")
    assert answer.headers == {":status": "200", "content-type": "application/grpc"}
    assert answer.data == framed(b"hello") and answer.trailers == {"grpc-status": "0"}


def test_an_empty_message_is_one(wire: Wire) -> None:
    answer = wire.call(b"")
    assert answer.data == framed(b"") and answer.status == "0"


def test_a_failure_is_trailers_only(wire: Wire) -> None:
    answer = wire.call(b"no such thing", "/t.T/Fail")
    assert answer.headers[":status"] == "200" and answer.headers["content-type"] == "application/grpc"
    assert (answer.status, answer.message) == ("11", "no such thing")
    assert not answer.data and not answer.trailers


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("100 %", "100 %25"),
        ("zu groß – 2 €", "zu gro%C3%9F %E2%80%93 2 %E2%82%AC"),
        ("two\nlines\t~", "two%0Alines%09~"),
        ("", ""),
    ],
)
def test_a_reason_is_percent_encoded_utf8(wire: Wire, said: str, sent: str) -> None:
    assert wire.call(said.encode(), "/t.T/Fail").message == sent


def test_a_long_reason_is_cut_between_characters(wire: Wire) -> None:
    message = wire.call(("ß" * 3000).encode(), "/t.T/Fail").message
    assert 4000 < len(message) <= 4096 and message == "%C3%9F" * (len(message) // 6)


@pytest.mark.parametrize("path", ["/t.T/None", "/t.None/Echo", "/", "/t.T/Echo/", "/" + "x" * 9000])
def test_what_is_not_served_is_unimplemented(wire: Wire, path: str) -> None:
    assert wire.call(path=path).status == "12"


def test_a_bug_tells_its_client_nothing_and_the_log_all(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    answer = wire.call(b"x", "/t.T/Bug")
    assert answer.status == "2" and "secret" not in answer.message
    assert "ZeroDivisionError" in caplog.text and wire.call(b"next").status == "0"


def test_a_message_that_cannot_be_decoded_is_internal(wire: Wire) -> None:
    assert wire.call(b"{", "/t.T/Typed").status == "13"
    assert wire.call(b'{"a": 1}', "/t.T/Typed").data[5:] == b'{"a": 1}'


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", "12"),  # a unary call has one message, says the table of status codes
        (framed(b"a") + framed(b"b"), "12"),
        (framed(b"a") + b"\0", "12"),
        (framed(b"hello")[:3], "13"),
        (framed(b"hello")[:-1], "13"),
        (framed(b"x", compressed=1), "13"),  # and not said how
        (framed(b"x", compressed=7), "13"),
    ],
)
def test_a_call_has_one_whole_message(wire: Wire, sent: bytes, code: str) -> None:
    stream = wire.begin()
    wire.send(stream, sent)
    assert wire.answer(stream).status == code
    assert wire.call(b"next").status == "0"


def test_headers_alone_are_no_message(wire: Wire) -> None:
    assert wire.answer(wire.begin(end=True)).status == "12"


def test_a_compressed_message_is_refused_with_what_is_accepted(wire: Wire) -> None:
    stream = wire.begin(grpc_encoding="gzip")
    wire.send(stream, framed(b"x", compressed=1))
    answer = wire.answer(stream)
    assert answer.status == "12" and answer.headers["grpc-accept-encoding"] == "identity"
    assert wire.call(b"plain", grpc_encoding="gzip").status == "0"  # the flag decides
    assert wire.call(b"plain", grpc_encoding="identity").status == "0"


def test_a_message_may_come_in_pieces_and_end_with_an_empty_frame(wire: Wire) -> None:
    stream = wire.begin()
    for byte in framed(b"hello"):
        wire.send(stream, bytes([byte]), end=False)
    wire.send(stream, b"")
    assert wire.answer(stream).data[5:] == b"hello"


def test_four_mib_are_taken_and_no_more(wire: Wire) -> None:
    whole = bytes(4 * MIB)
    assert wire.call(whole).data == framed(whole)
    stream = wire.begin()
    wire.send(stream, b"\0\0\x40\0\1", end=False)  # announced; nothing of it needs to come
    answer = wire.answer(stream)
    assert answer.status == "8"
    while answer.reset is None:
        wire.hear()
    assert answer.reset == 0  # NO_ERROR: the rest need not be sent


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/json", "application/grpc-web", "application/grp", None]
)
def test_another_content_type_is_415(wire: Wire, kind: str | None) -> None:
    answer = wire.call(content_type=kind)
    assert answer.headers[":status"] == "415" and not answer.status


@pytest.mark.parametrize(
    "kind", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"]
)
def test_content_types_of_grpc(wire: Wire, kind: str) -> None:
    assert wire.call(content_type=kind).status == "0"


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS"])
def test_another_method_of_http_is_405(wire: Wire, method: str) -> None:
    assert wire.answer(wire.begin(end=True, __method=method)).headers[":status"] == "405"


@pytest.mark.parametrize("other", [{"__path": "*"}, {"__path": None}, {"__method": None}, {"X-Upper": "1"}])
def test_what_is_no_request_of_http2_is_reset(wire: Wire, other: dict[str, str | None]) -> None:
    stream = wire.begin(**other)
    assert wire.answer(stream).reset == 1  # PROTOCOL_ERROR
    assert wire.call(b"next").status == "0"


def test_headers_that_are_too_large(wire: Wire) -> None:
    assert wire.call(x_large="y" * 12000).status == "0"
    assert wire.call(x_large="y" * 20000).status == "8"
    assert wire.call(b"next").status == "0"


def test_trailers_of_a_request_say_nothing(wire: Wire) -> None:
    stream = wire.begin()
    wire.send(stream, framed(b"hello"), end=False)
    wire.h2.send_headers(stream, [("x-more", "1")], end_stream=True)
    wire.flush()
    assert wire.answer(stream).data[5:] == b"hello"


@pytest.mark.parametrize(
    ("timeout", "code"),
    [("0n", "4"), ("1n", "4"), ("99999999H", "0"), ("10S", "0"), ("5000m", "0"), ("9999999u", "0")]
    + [(bad, "13") for bad in ("", "1", "S", "123456789S", "1s", "-1S", "1.5S")],
)
def test_timeouts(wire: Wire, timeout: str, code: str) -> None:
    assert wire.call(grpc_timeout=timeout).status == code


def test_a_call_whose_time_is_over_is_not_begun(served: Served, wire: Wire) -> None:
    running = [wire.begin("/t.T/Wait") for _ in range(4)]
    for stream in running:
        wire.send(stream, framed(b"runs"))
    served.until(served.begun, 4)
    late = wire.begin("/t.T/Wait", grpc_timeout="1m")
    wire.send(late, framed(b"late"))
    in_time = wire.begin("/t.T/Wait", grpc_timeout="1H")
    wire.send(in_time, framed(b"in time"))
    assert wire.call(b"x", grpc_timeout="1H", content_type=None).headers[":status"] == "415"  # read by now
    time.sleep(0.005)  # the time that is over
    served.gate.set()
    assert [wire.answer(stream).status for stream in (*running, late, in_time)] == [*"0000", "4", "0"]
    assert sorted(served.begun) == [b"in time"] + [b"runs"] * 4


def test_many_calls_of_one_connection(wire: Wire) -> None:
    streams = [wire.begin() for _ in range(100)]
    for stream in streams:
        wire.send(stream, framed(str(stream).encode()))
    assert [wire.answer(s).data[5:] for s in streams] == [str(s).encode() for s in streams]


def test_a_large_answer_waits_for_its_window(wire: Wire) -> None:
    stream = wire.begin("/t.T/Grow")
    wire.send(stream, framed(str(MIB).encode()))
    while len(wire.answers[stream].data) < 65535:
        wire.hear(reads=False)
    assert wire.call(b"x", "/t.T/Fail").status == "11"  # a window that is shut keeps nobody else waiting
    wire.h2.increment_flow_control_window(2 * MIB)
    wire.h2.increment_flow_control_window(2 * MIB, stream)
    wire.flush()
    assert wire.answer(stream).data == framed(bytes(MIB)) and wire.answers[stream].status == "0"

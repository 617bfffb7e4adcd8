"""The lab's own servers and clients: `python -I -S probe.py WORD ARGS…`, one process in a pod.

    serve NAME --tcp PORT… --udp PORT…   answer every connection with "NAME PEER", every datagram
                                          with "NAME " and the datagram
    connect HOST PORT COUNT              COUNT connections in turn: who answered, how long it took
    ping HOST COUNT                      ICMP or ICMPv6 echo: round trips
    stream udp|tcp HOST PORT             a datagram or connection every 2 ms until stdin ends: losses
    resolve SERVER NAME TYPE [COUNT]     ask a DNS server, A or AAAA: one answer per question

Rule 1: only the standard library, and of that only what starts fast.
Rule 2: `serve` prints "ready" when it listens; the others print one JSON object and exit 0.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

TIMEOUT = 2.0
INTERVAL = 0.002
TYPES = {"A": 1, "AAAA": 28}


def serve(name: str, *ports: str) -> None:
    poll, handlers = select.poll(), {}
    kind = ""
    for word in ports:
        if word.startswith("--"):
            kind = word
            continue
        stream = kind == "--tcp"
        sock = _listen(int(word), stream)
        poll.register(sock, select.POLLIN)
        handlers[sock.fileno()] = (sock, _answer_stream if stream else _answer_datagram)
    print("ready", flush=True)
    while True:
        for fd, _ in poll.poll():
            sock, handle = handlers[fd]
            with contextlib.suppress(OSError):  # the client went away
                handle(sock, name)


def _listen(port: int, stream: bool) -> socket.socket:
    """On every address of both families."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::", port))
    if stream:
        sock.listen(512)
    return sock


def _answer_stream(sock: socket.socket, name: str) -> None:
    conn, peer = sock.accept()
    with conn:
        conn.sendall(f"{name} {peer[0].removeprefix('::ffff:')}\n".encode())


def _answer_datagram(sock: socket.socket, name: str) -> None:
    data, peer = sock.recvfrom(2048)
    sock.sendto(name.encode() + b" " + data, peer)


def connect(host: str, port: str, count: str) -> dict[str, Any]:
    names: dict[str, int] = {}
    peers: set[str] = set()
    took, errors = [], []
    for _ in range(int(count)):
        start = time.perf_counter()
        try:
            with socket.create_connection((host, int(port)), TIMEOUT) as sock:
                took.append((time.perf_counter() - start) * 1e6)
                name, _, peer = sock.recv(256).decode().strip().partition(" ")
                names[name] = names.get(name, 0) + 1
                peers.add(peer)
        except OSError as exc:
            errors.append(str(exc))
            if len(errors) == 3:  # it is not going to work
                break
    return {"names": names, "peers": sorted(peers), "errors": errors, "p50_us": _median(took)}


def ping(host: str, count: str) -> dict[str, Any]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if ":" in host else socket.IPPROTO_ICMP
    took, lost = [], 0
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        sock.connect((host, 0))
        for seq in range(int(count)):
            start = time.perf_counter()
            sock.send(_echo(family, seq))
            if _echoed(sock, family, seq, start + TIMEOUT):
                took.append((time.perf_counter() - start) * 1e6)
            else:
                lost += 1
    return {"lost": lost, "p50_us": _median(took)}


def _echo(family: int, seq: int) -> bytes:
    """RFC 792, RFC 4443; the kernel fills in the checksum of ICMPv6 only."""
    kind = 128 if family == socket.AF_INET6 else 8
    body = struct.pack("!BBHHH", kind, 0, 0, os.getpid() & 0xFFFF, seq) + b"netplane"
    if kind == 8:
        total = sum(struct.unpack(f"!{len(body) // 2}H", body))
        total = (total & 0xFFFF) + (total >> 16)
        body = body[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + body[4:]
    return body


def _echoed(sock: socket.socket, family: int, seq: int, deadline: float) -> bool:
    want = struct.pack("!HH", os.getpid() & 0xFFFF, seq)
    while (left := deadline - time.perf_counter()) > 0:
        if select.select([sock], [], [], left)[0]:
            data = sock.recv(2048)
            data = data if family == socket.AF_INET6 else data[(data[0] & 15) * 4 :]
            if data[0] == (129 if family == socket.AF_INET6 else 0) and data[4:8] == want:
                return True
    return False


def stream(kind: str, host: str, port: str) -> dict[str, Any]:
    """Prints "ready" after the first answer, then runs until stdin ends; a second for stragglers."""
    return _stream_tcp(host, int(port)) if kind == "tcp" else _stream_udp(host, int(port))


def _ticks() -> Iterator[int]:
    """A number every INTERVAL until stdin ends."""
    number = 0
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        yield number
        number += 1


def _stream_tcp(host: str, port: int) -> dict[str, Any]:
    sent, lost, errors, longest = 0, 0, set(), 0.0
    for number in _ticks():
        sent += 1
        start = time.perf_counter()
        try:
            with socket.create_connection((host, port), TIMEOUT) as sock:
                if not sock.recv(256):
                    raise OSError("closed without an answer")
            longest = max(longest, time.perf_counter() - start)
        except OSError as exc:
            lost += 1
            errors.add(str(exc))
        if number == 0:
            print("ready", flush=True)
    return {"sent": sent, "lost": lost, "errors": sorted(errors), "longest_ms": round(longest * 1e3, 1)}


def _stream_udp(host: str, port: int) -> dict[str, Any]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    waiting: dict[int, float] = {}
    number, longest = 0, 0.0
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((host, port))
        for number in _ticks():
            waiting[number] = time.perf_counter()
            with contextlib.suppress(OSError):  # an ICMP error: the datagram counts as lost
                sock.send(str(number).encode())
            longest = max(longest, _collect(sock, waiting, 0.05 if number == 0 else 0))
            if number == 0:
                print("ready", flush=True)
        end = time.perf_counter() + 1
        while waiting and time.perf_counter() < end:
            longest = max(longest, _collect(sock, waiting, 0.05))
    return {"sent": number + 1, "lost": len(waiting), "errors": [], "longest_ms": round(longest * 1e3, 1)}


def _collect(sock: socket.socket, waiting: dict[int, float], timeout: float) -> float:
    """Take the answers that have come; the longest round trip among them, in seconds."""
    longest = 0.0
    while select.select([sock], [], [], timeout)[0]:
        timeout = 0
        with contextlib.suppress(OSError, ValueError):
            number = int(sock.recv(256).split()[-1])
            longest = max(longest, time.perf_counter() - waiting.pop(number, time.perf_counter()))
    return longest


def resolve(server: str, name: str, kind: str, count: str = "1") -> dict[str, Any]:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    answers, took = [], []
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect((server, 53))
        for number in range(1, int(count) + 1):
            start = time.perf_counter()
            sock.send(_question(number, name, TYPES[kind]))
            reply = sock.recv(4096)
            while reply[:2] != struct.pack("!H", number):
                reply = sock.recv(4096)
            took.append((time.perf_counter() - start) * 1e6)
            answers.append(_addresses(reply, TYPES[kind]))
            rcode = reply[3] & 15
    return {"rcode": rcode, "answers": answers, "p50_us": _median(took)}


def _question(number: int, name: str, kind: int) -> bytes:
    """RFC 1035 section 4.1: a header that wants recursion, and one question."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.rstrip(".").split("."))
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def _addresses(reply: bytes, kind: int) -> list[str]:
    """The A or AAAA records of the answer section, in their order."""
    questions, records = struct.unpack("!HH", reply[4:8])
    at, found = 12, []
    for _ in range(questions):
        at = _skip_name(reply, at) + 4
    for _ in range(records):
        at = _skip_name(reply, at)
        rtype, length = struct.unpack("!H6xH", reply[at : at + 10])
        data = reply[at + 10 : at + 10 + length]
        if rtype == kind:
            found.append(socket.inet_ntop(socket.AF_INET6 if length == 16 else socket.AF_INET, data))
        at += 10 + length
    return found


def _skip_name(reply: bytes, at: int) -> int:
    while reply[at]:
        if reply[at] >= 0xC0:  # a pointer ends a name
            return at + 2
        at += 1 + reply[at]
    return at + 1


def _median(values: list[float]) -> float | None:
    return round(sorted(values)[len(values) // 2], 1) if values else None


WORDS: dict[str, Callable[..., dict[str, Any]]] = {
    "connect": connect,
    "ping": ping,
    "stream": stream,
    "resolve": resolve,
}

if __name__ == "__main__":
    word, *rest = sys.argv[1:]
    if word == "serve":
        serve(*rest)
    try:
        print(json.dumps(WORDS[word](*rest)))
    except OSError as exc:
        print(f"{word} {' '.join(rest)}: {exc}", file=sys.stderr)
        sys.exit(1)

"""A pod's server and client for policy tests: `python -I -S policy_prober.py NAME PORT…`.

Listens on every port with TCP and UDP (and SCTP where the kernel has it), both families. Each line of
stdin is a JSON list [timeout, [[protocol, host, port], …]]; the answer is a JSON list of names or null:
who answered each target, all asked at once. Only the standard library, for a fast start.
"""

import contextlib
import json
import select
import socket
import sys
import threading
import time

KINDS = {
    "TCP": (socket.SOCK_STREAM, 0),
    "UDP": (socket.SOCK_DGRAM, 0),
    "SCTP": (socket.SOCK_STREAM, getattr(socket, "IPPROTO_SCTP", 132)),
}


def serve(name, ports):
    poll, socks = select.epoll(), {}
    for port in ports:
        for kind, (style, protocol) in KINDS.items():
            try:
                sock = socket.socket(socket.AF_INET6, style, protocol)
            except OSError:
                continue
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("::", port))
            if kind != "UDP":
                sock.listen(256)
            poll.register(sock, select.EPOLLIN)
            socks[sock.fileno()] = (kind, sock)
    return lambda: loop(name, poll, socks)


def loop(name, poll, socks):
    while True:
        for fd, _ in poll.poll():
            kind, sock = socks[fd]
            with contextlib.suppress(OSError):
                if kind == "UDP":
                    _, peer = sock.recvfrom(64)
                    sock.sendto(name.encode(), peer)
                else:
                    peer, _ = sock.accept()
                    with peer:
                        peer.send(name.encode())


def begin(kind, host, port):
    style, protocol = KINDS[kind]
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, style, protocol)
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.connect((host, port))
    if kind == "UDP":
        sock.send(b"?")
    return sock


def probe(timeout, targets):
    answers, open_, poll = [None] * len(targets), {}, select.epoll()
    for i, (kind, host, port) in enumerate(targets):
        try:
            sock = begin(kind, host, port)
        except OSError:
            continue
        poll.register(sock, select.EPOLLIN)
        open_[sock.fileno()] = (i, sock)
    end = time.monotonic() + timeout
    while open_ and (left := end - time.monotonic()) > 0:
        for fd, _ in poll.poll(left):
            i, sock = open_.pop(fd)
            with contextlib.suppress(OSError):
                answers[i] = sock.recv(64).decode() or None
            sock.close()
    for _, sock in open_.values():
        sock.close()
    poll.close()
    return answers


if __name__ == "__main__":
    threading.Thread(target=serve(sys.argv[1], [int(p) for p in sys.argv[2:]]), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(probe(*json.loads(line))), flush=True)

"""What policy drops is told to nflog group 78: which direction, which packet, and not too often.

node-1: a listener of group 78 ── npbr0 ── x/client ──> x/web (isolated both ways)
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from netplane.kernel import netns
from netplane.lab import Lab
from netplane.model import codec
from netplane.store import open_store

from ..policy_cases import labels, np
from ..policy_world import settled

pytestmark = pytest.mark.root
GROUP, NETFILTER = 78, 12
NFULNL_CONFIG, NFULNL_PACKET = 4 << 8 | 1, 4 << 8  # linux/netfilter/nfnetlink_log.h
CFG_CMD, CFG_MODE, CFG_LOT, CMD_BIND, COPY_PACKET = 1, 2, 5, 1, 2
PAYLOAD, PREFIX = 9, 10
RATE, BURST, LOT = 10, 50, 400  # messages a second, at once; packets of each family


class Drops:
    """Listens in a namespace; ``heard`` gives (prefix, source, target) of each packet until it is quiet."""

    def __init__(self, place: str) -> None:
        self.sock = netns.call(place, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER))
        self.sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 20)  # SO_RCVBUFFORCE
        self.sock.bind((0, 0))
        self.sock.settimeout(0.3)
        self._config(CFG_CMD, struct.pack("BBBB", CMD_BIND, 0, 0, 0))
        self._config(CFG_MODE, struct.pack("!IBB", 0xFFFF, COPY_PACKET, 0))
        self._config(CFG_LOT, struct.pack("!I", 1))  # else the kernel gathers messages for a second

    def _config(self, kind: int, value: bytes) -> None:
        attribute = struct.pack("=HH", 4 + len(value), kind) + value.ljust((len(value) + 3) & ~3, b"\0")
        body = struct.pack("!BBH", 0, 0, GROUP) + attribute
        self.sock.send(struct.pack("=IHHII", 16 + len(body), NFULNL_CONFIG, 5, 1, 0) + body)
        answer = self.sock.recv(4096)
        assert struct.unpack_from("=i", answer, 16) == (0,), answer  # NLMSG_ERROR 0: accepted

    def heard(self) -> Iterator[tuple[str, str, str]]:
        while True:
            try:
                data = self.sock.recv(1 << 16)
            except TimeoutError:
                return
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind == NFULNL_PACKET:
                    yield _read(data[20:length])
                data = data[(length + 3) & ~3 :]


def _read(data: bytes) -> tuple[str, str, str]:
    """(prefix, source, target) of a message's attributes."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    packet = found[PAYLOAD]
    kind, at, size = (socket.AF_INET, 12, 4) if packet[0] >> 4 == 4 else (socket.AF_INET6, 8, 16)
    source, target = (socket.inet_ntop(kind, packet[i : i + size]) for i in (at, at + size))
    return found[PREFIX].rstrip(b"\0").decode(), source, target


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_a_drop_is_logged_with_its_direction_and_its_packet(module_lab: Lab, direction: str) -> None:
    node = module_lab.nodes[0]
    store = open_store(module_lab.store)
    rules: dict[str, Any] = {direction: []}
    store.put(codec.parse(np("deny", podSelector=labels(app=direction), **rules)))
    held = node.add_pod(f"web-{direction}", "x", {"app": direction})
    other = node.add_pod(f"client-{direction}", "x")
    source, target = (other, held) if direction == "ingress" else (held, other)
    settled(module_lab)
    drops = Drops(str(node.netns))
    source.python(_flood(target.ips, LOT))
    heard = list(drops.heard())
    store.close(), drops.sock.close()
    ours = [one for one in heard if one[0] == f"netplane policy {direction} "]
    assert {one[1:] for one in ours} == set(zip(source.ips, target.ips, strict=True)), heard[:5]
    assert 2 <= len(ours) <= BURST + 5 * RATE, "a flood does not become a flood of messages"


def _flood(targets: tuple[str, ...], lot: int) -> Callable[[], None]:
    def send() -> None:
        pairs = [
            (a, socket.socket(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_DGRAM))
            for a in targets
        ]
        for _ in range(lot):
            for address, sock in pairs:
                sock.sendto(b"?", (address, 9))
        for _, sock in pairs:
            sock.close()

    return send

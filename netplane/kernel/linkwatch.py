"""Tells when something of ours was taken away or changed by somebody else, so the loop can resync.

Rule 1: an event is a hint, never the truth: the callback should wait a moment (events come in
        flocks) and then `observe`.
Rule 2: echoes of our own requests are left out where the kernel says who asked. What the kernel
        does in consequence (routes that go with a link) bears no name and may come through.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator

from ..model.facts import ROUTE_PROTOCOL
from . import linkmsg, netns, ours, routemsg
from . import nlmsg as nl

_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
_BUFFER = 1 << 20
OVERRUN = "overrun"

Callback = Callable[[str], None]


class LinkMonitor:
    """Calls ``callback(words)`` in a thread of its own; "overrun" when events were lost.

    ``netns`` as in LinkDriver.netns; ``own`` tells whose notifications are our own
    (LinkDriver.portids).
    """

    def __init__(
        self, callback: Callback, netns_path: str = "", own: Callable[[], frozenset[int]] = frozenset
    ) -> None:
        self._callback = callback
        self._own = own
        self._sock = socket.socket(fileno=netns.open_socket(netns_path, 0))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._sock.bind((0, _GROUPS))
        self._wake, self._stop = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="link monitor", daemon=True)

    def start(self) -> LinkMonitor:
        self._thread.start()
        return self

    def close(self) -> None:
        os.write(self._stop, b"x")
        if self._thread.is_alive():
            self._thread.join()
        self._sock.close()
        os.close(self._wake)
        os.close(self._stop)

    def __enter__(self) -> LinkMonitor:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._sock.fileno(), self._wake], [], [])
            if self._wake in ready:
                return
            try:
                data = self._sock.recv(1 << 16)
            except OSError:  # ENOBUFS: the kernel dropped some
                self._callback(OVERRUN)
                continue
            for words in events(data, self._own()):
                self._callback(words)


def events(data: bytes, own: frozenset[int]) -> Iterator[str]:
    """What of a notification concerns us, in words."""
    for kind, _, _, portid, body in nl.messages(data):
        if portid and portid in own:
            continue
        words = _words(kind, body)
        if words:
            yield words


def _words(kind: int, body: bytes) -> str:
    if kind in (nl.RTM_NEWLINK, nl.RTM_DELLINK) and nl.IFINFOMSG.unpack_from(body)[0] == 0:
        state = linkmsg.parse(body)
        if state.group == ours.GROUP_DOOMED:
            return ""  # we are deleting it
        if kind == nl.RTM_DELLINK and state.ours:
            return f"link {state.name} was removed"
        kept = ours.wish_of(state.alias)
        wish = {k: v for k, v in kept[1].items() if k in ("up", "mtu", "mac")} if kept else {}
        differing = linkmsg.differences(wish, state.words(str))
        return f"link {state.name} changed: {' '.join(differing)}" if differing else ""
    if kind == nl.RTM_DELADDR:
        fact, proto = routemsg.read_address(body, lambda i: f"#{i}")
        return f"address {fact.address} was removed" if proto == ROUTE_PROTOCOL else ""
    if kind == nl.RTM_DELROUTE:
        route, proto = routemsg.read_route(body, lambda i: f"#{i}")
        return f"route {route.dst} was removed" if proto == ROUTE_PROTOCOL else ""
    return ""

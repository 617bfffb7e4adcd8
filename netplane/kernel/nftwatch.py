"""Tells when another program changes our nftables tables, so that the loop can mend it at once.

Rule 1: an event is a hint, never the truth: the callback gathers the flock, and then somebody lists.
Rule 2: our own commits are left out by their sockets, before they reach us (a filter in the kernel).
Rule 3: events that were lost may have been ours to see: "overrun".
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator

from . import netns
from . import nlmsg as nl
from .monitor import OVERRUN, Monitor
from .sockfilter import GIVE, JUMP_EQUAL, LOAD_WORD, big, pass_only

NETLINK_NETFILTER, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 12, 270, 1
NFNLGRP_NFTABLES = 7
FAMILIES, TABLE = {1, 5, 7}, "netplane"  # NFPROTO_INET, _NETDEV, _BRIDGE: ours
NEWGEN = 10 << 8 | 15
NFTA_TABLE_NAME, NFTA_NAME, NFTA_CHAIN_NAME = 1, 2, 3  # the first attribute of every message names its table
NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME = 2, 3
WORDS = {0: "table", 2: "table", 3: "chain", 5: "chain", 6: "rule", 8: "rule", 9: "set", 11: "set"}
REMOVING = {2, 5, 8, 11, 14}
_BUFFER = 8 << 20


class NftMonitor(Monitor):
    """Calls ``callback(words)`` in a thread of its own. ``own``: the ports whose commits are ours."""

    def __init__(
        self,
        callback: Callable[[str], None],
        netns_path: str = "",
        own: Iterable[int] = (),
    ) -> None:
        self._callback = callback
        sock = socket.socket(fileno=netns.open_socket(netns_path, NETLINK_NETFILTER))
        super().__init__("nft monitor", sock, _BUFFER)
        self._sock.bind((0, 0))
        self._own = frozenset(own)
        _leave_out(self._sock, self._own)
        self._sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        self._touched = ""

    def _hear(self) -> None:
        try:
            data = self._sock.recv(1 << 18)
        except OSError as exc:
            if exc.errno == errno.ENOBUFS:
                self._touched = ""
                self._callback(OVERRUN)
            return
        for words in self.foreign(data):
            self._callback(words)

    def foreign(self, data: bytes) -> Iterator[str]:
        """What another program's commits did to our tables: one line a commit, at its end."""
        for kind, _, _, portid, body in nl.messages(data):
            if kind != NEWGEN:
                if not self._touched and _ours(body):
                    self._touched = _words(kind, body)
                continue
            if self._touched and portid not in self._own:
                attrs = nl.attrs(body, 4)
                pid = int.from_bytes(attrs.get(NFTA_GEN_PROC_PID, b""), "big")
                yield f"{self._touched} by {nl.string(attrs.get(NFTA_GEN_PROC_NAME))} (process {pid})"
            self._touched = ""


def _ours(body: bytes) -> bool:
    return body[0] in FAMILIES and nl.string(nl.attrs(body, 4).get(NFTA_TABLE_NAME)) == TABLE


def _words(kind: int, body: bytes) -> str:
    number = kind & 0xFF
    what = WORDS.get(number, "element")
    where = {"table": NFTA_TABLE_NAME, "chain": NFTA_CHAIN_NAME}.get(what, NFTA_NAME)
    name = nl.string(nl.attrs(body, 4).get(where)) if what != "table" else ""
    verb = "removed" if number in REMOVING else "added or changed"
    return f"{what} {name} {verb}".replace("  ", " ") if name.isprintable() else f"{what} {verb}"


def _leave_out(sock: socket.socket, portids: Iterable[int]) -> None:
    """Have the kernel drop what these ports committed: all messages of one buffer belong to one commit."""
    own = list(portids)
    pass_only(
        sock,
        [
            (LOAD_WORD, 0, 0, 12),  # nlmsg_pid
            *((JUMP_EQUAL, len(own) - i, 0, big(port, 4)) for i, port in enumerate(own)),
            (GIVE, 0, 0, 0xFFFFFFFF),
            (GIVE, 0, 0, 0),
        ],
    )

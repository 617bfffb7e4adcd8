"""The query log: a line for a query, or for one of every N, switched while the server runs.

Rule: off costs one comparison. The line has what was asked and how it ended, never the answer's data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from . import wire

_log = logging.getLogger("netplane.dns.query")
_log.setLevel(logging.INFO)
RCODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")
_TYPES = {number: name for name, number in wire.TYPES.items()}


class QueryLog:
    """``every`` 0: off; 1: every query; N: one of N. ``changed`` is told when that is switched."""

    def __init__(self, every: int = 0, changed: Callable[[], None] = lambda: None) -> None:
        self._every = every
        self._changed = changed
        self._seen = 0

    @property
    def every(self) -> int:
        return self._every

    @every.setter
    def every(self, every: int) -> None:
        self._every = every
        self._changed()

    def note(self, peer: Any, protocol: str, reply: bytes, seconds: float) -> None:
        """One query that got this reply, after so long."""
        if not self.every:
            return
        self._seen += 1
        if self._seen % self.every:
            return
        _log.info("%s", line(str(peer[0]), protocol, reply, seconds))


def line(client: str, protocol: str, reply: bytes, seconds: float) -> str:
    """ "10.244.0.5 udp web.default.svc.cluster.local. A NOERROR 94 bytes 0.1 ms" """
    name, kind = "-", "-"
    if reply[5] == 1:
        end = wire.skip_name(reply, wire.HEADER.size)
        number = int.from_bytes(reply[end : end + 2], "big")
        asked = wire.to_text(reply[wire.HEADER.size : end])
        name, kind = asked if asked == "." else f"{asked}.", _TYPES.get(number, f"TYPE{number}")
    rcode = reply[3] & 15
    word = RCODES[rcode] if rcode < len(RCODES) else f"RCODE{rcode}"
    return f"{client} {protocol} {name} {kind} {word} {len(reply)} bytes {seconds * 1000:.1f} ms"

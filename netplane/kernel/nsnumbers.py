"""Which number the namespace of a pod gets in ours (RTM_NEWNSID, Linux 4.0).

In every notice of a pair the kernel names the other end's namespace by a number, which it finds by walking
all that our namespace has given, from the lowest up. By itself it counts upwards, so each of an ADD's nine
notices among 1,000 pods walks 1,000. We count downwards: the newest pod is found first.

Rule 1: a number is a wish. Where it is taken, or the namespace has one already, the kernel's own stands.
Rule 2: an agent that starts goes on below what it finds; nothing is remembered.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable

from . import nlmsg as nl
from .nlsocket import Socket

TOP = 1 << 30
BOTTOM = 1 << 20  # below are the kernel's own
_NSID = 1  # NETNSA_NSID
_ANY = bytes(4)  # struct rtgenmsg, padded


class Numbers:
    """For one namespace of ours."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0  # not known yet

    def take(self, sock: Socket) -> int:
        """The next one; ``sock`` is asked, once, what there is. Raises KernelError."""
        with self._lock:
            if not self._last:
                self._last = lowest(given(sock))
            self._last = self._last - 1 if self._last > BOTTOM else TOP - 1
            return self._last


def given(sock: Socket) -> list[int]:
    """The numbers that the socket's namespace has for others, in no order."""
    bodies = (body for _, body in sock.dump(nl.RTM_GETNSID, _ANY))
    found = (nl.first(body, len(_ANY), _NSID) for body in bodies)
    return [int(struct.unpack("=i", number)[0]) for number in found if number]


def lowest(numbers: Iterable[int]) -> int:
    """Of ours; TOP without any."""
    return min((number for number in numbers if BOTTOM <= number < TOP), default=TOP)

"""Forget every tracked flow of addresses that nobody has any more (ctnetlink), whatever its protocol.

Who gets an address next must not be met by flows of the last holder, nor a client go on by a translation
to what is gone. Nothing in the kernel finds flows by their addresses, so all are walked, the cheapest way
(6.18, 262,144 buckets):

Rule 1: where nothing is tracked nothing is walked: the namespace's own count tells.
Rule 2: of IPv4 the kernel compares and deletes by itself (CTA_FILTER, Linux 5.8): 0.02 ms, and 0.25 µs for
        each flow of the table. Its comparison of IPv6 addresses is inverted (see `conntrack`): these flows
        are listed and deleted one by one. A listing takes a lock for each bucket, 9 ms, so where there
        are few flows /proc tells first whether there is anything to list for (0.2 ms, 1.7 µs a flow).
Rule 3: what threads ask for while a walk is under way is the next one, together; for many addresses all
        flows are listed once.
Rule 4: without ctnetlink flows cannot be forgotten by anybody: that is said, once, and no pod stays for it.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterable, Sequence
from io import FileIO
from ipaddress import IPv6Address

from ..model.errors import KernelError
from ..model.gather import Gathering
from . import nlmsg as nl
from .ctnetlink import FILTER, ORIG, REPLY, Tracker, exactly, head

log = logging.getLogger(__name__)
FEW = 4000  # flows, up to which /proc is read in less time than a listing takes
_WALK, _LISTING, _LISTED = 0.25, 9000.0, 2.0  # µs: a flow walked, a listing, a flow of it
_IP, _SOURCE = 1, 1  # CTA_TUPLE_IP, CTA_FILTER_F_CTA_IP_SRC
_LACKING = (errno.EINVAL, errno.EOPNOTSUPP)  # what a kernel says that has no such request
_WHAT = "forget flows of addresses"


class HostFlows:
    """The tracker of the namespace of the thread that makes this. Thread-safe."""

    def __init__(self) -> None:
        self._tracker = Tracker()
        self._count = _opened("/proc/sys/net/netfilter/nf_conntrack_count")
        self._table = _opened("/proc/thread-self/net/nf_conntrack")
        self._together = Gathering[tuple[str, ...]](self._forget)
        self._told = False

    def close(self) -> None:
        self._tracker.close()
        for file in (self._count, self._table):
            if file is not None:
                file.close()

    def forget(self, addresses: Iterable[str]) -> None:
        """Delete all flows that have one of these at either end, in either direction. Raises KernelError."""
        asked = tuple(addresses)
        if asked:
            self._together.do(asked)

    def _forget(self, round_: list[tuple[str, ...]]) -> None:
        tracked = self.tracked()
        if not tracked:
            return
        every = sorted({address for asked in round_ for address in asked})
        four, six = [a for a in every if ":" not in a], [a for a in every if ":" in a]
        try:
            if four and cheap(len(four), tracked) and self._deleted(four):
                four = []
            if not four and six and tracked <= FEW and not self._shown(six):
                six = []
            if four or six:
                self._list_and_delete(four, six)
        except KernelError as exc:
            if exc.errno not in _LACKING:
                raise
            if not self._told:
                log.warning("flows of pods that are gone stay until they time out: %s", exc)
            self._told = True

    def tracked(self) -> int:
        """How many flows there are; many where the kernel does not tell."""
        if self._count is None:
            return FEW + 1
        self._count.seek(0)
        return int(self._count.read(32))

    def _deleted(self, addresses: Sequence[str]) -> bool:
        """False for a kernel that cannot."""
        try:
            for address in addresses:
                for which in (ORIG, REPLY):  # the sources of both directions are all ends that there are
                    self._tracker.delete(_of_source(which, address), _WHAT)
        except KernelError as exc:
            if exc.errno not in _LACKING:
                raise
            return False
        return True

    def _shown(self, addresses: Sequence[str]) -> bool:
        """Whether /proc shows any flow of these; True where it shows none at all."""
        if self._table is None:
            return True
        self._table.seek(0)
        text = b"".join(iter(lambda: self._table.read(1 << 18) if self._table else b"", b""))
        return any(IPv6Address(address).exploded.encode() in text for address in addresses)

    def _list_and_delete(self, four: Sequence[str], six: Sequence[str]) -> None:
        family = socket.AF_UNSPEC if four and six else socket.AF_INET if four else socket.AF_INET6
        packed = frozenset(map(nl.ip_bytes, (*four, *six)))
        found = [flow for flow in self._tracker.dump(head(family), _WHAT) if _is_of(flow, packed)]
        for flow in found:
            self._tracker.delete(exactly(flow), _WHAT)


def cheap(addresses: int, tracked: int) -> bool:
    """Whether two walks for each address take less time than one listing."""
    return 2 * addresses * _WALK * tracked <= _LISTING + _LISTED * tracked


def _of_source(which: int, address: str) -> bytes:
    """The request for all flows whose tuple (ORIG, REPLY) has this IPv4 source."""
    source = nl.nest(which, nl.nest(_IP, nl.attr(1, nl.ip_bytes(address))))
    flags = nl.nest(FILTER, nl.attr32(1 if which == ORIG else 2, _SOURCE))
    return head(socket.AF_INET) + source + flags


def _is_of(flow: bytes, packed: frozenset[bytes]) -> bool:
    """Whether one of the addresses is at an end of a flow as it was dumped."""
    if not any(address in flow for address in packed):
        return False
    found = nl.attrs(flow, 4)
    ends = (nl.attrs(nl.attrs(found[which])[_IP]).values() for which in (ORIG, REPLY))
    return any(end in packed for both in ends for end in both)


def _opened(path: str) -> FileIO | None:
    try:
        return open(path, "rb", buffering=0)
    except OSError:  # not loaded yet, or a kernel without it
        return None

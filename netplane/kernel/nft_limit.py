"""How much the ports of bridges may send: one set in `table bridge netplane`, an element for each port.

Rule 1: table, chain and rule are the same for one port and for a thousand. They come with the first
        limit and go with the last, in its transaction: who is killed leaves no table without a limit.
        A port is one element that carries its own limit.
Rule 2: an element is one netlink message of ours: no parser, and nothing is listed while all goes well.
Rule 3: a refused transaction changes nothing; then we look what is there, and do what is left.
Rule 4: the rule's comment is the mark of the whole; without it no limit holds, so `observe` has none as it
        should be, and what changes one puts the rule back. A table without a limit is nobody's: `EMPTY`.

A bridge's prerouting sees every frame of a port, also one for another port of the same bridge. What comes
by a link that is no bridge's port it does not see: that is for `nft_guard`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping

from ..model.errors import KernelError
from ..model.facts import Fact, FactKey, Limit, Mark, Plan, digest
from . import nft_dump
from . import nlmsg as nl
from .netns import open_socket
from .nft_batch import REHASH, TRIES
from .nftables import Nft, fit

TABLE = "bridge netplane"
NAME = "cni-limits"
FIRST = -500  # before every other hook of the bridge
# The set's own limit says what its elements have; each element brings its figures.
_STRUCTURE = f"""add table {TABLE}
add set {TABLE} {NAME} {{ type ifname; limit rate over 1 bytes/second; }}
add chain {TABLE} {NAME} {{ type filter hook prerouting priority {FIRST}; policy accept; }}
flush chain {TABLE} {NAME}
add rule {TABLE} {NAME} iifname @{NAME} drop"""
WHOLE = digest(_STRUCTURE)
STRUCTURE = f'{_STRUCTURE} comment "{WHOLE}"'
EMPTY: FactKey = ("limit", "")  # no link's: the table alone

NETLINK_NETFILTER, NFPROTO_BRIDGE, SUBSYSTEM = 12, 7, 10
BEGIN, END = 0x10, 0x11  # NFNL_MSG_BATCH_BEGIN, _END
NEW, GET, DELETE = SUBSYSTEM << 8 | 12, SUBSYSTEM << 8 | 13, SUBSYSTEM << 8 | 14
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS = 1, 2, 3
_ELEMENT, _KEY, _EXPR, _VALUE = 1, 1, 7, 1  # NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, …_EXPR, NFTA_DATA_VALUE
_EXPR_NAME, _EXPR_DATA = 1, 2
_RATE, _UNIT, _BURST, _TYPE, _FLAGS = 1, 2, 3, 4, 5  # NFTA_LIMIT_…
_BYTES, _OVER = 1, 1  # NFT_LIMIT_PKT_BYTES, NFT_LIMIT_F_INV
_HEAD = struct.Struct(">BBH")  # nfgenmsg
_BE32, _BE64 = struct.Struct(">I"), struct.Struct(">Q")
_IFNAMSIZ = 16
_SIZE = 1 << 18
_SNDBUFFORCE = 32  # socket(7); the socket module does not name it
ROOM = 1 << 24  # bytes: a limit takes 140


class LimitDriver:
    """Accepts Limit. Works in the namespace of the thread that makes it."""

    name = "limits"
    accepts: tuple[type[Fact], ...] = (Limit,)
    parallel = False
    apart = True  # a link is named by its name, whether it is there or not

    def __init__(self) -> None:
        self._nft = Nft()
        self._sock = socket.socket(fileno=open_socket("", NETLINK_NETFILTER))
        self._sock.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, ROOM)  # a transaction is one datagram
        self._sock.bind((0, 0))
        self._lock = threading.RLock()
        self._held: set[str] | None = None  # the links that have a limit; None: not known
        self._whole = False  # table, chain and rule are there, as far as we know

    @property
    def portids(self) -> frozenset[int]:
        """Whose commits are ours, as notifications name them."""
        return frozenset((int(self._sock.getsockname()[0]), self._nft.portid)) - {0}

    def observe(self) -> Mapping[FactKey, Mark]:
        """{key: mark} of every limit that is there, the mark "" while the rule is not. Raises KernelError."""
        with self._lock:
            mark = self._mark()
            self._whole = mark == WHOLE
            found: dict[FactKey, Mark] = {
                fact.key: fact.mark if mark in (WHOLE, None) else "" for fact in self._dump()
            }
            self._held = {str(key[1]) for key in found}
            return found or ({} if mark is None else {EMPTY: ""})

    def _mark(self) -> Mark:
        """Of the chain; "" when it or its rule is missing, None when all of the table is."""
        try:
            return nft_dump.structure(self._sock, NFPROTO_BRIDGE)[0].get(("chain", NAME), "")
        except KernelError as exc:
            if exc.errno != errno.ENOENT:
                raise
            return None

    def apply(self, plan: Plan) -> None:
        """One transaction. Raises KernelError."""
        with self._lock:
            if self._held is None:
                self.observe()
            assert self._held is not None
            if self._is_last(plan):
                self.clean()
                return
            try:
                if not self._whole:
                    raise KernelError(errno.ENOENT, f"nftables table {TABLE}")
                self._commit(plan)
            except KernelError:
                self._look_and_apply(plan)
            self._held.update(fact.link for fact in (*plan.add, *plan.change))
            self._held.difference_update(str(key[1]) for key in plan.remove)

    def _is_last(self, plan: Plan) -> bool:
        """Whether no limit is left after this; others may have some that we do not know."""
        gone = {str(key[1]) for key in plan.remove}
        if plan.add or plan.change or (self._held or set()) - gone:
            return False
        return not {fact.link for fact in self._dump()} - gone

    def _look_and_apply(self, plan: Plan) -> None:
        left = fit(plan, self.observe())
        if self._whole:
            self._commit(left)  # refused again: the kernel says why
        else:
            self._nft.run("\n".join((STRUCTURE, *_words(left))))
            self._whole = True

    def verify(self, facts: Iterable[Limit]) -> list[str]:
        """In words, which limits are missing or different, and whether the rule is that drops by them."""
        with self._lock:
            held, mark = {fact.key: fact for fact in self._dump()}, self._mark()
        found = [] if mark in (WHOLE, None) else [f"nftables chain {NAME} of table {TABLE} was changed"]
        for fact in facts:
            have = held.get(fact.key)
            if have is None:
                found.append(f"nftables limit of {fact.link} is not there")
            elif have != fact:
                found.append(f"nftables limit of {fact.link} is {have.rate} bytes/s, not {fact.rate}")
        return found

    def clean(self) -> None:
        """Remove the table and all it holds; gone already is fine."""
        with self._lock:
            try:
                self._nft.run(f"delete table {TABLE}")
            except KernelError as exc:  # a kernel without the family has no such table either
                if exc.errno not in (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                    raise
            self._held, self._whole = set(), False

    def _commit(self, plan: Plan) -> None:
        stale = [*(str(key[1]) for key in plan.remove if key != EMPTY), *(f.link for f in plan.change)]
        fresh = (*plan.add, *plan.change)
        if not stale and not fresh:
            return
        self._sock.sendto(batch(stale, fresh), (0, 0))
        refused = 0
        while True:
            try:
                data = self._sock.recv(_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            for kind, *_, body in nl.messages(data):
                if kind == nl.NLMSG_ERROR and not refused:
                    refused = -struct.unpack_from("=i", body)[0]
        if refused:
            raise KernelError(refused, f"nftables limits of {len(fresh)} links, {len(stale)} to go")

    def _dump(self) -> list[Limit]:
        """A listing is spoilt by a commit that comes between, and by a hash that grows, as it does for a
        while after a load: then as many are listed twice as are passed over (`nft_batch`)."""
        for _ in range(TRIES):
            found, spoilt = self._dump_once()
            if not spoilt and len({fact.link for fact in found}) == len(found):
                return found
            time.sleep(REHASH)
        raise KernelError(errno.EAGAIN, "list nftables limits", "others commit all the time")

    def _dump_once(self) -> tuple[list[Limit], bool]:
        head = nl.NLMSGHDR.pack(20 + len(_WHERE), GET, nl.NLM_F_REQUEST | nl.NLM_F_DUMP, 1, 0)
        with self._lock:
            self._sock.sendto(head + _HEAD.pack(NFPROTO_BRIDGE, 0, 0) + _WHERE, (0, 0))
            found: list[Limit] = []
            spoilt = False
            while True:
                for kind, flags, _, _, body in nl.messages(self._sock.recv(_SIZE)):
                    spoilt = spoilt or bool(flags & nl.NLM_F_DUMP_INTR)
                    if kind in (nl.NLMSG_DONE, nl.NLMSG_ERROR):
                        number = -struct.unpack_from("=i", body)[0]
                        if number not in (0, errno.ENOENT):
                            raise KernelError(number, f"list nftables limits: {os.strerror(number)}")
                        return found, spoilt
                    found += read(body)


def _words(plan: Plan) -> Iterator[str]:
    """A plan in nft's words, for the transaction that makes the table, too."""
    stale = [*(str(key[1]) for key in plan.remove if key[1]), *(fact.link for fact in plan.change)]
    fresh = (*plan.add, *plan.change)
    if stale:
        yield f"delete element {TABLE} {NAME} {{ {', '.join(map(_quoted, stale))} }}"
    if fresh:
        elements = (
            f"{_quoted(fact.link)} limit rate over {fact.rate} bytes/second burst {fact.burst} bytes"
            for fact in fresh
        )
        yield f"add element {TABLE} {NAME} {{ {', '.join(elements)} }}"


def _quoted(link: str) -> str:
    return f'"{link}"'


_WHERE = nl.text(_LIST_TABLE, "netplane") + nl.text(_LIST_SET, NAME)


def batch(stale: Iterable[str], fresh: Iterable[Limit]) -> bytes:
    """One transaction as the kernel takes it: these links lose their limits, those get one."""
    gone, new = (list(map(_element, stale)), [_element(fact.link, _limit(fact)) for fact in fresh])
    parts = [_message(BEGIN, 0, socket.AF_UNSPEC, SUBSYSTEM, b"")]
    if gone:
        parts.append(_elements(DELETE, 0, gone))
    if new:
        parts.append(_elements(NEW, nl.NLM_F_CREATE | nl.NLM_F_EXCL, new))
    parts.append(_message(END, 0, socket.AF_UNSPEC, SUBSYSTEM, b""))
    return b"".join(parts)


def _elements(kind: int, flags: int, elements: list[bytes]) -> bytes:
    """A list of elements is one attribute, whose length has 16 bits: 256 of them at a time."""
    return b"".join(
        _message(kind, flags, NFPROTO_BRIDGE, 0, _WHERE + nl.nest(_LIST_ELEMENTS, *elements[i : i + 256]))
        for i in range(0, len(elements), 256)
    )


def _message(kind: int, flags: int, family: int, resource: int, body: bytes) -> bytes:
    head = nl.NLMSGHDR.pack(20 + len(body), kind, nl.NLM_F_REQUEST | flags, 0, 0)
    return head + _HEAD.pack(family, 0, resource) + body


def _element(link: str, more: bytes = b"") -> bytes:
    key = nl.nest(_KEY, nl.attr(_VALUE, link.encode().ljust(_IFNAMSIZ, b"\0")))
    return nl.nest(_ELEMENT, key, more)


def _limit(fact: Limit) -> bytes:
    figures = (
        nl.attr(_RATE, _BE64.pack(fact.rate)),
        nl.attr(_UNIT, _BE64.pack(1)),  # seconds
        nl.attr(_BURST, _BE32.pack(fact.burst)),
        nl.attr(_TYPE, _BE32.pack(_BYTES)),
        nl.attr(_FLAGS, _BE32.pack(_OVER)),
    )
    return nl.nest(_EXPR, nl.text(_EXPR_NAME, "limit"), nl.nest(_EXPR_DATA, *figures))


def read(body: bytes) -> Iterable[Limit]:
    """The limits of one message of a dump; an element without one reads as rate 0."""
    packed, at = nl.attrs(body, 4).get(_LIST_ELEMENTS, b""), 0
    while at + 4 <= len(packed):
        size = struct.unpack_from("=H", packed, at)[0]
        element = nl.attrs(packed[at + 4 : at + size])
        link = nl.string(nl.attrs(element[_KEY])[_VALUE])
        figures = nl.attrs(nl.attrs(element.get(_EXPR, b"")).get(_EXPR_DATA, b""))
        rate = _BE64.unpack(figures[_RATE])[0] if _RATE in figures else 0
        burst = _BE32.unpack(figures[_BURST])[0] if _BURST in figures else 0
        yield Limit(link=link, rate=rate, burst=burst)
        at += (size + 3) & ~3

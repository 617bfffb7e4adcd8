"""Plans of elements alone as netlink batches, encoded in C: the way of nearly every change.

libnftables parses text, asks the kernel what there is and evaluates; for an element of a set that exists
nothing of this is needed. What a set is made of is asked once, by name.

Rule 1: a batch is one transaction: all of the plan, or nothing.
Rule 2: what this cannot say (`encodable`: chains and sets; intervals, dynamic and timed sets, types
        that are not known here) is libnftables' to say; the same plan goes there.
Rule 3: a refusal carries the errno alone; who wants the words asks libnftables for the same plan.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import NamedTuple

from ..model.errors import KernelError
from ..model.facts import Element, Plan
from . import nlmsg
from ._nft import ffi, lib
from .netns import open_socket

TABLE = "netplane"
NETLINK_NETFILTER = 12
NFPROTO_INET = 1
NFT_MSG_NEWSET, NFT_MSG_GETSET = 10 << 8 | 9, 10 << 8 | 10
NFT_MSG_NEWGEN, NFT_MSG_GETGEN = 10 << 8 | 15, 10 << 8 | 16
NFTA_GEN_ID = 1
NFTA_SET_TABLE, NFTA_SET_NAME, NFTA_SET_FLAGS = 1, 2, 3
NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN, NFTA_SET_DATA_TYPE, NFTA_SET_DATA_LEN = 4, 5, 6, 7
NFTA_SET_COUNT = 20
# interval, timeout, eval (dynamic), object, concatenated intervals: their elements have more to them
UNUSUAL = 0x4 | 0x10 | 0x20 | 0x40 | 0x80
MAP = 0x8
VERDICT = 0xFFFFFF00
# nft's numbers of datatypes (userspace's own, kept in the set) → the letter in nft.c, bytes in registers
TYPES = {
    4: ("i", 4),
    7: ("4", 4),
    8: ("6", 16),
    12: ("p", 4),
    13: ("s", 4),
    19: ("i", 4),
    23: ("c", 4),
    41: ("n", 16),
}
PIECE = 1 << 18  # characters of a listing that are taken apart at once
TRIES = 20  # listings that another program's commit may spoil in turn
REHASH = 0.01  # seconds: the kernel moves 300,000 elements in some ten of these
Parts = tuple[str | int, ...]
Row = tuple[int, Parts, Parts | None]
_BE32 = struct.Struct(">I")
_NFGENMSG = struct.Struct(">BBH")


class Glance(NamedTuple):
    """One listing. What makes gaps in it: a commit came between, or the set's hash grows."""

    rows: list[Row]
    spoilt: bool
    growing: bool


class Batches:
    """The encoder's socket, and the layouts of the sets of our table. One thread at a time."""

    def __init__(self, netns: str = "") -> None:
        self.sock = socket.socket(fileno=open_socket(netns, NETLINK_NETFILTER))
        self._layouts: dict[str, str] = {}
        self.sock.bind((0, 0))
        self.portid = int(self.sock.getsockname()[0])

    def close(self) -> None:
        self.sock.close()

    def forget(self) -> None:
        """Sets may have come, gone or changed."""
        self._layouts.clear()

    def generation(self) -> int:
        """The number of commits that this namespace has seen, by anybody."""
        answer = self._request(NFT_MSG_GETGEN, _NFGENMSG.pack(0, 0, 0))
        for kind, body in answer:
            if kind == NFT_MSG_NEWGEN:
                return _u32(nlmsg.attrs(body, 4), NFTA_GEN_ID)
        return -1

    def knows(self, name: str) -> bool:
        """Whether the elements of a set can be said by this."""
        return bool(self._layout(name))

    def elements(self, name: str) -> list[Row] | None:
        """(packets, item, value) of a set's elements; None for a set that this cannot say.

        Raises KernelError: ENOENT without the set, EAGAIN when others commit all the time.
        """
        found = self.glance(name)
        for _ in range(TRIES):
            if found is None or not (found.spoilt or found.growing):
                break
            time.sleep(REHASH)
            found = self.glance(name)
        if found is None:
            return None
        if found.spoilt:
            raise KernelError(errno.EAGAIN, f"list elements of {name}", "others commit all the time")
        return found.rows

    def glance(self, name: str) -> Glance | None:
        """The same listed once, as it comes."""
        layout = self._layout(name)
        if not layout:
            return None
        batch = ffi.new("struct np_nft_batch *")
        try:
            words = TABLE.encode(), name.encode(), layout.encode()
            done = lib.np_nft_list(batch, self.sock.fileno(), *words)
            if done == -errno.EINVAL:
                return None
            if done != -errno.EAGAIN:
                _must(done, f"list elements of {name}")
            found = read(ffi.buffer(batch.data, batch.used)[:].decode(), layout) if batch.used else []
        finally:
            lib.np_nft_free(batch)
        return Glance(found, done != 0, not self._complete(name, found))

    def _complete(self, name: str, found: list[Row]) -> bool:
        """Whether a listing has all elements, as far as the kernel tells their number (NFTA_SET_COUNT).

        A hash that grows, as it does for a while after a load, is walked with gaps and twice.
        """
        attrs = self._ask(name)
        return NFTA_SET_COUNT not in attrs or len({row[1] for row in found}) == _u32(attrs, NFTA_SET_COUNT)

    def held(self, name: str, item: Parts) -> tuple[Parts | None] | None:
        """(value,) of one element; None when the set does not hold it. Raises KernelError."""
        layout, text = self._layout(name), " ".join(map(str, item)).encode()
        batch = ffi.new("struct np_nft_batch *")
        try:
            fd, words = self.sock.fileno(), (TABLE.encode(), name.encode(), layout.encode())
            done = (
                lib.np_nft_get(batch, fd, *words, ffi.from_buffer(text), len(text))
                if layout
                else -errno.ENOENT
            )
            if done == -errno.ENOENT:
                return None
            _must(done, f"element {text.decode()} of {name}")
            return (read(ffi.buffer(batch.data, batch.used)[:].decode(), layout)[0][2],)
        finally:
            lib.np_nft_free(batch)

    def encodable(self, plan: Plan) -> bool:
        """Whether all of the plan are elements of sets that this can say. Raises KernelError."""
        if any(key[0] != "element" for key in plan.remove):
            return False
        if any(type(f) is not Element for facts in (plan.add, plan.change) for f in facts):
            return False
        names = {str(key[1]) for key in plan.remove}
        names.update(f.of for facts in (plan.add, plan.change) for f in facts)
        return all(self._layout(name) for name in names)

    def apply(self, plan: Plan) -> None:
        """Carry an encodable plan out. Raises KernelError (EINVAL: words that are not of a set's types)."""
        batch = ffi.new("struct np_nft_batch *")
        try:
            _must(lib.np_nft_begin(batch), "begin")
            for name, lines in _stale(plan).items():
                self._put(batch, True, name, lines)
            for name, lines in _fresh(plan).items():
                self._put(batch, False, name, lines)
            _must(lib.np_nft_commit(batch, self.sock.fileno()), "commit")
        finally:
            lib.np_nft_free(batch)

    def _put(self, batch: object, remove: bool, name: str, lines: list[str]) -> None:
        layout = self._layout(name)
        if remove:
            layout = layout.partition(":")[0]
        text = "\n".join(lines).encode()
        done = lib.np_nft_elements(
            batch, remove, TABLE.encode(), name.encode(), layout.encode(), ffi.from_buffer(text), len(text)
        )
        _must(done, f"elements of {name}")

    def _layout(self, name: str) -> str:
        """The types of a set's elements; "" for one that libnftables must serve, or that is not there."""
        found = self._layouts.get(name)
        if found is None:
            found = self._layouts[name] = layout_of(self._ask(name))
        return found

    def _ask(self, name: str) -> dict[int, bytes]:
        """The set's attributes; {} when there is none."""
        body = _NFGENMSG.pack(NFPROTO_INET, 0, 0)
        body += nlmsg.text(NFTA_SET_TABLE, TABLE) + nlmsg.text(NFTA_SET_NAME, name)
        for kind, answer in self._request(NFT_MSG_GETSET, body):
            if kind == NFT_MSG_NEWSET:
                return nlmsg.attrs(answer, 4)
        return {}

    def _request(self, kind: int, body: bytes) -> list[tuple[int, bytes]]:
        """(type, body) of what one question is answered with."""
        head = nlmsg.NLMSGHDR.pack(16 + len(body), kind, nlmsg.NLM_F_REQUEST, 1, 0)
        self.sock.sendto(head + body, (0, 0))
        return [(got, answer) for got, _, _, _, answer in nlmsg.messages(self.sock.recv(1 << 16))]


def layout_of(attrs: dict[int, bytes]) -> str:
    """A set's attributes as nft.c's layout ("4ps:c"), "" for what it does not know."""
    flags = _u32(attrs, NFTA_SET_FLAGS)
    if not attrs or flags & UNUSUAL:
        return ""
    key = _letters(_u32(attrs, NFTA_SET_KEY_TYPE), _u32(attrs, NFTA_SET_KEY_LEN))
    if not key or not flags & MAP:
        return key
    kind = _u32(attrs, NFTA_SET_DATA_TYPE)
    value = "v" if kind == VERDICT else _letters(kind, _u32(attrs, NFTA_SET_DATA_LEN))
    return f"{key}:{value}" if value else ""


def _letters(kind: int, length: int) -> str:
    """The types that a concatenation's number holds, six bits each, the last part lowest."""
    parts = []
    while kind:
        parts.append(TYPES.get(kind & 0x3F, ("", 0)))
        kind >>= 6
    known = all(letter for letter, _ in parts) and length == sum(size for _, size in parts)
    # a port or protocol alone is no concatenation: its key has its own length, unpadded
    return "".join(letter for letter, _ in reversed(parts)) if known else ""


def read(text: str, layout: str) -> list[Row]:
    """The lines of np_nft_list as a fact's parts; equal addresses and ports are one object."""
    texts, numbers = _Texts(), _Numbers()
    key, _, value = layout.partition(":")
    words = [numbers if letter in "ips" else texts for letter in key + value]
    found: list[Row] = []
    at = 0
    while at < len(text):  # by columns, which is quick, of a piece at a time, which is small
        end = text.find("\n", at + PIECE) + 1 or len(text)
        flat = text[at:end].replace("\n", "\t").split("\t")[:-1]
        step = 1 + len(words)
        columns = [map(kind.__getitem__, flat[i::step]) for i, kind in enumerate(words, 1)]
        items = zip(*columns[: len(key)], strict=True)
        values = zip(*columns[len(key) :], strict=True) if value else repeat(None)
        found += zip(map(int, flat[::step]), items, values)  # noqa: B905 (repeat has no end)
        at = end
    return found


class _Texts(dict[str, str]):
    """One object for each word: 300,000 endpoints name few addresses and fewer ports."""

    def __missing__(self, word: str) -> str:
        odd = ":" in word and "." in word  # inet_ntop's mapped addresses are not RFC 5952's
        found = self[word] = str(ipaddress.ip_address(word)) if odd else word
        return found


class _Numbers(dict[str, str | int]):
    """A protocol has a name where it is known."""

    def __missing__(self, word: str) -> str | int:
        found = self[word] = int(word) if word.isdigit() else word
        return found


def _stale(plan: Plan) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for of, item in _gone(plan):
        found.setdefault(of, []).append(" ".join(map(str, item)))
    return found


def _gone(plan: Plan) -> Iterator[tuple[str, Iterable[object]]]:
    yield from ((f.of, f.item) for f in plan.change)
    yield from ((str(key[1]), key[2]) for key in plan.remove)  # type: ignore[misc]


def _fresh(plan: Plan) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for facts in (plan.add, plan.change):
        for fact in facts:
            lines = found.get(fact.of)
            if lines is None:
                lines = found[fact.of] = []
            item, value = fact.item, fact.value
            parts = item if value is None else item + value
            lines.append(
                _FORMS[len(parts)] % parts if len(parts) < len(_FORMS) else " ".join(map(str, parts))
            )
    return found


_FORMS = tuple(" ".join(["%s"] * n) for n in range(9))  # quicker than join for 300,000 elements


def _u32(attrs: dict[int, bytes], kind: int) -> int:
    return int(_BE32.unpack_from(attrs[kind])[0]) if kind in attrs else 0


def _must(result: int, what: str) -> None:
    if result:
        detail = os.strerror(-result) if -result != errno.EINVAL else ""
        raise KernelError(-result, f"nftables batch: {what}", detail)

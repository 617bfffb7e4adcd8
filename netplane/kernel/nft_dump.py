"""The chains and sets of our table with their marks, read straight from netlink.

libnftables reads every element for a list of the table, even for a terse one: 5 s at 300,000.

Rule 1: a mark is a comment: of a chain's first rule, of a set. What has none is ours with the mark "".
Rule 2: anonymous sets are parts of rules, and a rule's mark speaks for them.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

from ..model.errors import KernelError
from ..model.facts import FactKey, Mark
from . import nlmsg

TABLE = "netplane"
NFPROTO_INET = 1
GETCHAIN, GETRULE, GETSET = 10 << 8 | 4, 10 << 8 | 7, 10 << 8 | 10
NFTA_TABLE, NFTA_NAME = 1, 2  # of a rule and a set; a rule's "name" is its chain's
NFTA_CHAIN_NAME, NFTA_RULE_USERDATA, NFTA_SET_FLAGS, NFTA_SET_USERDATA = 3, 7, 3, 13
ANONYMOUS, MAP, OBJECT = 0x1, 0x8, 0x40
RULE_COMMENT, SET_COMMENT = 0, 7  # libnftnl's numbers of what userspace keeps
TRIES = 20  # dumps that another commit may spoil in turn
_HEAD = struct.Struct(">BBH")


def structure(sock: socket.socket, family: int = NFPROTO_INET) -> tuple[dict[FactKey, Mark], dict[str, str]]:
    """({key: mark} of chains and sets, {name: "set" or "map"} of those whose elements are facts).

    Of our table of this family. Raises KernelError: ENOENT without the table.
    """
    found: dict[FactKey, Mark] = {}
    sets: dict[str, str] = {}
    for attrs in _dump(sock, GETSET, family):
        flags = int.from_bytes(attrs.get(NFTA_SET_FLAGS, b""), "big")
        if not flags & ANONYMOUS:
            name = nlmsg.string(attrs.get(NFTA_NAME))
            mark, _, flag = _comment(attrs.get(NFTA_SET_USERDATA, b""), SET_COMMENT).partition(" ")
            found["set", name] = mark
            if not flag:
                sets[name] = "map" if flags & (MAP | OBJECT) else "set"
    rules: dict[str, str] = {}
    for attrs in _dump(sock, GETRULE, family):
        comment = _comment(attrs.get(NFTA_RULE_USERDATA, b""), RULE_COMMENT)
        rules.setdefault(nlmsg.string(attrs.get(NFTA_NAME)), comment)
    for attrs in _dump(sock, GETCHAIN, family):
        name = nlmsg.string(attrs.get(NFTA_CHAIN_NAME))
        found["chain", name] = rules.get(name, "")
    return found, sets


def _comment(userdata: bytes, kind: int) -> str:
    """Of type, length and value in a row, the value of this type as text."""
    at = 0
    while at + 2 <= len(userdata):
        end = at + 2 + userdata[at + 1]
        if userdata[at] == kind:
            return nlmsg.string(userdata[at + 2 : end])
        at = end
    return ""


def _dump(sock: socket.socket, kind: int, family: int) -> list[dict[int, bytes]]:
    """The attributes of everything of a kind in our table, in order."""
    for _ in range(TRIES):
        found = _dump_once(sock, kind, family)
        if found is not None:
            return [attrs for attrs in found if nlmsg.string(attrs.get(NFTA_TABLE)) == TABLE]
    raise KernelError(errno.EAGAIN, "list the nftables table", "others commit all the time")


def _dump_once(sock: socket.socket, kind: int, family: int) -> list[dict[int, bytes]] | None:
    """None when a commit came between."""
    body = _HEAD.pack(family, 0, 0) + nlmsg.text(NFTA_TABLE, TABLE)
    flags = nlmsg.NLM_F_REQUEST | nlmsg.NLM_F_DUMP
    sock.sendto(nlmsg.NLMSGHDR.pack(16 + len(body), kind, flags, 1, 0) + body, (0, 0))
    found: list[dict[int, bytes]] = []
    spoilt = False
    while True:
        for got, flags, payload in _messages(sock.recv(1 << 16)):
            spoilt = spoilt or bool(flags & nlmsg.NLM_F_DUMP_INTR)
            if got in (nlmsg.NLMSG_DONE, nlmsg.NLMSG_ERROR):
                (error,) = struct.unpack_from("=i", payload)
                if error:
                    raise KernelError(-error, "list the nftables table")
                return None if spoilt else found
            found.append(nlmsg.attrs(payload, 4))


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    return ((kind, flags, body) for kind, flags, _, _, body in nlmsg.messages(data))

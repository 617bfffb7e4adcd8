"""One plan at work: its sockets, the interface indexes it looked up, and how to take it back.

Rule 1: one socket per namespace and plan; our own comes from a pool, the others are closed at the end.
Rule 2: what waits in ``later`` goes in one batch with the addresses and routes of its namespace.
Rule 3: a pod's path may lead to our own namespace by now (/proc/PID/ns/net): then there is none at it.
Rule 4: everything that did not exist before the plan is written down here, so `undo` can remove it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from errno import EADDRNOTAVAIL, ENODEV, ENOENT, ESRCH
from typing import Any

from ..model.errors import KernelError, NetplaneError
from ..model.facts import Address, Fdb, Link, Neighbour, Route, Shaper
from . import linkmsg, qdiscmsg, routemsg
from . import nlmsg as nl
from .linkmsg import State
from .netns import is_own
from .nlmsg import Request
from .nlsocket import Socket

GONE = (ENODEV, ENOENT, ESRCH, EADDRNOTAVAIL)


class Session:
    """``own`` is a socket of the driver's namespace, which facts name ""; ``home`` is its path.

    ``masters``: indexes of links there that plans before this one looked up, and may be of the past.
    """

    def __init__(self, own: Socket, home: str, masters: dict[str, int] | None = None) -> None:
        self.home = home
        self._sockets = {"": own}
        self._masters = {} if masters is None else masters
        self.hooked = False  # our ends of pairs are born with a place for programs where they may
        self._index: dict[tuple[str, str], int] = {}
        self._fds: dict[str, int] = {}
        self._pods: set[str] = set()  # paths that lead to others' namespaces
        self._made: list[tuple[Any, int]] = []  # (fact, interface index)
        self.rising: list[tuple[str, Link]] = []  # (namespace, link): ends of pairs that go up
        self.joining: list[Link] = []  # new on a segment whose hosts may know their addresses of others
        self.later: dict[str, list[Request]] = {}  # go before the first addresses of their namespace

    def close(self) -> None:
        for netns, sock in self._sockets.items():
            if netns:
                sock.close()
        for fd in self._fds.values():
            os.close(fd)

    def path(self, netns: str) -> str:
        """Raises KernelError (ENOENT) for one that leads to our own namespace."""
        if netns and netns not in self._pods:
            if is_own(netns):
                raise KernelError(ENOENT, f"enter network namespace {netns}", "it is the node's own")
            self._pods.add(netns)
        return netns or self.home

    def socket(self, netns: str) -> Socket:
        """Raises KernelError (ENOENT, EINVAL) when there is no namespace at the path."""
        if netns not in self._sockets:
            self._sockets[netns] = Socket(self.path(netns))
        return self._sockets[netns]

    def netns_fd(self, netns: str) -> int:
        """A descriptor of the namespace, to hand to the kernel; open until `close`."""
        if netns not in self._fds:
            try:
                self._fds[netns] = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as exc:
                raise KernelError(exc.errno or ENOENT, f"open network namespace {netns}") from exc
        return self._fds[netns]

    def states(self, netns: str, names: Iterable[str]) -> dict[str, State]:
        """The links of these names that exist, looked up by name in one batch, never by a dump."""
        asked = list(dict.fromkeys(names))
        return {name: linkmsg.parse(body) for name, body in self.look_up(netns, asked).items()}

    def look_up(self, netns: str, names: list[str], first: Iterable[Request] = ()) -> dict[str, bytes]:
        """The kernel's answer for each link that exists, after the requests of ``first`` in one batch."""
        before = list(first)
        answers = self.socket(netns).must([*before, *map(linkmsg.get, names)], fine=() if before else GONE)
        found = {n: a.body for n, a in zip(names, answers[len(before) :], strict=True) if a.body}
        for name, body in found.items():
            self._index[netns, name] = nl.IFINFOMSG.unpack_from(body)[2]
        return found

    def indexes(self, netns: str, names: Iterable[str]) -> dict[str, int]:
        """The interface index of every name; looked up once per plan. Raises KernelError(ENODEV)."""
        wanted = {n for n in names if n}
        missing = [n for n in wanted if (netns, n) not in self._index]
        if missing:
            found = self.look_up(netns, missing)
            for name in missing:
                if name not in found:
                    raise KernelError(ENODEV, f"look up link {name}{f' in {netns}' if netns else ''}")
        return {n: self._index[netns, n] for n in wanted}

    def master(self, netns: str, name: str) -> int:
        """The index of a link that others are born on or under, which seldom changes; 0 for "".

        Raises KernelError(ENODEV).
        """
        if not name:
            return 0
        if not netns and name in self._masters:
            self.know(netns, name, self._masters[name])
        index = self.indexes(netns, (name,))[name]
        if not netns:
            self._masters[name] = index
        return index

    def know(self, netns: str, name: str, index: int) -> None:
        """A link's index that an answer told beside."""
        self._index[netns, name] = index

    def after(self, netns: str, requests: Iterable[Request]) -> None:
        """These go with the next batch of `factput.put_facts` in this namespace."""
        self.later.setdefault(netns, []).extend(requests)

    def forget(self, netns: str, name: str) -> None:
        self._index.pop((netns, name), None)
        if not netns:
            self._masters.pop(name, None)

    def name_of(self, netns: str) -> dict[int, str]:
        return {index: name for (where, name), index in self._index.items() if where == netns}

    def made(self, fact: Any, index: int = 0) -> None:
        if isinstance(fact, Link):
            self.forget(fact.netns, fact.name)
        self._made.append((fact, index))

    def undo(self) -> None:
        """Remove what this plan made, last first; what cannot be removed is left for `observe`."""
        for fact, index in reversed(self._made):
            try:
                self.socket(fact.netns).send([_deletion(fact, index)])
            except NetplaneError:
                continue
        self._made.clear()


def _deletion(fact: Any, index: int) -> Request:
    match fact:
        case Link():
            return linkmsg.delete(fact.name)
        case Address():
            return routemsg.address(fact, index, delete=True)
        case Route():
            return routemsg.delete_route(fact.dst, fact.table, fact.metric)
        case Neighbour():
            return routemsg.delete_neighbour(fact.link, fact.address, index)
        case Fdb():
            return routemsg.delete_fdb(fact.link, fact.mac, index)
        case Shaper():
            return qdiscmsg.unshape(fact.link, index)
    raise TypeError(f"{fact!r} has no deletion")

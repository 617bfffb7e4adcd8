"""Remove links and what hangs on them, by key.

Rule 1: a link goes only when it is ours; a name that is somebody else's by now is passed over.
Rule 2: deleting a link waits for an RCU grace period (about 20 ms), deleting a group of them waits
        once: so the links of a plan go together, and plans that meet share one wait (`Reaper`).
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from errno import EINVAL, ENOENT
from typing import Any

from ..model.errors import KernelError, NetplaneError
from ..model.facts import Address, FactKey
from . import linkmsg, routemsg
from .nlmsg import Request
from .session import GONE, Session

Delete = Callable[[list[int]], None]


class Reaper:
    """Deletes links of one namespace; callers that come while one deletion waits join the next."""

    def __init__(self, delete: Delete) -> None:
        self._delete = delete
        self._turn = threading.Lock()
        self._guard = threading.Lock()
        self._waiting: list[_Ticket] = []

    def reap(self, indexes: list[int]) -> None:
        """Return when these links are gone. Raises KernelError."""
        ticket = _Ticket(indexes)
        with self._guard:
            self._waiting.append(ticket)
        with self._turn:
            if not ticket.done:
                with self._guard:
                    batch, self._waiting = self._waiting, []
                self._run(batch)
        if ticket.error:
            raise ticket.error

    def _run(self, batch: list[_Ticket]) -> None:
        error: BaseException | None = None
        try:
            self._delete([index for ticket in batch for index in ticket.indexes])
        except NetplaneError as exc:
            error = exc
        for ticket in batch:
            ticket.done, ticket.error = True, error


class _Ticket:
    def __init__(self, indexes: list[int]) -> None:
        self.indexes = indexes
        self.done = False
        self.error: BaseException | None = None


def drop(session: Session, keys: Iterable[FactKey], reaper: Reaper) -> None:
    """What is gone already is fine, as is a namespace that is gone. Raises KernelError."""
    links: dict[str, list[str]] = defaultdict(list)
    rest: dict[str, list[FactKey]] = defaultdict(list)
    for key in keys:
        if key[0] == "link":
            links[str(key[1])].append(str(key[2]))
        elif key[0] != "sysctl":  # a sysctl has no absence
            rest[str(key[1])].append(key)
    for netns, names in links.items():
        if _there(session, netns):
            _drop_links(session, netns, names, reaper)
    for netns, group in rest.items():
        if _there(session, netns):
            _drop_rest(session, netns, group)


def _there(session: Session, netns: str) -> bool:
    """Whether the namespace still is: a missing path, or one that holds none any more, is not."""
    try:
        session.socket(netns)
    except KernelError as exc:
        if exc.errno in (ENOENT, EINVAL):
            return False
        raise
    return True


def _drop_links(session: Session, netns: str, names: list[str], reaper: Reaper) -> None:
    doomed = [s.ifindex for s in session.states(netns, names).values() if s.ours]
    for name in names:
        session.forget(netns, name)
    if not doomed:
        return
    if netns:
        session.socket(netns).must(linkmsg.delete_all(doomed), fine=GONE)
    else:
        reaper.reap(doomed)


def _drop_rest(session: Session, netns: str, keys: list[FactKey]) -> None:
    names = {str(key[2]) for key in keys if key[0] != "route"}
    index = {name: state.ifindex for name, state in session.states(netns, names).items()}
    requests = [r for r in (_removal(key, index) for key in keys) if r is not None]
    session.socket(netns).must(requests, fine=GONE)


def _removal(key: tuple[Any, ...], index: dict[str, int]) -> Request | None:
    """None when the link is gone, and with it what the key names."""
    if key[0] == "route":
        _, _, table, dst, metric = key
        return routemsg.delete_route(dst, table, metric)
    kind, _, link, what = key
    if link not in index:
        return None
    if kind == "address":
        return routemsg.address(Address(link=link, address=what), index[link], delete=True)
    if kind == "neighbour":
        return routemsg.delete_neighbour(link, what, index[link])
    return routemsg.delete_fdb(link, what, index[link])

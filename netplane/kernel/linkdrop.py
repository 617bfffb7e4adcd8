"""Remove links and what hangs on them, by key.

Rule 1: a link goes only when it is ours; a name that is somebody else's by now is passed over.
Rule 2: deleting a link waits for an RCU grace period (about 20 ms) with the kernel's RTNL lock held,
        deleting a group of them waits once: so the links of a plan go together, and plans that meet
        share one wait (`Reaper`). What can be asked without that lock is, for it may be held long.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from errno import EINVAL, ENOENT
from typing import Any

from ..model.errors import KernelError, NetplaneError
from ..model.facts import Address, FactKey
from . import linkmsg, qdiscmsg, routemsg, sysctl
from .nlmsg import Request
from .nlsocket import Socket
from .session import GONE, Session

Delete = Callable[[list[str]], None]
_GATHER = 0.001  # seconds


class Reaper:
    """Deletes links of one namespace; callers that come while one deletion waits join the next."""

    def __init__(self, delete: Delete) -> None:
        self._delete = delete
        self._change = threading.Condition()
        self._waiting: list[_Ticket] = []
        self._leading = False  # somebody is deleting for all who waited
        self._busy = False

    def reap(self, names: list[str]) -> None:
        """Return when these links are gone. Raises KernelError."""
        ticket = _Ticket(names)
        with self._change:
            self._waiting.append(ticket)
            self._change.wait_for(lambda: ticket.done or not self._leading)
            lead = not ticket.done
            self._leading = self._leading or lead
        if lead:
            self._lead()
        if ticket.error:
            raise ticket.error

    def _lead(self) -> None:
        if self._busy:  # those whom the last wait released are about to come again
            time.sleep(_GATHER)
        with self._change:
            batch, self._waiting = self._waiting, []
        error: NetplaneError | None = None
        try:
            self._delete([name for ticket in batch for name in ticket.names])
        except NetplaneError as exc:
            error = exc
        finally:
            with self._change:
                for ticket in batch:
                    ticket.done, ticket.error = True, error
                self._leading, self._busy = False, len(batch) > 1
                self._change.notify_all()


class _Ticket:
    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.done = False
        self.error: NetplaneError | None = None


def drop(session: Session, keys: Iterable[FactKey], reaper: Reaper) -> None:
    """What is gone already is fine, as is a namespace that is gone. Raises KernelError."""
    links: dict[str, list[str]] = defaultdict(list)
    rest: dict[str, list[FactKey]] = defaultdict(list)
    for key in keys:
        if key[0] == "link":
            if key[2] != "lo":  # never ours, and in every pod: not worth a wait for the lock
                links[str(key[1])].append(str(key[2]))
        elif key[0] != "sysctl":  # a sysctl has no absence
            rest[str(key[1])].append(key)
    for netns, names in links.items():
        if _there(session, netns):
            _drop_links(session, netns, names, reaper)
    for netns, group in rest.items():
        if _there(session, netns) and not (netns and _went_along(netns, group)):
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
    if netns:
        delete_ours(session.socket(netns), names)
    else:
        reaper.reap(names)
    for name in names:
        session.forget(netns, name)


def delete_ours(sock: Socket, names: list[str]) -> None:
    """Delete those links of these names that are ours. Raises KernelError."""
    answers = sock.must([linkmsg.get(name) for name in names], fine=GONE)
    states = [linkmsg.parse(answer.body) for answer in answers if answer.body]
    doomed = [state.ifindex for state in states if state.ours]
    if doomed:
        sock.must(linkmsg.delete_all(doomed), fine=GONE)


def _went_along(netns: str, keys: list[FactKey]) -> bool:
    """Whether the links that these keys name are gone, and so all that hung on them (a pod's end
    goes with ours). Asked of /proc/sys, which does not wait for the RTNL lock."""
    links = {str(key[2]) for key in keys if key[0] != "route"}
    return bool(links) and all(sysctl.read(f"net/ipv4/conf/{n}/forwarding", netns) is None for n in links)


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
    kind, _, link, *rest = key
    if link not in index:
        return None
    if kind == "shaper":
        return qdiscmsg.unshape(link, index[link])
    (what,) = rest
    if kind == "address":
        return routemsg.address(Address(link=link, address=what), index[link], delete=True)
    if kind == "neighbour":
        return routemsg.delete_neighbour(link, what, index[link])
    return routemsg.delete_fdb(link, what, index[link])

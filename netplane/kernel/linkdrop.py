"""Remove links and what hangs on them, by key.

Rule 1: a link goes only when it is ours; a name that is somebody else's by now is passed over.
Rule 2: links of our own namespace go through the `Reaper`, in groups with those of other plans. What
        can be asked without the RTNL lock is, for a deletion may hold it long.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from errno import EINVAL, ENOENT
from typing import Any

from ..model.errors import KernelError
from ..model.facts import Address, FactKey
from . import qdiscmsg, routemsg, sysctl
from .linkreap import Reaper, delete_ours
from .nlmsg import Request
from .session import GONE, Session


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

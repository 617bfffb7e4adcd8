"""Remove links and what hangs on them, by key.

Rule 1: a link goes only when it is ours; a name that is somebody else's by now is passed over.
Rule 2: a pod's namespace is a path, which may lead to another pod's by now: a link that has addresses, and
        none of those that go, is not the one that had them.
Rule 3: what goes from our own namespace goes through the `Reaper`, together with that of other plans:
        a deletion holds the RTNL lock long, so nobody should have to ask for it twice. What can be asked
        without that lock is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from errno import EINVAL, ENOENT
from typing import Any

from ..model.errors import KernelError
from ..model.facts import Address, FactKey
from . import linkmsg, qdiscmsg, routemsg, sysctl
from .linkread import addresses
from .linkreap import Reaper
from .nlmsg import Request
from .nlsocket import Socket, link_index
from .session import GONE, Session

LOCALNET = "/route_localnet"  # the one setting that is shut again: open, it lets neighbours reach 127.0.0.1


def drop(session: Session, keys: Collection[FactKey], reaper: Reaper) -> None:
    """What is gone already is fine, as is a namespace that is gone. Raises KernelError."""
    groups: dict[str, list[FactKey]] = defaultdict(list)
    opened = [str(key[2]) for key in keys if key[:2] == ("sysctl", "") and str(key[2]).endswith(LOCALNET)]
    sysctl.write([(name, "0") for name in opened], session.path(""), missing_ok=True)
    for key in keys:
        # another sysctl has no absence, lo is in every pod
        if key[0] != "sysctl" and key[::2] != ("link", "lo"):
            groups[str(key[1])].append(key)
    own = groups.pop("", None)
    if own:
        reaper.reap(own)
    for netns, group in groups.items():
        if not _went_along(netns, group) and _there(session, netns):
            left = _not_anothers(session, netns, group)
            delete(session.socket(netns), drop_rest(session, netns, left))


def drop_rest(session: Session, netns: str, keys: list[FactKey]) -> list[int]:
    """Remove all but the links and what goes with them; the indexes of those that are ours, for `delete`."""
    names = [str(key[2]) for key in keys if key[0] == "link"]
    beside = [str(key[2]) for key in keys if key[0] not in ("link", "route")]
    there = session.look_up(netns, list(dict.fromkeys((*names, *beside))))
    found = {name: linkmsg.owned(body) for name, body in there.items()}
    doomed = {name: found[name][0] for name in names if name in found and found[name][1]}
    rest = [key for key in keys if key[0] == "route" or (key[0] != "link" and key[2] not in doomed)]
    index = {name: index for name, (index, _) in found.items()}
    requests = [r for r in (_removal(key, index) for key in rest) if r is not None]
    session.socket(netns).must(requests, fine=GONE)
    for name in names:
        session.forget(netns, name)
    return list(doomed.values())


def delete(sock: Socket, doomed: list[int]) -> None:
    """Delete these links and wait until the kernel has let them go. Raises KernelError."""
    if doomed:
        sock.must(linkmsg.delete_all(doomed), fine=GONE)


def _there(session: Session, netns: str) -> bool:
    """Whether the namespace still is: a missing path, or one that holds none any more, is not."""
    try:
        session.socket(netns)
    except KernelError as exc:
        if exc.errno in (ENOENT, EINVAL):
            return False
        raise
    return True


def _went_along(netns: str, keys: list[FactKey]) -> bool:
    """Whether the links that these keys name are gone, and so all that hung on them (a pod's end
    goes with ours). Asked in a way that does not wait for the RTNL lock."""
    links = {str(key[2]) for key in keys if key[0] != "route"}
    return bool(links) and not any(link_index(name, netns) for name in links)


def _not_anothers(session: Session, netns: str, keys: list[FactKey]) -> list[FactKey]:
    """Without what is another pod's (rule 2); its routes bear no link's name, and are ours if any link is."""
    names = list(dict.fromkeys(str(key[2]) for key in keys if key[0] != "route"))
    there = {linkmsg.owned(body)[0]: name for name, body in session.look_up(netns, names).items()}
    going = {key[2:] for key in keys if key[0] == "address"}
    has: dict[str, list[bool]] = defaultdict(list)
    for fact, _ in addresses(session.socket(netns), there):
        if not fact.address.startswith("fe80:"):
            has[fact.link].append((fact.link, fact.address) in going)
    had = {str(link) for link, _ in going}
    others = {name for name in had if has[name] and not any(has[name])}
    routes = any(name not in others for name in there.values())
    return [key for key in keys if (routes if key[0] == "route" else key[2] not in others)]


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

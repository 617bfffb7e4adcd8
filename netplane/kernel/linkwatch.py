"""Tells when something of ours was taken away or changed by somebody else, so the loop can resync.

Rule 1: an event is a hint, never the truth: the callback should wait a moment (events come in
        flocks) and then `observe`.
Rule 2: echoes of our own requests are left out where the kernel says who asked. What the kernel
        does in consequence (routes that go with a link) bears no name and may come through; but not the
        addresses of a link that we delete, of which it tells after the link's mark (ours.GROUP_DOOMED).
Rule 3: a pod that comes or goes makes a dozen notices. A filter in the kernel keeps those that cannot
        matter, the rest gather for a moment, and of each link only the last state is read.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator

from ..model.facts import ROUTE_PROTOCOL
from . import linkmsg, netns, ours, routemsg
from . import nlmsg as nl
from .monitor import OVERRUN, Monitor
from .sockfilter import GIVE, JUMP_EQUAL, LOAD_BYTE, LOAD_HALF, big, pass_only

_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
_BUFFER = 16 << 20
_GATHER = 0.02  # seconds

_OF_LINK = frozenset((nl.IFLA_IFNAME, nl.IFLA_IFALIAS, nl.IFLA_GROUP, nl.IFLA_MTU, nl.IFLA_ADDRESS))

Callback = Callable[[str], None]


class LinkMonitor(Monitor):
    """Calls ``callback(words)`` in a thread of its own; "overrun" when events were lost.

    ``netns`` as in LinkDriver.netns; ``own`` tells whose notifications are our own
    (LinkDriver.portids).
    """

    def __init__(
        self, callback: Callback, netns_path: str = "", own: Callable[[], frozenset[int]] = frozenset
    ) -> None:
        self._callback = callback
        self._own = own
        self._links: dict[int, bytes] = {}  # what was told of links the last time
        super().__init__("link monitor", socket.socket(fileno=netns.open_socket(netns_path, 0)), _BUFFER)
        _attach_filter(self._sock)
        self._sock.bind((0, _GROUPS))

    def _hear(self) -> None:
        if self._closing(_GATHER):
            return
        for words in events(self._waiting(), self._own(), self._links):
            self._callback(words)

    def _waiting(self) -> Iterator[bytes]:
        """The notifications that are there."""
        while True:
            try:
                yield self._sock.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: the kernel dropped some
                self._callback(OVERRUN)
                return


def events(
    notifications: Iterable[bytes], own: frozenset[int], known: dict[int, bytes] | None = None
) -> Iterator[str]:
    """What of these concerns us, in words; of a link, what its last one says.

    ``known``: what the notifications before these told of links, by index; then what these do.
    """
    last: dict[object, tuple[int, bytes]] = {}
    links, before = {}, {} if known is None else known
    for data in notifications:
        for kind, _, number, portid, body in nl.messages(data):
            if kind == nl.RTM_NEWLINK:
                links[nl.IFINFOMSG.unpack_from(body)[2]] = body
            elif kind == nl.RTM_DELADDR:
                index = nl.IFADDRMSG.unpack_from(body)[4]
                if _is_doomed(links.get(index) or before.get(index)):
                    continue
            about = (
                ("link", nl.IFINFOMSG.unpack_from(body)[2])
                if kind in (nl.RTM_NEWLINK, nl.RTM_DELLINK)
                else (kind, number, body)
            )
            last.pop(about, None)
            if not (portid and portid in own):
                last[about] = (kind, body)
    before.clear()
    before.update(links)
    for kind, body in last.values():
        words = _words(kind, body)
        if words:
            yield words


def _is_doomed(link: bytes | None) -> bool:
    """Whether we are deleting it."""
    return link is not None and nl.u32(nl.first(link, 16, nl.IFLA_GROUP)) == ours.GROUP_DOOMED


def _attach_filter(sock: socket.socket) -> None:
    """Classic BPF: pass links (of family unspec, not a bridge's view of its port), addresses that were
    removed, and routes of ours that were; each pod's end takes a handful along that nobody put there."""
    code = [
        (LOAD_HALF, 0, 0, 4),  # nlmsg_type
        (JUMP_EQUAL, 3, 0, big(nl.RTM_NEWLINK)),
        (JUMP_EQUAL, 2, 0, big(nl.RTM_DELLINK)),
        (JUMP_EQUAL, 5, 0, big(nl.RTM_DELADDR)),
        (JUMP_EQUAL, 2, 5, big(nl.RTM_DELROUTE)),
        (LOAD_BYTE, 0, 0, 16),  # ifi_family
        (JUMP_EQUAL, 2, 3, 0),
        (LOAD_BYTE, 0, 0, 21),  # rtm_protocol
        (JUMP_EQUAL, 0, 1, ROUTE_PROTOCOL),
        (GIVE, 0, 0, 0xFFFFFFFF),
        (GIVE, 0, 0, 0),
    ]
    pass_only(sock, code)


def _words(kind: int, body: bytes) -> str:
    if kind in (nl.RTM_NEWLINK, nl.RTM_DELLINK):
        return _link_words(kind, body)
    if kind == nl.RTM_DELADDR:
        fact, proto = routemsg.read_address(body, lambda i: f"#{i}")
        return f"address {fact.address} was removed" if proto == ROUTE_PROTOCOL else ""
    if kind == nl.RTM_DELROUTE:
        route, _ = routemsg.read_route(body, lambda i: f"#{i}")
        return f"route {route.dst} was removed"
    return ""


def _link_words(kind: int, body: bytes) -> str:
    """Of a link of ours; what it is as a bridge's port, forty attributes, is not looked at."""
    found = nl.pick(body, 16, _OF_LINK, len(_OF_LINK))
    name, alias = nl.string(found.get(nl.IFLA_IFNAME)), nl.string(found.get(nl.IFLA_IFALIAS))
    group = nl.u32(found.get(nl.IFLA_GROUP))
    if group == ours.GROUP_DOOMED:
        return ""  # we are deleting it
    if kind == nl.RTM_DELLINK and ours.is_ours(alias, group):
        return f"link {name} was removed"
    kept = ours.wish_of(alias)
    if kept is None:
        return ""
    have = {
        "up": str(int(bool(nl.IFINFOMSG.unpack_from(body)[3] & nl.IFF_UP))),
        "mtu": str(nl.u32(found.get(nl.IFLA_MTU))),
        "mac": nl.mac_text(found.get(nl.IFLA_ADDRESS)),
    }
    differing = linkmsg.differences({k: v for k, v in kept[1].items() if k in have}, have)
    return f"link {name} changed: {' '.join(differing)}" if differing else ""

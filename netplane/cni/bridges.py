"""The bridge of a network with addresses of its own: whose it is, and which gateway addresses it may get.

Rule 1: a bridge that somebody else made is used and not owned: our ports and addresses come and go on it,
        and nothing else of it is changed. That it is such a one is written into the record.
Rule 2: a gateway's address is alone in its family, as in the reference bridge plugin (IPv6: in its subnet),
        but for the other ranges of the network; with forceAddress it takes the place of another network's.
Rule 3: an address that is there and not ours stays, whatever is asked for.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from ipaddress import ip_interface
from typing import Any

from ..model.base import amend
from ..model.own import Attachment
from .errors import CONFIG, LATER, Refused
from .host import Host, Seen
from .ranges import RangeSet
from .request import Request
from .wiring import FOREIGN, LEFT, OPENED, gateways, own_bridge

Records = Callable[[], Iterable[Attachment]]


class Coming:
    """Gateways' addresses that ADDs under way bring to bridges, where nobody sees them yet. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, Counter[str]] = {}  # by bridge: address -> how many bring it

    @contextmanager
    def bringing(self, attachment: Attachment, request: Request) -> Iterator[None]:
        """Raises Refused while an ADD of another network brings one that cannot be there beside its own."""
        name, wanted = own_bridge(attachment), gateways(attachment)
        if not wanted:
            yield
            return
        with self._lock:
            here = self._of.get(name, Counter())
            kept = {*wanted, *_of_ranges(request.config.leases.sets)}
            for old in (old for new in wanted for old in here if old not in kept and exclude(new, old)):
                words = f"bridge: another network's ADD is putting {old} on {name} just now"
                raise Refused(LATER, f"{words}; name another bridge, or try again")
            self._of[name] = here + Counter(wanted)
        try:
            yield
        finally:
            with self._lock:
                self._of[name] -= Counter(wanted)
                if not self._of[name]:
                    del self._of[name]


def settle(
    host: Host, attachment: Attachment, request: Request, records: Records
) -> tuple[Attachment, frozenset[str]]:
    """The record with what the bridge that is there means for it, and which addresses give way to its own.

    Raises Refused, naming the bridge and what is in the way.
    """
    name = own_bridge(attachment)
    seen = host.look("", name) if name else None
    if seen is None:
        return attachment, frozenset()

    @cache
    def on_it() -> list[Attachment]:
        """Asked only where it matters, since it costs as much as there are pods."""
        return _beside(attachment, records())

    if not seen.ours:
        refuse_unusable(name, seen, bool(attachment.spec.config.get("promiscMode")))
        attachment = _with(attachment, **_foreign(host, attachment, seen, on_it))
    return attachment, _in_the_way(attachment, request, seen, on_it)


def without(
    attachment: Attachment, addresses: frozenset[str], records: Iterable[Attachment]
) -> list[Attachment]:
    """The other records of its bridge that are whole and want one of these addresses, as they become."""
    holders = [(r, addresses.intersection(gateways(r))) for r in _beside(attachment, records)]
    return [
        _with(record, **{LEFT: sorted({*record.spec.config.get(LEFT, ()), *wanted})})
        for record, wanted in holders
        if wanted and record.phase == "Ready"
    ]


def _beside(attachment: Attachment, records: Iterable[Attachment]) -> list[Attachment]:
    name = own_bridge(attachment)
    return [r for r in records if own_bridge(r) == name and r.name != attachment.name]


def mac(host: Host, attachment: Attachment) -> Attachment:
    """With the bridge's own MAC, for the result: one that has none of its own takes it from its ports."""
    if FOREIGN not in attachment.spec.config:
        return attachment
    seen = host.look("", own_bridge(attachment))
    return _with(attachment, **{FOREIGN: seen.mac if seen else ""})


def refuse_unusable(name: str, seen: Seen, promisc: bool) -> None:
    if seen.kind != "bridge":
        raise Refused(
            CONFIG, f"bridge: {name} is there and is no bridge ({seen.kind or 'device'}); name another"
        )
    if not seen.up:
        raise Refused(LATER, f"bridge: {name} is somebody else's, and down; set it up: ip link set {name} up")
    if promisc and not seen.promisc:
        words = f"promiscMode: the bridge {name} is somebody else's, and not changed"
        raise Refused(CONFIG, f"{words}; set it so yourself: ip link set {name} promisc on")


def _foreign(
    host: Host, attachment: Attachment, seen: Seen, on_it: Callable[[], list[Attachment]]
) -> dict[str, Any]:
    """What the record says of a bridge that is not ours: its gateway addresses that were there before us,
    and whether it is us who let 127.0.0.1 lead by it to pods."""
    name, spec = own_bridge(attachment), attachment.spec
    there = [address for address in gateways(attachment) if address in seen.addresses]
    theirs = [a for a in there if not seen.addresses[a] and not any(a in gateways(r) for r in on_it())]
    found: dict[str, Any] = {FOREIGN: seen.mac}
    if theirs:
        found[LEFT] = theirs
    if spec.ports and spec.config.get("isGateway"):
        opened = host.localnet(name)
        if not opened or any(r.spec.config.get(OPENED) for r in on_it()):
            found[OPENED] = True
    return found


def _in_the_way(
    attachment: Attachment, request: Request, seen: Seen, on_it: Callable[[], list[Attachment]]
) -> frozenset[str]:
    """The addresses on the bridge that must give way to the attachment's."""
    wanted = gateways(attachment)
    kept = {*wanted, *attachment.spec.config.get(LEFT, ()), *_of_ranges(request.config.leases.sets)}
    clashes = [
        (new, old) for new in wanted for old in seen.addresses if old not in kept and exclude(new, old)
    ]
    name = own_bridge(attachment)
    for new, old in clashes:
        if not request.config.force_address:
            words = f"bridge: {name} has the address {old}, and this network's gateway is {new}"
            raise Refused(CONFIG, f"{words}; name another bridge, or set forceAddress to replace it")
        held = seen.addresses[old] or any(old in gateways(record) for record in on_it())
        if not seen.ours or not held:
            words = f"forceAddress: {old} is on {name}, and not of a network of netplane's own bridge"
            raise Refused(CONFIG, f"{words}; remove it yourself: ip address del {old} dev {name}")
    return frozenset(old for _, old in clashes)


def exclude(new: str, old: str) -> bool:
    """Whether two addresses cannot both be a bridge's: of IPv4 never, of IPv6 not in one subnet."""
    one, other = ip_interface(new), ip_interface(old)
    if one.version != other.version:
        return False
    return one.version == 4 or one.ip in other.network or other.ip in one.network


def _of_ranges(sets: Iterable[RangeSet]) -> set[str]:
    """The gateways of all the network's ranges, with their lengths."""
    return {
        f"{one.gateway}/{one.subnet.rpartition('/')[2]}" for ranges in sets for one in ranges if one.gateway
    }


def _with(record: Attachment, **more: Any) -> Attachment:
    spec = record.spec
    changed: Attachment = amend(record, spec=amend(spec, config={**spec.config, **more}))
    return changed

"""Whose addresses an attachment gets: the node's, its network's, another plugin's, or none.

Rule 1: an index of addresses per network, made from the records when it is first needed, so that the
        first ADD after a start pays for it and no other does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from ..model.errors import Unavailable
from ..model.own import Attachment
from .ipam import Ipam
from .ranges import OURS, RangeSet
from .turns import Turn

Records = Callable[[], Iterable[Attachment]]
Turns = Callable[[str], Iterable[Turn]]


class Networks:
    """Thread-safe. ``records`` gives the attachments of this node as they are now, ``turns`` what is kept
    of those of a network that are gone ("": of the node's pod CIDRs)."""

    def __init__(self, records: Records, turns: Turns) -> None:
        self.node = Ipam()  # the node's pod CIDRs, whatever network
        self._records, self._turns = records, turns
        self._own: dict[str, Ipam] = {}
        self._lock = threading.Lock()

    def of(self, record: Attachment) -> Ipam | None:
        """The index that holds the record's addresses, if one of ours does."""
        if record.spec.ipam == "":
            return self.node
        if record.spec.ipam != OURS:
            return None
        with self._lock:
            return self._own.setdefault(record.spec.network, Ipam())

    def own(self, network: str, sets: tuple[RangeSet, ...]) -> Ipam:
        """The index of a network with these ranges."""
        with self._lock:
            ipam = self._own.setdefault(network, Ipam())
            if ipam.sets != sets:
                self._index(network, ipam, sets)
            return ipam

    def renew(self, network: str, sets: tuple[RangeSet, ...]) -> Ipam:
        """The same, fresh from the records: somebody may have deleted one."""
        with self._lock:
            ipam = self._own.setdefault(network, Ipam())
            self._index(network, ipam, sets)
            return ipam

    def _index(self, network: str, ipam: Ipam, sets: tuple[RangeSet, ...]) -> None:
        ipam.rebuild(
            sets,
            lambda: [r for r in self._records() if r.spec.ipam == OURS and r.spec.network == network],
            lambda: self._turns(network),
        )

    def renew_node(self, sets: Iterable[RangeSet]) -> None:
        mine = lambda: [r for r in self._records() if r.spec.ipam == ""]  # noqa: E731
        self.node.rebuild(sets, mine, lambda: self._turns(""))

    def check(self, network: str, sets: tuple[RangeSet, ...]) -> None:
        """Raises Unavailable when the network's next `take` would find nothing."""
        try:
            self.own(network, sets).check()
        except Unavailable:
            self.renew(network, sets).check()

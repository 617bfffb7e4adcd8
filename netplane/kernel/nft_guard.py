"""What one link may send: chains at its ingress, in `table netdev netplane`.

The inet family's ingress sees IP alone; ARP and everything else pass there (6.18). So these chains
have a table of the netdev family, and are made and removed apart from those of `nftables`.

Rule 1: a chain carries its mark in its first rule's comment, as in `nft_text`.
Rule 2: the table is there while a chain is: it goes with the last one, in its transaction. One without a
        chain (a link that went took it along) is nobody's: `EMPTY`.
Rule 3: a link that goes may take its chain along (before 6.16), so a refused removal looks what is left.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable, Iterator, Mapping

from ..model.errors import KernelError
from ..model.facts import Fact, FactKey, Guard, Mark, Plan
from . import nft_read
from .nftables import Nft, fit

TABLE = "netdev netplane"
FIRST = -500  # before every other hook of ingress
EMPTY: FactKey = ("guard", "")  # no link's: the table alone


class GuardDriver:
    """Accepts Guard. Works in the namespace of the thread that makes it."""

    name = "guards"
    accepts: tuple[type[Fact], ...] = (Guard,)
    parallel = False

    def __init__(self) -> None:
        self._nft = Nft()
        self._lock = threading.RLock()
        self._held: set[FactKey] | None = None  # the guards that are there; None: not known

    @property
    def portids(self) -> frozenset[int]:
        """Whose commits are ours, as notifications name them."""
        return frozenset((self._nft.portid,)) - {0}

    def observe(self) -> Mapping[FactKey, Mark]:
        """{key: mark} of every guard that is there."""
        with self._lock:
            try:
                marks = nft_read.marks(self._nft.run(f"list table {TABLE}", json=True))
            except KernelError as exc:
                if exc.errno != errno.ENOENT:
                    raise
                self._held = set()
                return {}
            found: dict[FactKey, Mark] = {
                ("guard", key[1]): mark for key, mark in marks.items() if key[0] == "chain"
            }
            self._held = set(found)
            return found or {EMPTY: ""}

    def apply(self, plan: Plan) -> None:
        """One transaction. Raises KernelError."""
        with self._lock:
            if self._is_last(plan):
                self.clean()
                return
            try:
                self._nft.run("\n".join(transaction(plan)))
            except KernelError:
                left = fit(plan, self.observe())
                if left == plan:
                    raise
                self._nft.run("\n".join(transaction(left)))
            if self._held is None:
                self.observe()
            assert self._held is not None
            self._held.update(fact.key for fact in plan.add)
            self._held.difference_update(plan.remove)

    def _is_last(self, plan: Plan) -> bool:
        """Whether no guard is left after this; others may have some that we do not know."""
        gone = {*plan.remove, EMPTY}
        if plan.add or plan.change or (self._held or set()) - gone:
            return False
        return not self.observe().keys() - gone

    def verify(self, facts: Iterable[Guard]) -> list[str]:
        """In words, which guards are missing or different."""
        held, found = self.observe(), []
        for fact in facts:
            if fact.key not in held:
                found.append(f"nftables guard of {fact.link} is not there")
            elif held[fact.key] != fact.mark:
                found.append(f"nftables guard of {fact.link} was changed")
        return found

    def clean(self) -> None:
        """Remove the table and all it holds; gone already is fine."""
        with self._lock:
            self._nft.run(f"add table {TABLE}\ndelete table {TABLE}")
            self._held = set()


def transaction(plan: Plan) -> Iterator[str]:
    """The plan in nft's words. A changed chain is emptied and filled again; its hook never changes."""
    yield f"add table {TABLE}"
    for fact in (*plan.add, *plan.change):
        head = f'type filter hook ingress device "{fact.link}" priority {FIRST}; policy accept;'
        yield f"add chain {TABLE} {fact.link} {{ {head} }}"
        yield f"flush chain {TABLE} {fact.link}"
        first, *rest = fact.rules
        yield f'add rule {TABLE} {fact.link} {first} comment "{fact.mark}"'
        for rule in rest:
            yield f"add rule {TABLE} {fact.link} {rule}"
    for _, link in (key for key in plan.remove if key != EMPTY):
        yield f"flush chain {TABLE} {link}"
        yield f"delete chain {TABLE} {link}"

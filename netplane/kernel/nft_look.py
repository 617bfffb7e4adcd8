"""What our nftables table holds: all of it, a plan's part of it, single elements.

Rule 1: a Look has a socket and a libnftables of its own, or shares those of whoever holds its lock:
        one thread at a time.
Rule 2: elements come as netlink has them; libnftables reads the sets that the encoder does not know.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, Protocol

from ..model.errors import KernelError
from ..model.facts import Element, FactKey, Mark
from . import nft_batch, nft_dump, nft_read, nft_text

MANY = 20_000  # elements that are asked for one by one, 10 µs each
Parts = tuple[str | int, ...]


class Lister(Protocol):
    def run(self, text: str, json: bool = False) -> bytes: ...


class Look:
    """All methods raise KernelError: EAGAIN when others commit all the time."""

    def __init__(self, batches: nft_batch.Batches, nft: Lister) -> None:
        self._batches, self._nft = batches, nft

    def everything(self) -> dict[FactKey, Mark]:
        """{key: mark} of all that our table holds; {} without a table."""
        found, sets = self._structure()
        for name, kind in sets.items():
            found.update(self._elements(name, kind))
        return found

    def beside(self, expected: Iterable[FactKey]) -> dict[FactKey, Mark]:
        """The same while we commit: what a listing lacks of the expected is asked for by itself."""
        found, sets = self._structure()
        gaps = False
        for name, kind in sets.items():
            seen = self._batches.glance(name)
            if seen is None:
                found.update(self._elements(name, kind))
                continue
            found.update((("element", name, item), value) for _, item, value in seen.rows)
            gaps = gaps or seen.spoilt or seen.growing
        lacking = [key for key in expected if key not in found] if gaps else []
        if len(lacking) > MANY:  # no gaps: they are gone
            return self.everything()
        return {**found, **self.part(lacking)} if lacking else found

    def part(self, keys: Iterable[FactKey]) -> dict[FactKey, Mark]:
        """The same of all chains and sets, and of these elements."""
        found, sets = self._structure()
        by_set: dict[str, list[Parts]] = {}
        for key in keys:
            if key[0] == "element" and key[1] in sets:
                by_set.setdefault(str(key[1]), []).append(key[2])  # type: ignore[arg-type]
        for name, items in by_set.items():
            if not self._batches.knows(name):
                found.update(self._elements(name, sets[name]))
                continue
            for item in items:
                held = self._element(name, item)
                if held is not None:
                    found["element", name, item] = held[0]
        return found

    def _element(self, name: str, item: Parts) -> tuple[Parts | None] | None:
        try:
            return self._batches.held(name, item)
        except KernelError as exc:
            if exc.errno == errno.EINVAL:  # words that no element can have: nft will say so
                return None
            raise

    def differing(self, facts: Iterable[Element]) -> list[str]:
        """In words, each of these elements that the kernel does not hold as wanted."""
        found = []
        self._batches.forget()
        for fact in facts:
            held = self._batches.held(fact.of, fact.item)
            if held != (fact.mark,):
                shown = nft_text.joined(held[0]) if held and held[0] else "nothing"
                found.append(f"{fact.of} holds {shown} for {nft_text.joined(fact.item)}")
        return found

    def counted(self, name: str) -> dict[Parts, tuple[int, Any]]:
        """{item: (packets, value)} of a set or map whose elements count; {} when it is not there."""
        if not self._batches.knows(name):
            self._batches.forget()  # it may have come
        try:
            found = self._batches.elements(name) or ()
        except KernelError as exc:
            if exc.errno != errno.ENOENT:
                raise
            self._batches.forget()  # it went
            return {}
        return {item: (packets, value) for packets, item, value in found}

    def _structure(self) -> tuple[dict[FactKey, Mark], dict[str, str]]:
        self._batches.forget()
        try:
            return nft_dump.structure(self._batches.sock)
        except KernelError as exc:
            if exc.errno == errno.ENOENT:
                return {}, {}
            raise

    def _elements(self, name: str, kind: str) -> dict[FactKey, Mark]:
        found = self._batches.elements(name)
        if found is None:
            return nft_read.elements(self._nft.run(f"list {kind} {nft_text.TABLE} {name}", json=True))
        return {("element", name, item): value for _, item, value in found}

"""A sorted set that never changes: what a snapshot finds the next larger by.

Rule 1: `plus` and `minus` give a new set and share what did not change; they cost O(√n), in copies of
        pointers (two of some hundred at 10,000 items), and finding a place costs O(log n).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any

Item = tuple[Any, ...]
CHUNK = 256  # items in a chunk at most; one that grows beyond is halved


def _first(chunk: tuple[Item, ...]) -> Item:
    return chunk[0]


class Ordered:
    """Items are tuples that compare with one another; each stands once."""

    __slots__ = ("_chunks",)

    def __init__(self, chunks: tuple[tuple[Item, ...], ...] = ()) -> None:
        self._chunks = chunks

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def __len__(self) -> int:
        return sum(map(len, self._chunks))

    def plus(self, item: Item) -> Ordered:
        chunks = self._chunks
        if not chunks:
            return Ordered(((item,),))
        at = self._holds(item)
        chunk = chunks[at]
        place = bisect_left(chunk, item)
        if chunk[place : place + 1] == (item,):
            return self
        grown = (*chunk[:place], item, *chunk[place:])
        middle = len(grown) // 2
        parts = (grown,) if len(grown) <= CHUNK else (grown[:middle], grown[middle:])
        return Ordered((*chunks[:at], *parts, *chunks[at + 1 :]))

    def minus(self, item: Item) -> Ordered:
        chunks = self._chunks
        at = self._holds(item)
        chunk = chunks[at] if chunks else ()
        place = bisect_left(chunk, item)
        if chunk[place : place + 1] != (item,):
            return self
        rest = chunk[:place] + chunk[place + 1 :]
        return Ordered((*chunks[:at], *((rest,) if rest else ()), *chunks[at + 1 :]))

    def since(self, low: Item) -> Iterator[Item]:
        """Items from ``low`` upwards."""
        at = self._holds(low)
        for chunk in self._chunks[at : at + 1]:
            yield from chunk[bisect_left(chunk, low) :]
        for chunk in self._chunks[at + 1 :]:
            yield from chunk

    def until(self, high: Item) -> Iterator[Item]:
        """Items from ``high`` downwards."""
        at = self._holds(high)
        for chunk in self._chunks[at : at + 1]:
            yield from reversed(chunk[: bisect_right(chunk, high)])
        for chunk in reversed(self._chunks[:at]):
            yield from reversed(chunk)

    def _holds(self, item: Item) -> int:
        """The chunk in whose range an item falls."""
        return max(0, bisect_right(self._chunks, item, key=_first) - 1)

"""Whether the table holds certain facts: only the chains and sets that they name are listed.

`nft get element` would ask for less, but 1.0.6 does not answer it in JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..model.facts import Chain, Element, Fact, FactKey, Mark, Set
from .nft_text import TABLE

List = Callable[[str], dict[FactKey, Mark] | None]  # what a statement of nft lists; None: ENOENT


def faults(facts: Iterable[Fact], listed: List) -> Iterator[str]:
    """In words, what is missing or different. Raises what ``listed`` raises."""
    held: dict[str, dict[FactKey, Mark]] = {}
    for fact in facts:
        statement, words = _question(fact)
        if statement not in held:
            held[statement] = listed(statement) or {}
        yield from _fault(words, fact, held[statement])


def _question(fact: Fact) -> tuple[str, str]:
    """What to list for a fact, and its name in words."""
    match fact:
        case Chain():
            return f"list chain {TABLE} {fact.name}", f"chain {fact.name}"
        case Set():
            noun = "map" if fact.map else "set"
            return f"list {noun} {TABLE} {fact.name}", f"{noun} {fact.name}"
        case Element():
            noun = "set" if fact.value is None else "map"
            return f"list {noun} {TABLE} {fact.of}", f"element {_shown(fact.item)} of {fact.of}"
    raise TypeError(f"{fact!r} is not for this driver")


def _fault(words: str, fact: Fact, held: dict[FactKey, Mark]) -> Iterator[str]:
    if fact.key not in held:
        yield f"nftables {words} is not there"
    elif held[fact.key] != fact.mark:
        have = held[fact.key]
        shown = f"is {_shown(have)}, not {_shown(fact.mark)}" if isinstance(fact, Element) else "was changed"
        yield f"nftables {words} {shown}"


def _shown(mark: Mark) -> str:
    return " . ".join(map(str, mark)) if isinstance(mark, tuple) else str(mark)

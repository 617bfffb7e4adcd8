"""A plan of nftables facts as the text of one transaction. Pure: facts in, nft's own words out.

Rule 1: one order serves every plan: table, chains, sets → stale elements go → changed chains are
        emptied → rules → elements come → sets and chains go. A chain that an element still points
        at cannot go (EBUSY), and a changed element is a deletion and an addition.
Rule 2: every chain carries its mark in the comment of its first rule (a chain's own comment cannot
        be changed, and nft 1.0.6 does not list it as JSON); a set carries its in its comment.
Rule 3: one statement names up to CHUNK elements, so that a load is one parse and few messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from ..model.errors import Invalid
from ..model.facts import Chain, Element, Fact, FactKey, Plan, Set

TABLE = "inet netplane"
CHUNK = 4096  # elements a statement; larger is no faster, and an error quotes its statement
DYNAMIC = "dynamic"  # the word in a set's comment that says: its elements come from packets
# nft 1.0.6 knows "dstnat" on the prerouting hook only, though the number is the same on output
PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}


def transaction(plan: Plan) -> str:
    """The whole plan as one `nft -f` text. Raises Invalid for a set whose specification changed."""
    changed = [f for f in plan.change if isinstance(f, Chain)]
    _refuse_changed_sets(plan.change)
    lines = [f"add table {TABLE}"]
    lines += (line for chain in changed if chain.hook for line in _drop_chain(chain.name))
    chains = [f for f in plan.add if isinstance(f, Chain)] + changed
    lines += map(_add_chain, chains)
    lines += (_add_set(f) for f in plan.add if isinstance(f, Set))
    lines += _delete_elements(plan)
    lines += (line for chain in chains for line in _rules(chain))
    lines += _add_elements(plan)
    lines += _removals(plan.remove)
    return "\n".join(lines) + "\n"


def _refuse_changed_sets(change: Iterable[Fact]) -> None:
    """A set's type cannot be altered, and rules that use it hold it: a new type is a new name."""
    for fact in change:
        if isinstance(fact, Set):
            raise Invalid(
                f"nftables set {fact.name}: its specification cannot change while rules use it;"
                " give the new one another name"
            )


def _add_chain(chain: Chain) -> str:
    if not chain.hook:
        return f"add chain {TABLE} {chain.name}"
    priority = chain.priority
    if chain.hook != "prerouting":
        priority = str(PRIORITIES.get(priority, priority))
    head = f"type {chain.type} hook {chain.hook} priority {priority}; policy {chain.policy or 'accept'};"
    return f"add chain {TABLE} {chain.name} {{ {head} }}"


def _drop_chain(name: str) -> tuple[str, str]:
    """A base chain's hook and priority cannot be altered; nothing points at it, so it is made anew."""
    return f"flush chain {TABLE} {name}", f"delete chain {TABLE} {name}"


def _rules(chain: Chain) -> Iterator[str]:
    yield f"flush chain {TABLE} {chain.name}"
    first, *rest = chain.rules or ("continue",)
    yield f'add rule {TABLE} {chain.name} {first} comment "{chain.mark}"'
    for rule in rest:
        yield f"add rule {TABLE} {chain.name} {rule}"


def _add_set(fact: Set) -> str:
    dynamic = any(s.startswith("flags") and DYNAMIC in s for s in fact.spec)
    comment = f"{fact.mark} {DYNAMIC}" if dynamic else fact.mark
    noun = "map" if fact.map else "set"
    return f'add {noun} {TABLE} {fact.name} {{ {"; ".join(fact.spec)}; comment "{comment}"; }}'


def _delete_elements(plan: Plan) -> Iterator[str]:
    stale: dict[str, list[str]] = {}
    for fact in plan.change:
        if isinstance(fact, Element):
            stale.setdefault(fact.of, []).append(_key(fact.item))
    doomed = {key[1] for key in plan.remove if key[0] == "set"}
    for key in plan.remove:
        if key[0] == "element" and key[1] not in doomed:
            stale.setdefault(str(key[1]), []).append(_key(key[2]))  # type: ignore[arg-type]
    for name, items in stale.items():
        yield from _statements("delete", name, items)


def _add_elements(plan: Plan) -> Iterator[str]:
    fresh: dict[str, list[str]] = {}
    for facts in (plan.add, plan.change):
        for fact in facts:
            if type(fact) is Element:
                items = fresh.get(fact.of)
                if items is None:
                    items = fresh[fact.of] = []
                text = _key(fact.item)
                items.append(text if fact.value is None else f"{text} : {joined(fact.value)}")
    for name, items in fresh.items():
        yield from _statements("add", name, items)


def _removals(keys: Sequence[FactKey]) -> Iterator[str]:
    """Rules let go of sets and chains, sets with their elements of chains; then the chains go."""
    chains = [key[1] for key in keys if key[0] == "chain"]
    for name in chains:
        yield f"flush chain {TABLE} {name}"
    for key in keys:
        if key[0] == "set":
            yield f"delete set {TABLE} {key[1]}"
    for name in chains:
        yield f"delete chain {TABLE} {name}"


def _key(parts: tuple[str | int, ...]) -> str:
    """An element's, with names in quotes: a link may be called as nft's own words are (map), or 1br."""
    return " . ".join(f'"{part}"' if _is_name(str(part)) else str(part) for part in parts)


def _is_name(part: str) -> bool:
    return ":" not in part and "/" not in part and not part.replace(".", "").replace("-", "").isdecimal()


def joined(parts: tuple[str | int, ...]) -> str:
    return " . ".join(map(str, parts))


def _statements(verb: str, name: str, items: Iterable[str]) -> Iterator[str]:
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK)):
        yield f"{verb} element {TABLE} {name} {{ {', '.join(chunk)} }}"

"""The sorted set of a snapshot, beside a sorted list."""

from __future__ import annotations

import random

import pytest

from netplane.model.ordered import CHUNK, Ordered


@pytest.mark.parametrize("seed", range(5))
def test_it_is_a_sorted_list_that_never_changes(seed: int) -> None:
    chance = random.Random(seed)
    made, plain = Ordered(), list[tuple[int, str]]()
    for _ in range(3000):
        item = (chance.randrange(900), chance.choice("ab"))
        before, was = made, list(made.since((-1,)))
        if chance.random() < 0.6:
            made, plain = made.plus(item), sorted({*plain, item})
        else:
            made, plain = made.minus(item), [p for p in plain if p != item]
        if chance.random() < 0.02:
            assert list(before.since((-1,))) == was
            assert list(made.since((-1,))) == plain
            assert (len(made), bool(made)) == (len(plain), bool(plain))
    for at in (-1, 0, 450, 899, 1000):
        assert list(made.since((at,))) == [p for p in plain if p >= (at,)]
        assert list(made.until((at,))) == [p for p in reversed(plain) if p <= (at,)]


def test_chunks_stay_small_and_none_is_empty() -> None:
    made = Ordered()
    for i in range(10 * CHUNK):
        made = made.plus((i,))
    assert all(0 < len(chunk) <= CHUNK for chunk in made._chunks)
    for i in range(10 * CHUNK):
        made = made.minus((i,))
    assert made._chunks == () and list(made.since((0,))) == []
    assert made.minus((1,)) is made

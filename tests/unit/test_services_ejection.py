"""When an endpoint goes out of rotation, for how long, and when it must stay all the same."""

from __future__ import annotations

import pytest

from netplane.model.base import ObjectMeta
from netplane.model.errors import Invalid
from netplane.model.services import EJECTION_FAILURES, EJECTION_SECONDS, PASSIVE_EJECTION, Service
from netplane.services.ejection import MOST, PATIENCE, Count, Record, Rule, judge, rule, without
from netplane.services.endpoints import Backend, Choice

FIVE = Rule(failures=5, seconds=30)


def watched(*counts: Count, record: Record | None = None, begin: float = 0.0, asked: Rule = FIVE) -> Record:
    """What is known after these counts, one a second."""
    for at, count in enumerate(counts):
        record = judge(record, count, asked, begin + at)
    assert record is not None
    return record


def test_connections_that_are_refused_in_a_row_take_it_out_at_once() -> None:
    record = watched(Count(), Count(4, 0, 4))
    assert not record.until
    record = watched(Count(5, 0, 5), record=record, begin=2)
    assert (record.until, record.reason) == (32, "5 connections in a row refused")


def test_silence_needs_patience() -> None:
    tried = Count(tried=5)
    record = watched(Count(), *[tried] * PATIENCE)
    assert not record.until, "a lost SYN is sent again after a second"
    record = watched(tried, record=record, begin=9)
    assert (record.until, record.reason) == (39, "5 connections in a row without an answer")


def test_an_answer_between_begins_the_row_again() -> None:
    record = watched(Count(), Count(4, 0, 4), Count(5, 1, 4), Count(9, 1, 8))
    assert not record.until


def test_what_happened_before_the_first_look_counts_for_nothing() -> None:
    assert not watched(*[Count(100, 0, 100)] * 10).until


def test_each_time_is_twice_as_long_until_it_answers_again() -> None:
    now, count, record = 0.0, Count(), watched(Count())
    times = []
    for _ in range(7):
        count = count._replace(tried=count.tried + 5, refused=count.refused + 5)
        record = judge(record, count, FIVE, now)
        times.append(record.until - now)
        now = record.until
        record = judge(record, count, FIVE, now)  # back in rotation
        assert not record.until
    assert times == [30, 60, 120, 240, 480, MOST, MOST]
    record = judge(record, count._replace(answered=1), FIVE, now)
    record = judge(record, Count(count.tried + 5, 1, count.refused + 5), FIVE, now)
    assert record.until - now == 30, "forgiven"


def test_an_answer_brings_it_back_before_its_time() -> None:
    record = watched(Count(), Count(5, 0, 5))
    assert record.until
    assert not watched(Count(6, 1, 5), record=record, begin=3).until


def test_an_element_that_counts_from_zero_again_is_a_new_one() -> None:
    record = watched(Count(), Count(4, 0, 4), Count(1, 0, 1), Count(4, 0, 4))
    assert not record.until


def backends(number: int) -> tuple[Backend, ...]:
    return tuple((f"10.0.0.{i}", 80) for i in range(number))


@pytest.mark.parametrize(
    ("there", "fail", "left"),
    [(1, 1, 1), (2, 1, 1), (2, 2, 2), (3, 1, 2), (3, 2, 3), (4, 2, 2), (4, 3, 4), (10, 5, 5), (0, 0, 0)],
)
def test_at_least_half_of_a_list_stays_or_all_of_it(there: int, fail: int, left: int) -> None:
    choice = Choice(cluster=backends(there), local=backends(1))
    found = without(choice, set(backends(fail)))
    assert len(found.cluster) == left
    assert found.local == choice.local, "a list of one is left alone"


def asking(**notes: str) -> Service:
    names = {"on": PASSIVE_EJECTION, "failures": EJECTION_FAILURES, "seconds": EJECTION_SECONDS}
    annotations = {names[name]: value for name, value in notes.items()}
    return Service(metadata=ObjectMeta(name="web", namespace="default", annotations=annotations))


def test_the_annotations_say_when() -> None:
    assert rule(asking()) is None and rule(asking(on="off", failures="3")) is None
    assert rule(asking(on="on")) == Rule(5, 30)
    assert rule(asking(on="on", failures="3", seconds="7")) == Rule(3, 7)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1e3", "", "9999999999", "²"])
def test_numbers_that_cannot_be_are_refused_by_name(text: str) -> None:
    with pytest.raises(Invalid, match=r"netplane\.io/ejection-failures is .* from 1 to 1000"):
        rule(asking(on="on", failures=text))
    faults = dict(asking(on="on", failures=text).check())
    assert "whole number from 1 to 1000" in faults[f"metadata.annotations[{EJECTION_FAILURES}]"]


def test_a_mode_that_is_none_is_refused() -> None:
    assert f"metadata.annotations[{PASSIVE_EJECTION}]" in dict(asking(on="yes").check())

"""The queue: once each, the earlier time counts, failures wait longer."""

from __future__ import annotations

import threading
import time

from netplane.model.facts import Scope
from netplane.reconcile.queue import FIRST_BACKOFF, LAST_BACKOFF, Queue

A, B = Scope("r", "a"), Scope("r", "b")


def test_a_scope_added_twice_is_done_once() -> None:
    queue = Queue()
    queue.add(A)
    queue.add(A)
    queue.add(B)
    assert sorted(queue.take(10, 0)) == [A, B]
    assert queue.take(10, 0) == []


def test_the_earlier_of_two_times_counts() -> None:
    queue = Queue()
    queue.add(A, delay=30)
    assert queue.take(10, 0) == []
    queue.add(A)
    assert queue.take(10, 0) == [A]
    assert len(queue) == 0


def test_a_later_time_does_not_put_off() -> None:
    queue = Queue()
    queue.add(A, delay=0.01)
    queue.add(A, delay=30)
    assert queue.take(10, 1) == [A]


def test_failures_wait_longer_each_time_and_a_success_forgives() -> None:
    queue = Queue()
    waits = [queue.retry(A) for _ in range(20)]
    assert waits[:3] == [FIRST_BACKOFF, 2 * FIRST_BACKOFF, 4 * FIRST_BACKOFF]
    assert waits[-1] == LAST_BACKOFF
    queue.done(A)
    assert queue.retry(A) == FIRST_BACKOFF


def test_what_waits_for_its_time_is_not_due() -> None:
    queue = Queue()
    queue.retry(A)
    queue.add(B)
    assert queue.due() == 1


def test_take_waits_for_an_add_and_ends_with_close() -> None:
    queue = Queue()
    threading.Timer(0.02, queue.add, (A,)).start()
    started = time.monotonic()
    assert queue.take(10, 5) == [A]
    assert time.monotonic() - started < 1
    threading.Timer(0.02, queue.close).start()
    assert queue.take(10, 5) == []

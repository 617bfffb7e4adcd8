"""The threads of the CSI server: as many as are needed, no more than there may be, the last one first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from storageplane.csi.workers import Workers

SOON = 10.0  # seconds


def test_one_call_after_another_is_one_thread() -> None:
    workers, seen = Workers(8), set()
    for _ in range(50):
        workers.submit(lambda: seen.add(threading.get_ident()))
        assert workers.rest(SOON)
    assert len(seen) == 1


def test_no_more_at_once_than_may_be_and_all_in_their_order() -> None:
    workers, gate, begun, most = Workers(3), threading.Event(), [], threading.Semaphore(0)

    def work(number: int) -> None:
        begun.append(number)
        most.release()
        gate.wait(SOON)

    for number in range(10):
        workers.submit(work, number)
    for _ in range(3):
        assert most.acquire(timeout=SOON)
    assert not most.acquire(timeout=0.1) and sorted(begun) == [0, 1, 2]
    gate.set()
    assert workers.rest(SOON) and sorted(begun) == list(range(10))


def test_a_call_that_raises_takes_no_thread_with_it(caplog: pytest.LogCaptureFixture) -> None:
    workers, done = Workers(1), threading.Event()
    workers.submit(lambda: 1 / 0)
    workers.submit(done.set)
    assert done.wait(SOON) and "ZeroDivisionError" in caplog.text


def test_nothing_is_lost_when_many_submit() -> None:
    workers, lock, count = Workers(4), threading.Lock(), [0]

    def one() -> None:
        with lock:
            count[0] += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [workers.submit(one) for _ in range(200)], range(8)))
    assert workers.rest(SOON) and count[0] == 1600


def test_rest_says_what_is_still_under_way() -> None:
    workers, gate = Workers(2), threading.Event()
    assert workers.rest(0)
    workers.submit(gate.wait, SOON)
    assert not workers.rest(0.05)
    gate.set()
    assert workers.rest(SOON)

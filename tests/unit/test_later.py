"""Later: what may wait is done when calm, once, as it was asked last."""

from __future__ import annotations

import queue
import time

from netplane.kernel.later import Later

PATIENCE = 10.0


def test_a_flock_is_one_piece_of_work_once_it_is_over() -> None:
    done: queue.Queue[tuple[float, dict[str, int]]] = queue.Queue()
    later = Later[int](lambda items: done.put((time.monotonic(), items)), calm=0.05, most=PATIENCE)
    for number in range(5):
        later.put(str(number % 3), number)
        time.sleep(0.005)
    last = time.monotonic()
    later.drop("2")
    at, items = done.get(timeout=PATIENCE)
    assert items == {"0": 3, "1": 4} and at - last > 0.03
    later.put("again", 1)
    assert done.get(timeout=PATIENCE)[1] == {"again": 1}


def test_a_flock_without_an_end_is_begun_all_the_same() -> None:
    done: queue.Queue[int] = queue.Queue()
    later = Later[int](lambda items: done.put(len(items)), calm=PATIENCE, most=0.05)
    begin = time.monotonic()
    later.put("a", 1)
    assert done.get(timeout=PATIENCE) == 1 and time.monotonic() - begin < PATIENCE / 2

"""Signals that a daemon is told about, without the two ways in which Python's own handlers lose them.

A handler written in Python runs in the main thread, between two of its steps (docs.python.org, signal). So

- one that sets an Event finds, now and then, that the wait which it interrupts holds the Event's lock: both
  stand for ever;
- one whose signal comes just before the main thread blocks does not run until that ends, if it ever does.

What the C handler does is never late: it writes the signal's number into a pipe (signal.set_wakeup_fd). A
thread reads it there.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def on_signals(told: Callable[[int], None], *numbers: int) -> None:
    """From now on call ``told`` with the number of each of these signals that comes, in a thread of its own.

    Once in a process, by its main thread: ValueError elsewhere.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_tell, args=(reader, told, numbers), name="signals", daemon=True).start()


def _tell(reader: int, told: Callable[[int], None], numbers: tuple[int, ...]) -> None:
    while True:
        for number in os.read(reader, 64):
            if number in numbers:
                told(number)

"""A daemon ends by its signal, whatever its main thread is doing when it comes."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from ..programs import program

WAITS = """
import os, signal, sys, threading
from netplane.reconcile.signals import on_signals

stop, left = threading.Event(), int(sys.argv[1])

def step(frame, event, arg):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return step

on_signals(lambda number: (print(number), stop.set()), signal.SIGTERM)
late = threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM))  # a wait has fewer steps than that
late.daemon = True
late.start()
sys.settrace(step)
stop.wait()
"""


def test_a_signal_at_any_step_of_a_wait_ends_it() -> None:
    with ExitStack() as stack:
        argv = (sys.executable, "-c", WAITS)
        waiting = [stack.enter_context(program(*argv, str(step))) for step in range(1, 25)]
        said = [process.communicate(timeout=30)[0] for process in waiting]
    assert [text.splitlines()[:1] for text in said] == [["15"]] * len(said)
    assert all(process.returncode == 0 for process in waiting)


def test_other_signals_keep_their_meaning() -> None:
    code = (
        "import signal, time; from netplane.reconcile.signals import on_signals\n"
        "on_signals(print, signal.SIGUSR1)\ntry:\n  print('ready', flush=True)\n"
        "  while True: time.sleep(0.05)\nexcept KeyboardInterrupt: print('interrupted')"
    )
    with program(sys.executable, "-c", code) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(2)
        assert process.communicate(timeout=10)[0] == "interrupted\n"

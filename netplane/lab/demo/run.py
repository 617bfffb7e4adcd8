"""`make demo`: the main job from start to end, one line per check; 0 only if all hold."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import machine, network, storage
from .job import Check, Job, expect

CHECKS: list[Check] = [*network.CHECKS, *storage.CHECKS]
WIDTH = 34  # of a title
BUDGET = 60.0  # seconds


def nothing_left(job: Job) -> str:
    left = machine.left(job.before, machine.survey(job.home))
    expect(not left, f"left: {'; '.join(left)}")
    return "links, nft, mounts, loops, files, processes as before"


def main(examples: Path) -> int:
    if os.geteuid() != 0:
        print("the demo makes network namespaces: run it as root, with 'make demo' or sudo", file=sys.stderr)
        return 1
    start = time.perf_counter()
    job = Job(examples)
    print("netplane and storageplane: the main job, in a lab of two nodes, dual stack", flush=True)
    outcomes: list[bool] = []
    try:
        outcomes.append(show("the lab is up", job.up))
        if outcomes[0]:
            outcomes += [show(check.title, partial(check.run, job)) for check in CHECKS]
    finally:
        outcomes.append(show("the lab is down", job.down))
    outcomes.append(show("the machine holds nothing of ours", partial(nothing_left, job)))
    return total(outcomes, time.perf_counter() - start)


def show(title: str, run: Callable[[], str]) -> bool:
    """Run one check and print its line."""
    try:
        figure, holds = run(), True
    except Exception as exc:  # a check that breaks is a check that does not hold
        figure, holds = "\n        ".join((str(exc) or repr(exc)).splitlines()), False
    print(f"  {'ok' if holds else 'FAIL':<5}{title:<{WIDTH}} {figure}", flush=True)
    return holds


def total(outcomes: list[bool], seconds: float) -> int:
    good = all(outcomes)
    late = "" if seconds < BUDGET else f", over the {BUDGET:.0f} s it may take"
    word = "hold" if good else f"hold, {outcomes.count(False)} do NOT"
    print(f"{outcomes.count(True)} of {len(outcomes)} {word}; {seconds:.1f} s{late}")
    return 0 if good and not late else 1

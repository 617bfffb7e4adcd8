"""The main job, a test per check of `make demo`, in one lab that they share, in the demo's order.

outside ── wire ──┬── node-1: agent, npbr0, npvx0 ── client-1, web-…, peers-0
                  └── node-2: agent, npbr0, npvx0 ── client-2, web-…, peers-1
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netplane.lab.demo.job import Check, Job
from netplane.lab.demo.run import CHECKS, nothing_left
from netplane.lab.settings import Programs

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    programs = Programs()
    for program in (programs.netplane, programs.storageplane):
        done = subprocess.run([str(program), "agent", "--help"], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"{program.name} has no agent yet")
    job = Job(EXAMPLES)
    try:
        job.up()
        yield job
    finally:
        job.down()


@pytest.mark.parametrize("check", CHECKS, ids=[check.title for check in CHECKS])
def test_the_main_job(job: Job, check: Check) -> None:
    assert check.run(job)


def test_the_machine_holds_nothing_of_ours_afterwards(job: Job) -> None:
    job.down()
    assert nothing_left(job)

"""The machine of each test: see machine.py."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from netplane.kernel import netns

from .machine import Machine


@pytest.fixture(scope="module")
def bare() -> Iterator[Machine]:
    """A machine for the tests of a file, nothing installed in it; gone with all its processes afterwards."""
    with tempfile.TemporaryDirectory(prefix="npm") as work:
        outside = f"{work}/outside"
        netns.create(outside)
        try:
            with Machine(Path(work), outside) as made:
                yield made
        finally:
            netns.delete(outside)


@pytest.fixture(scope="module")
def machine(bare: Machine) -> Machine:
    """The same, its agent in sync."""
    bare.start_agent()
    return bare


@pytest.fixture
def pods(machine: Machine) -> Iterator[None]:
    """Two namespaces, a and b, of this test alone."""
    for pod in "ab":
        machine.run("ip", "netns", "add", pod)
    yield
    for pod in "ab":
        machine.run("ip", "netns", "delete", pod)
    machine.run("rm", "-rf", "/var/lib/cni")

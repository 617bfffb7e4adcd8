"""The machine of each test: see machine.py."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from netplane.kernel import netns

from .machine import Machine


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """One machine for the tests of a file, its agent in sync; gone with all its processes afterwards."""
    with tempfile.TemporaryDirectory(prefix="npm") as work:
        outside = f"{work}/outside"
        netns.create(outside)
        try:
            with Machine(Path(work), outside) as made:
                made.start_agent()
                yield made
        finally:
            netns.delete(outside)

"""Every world of storage is settled in both ways: see storage_world."""

from __future__ import annotations

import pytest

from .storage_world import World


@pytest.fixture(params=["resync", "events"])
def driven(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How controllers settle in the worlds of a test."""
    monkeypatch.setattr(World, "driven", request.param)
    return str(request.param)

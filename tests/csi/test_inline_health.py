"""The health of a pod's own volume, asked by the id that the orchestrator gave it."""

from __future__ import annotations

import subprocess

import pytest

from .conftest import Driver
from .test_inline import asked, left

pytestmark = pytest.mark.root


def test_it_is_told_by_the_orchestrators_id(driver: Driver) -> None:
    driver.call("NodePublishVolume", **asked(driver, backend="directory"))
    found = driver.call("NodeGetVolumeHealth", volume_id="csi-1").volume_health
    assert found.volume_id == "csi-1" and not found.health_statuses
    subprocess.run(["umount", str(driver.home / "t")], check=True)
    found = driver.call("NodeGetVolumeHealth", volume_id="csi-1").volume_health
    assert found.volume_id == "csi-1" and found.health_statuses[0].reason == "NotMounted"
    driver.call("NodeUnpublishVolume", **left(driver))
    assert driver.refused("NodeGetVolumeHealth", volume_id="csi-1")[0] == "NOT_FOUND"

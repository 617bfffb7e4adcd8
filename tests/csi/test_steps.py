"""What a driver is asked when a volume is published that has grown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from netplane.model.storage_facts import CsiVolume
from storageplane.csi import attach
from storageplane.csi.intents import Attached


class Recorder:
    """A driver with every capability but ``lacks``."""

    def __init__(self, lacks: str = "") -> None:
        self.lacks = lacks
        self.calls: dict[str, dict[str, Any]] = {}

    def can(self, _service: str, capability: str) -> bool:
        return capability != self.lacks

    def call(self, method: str, **fields: Any) -> Any:
        self.calls[method] = fields
        return SimpleNamespace(publish_context={})


@pytest.mark.parametrize(("lacks", "staging"), [("", "/staging"), ("STAGE_UNSTAGE_VOLUME", "")])
def test_growing_names_the_staging_path_where_there_is_one(lacks: str, staging: str) -> None:
    driver: Any = Recorder(lacks)
    want = CsiVolume("t", "x", "h", flags=("noatime",), fstype="xfs", grown=7)
    attach.Steps(driver, want, Attached(driver="x", handle="h", staging="/staging")).publish("/target")
    asked = driver.calls["NodeExpandVolume"]
    assert asked["staging_target_path"] == staging and asked["volume_path"] == "/target"
    assert asked["capacity_range"] == {"required_bytes": 7}
    assert asked["volume_capability"] == {
        "mount": {"fs_type": "xfs", "mount_flags": ("noatime",)},
        "access_mode": {"mode": "SINGLE_NODE_MULTI_WRITER"},
    }

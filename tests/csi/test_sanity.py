"""The suite that every CSI driver is judged by (kubernetes-csi/csi-test), for mount and for block."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PROGRAM, Driver

pytestmark = [pytest.mark.root, pytest.mark.peer]
SUITE = Path(sys.executable).parents[1] / "peers" / "bin" / "csi-sanity"


@pytest.mark.parametrize("kind", ["mount", "block"])
def test_csi_sanity_passes_with_nothing_skipped(tmp_path: Path, kind: str) -> None:
    suite = SUITE if SUITE.exists() else shutil.which("csi-sanity")
    if not suite:
        pytest.skip("csi-sanity: go install github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.6.0")
    (tmp_path / "mutable.yaml").write_text("provisioning: thin\n")
    driver = Driver(tmp_path, "--max-volumes", "8", program=PROGRAM)
    try:
        done = subprocess.run(
            [
                str(suite),
                f"-csi.endpoint=unix://{driver.socket}",
                f"-csi.mountdir={tmp_path}/mounts",
                f"-csi.stagingdir={tmp_path}/staging",
                f"-csi.testvolumesize={64 << 20}",
                f"-csi.testvolumeexpandsize={128 << 20}",
                f"-csi.testvolumemutableparameters={tmp_path}/mutable.yaml",
                "-csi.testnodevolumeattachlimit=true",
                f"-csi.testvolumeaccesstype={kind}",
                "--ginkgo.no-color",
            ],
            capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip
    finally:
        driver.kill()
    found = re.search(r"(\d+) Passed \| (\d+) Failed \| (\d+) Pending \| (\d+) Skipped", done.stdout)
    assert found, done.stdout[-3000:] + done.stderr[-1000:]
    passed, failed, pending, skipped = map(int, found.groups())
    assert (failed, skipped) == (0, 0), done.stdout[-3000:]
    assert passed >= 95 and pending <= 1

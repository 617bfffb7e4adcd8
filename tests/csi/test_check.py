"""`storageplane csi-check`: ours passes all of it, and every fault that green drivers had is found."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from storageplane.csi.client import Client
from storageplane.csi.conformance.bed import Bed, run
from storageplane.csi.conformance.checklist import CHECKS

from .conftest import MIB, PROGRAM, Driver, mounts, running, until_there

pytestmark = pytest.mark.root
LIMITLESS = {"size-is-enforced", "stats-tell-the-volume"}  # what a directory is found to be
SLOPPY = {
    "delete-while-published",
    "republish-with-other-arguments",
    "second-target-of-a-single-writer",
    "same-name-with-other-parameters",
    "long-names-and-maps",
}


def judged(driver: Driver, *options: str) -> tuple[int, dict[str, str]]:
    """(exit status, {check: its whole line})."""
    argv = [*PROGRAM, "csi-check", "--endpoint", f"unix://{driver.socket}", "--dir", str(driver.home)]
    done = subprocess.run([*argv, *options], capture_output=True, text=True, timeout=100, check=False)
    rows = [line.split(":", 1)[0].split() for line in done.stdout.splitlines()[:-1]]
    lines = dict(zip((row[1] for row in rows), done.stdout.splitlines(), strict=False))
    assert len(lines) == 20, done.stdout + done.stderr
    return done.returncode, lines


def failures(lines: dict[str, str]) -> set[str]:
    return {name for name, line in lines.items() if line.startswith("FAIL")}


def test_ours_passes_every_check(driver: Driver, tmp_path: Path) -> None:
    status, lines = judged(driver)
    assert status == 0, "\n".join(lines.values())
    assert all(line.startswith("ok") for line in lines.values())
    assert not driver.call("ListVolumes").entries and not driver.call("ListSnapshots").entries
    assert mounts(tmp_path) == []


def test_a_directory_is_found_to_have_no_limit(driver: Driver) -> None:
    status, lines = judged(driver, "--parameter", "backend=directory")
    assert status == 1
    assert failures(lines) == LIMITLESS
    assert "25165824 bytes went into a volume of 16777216" in lines["size-is-enforced"]


def test_what_green_drivers_do_wrong_is_found(tmp_path: Path) -> None:
    with running(tmp_path, program=(sys.executable, "-m", "tests.csi.sloppy")) as driver:
        status, lines = judged(driver)
        assert mounts(tmp_path) == []
    assert status == 1
    assert failures(lines) >= SLOPPY
    assert "DeleteVolume: OK; FAILED_PRECONDITION is right" in lines["delete-while-published"]


FAULTS = {  # the fault put into the driver: the check that finds it, and its words
    "read_only": ("read-only-is-read-only", "EROFS is right"),
    "unstage_loses_data": ("data-outlives-its-mounts", "another after unpublish"),
    "snapshots_of_now": ("snapshots-are-of-their-moment", "not what the volume was"),
    "clones_of_links": ("clones-are-apart", "changes its source"),
    "not_twice": ("everything-twice", "NodeUnstageVolume is refused: FAILED_PRECONDITION"),
    "ids_by_chance": ("one-name-at-once", "sixteen times at once"),
    "ids_are_paths": ("ids-are-no-paths", "removed what lies at that path"),
    "links_are_followed": ("targets-that-are-links", "led the mount to"),
    "secrets_are_told": ("secrets-are-not-told", "holds the secret"),
    "volumes_shrink": ("volumes-never-shrink", "shrank to 1048576"),
    "volumes_are_elsewhere": ("topology-is-honest", "not accessible from the node"),
    "topology_is_overlooked": ("topology-is-honest", "RESOURCE_EXHAUSTED is right"),
    "members_go_alone": ("groups-go-as-groups", "DeleteSnapshot: OK; INVALID_ARGUMENT is right"),
    "one_target_only": ("modes-are-kept-apart", "NodePublishVolume is refused"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_check(tmp_path: Path, fault: str) -> None:
    name, words = FAULTS[fault]
    program = (sys.executable, "-m", "tests.csi.faulty", fault)
    with running(tmp_path, program=program) as driver, closing(Client(driver.socket)) as client:
        judged = Bed(client, tmp_path, {"backend": "directory"}, 16 * MIB)
        (outcome,) = run(judged, {name: CHECKS[name]})
    assert outcome.word == "FAIL" and words in outcome.why, outcome


def test_every_check_is_known_to_find_something() -> None:
    found = {name for name, _ in FAULTS.values()}
    assert found | SLOPPY | LIMITLESS == set(CHECKS)


def test_a_wrong_command_line_is_refused(tmp_path: Path) -> None:
    for argv in (["--endpoint", "tcp://x"], ["--endpoint", f"unix://{tmp_path}/s", "--parameter", "novalue"]):
        done = subprocess.run([*PROGRAM, "csi-check", *argv], capture_output=True, text=True, check=False)
        assert done.returncode in (1, 2) and done.stderr


@pytest.mark.peer
def test_the_reference_driver_fails_what_it_is_known_for(tmp_path: Path) -> None:
    """csi-driver-host-path, green in csi-sanity."""
    plugin = Path(sys.executable).parents[1] / "peers" / "bin" / "hostpathplugin"
    if not plugin.exists():
        pytest.skip("csi-driver-host-path: tools/csi-peers builds it where its Go module can be had")
    socket = tmp_path / "csi.sock"
    argv = [plugin, f"--endpoint=unix://{socket}", "--nodeid=n1", f"--statedir={tmp_path}/state"]
    process = subprocess.Popen([*map(str, argv), "--drivername=hostpath.csi.k8s.io"])
    try:
        until_there(socket)
        done = subprocess.run(
            [*PROGRAM, "csi-check", "--endpoint", f"unix://{socket}", "--dir", str(tmp_path)],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
    finally:
        process.kill()
        process.wait(10)
    found = {line.split(":")[0].split()[1] for line in done.stdout.splitlines() if line.startswith("FAIL")}
    assert done.returncode == 1
    assert found >= {"delete-while-published", "long-names-and-maps", "size-is-enforced"}, done.stdout

"""The commands themselves, on a store in a file: agent, status, publish, unpublish, doctor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.model.base import Key
from netplane.model.codec import parse_all
from netplane.store import open_store
from storageplane.host import mountinfo

pytestmark = pytest.mark.root
EXAMPLES = Path(__file__).parents[2] / "docs/examples/storage"
SCRATCH, ARCHIVE = (
    Key("PersistentVolumeClaim", "default", "scratch"),
    Key("PersistentVolumeClaim", "default", "archive"),
)


class Machine:
    """A store with the examples in it, and the commands on its root."""

    def __init__(self, base: Path) -> None:
        self.base, self.root, self.target = base, base / "root", base / "target"
        self.url = f"sqlite://{base}/state.db"
        self.store = open_store(self.url)
        for name in ("static", "dynamic", "pod"):
            text = (EXAMPLES / f"{name}.yaml").read_text().replace("/tmp/storageplane-demo", str(base))
            for obj in parse_all(text):
                self.store.put(obj)
        self.started: list[subprocess.Popen[str]] = []

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-c", "from storageplane.cli import main; main()", *words]

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
        return done

    def publish(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        where = ("--root", str(self.root), "--store", self.url, "--node", "n1")
        return self.run("publish", "writer", *where, *words, code=code)

    def unpublish(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.run("unpublish", "writer", "--root", str(self.root), *words, code=code)

    def agent(self) -> subprocess.Popen[str]:
        where = ("--root", str(self.root), "--store", self.url, "--run-dir", str(self.base / "run"))
        process = subprocess.Popen(
            self.command("agent", "--node", "n1", *where), stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        self.run("status", "--run-dir", str(self.base / "run"), "--wait", "20")
        return process

    def status(self) -> str:
        """What `storageplane status` prints, whatever its exit status."""
        words = self.command("status", "--run-dir", str(self.base / "run"))
        return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False).stdout

    def volumes(self) -> list[str]:
        return os.listdir(self.root / "volumes") if (self.root / "volumes").exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(Path(os.path.realpath(tmp_path)))
    yield made
    for process in made.started:
        process.kill()
        process.communicate()
    made.store.close()
    # of this machine alone: others mount and unmount theirs meanwhile
    assert not [m for m in mountinfo.read() if str(made.base) in (m.point + m.root)]


def until(condition: Any, seconds: float = 10) -> bool:
    """Whether ``condition()`` comes true in time."""
    give_up = time.monotonic() + seconds
    while not condition() and time.monotonic() < give_up:
        time.sleep(0.01)
    return bool(condition())


def test_a_pod_is_published_without_an_agent_and_taken_away(machine: Machine) -> None:
    told = json.loads(machine.publish("--target", str(machine.target)).stdout)
    assert set(told["volumes"]) == {"host", "cache", "memory", "archive", "scratch"}
    assert told["containers"]["writer"][0] == {
        "destination": "/host",
        "type": "bind",
        "source": str(machine.target / "host"),
        "options": ["rbind", "rw", "rprivate"],
    }
    for path in told["volumes"].values():
        (Path(path) / "file").write_text("x")
    machine.store.delete(Key("Pod", "default", "writer"))
    machine.unpublish("--target", str(machine.target))
    machine.unpublish("--target", str(machine.target))
    assert not machine.target.exists()
    assert os.listdir(machine.root / "pods") == [] and os.listdir(machine.root / "published") == []
    (name,) = machine.volumes()
    assert (machine.root / "volumes" / name / "file").exists() and (machine.base / "archive/file").exists()


def test_without_a_target_the_mounts_name_the_sources(machine: Machine) -> None:
    mounts = json.loads(machine.publish("-o", "oci", "--container", "writer").stdout)
    sources = {m["destination"]: m["source"] for m in mounts}
    assert sources["/host"] == str(machine.base / "host")
    assert sources["/cache"].startswith(str(machine.root / "pods"))
    machine.unpublish()


def test_an_agent_binds_and_delete_removes_while_retain_keeps(machine: Machine) -> None:
    agent = machine.agent()
    machine.publish("--target", str(machine.target))
    for name in ("scratch", "archive"):
        (machine.target / name / "file").write_text("x")
    machine.unpublish("--target", str(machine.target))
    for key in (Key("Pod", "default", "writer"), SCRATCH, ARCHIVE):
        machine.store.delete(key)
    assert until(lambda: machine.volumes() == [])
    assert until(lambda: len(machine.store.list(["PersistentVolume"])[0]) == 1)
    (kept,) = machine.store.list(["PersistentVolume"])[0]
    assert (kept.name, kept.status.phase) == ("archive", "Released")  # type: ignore[attr-defined]
    assert (machine.base / "archive/file").read_text() == "x"
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(10) == 0


def test_published_data_outlives_its_claim_until_unpublished_and_an_agents_death(machine: Machine) -> None:
    agent = machine.agent()
    machine.publish("--target", str(machine.target))
    (machine.target / "scratch/file").write_text("x")
    agent.kill()
    for key in (Key("Pod", "default", "writer"), SCRATCH):
        machine.store.delete(key)
    run = ("--root", str(machine.root), "--store", machine.url, "--run-dir", str(machine.base / "run"))
    second = subprocess.Popen(
        machine.command("agent", "--node", "n1", *run), stderr=subprocess.PIPE, text=True
    )
    machine.started.append(second)
    assert until(lambda: "in use by pod default/writer" in machine.status(), 20)
    assert (machine.target / "scratch/file").read_text() == "x"
    assert (machine.target / "memory") in [Path(m.point) for m in mountinfo.read()]
    machine.unpublish()
    assert until(lambda: machine.volumes() == [], 20)


def test_a_claim_that_stays_pending_is_explained(machine: Machine) -> None:
    machine.store.delete(Key("StorageClass", "", "directory"))
    done = machine.publish("--wait", "0.2", code=1)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert 'ProvisioningFailed: storageclass.storage.k8s.io "directory" not found' in done.stderr
    assert not machine.target.exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["publish", "absent"], 1, "Pod default/absent is not in the store"),
        (["publish"], 2, "Missing argument 'POD'"),
        (["publish", "writer", "--node", "other", "-o", "xml"], 2, "Invalid value"),
        (["unpublish", "absent"], 0, ""),
        (["status", "--run-dir", "/nowhere"], 1, "no storageplane agent answers in /nowhere"),
    ],
)
def test_errors_are_one_clear_line(machine: Machine, words: list[str], code: int, said: str) -> None:
    where = [] if words[0] == "status" else ["--root", str(machine.root), "--store", machine.url]
    assert said in machine.run(*words, *where, code=code).stderr


def test_a_pod_of_another_node_is_refused(machine: Machine) -> None:
    machine.publish()
    machine.unpublish()
    done = machine.run(
        "publish", "writer", "--node", "n2", "--root", str(machine.root), "--store", machine.url, code=1
    )
    assert "belongs to node n1" in done.stderr


def test_doctor_sees_what_is_left_over(machine: Machine) -> None:
    machine.publish()
    assert "1 pods published" in machine.run("doctor", "--root", str(machine.root)).stdout
    machine.unpublish()
    (machine.root / "pods/stray").mkdir()
    assert "belongs to no publication" in machine.run("doctor", "--root", str(machine.root), code=1).stdout

"""The agent keeps what is published as its objects are: live updates, and everything back after a reboot."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from netplane.model.base import Key, amend
from netplane.model.codec import parse, parse_all
from storageplane.host import mountinfo

from .bed import config_map, run, secret
from .test_storage_cli import EXAMPLES, Machine, machine, until

__all__ = ["machine"]
pytestmark = pytest.mark.root
LABELS = {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}
VOLUMES = [
    {"name": "c", "configMap": {"name": "c"}}, {"name": "s", "secret": {"secretName": "s"}},
    {"name": "me", "downwardAPI": LABELS}, {"name": "late", "configMap": {"name": "late", "optional": True}},
    {"name": "limited", "emptyDir": {"sizeLimit": "4Mi"}},
    {"name": "memory", "emptyDir": {"medium": "Memory"}},
]  # fmt: skip
POD = Key("Pod", "default", "follower")


def put(machine: Machine, *objects: dict[str, Any]) -> None:
    for made in objects:
        machine.store.put(parse(made))


def follower(*mounts: dict[str, Any], volumes: Any = VOLUMES) -> dict[str, Any]:
    spec = {"containers": [{"name": "main", "volumeMounts": list(mounts)}], "volumes": volumes}
    meta = {"name": "follower", "labels": {"v": "1"}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def publish(machine: Machine, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    where = ("--root", str(machine.root), "--store", machine.url, "--node", "n1")
    return machine.run("publish", "follower", *where, "--target", str(machine.target), *words, code=code)


def unpublish(machine: Machine) -> None:
    machine.run("unpublish", "follower", "--root", str(machine.root))


def shows(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except FileNotFoundError:
        return False


def test_a_running_agent_carries_changes_into_the_volumes(machine: Machine) -> None:
    put(machine, config_map(a="1"), secret(a="hunter1"), follower())
    agent = machine.agent()
    publish(machine)
    at = machine.target
    put(machine, config_map(a="2", b="new"), secret(a="hunter2"), config_map("late", a="came"))
    pod = machine.store.get(POD)
    assert pod is not None
    machine.store.put(amend(pod, metadata=amend(pod.metadata, labels={"v": "2"})))
    expected = {"c/a": "2", "c/b": "new", "s/a": "hunter2", "me/labels": 'v="2"', "late/a": "came"}
    for path, text in expected.items():
        assert until(lambda p=path, t=text: shows(at / p, t)), path
    machine.store.delete(Key("ConfigMap", "default", "late"))
    assert until(lambda: not os.path.lexists(at / "late/a"))
    machine.store.delete(Key("ConfigMap", "default", "c"))
    assert until(lambda: "ConfigMap default/c does not exist" in machine.status())
    assert shows(at / "c/a", "2"), "what is missing is reported, and the last content stays"
    put(machine, config_map(a="3"), secret(a="hunter3"))
    assert until(lambda: shows(at / "c/a", "3")) and until(lambda: shows(at / "s/a", "hunter3"))
    unpublish(machine)
    put(machine, config_map(a="4"))
    agent.terminate()
    log = agent.communicate(timeout=20)[1]
    assert "hunter" not in log
    assert not machine.target.exists() and os.listdir(machine.root / "pods") == []


def test_an_agents_start_brings_everything_back_after_a_reboot(machine: Machine) -> None:
    put(machine, config_map(a="1"), secret(a="hunter1"), follower())
    publish(machine)
    (machine.target / "limited/kept").write_text("x")
    before = sorted(m.point for m in mountinfo.beneath(str(machine.base)))
    for mounted in reversed(mountinfo.beneath(str(machine.base))):
        run("umount", mounted.point)
    assert mountinfo.beneath(str(machine.base)) == []
    put(machine, config_map(a="2"))
    machine.agent()
    assert sorted(m.point for m in mountinfo.beneath(str(machine.base))) == before
    assert shows(machine.target / "c/a", "2") and shows(machine.target / "s/a", "hunter1")
    assert (machine.target / "limited/kept").exists()
    unpublish(machine)


def test_a_restarted_agent_leaves_mounts_alone_and_a_pod_that_is_gone(machine: Machine) -> None:
    put(machine, config_map(a="1"), secret(a="hunter1"), follower())
    publish(machine)
    before = {m.point: m.id for m in mountinfo.beneath(str(machine.base))}
    (machine.target / "memory/kept").write_text("x")
    machine.agent().kill()
    machine.store.delete(POD)
    machine.agent()
    assert {m.point: m.id for m in mountinfo.beneath(str(machine.base))} == before
    assert (machine.target / "memory/kept").exists()
    unpublish(machine)


def test_a_secret_that_comes_late_is_waited_for(machine: Machine) -> None:
    put(machine, config_map(a="1"), follower())
    done = publish(machine, "--wait", "0.1", code=1)
    assert done.stderr == (
        "storageplane: Pod default/follower: volume s: Secret default/s does not exist; "
        "create it, or mark it optional\n"
    )
    where = ["--root", str(machine.root), "--store", machine.url, "--node", "n1"]
    waiting = machine.command("publish", "follower", *where, "--target", str(machine.target))
    process = subprocess.Popen(waiting, stdout=subprocess.PIPE, text=True)
    put(machine, secret(a="hunter1"))
    told = json.loads(process.communicate(timeout=30)[0])
    assert process.returncode == 0 and shows(Path(told["volumes"]["s"]) / "a", "hunter1")
    unpublish(machine)


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("podman", "--volume={root}/pods/{uid}/volume-subpaths/limited/main/1:/part:rbind,rw,rprivate"),
        ("ctr", "--mount=type=bind,src={target}/c,dst=/conf,options=rbind:ro:rprivate"),
    ],
)
def test_the_options_of_runtimes_are_printed_one_to_a_line(machine: Machine, form: str, line: str) -> None:
    mine = ({"name": "c", "mountPath": "/conf"}, {"name": "limited", "mountPath": "/part", "subPath": "a"})
    put(machine, config_map(a="1"), secret(a="hunter1"), follower(*mine))
    lines = publish(machine, "-o", form).stdout.splitlines()
    pod = machine.store.get(POD)
    assert pod is not None and len(lines) == 2
    assert line.format(root=machine.root, target=machine.target, uid=pod.metadata.uid) in lines
    spec = json.loads(publish(machine, "-o", "spec").stdout)
    assert spec["mounts"] == json.loads(publish(machine, "-o", "oci").stdout)
    unpublish(machine)


def test_doctor_says_what_volumes_can_be_had(machine: Machine) -> None:
    machine.root.mkdir(exist_ok=True)
    lines = machine.run("doctor", "--root", str(machine.root)).stdout
    for word in ("emptyDir sizeLimit", "HugePages", "NFS", "CephFS", "GlusterFS", "noswap"):
        assert word in lines, word


def test_a_pods_own_claim_is_made_bound_and_published_without_an_agent(machine: Machine) -> None:
    asked = {"accessModes": ["ReadWriteOnce"], "storageClassName": "directory"}
    template = {"spec": {**asked, "resources": {"requests": {"storage": "1Mi"}}}}
    put(machine, follower(volumes=[{"name": "own", "ephemeral": {"volumeClaimTemplate": template}}]))
    publish(machine)
    (machine.target / "own/file").write_text("x")
    (found,) = (c for c in machine.store.list(["PersistentVolumeClaim"])[0] if c.name == "follower-own")
    assert found.metadata.owner_references[0].name == "follower"
    unpublish(machine)


def test_the_example_is_published_as_it_stands(machine: Machine) -> None:
    text = (EXAMPLES.parent / "volumes.yaml").read_text().replace("/tmp/storageplane-demo", str(machine.base))
    for made in parse_all(text):
        machine.store.put(made)
    where = ("--root", str(machine.root), "--store", machine.url, "--node", "n1")
    told = json.loads(machine.run("publish", "app", *where, "--target", str(machine.target)).stdout)
    shown = [(machine.target / "all" / n).read_text() for n in ("app.conf", "keys/password", "labels")]
    assert shown == ["listen = 8080\n", "change-me", 'app="files"']
    (logs,) = (m["source"] for m in told["containers"]["app"] if m["destination"] == "/logs")
    (Path(logs) / "file").write_text("x")
    assert (machine.base / "logs/app/logs/file").exists()
    machine.run("unpublish", "app", "--root", str(machine.root))

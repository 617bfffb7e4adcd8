"""podman and ctr run a container on the volumes of a Pod: `storageplane publish -o podman|ctr|spec`.

HOST, ConfigMap, Secret, Pod ── storageplane publish ──> options ──> podman run, ctr run
                       each volume looked at and written from inside; a Secret changed while it runs
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from netplane.lab.runner import until

from . import containerd, image
from .containerd import Ctr
from .machine import NETPLANE, Machine
from .peers import program
from .test_podman import CONTAINERS, IMAGE, POLICY, STORAGE

pytestmark = [pytest.mark.root, pytest.mark.peer]
STORAGEPLANE = str(Path(NETPLANE).parent / "storageplane")
STORE, HOST = "sqlite:///var/lib/volumes.db", "/var/lib/volumes-host"
MOUNTS = [
    {"name": "conf", "mountPath": "/conf"},
    {"name": "key", "mountPath": "/key"},
    {"name": "cache", "mountPath": "/cache"},
    {"name": "host", "mountPath": "/host"},
    {"name": "host", "mountPath": "/part", "subPathExpr": "$(POD)/deep"},
    {"name": "host", "mountPath": "/fixed", "readOnly": True, "recursiveReadOnly": "Enabled"},
    {"name": "conf", "mountPath": "/etc/app.conf", "subPath": "app.conf"},
]
ENV = [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "app"},
    "spec": {
        "securityContext": {"fsGroup": 4242},
        "containers": [{"name": "main", "image": IMAGE, "env": ENV, "volumeMounts": MOUNTS}],
        "volumes": [
            {"name": "conf", "configMap": {"name": "conf"}},
            {"name": "key", "secret": {"secretName": "key", "defaultMode": 0o400}},
            {"name": "cache", "emptyDir": {"sizeLimit": "2Mi"}},
            {"name": "host", "hostPath": {"path": HOST, "type": "DirectoryOrCreate"}},
        ],
    },
}
SCRIPT = """
cat /conf/app.conf /key/word /etc/app.conf
echo written > /part/file && cat /host/app/deep/file
echo no > /fixed/file || echo fixed is read-only
echo no > /conf/file || echo conf is read-only
cat /dev/zero > /cache/big || echo cache is full
rm /cache/big
echo done > /host/done
"""
SEEN = ["one", "hunter1", "one", "written", "fixed is read-only", "conf is read-only", "cache is full"]


def manifest(conf: str, word: str) -> str:
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "conf"}, "data": {"app.conf": conf}}
    key = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"word": word}}
    return yaml.safe_dump_all([made, key, POD])


class Volumes:
    """The pod published on a machine, its agent beside."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.apply("one\n", "hunter1\n")
        where = ("--store", STORE, "--node", "n1")
        machine.daemon("storageplane", STORAGEPLANE, "agent", *where)
        machine.run(STORAGEPLANE, "status", "--wait", "30")
        self.where = where

    def apply(self, conf: str, word: str) -> None:
        self.machine.write("/var/lib/volumes.yaml", manifest(conf, word))
        self.machine.run(NETPLANE, "apply", "-f", "/var/lib/volumes.yaml", "--store", STORE)

    def publish(self, form: str, *words: str) -> str:
        return self.machine.run(STORAGEPLANE, "publish", "app", "-o", form, *self.where, *words)

    def mounts(self) -> str:
        return self.machine.run("cat", "/proc/self/mountinfo")


@pytest.fixture(scope="module")
def published(machine: Machine) -> Volumes:
    return Volumes(machine)


@pytest.fixture
def volumes(published: Volumes) -> Iterator[Volumes]:
    before = published.mounts()
    yield published
    published.machine.run(STORAGEPLANE, "unpublish", "app")
    assert published.mounts() == before
    assert published.machine.run("ls", "/var/lib/storageplane/pods") == ""
    published.machine.run("rm", "-rf", HOST)
    published.apply("one\n", "hunter1\n")


@pytest.mark.parametrize("words", [(), ("--target", "/run/pods/app")], ids=["sources", "target"])
def test_podman_runs_a_container_on_the_volumes(volumes: Volumes, words: tuple[str, ...]) -> None:
    machine, podman = volumes.machine, program("podman")
    for name, text in {"containers.conf": CONTAINERS, "storage.conf": STORAGE, "policy.json": POLICY}.items():
        machine.write(f"/etc/containers/{name}", text)
    machine.run(podman, "load", "-i", str(image.archive(machine.work / "app.tar", IMAGE)))
    options = volumes.publish("podman", *words).splitlines()
    base = (podman, "run", "--rm", "--cgroups=disabled", "--network=none", "--name", "app")
    out = machine.run(*base, *options, IMAGE, "/bin/sh", "-c", SCRIPT)
    assert out.splitlines() == SEEN
    assert machine.run("cat", f"{HOST}/app/deep/file", f"{HOST}/done").split() == ["written", "done"]
    machine.run(*base[:2], "-d", *base[3:], *options, IMAGE, "/bin/sleep", "600")
    volumes.apply("two\n", "hunter2\n")
    look = (podman, "exec", "app", "/bin/cat", "/conf/app.conf", "/key/word")
    until(lambda: machine.run(*look).split() == ["two", "hunter2"], "the new ConfigMap and Secret", 20)
    assert machine.run(podman, "exec", "app", "/bin/cat", "/etc/app.conf") == "one\n", "subPath stays"
    machine.run(podman, "rm", "-f", "-t", "0", "app")


def test_ctr_runs_a_container_on_the_volumes(volumes: Volumes) -> None:
    machine = volumes.machine
    containerd.start(machine)
    ctr = Ctr(machine, str(image.rootfs(machine.work / "volumes-rootfs")))
    options = volumes.publish("ctr", "--target", "/run/pods/app").splitlines()
    argv = [ctr.program, "run", "--rm", "--cgroup", "", *options, "--rootfs", ctr.rootfs, "app"]
    assert machine.run(*argv, "/bin/sh", "-c", SCRIPT).splitlines() == SEEN
    assert machine.run("cat", f"{HOST}/app/deep/file", f"{HOST}/done").split() == ["written", "done"]


def test_an_oci_bundle_runs_with_the_spec_that_is_printed(volumes: Volumes) -> None:
    """`runc spec`, with the printed parts put in."""
    machine, runc = volumes.machine, program("runc")
    bundle = machine.work / "bundle"
    image.rootfs(bundle / "rootfs")
    machine.run(runc, "spec", "--bundle", str(bundle))
    config: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    parts = json.loads(volumes.publish("spec"))
    config["mounts"] = [m for m in config["mounts"] if m["type"] != "cgroup"] + parts["mounts"]
    config["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", SCRIPT], "env": ["PATH=/bin"]}
    config["root"]["readonly"] = False
    config["linux"] = {**config["linux"], "resources": {}}
    config["linux"].pop("cgroupsPath", None)
    (bundle / "config.json").write_text(json.dumps(config))
    out = machine.run(runc, "run", "--bundle", str(bundle), "app")
    assert out.splitlines() == SEEN

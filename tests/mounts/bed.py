"""A root, a target and a host directory for publishing on, and the builders of pods and volumes.

Everything lies in the test's own directory, whose mounts, loop devices and files are compared before
and after; others on the machine mount and unmount theirs meanwhile.
"""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

from netplane.model.codec import parse
from netplane.model.pods import Pod
from netplane.model.snapshot import Snapshot
from storageplane.claims.bind import Binder
from storageplane.claims.provision import Provisioner
from storageplane.host import loops, mountinfo
from storageplane.host.mounts import Mounts
from storageplane.pods import publish
from tests.sequences.storage_world import World, pv, pvc, storage_class


class Bed:
    """A root, a target and a host directory; what stood before is compared with what stands after."""

    def __init__(self, base: Path) -> None:
        self.root, self.target, self.host = base / "root", base / "t" / "pod", base / "host"
        self.root.mkdir()
        self.host.mkdir()
        self.base = base
        self.driver = Mounts(self.root)
        self.mounts = self.points()

    def pod(self, *volumes: dict[str, Any], uid: str = "uid-1", name: str = "p", **spec: Any) -> Pod:
        containers = spec.pop("containers", [{"name": "main"}])
        meta = {"name": name, "namespace": "default", "uid": uid, **spec.pop("meta", {})}
        body = {"containers": containers, "volumes": list(volumes), **spec}
        made = parse({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": body})
        assert isinstance(made, Pod)
        return made

    def publish(self, pod: Pod, snapshot: Snapshot | None = None, target: Path | None = None) -> Any:
        where = str(target or self.target)
        return publish.publish(pod, snapshot or Snapshot.of([]), "n1", self.driver, where)

    def unpublish(self, name: str = "p") -> int:
        return publish.unpublish("default", name, self.driver, str(self.target))

    def tree(self) -> list[str]:
        """Everything there is, but the lock and the skeleton that the root always has."""
        skeleton = {"root/lock", "root/published", "root/pods"}
        skeleton |= {"root/csi-client", "root/csi-client/lock", "root/csi-client/attached"}
        found = {str(p.relative_to(self.base)) for p in self.base.rglob("*")}
        return sorted(found - skeleton)

    def points(self) -> list[str]:
        """What is mounted in the test's own directory."""
        return [m.point for m in mountinfo.beneath(str(self.base))]

    def clean(self, before: list[str]) -> None:
        assert self.points() == self.mounts
        assert loops.backed_by(self.base) == []
        assert self.tree() == before


def mounts() -> list[str]:
    return [m.point for m in mountinfo.read()]


def empty(name: str, **source: Any) -> dict[str, Any]:
    return {"name": name, "emptyDir": source}


def host(path: Path, kind: str = "", name: str = "host") -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": str(path), "type": kind}}


def claim(read_only: bool = False) -> dict[str, Any]:
    return {"name": "data", "persistentVolumeClaim": {"claimName": "c", "readOnly": read_only}}


def bound(bed: Bed, **volume: Any) -> Snapshot:
    """A world in which claim ``c`` is bound: to a provisioned directory, or to a static volume."""
    static = [pv("v", **volume)] if volume else []
    cls = "" if volume else "d"
    world = World(storage_class("d"), *static, pvc(storageClassName=cls, meta={"uid": "u1"}))
    return world.settle(Binder(), Provisioner("n1", bed.root)).snapshot()


def run(*argv: str | Path, check: bool = True) -> str:
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=60, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def world(*objects: dict[str, Any]) -> Snapshot:
    """Objects as they are written, as a snapshot."""
    return Snapshot.of([parse(o) for o in objects])


def config_map(name: str = "c", **data: str) -> dict[str, Any]:
    """``a_b="x"`` is the key a.b."""
    keys = {k.replace("_", "."): v for k, v in data.items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": keys}


def secret(name: str = "s", kind: str = "Opaque", meta: Any = None, **data: str) -> dict[str, Any]:
    made = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, **(meta or {})}, "type": kind}
    return {**made, "data": {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}}


def container(*mounts: dict[str, Any], name: str = "main", **more: Any) -> dict[str, Any]:
    """A container; a mount without a path is at /<volume>."""
    paths = [{"mountPath": f"/{m['name']}", **m} for m in mounts]
    return {"name": name, "volumeMounts": paths, **more}


def statically_bound(source: dict[str, Any], mode: str = "Filesystem", **spec: Any) -> Snapshot:
    """Claim ``c`` bound to a volume with this source."""
    modes = {"accessModes": ["ReadWriteOnce"], "volumeMode": mode, "storageClassName": ""}
    volume = {
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v"},
        "spec": {"capacity": {"storage": "1Gi"}, **modes, **source, **spec},
    }  # fmt: skip
    asked = pvc(volumeMode=mode, storageClassName="")
    asked["spec"]["accessModes"] = volume["spec"]["accessModes"]
    return World(volume, asked).settle(Binder()).snapshot()

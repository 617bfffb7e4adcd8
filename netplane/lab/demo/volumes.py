"""storageplane on one node of the lab, through its command line, with all directories in the lab's."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...model.errors import Invalid, Unavailable
from .. import Lab, Node
from ..runner import Process, until
from ..traces import mounts

HOST = "/srv/netplane-demo"  # where the manifests' hostPaths point; here, beneath the lab's directory
NAMESPACE = "default"


class Volumes:
    """``manifest``: the text of storage.yaml. `up` declares it and starts the node's agent."""

    def __init__(self, lab: Lab, node: Node, manifest: str) -> None:
        self.lab, self.node = lab, node
        base = lab.home / "storage"
        self.root, self.run, self.pods = base / "root", base / "run", base / "pods"
        self.host = base / "host"
        self.manifest = manifest.replace(HOST, str(self.host))
        self.agent: Process | None = None

    def up(self) -> float:
        """Seconds until both claims are bound. Raises Unavailable."""
        for directory in (self.root, self.run, self.pods, self.host):
            directory.mkdir(parents=True)
        start = time.perf_counter()
        self.lab.apply(self.manifest)
        with (self.run / "agent.log").open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            argv = ["agent", "--node", self.node.name, *self._where(), "--run-dir", self.run]
            self.agent = self.node.popen(self.lab.settings.programs.storageplane, *argv, **streams)
        self.wait("both claims bound", lambda: self.phases() == {"cache": "Bound", "ledger": "Bound"})
        return time.perf_counter() - start

    def wait(self, what: str, probe: Callable[[], bool]) -> None:
        """Until ``probe`` holds. Raises Unavailable with the claims, the volumes and the agent's log."""
        try:
            until(probe, what, 15)
        except Unavailable as exc:
            log = (self.run / "agent.log").read_text().splitlines()[-10:]
            seen = f"claims {self.phases()}, volumes {self.volumes()}"
            raise Unavailable("\n".join([str(exc), seen, *log])) from None

    def phases(self) -> dict[str, str]:
        """The claims' phases by name."""
        return _phases(self.lab.get("persistentvolumeclaims"))

    def volumes(self) -> dict[str, str]:
        """The volumes' phases by name."""
        return _phases(self.lab.get("persistentvolumes"))

    def volume_of(self, claim: str) -> dict[str, Any]:
        """The PersistentVolume that a claim is bound to."""
        name = self.lab.get("persistentvolumeclaim", claim)["spec"]["volumeName"]
        return dict(self.lab.get("persistentvolume", name))

    def publish(self, pod: str) -> dict[str, Path]:
        """Prepare a pod's volumes; where each lies on the host, by its path in the container."""
        out = self._storageplane("publish", pod, *self._of(pod), "--node", self.node.name, "-o", "json")
        containers = json.loads(out)["containers"].values()
        return {mount["destination"]: Path(mount["source"]) for mounts in containers for mount in mounts}

    def unpublish(self, pod: str) -> None:
        self._storageplane("unpublish", pod, *self._of(pod))

    def left_of(self, pod: str) -> list[str]:
        """Mounts and files that a pod's volumes left behind."""
        target = self.pods / pod
        files = [str(path) for path in target.rglob("*")] if target.exists() else []
        return mounts(target) + files

    def delete(self, kind: str, name: str) -> None:
        self.lab.netplane("delete", kind, name, "-n", NAMESPACE)

    def _of(self, pod: str) -> list[str | Path]:
        return ["-n", NAMESPACE, "--target", self.pods / pod]

    def _where(self) -> list[str | Path]:
        return ["--store", self.lab.store, "--root", self.root]

    def _storageplane(self, *args: str | Path) -> str:
        argv = [str(self.lab.settings.programs.storageplane), *map(str, args), *map(str, self._where())]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise Invalid(f"storageplane {args[0]} {args[1]}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout


def _phases(listed: dict[str, Any]) -> dict[str, str]:
    items = listed.get("items", [])
    return {item["metadata"]["name"]: item.get("status", {}).get("phase", "") for item in items}

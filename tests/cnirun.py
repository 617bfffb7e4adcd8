"""A container runtime in a few lines: the binary, an environment and a configuration, and a lab's node."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from netplane.commands.install import BINARY
from netplane.lab import Lab
from netplane.lab.node import Node

REFERENCE = "/usr/lib/cni"  # Debian's containernetworking-plugins
OWN = {"type": "netplane", "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]]}


class Cni:
    """``call`` runs a verb for a namespace; errors come back as answers, as they are printed."""

    def __init__(self, lab: Lab, path: str = REFERENCE) -> None:
        self.node: Node = lab.nodes[0]
        self.path = path

    def config(self, **more: Any) -> dict[str, Any]:
        return {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "netplane",
            "socket": str(self.node.socket),
            **more,
        }

    def call(self, command: str, pod: str, config: dict[str, Any] | None = None, **env: str) -> Any:
        """The decoded answer, "" for none. ``env`` are further CNI_ variables, without that prefix."""
        doc = self.config(**(config or {}))
        return run(str(BINARY), command, pod, doc, {"PATH": self.path, **env})

    def add(self, pod: str, config: dict[str, Any] | None = None, **env: str) -> Any:
        answer = self.call("ADD", pod, config, **env)
        assert "ips" in answer or "interfaces" in answer, answer
        return answer

    def delete(self, pod: str, config: dict[str, Any] | None = None, **env: str) -> None:
        assert self.call("DEL", pod, config, **env) == ""


def run(binary: str, command: str, pod: str, config: dict[str, Any], env: dict[str, str]) -> Any:
    words = {"COMMAND": command, "CONTAINERID": os.path.basename(pod), "NETNS": pod, "IFNAME": "eth0", **env}
    environment = {f"CNI_{key}": value for key, value in words.items()}
    done = subprocess.run(
        [binary],
        input=json.dumps(config).encode(),
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout or not done.returncode, done.stderr
    return json.loads(done.stdout) if done.stdout.strip() else ""


def plain(result: Any) -> list[str]:
    return [ip["address"].partition("/")[0] for ip in result["ips"]]


def reference(name: str) -> str:
    return str(Path(REFERENCE) / name)

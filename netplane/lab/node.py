"""Nodes, their agents, and pods: the machines of a lab.

A node is a namespace on the wire with an agent of its own; a pod is a namespace that the node's
CNI plugin has attached. What must survive this process (`netplane lab`) is in files beneath the
lab's directory: `pods/<namespace>.<name>/pod.json` holds what a runtime would keep of a pod.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..kernel import netns
from ..model.errors import Invalid, NetplaneError, Unavailable
from . import cni
from .place import TEXT, Place
from .runner import Process, end, kill_all

if TYPE_CHECKING:
    from .cluster import Lab

DOMAIN = "cluster.local"
START_TIMEOUT = 30.0  # seconds; a laptop's first start compiles every module


class Agent:
    """The `netplane agent` of one node. It logs to `agent.log` in the node's directory."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.log = node.home / "agent.log"
        self.process: Process | None = None

    def argv(self) -> list[str | Path]:
        lab, node = self.node.lab, self.node
        return [
            lab.settings.programs.netplane, "agent", "--node", node.name, "--store", lab.store,
            "--run-dir", node.run_dir, "--state-dir", node.state_dir, "--node-ip", ",".join(node.addresses),
            "--cluster-cidr", ",".join(lab.plan.cluster_cidrs),
            "--service-cidr", ",".join(lab.plan.service_cidrs), *lab.settings.agent_args,
        ]  # fmt: skip

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> Agent:
        """Start it; returns at once (`wait` waits). Raises Invalid when it runs already."""
        if self.running:
            raise Invalid(f"the agent of {self.node.name} runs already")
        with self.log.open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.process = self.node.popen(*self.argv(), **streams)
        return self

    def wait(self, timeout: float = START_TIMEOUT) -> None:
        """Until every room is in sync (`netplane status --wait`). Raises Unavailable with its log's end."""
        program = self.node.lab.settings.programs.netplane
        try:
            self.node.run(
                program,
                "status",
                "--run-dir",
                self.node.run_dir,
                "--wait",
                f"{timeout:g}",
                timeout=timeout + 5,
            )
        except NetplaneError as exc:
            raise Unavailable(f"agent of {self.node.name}: {exc}\n{self.tail()}") from None

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send a signal (SIGKILL) and wait for the end; not running: fine."""
        if self.process is not None:
            end(self.process, sig)
            self.process = None

    def stop(self) -> None:
        """Ask it to end, as a service manager does."""
        self.kill(signal.SIGTERM)

    def tail(self, lines: int = 15) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


class Node(Place):
    """A machine of the cluster, with `eth0` on the wire."""

    def __init__(self, lab: Lab, index: int) -> None:
        name = f"node-{index + 1}"
        super().__init__(name, lab.namespace(name), lab.runner)
        self.lab = lab
        self.addresses = lab.plan.node(index)
        self.home = lab.home / name
        self.run_dir = self.home / "run"
        self.state_dir = self.home / "state"
        for directory in (self.run_dir, self.state_dir):
            directory.mkdir(parents=True, exist_ok=True)
        self.agent = Agent(self)

    @property
    def socket(self) -> Path:
        return self.run_dir / "cni.sock"

    def add_pod(
        self,
        name: str,
        namespace: str = "default",
        labels: Mapping[str, str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> Pod:
        """Make a pod's namespace and attach it (CNI ADD). ``config`` adds to the network configuration.

        With a Pod of this name in the store, that one says what its labels are. Raises Invalid,
        Unavailable: what the plugin said, and then nothing is left of the pod.
        """
        network = cni.configuration(self.socket, labels, **(config or {}))
        pod = Pod(self, namespace, name, network)
        if pod.home.exists():
            raise Invalid(f"the lab {self.lab.name} has a pod {pod.name} already")
        pod.home.mkdir(parents=True)
        netns.create(pod.netns)
        self.lab.pods.append(pod)
        try:
            pod.attach()
        except BaseException:
            with contextlib.suppress(NetplaneError):  # the first reason is the one to tell
                pod.delete()
            raise
        return pod

    @property
    def pods(self) -> list[Pod]:
        return [pod for pod in self.lab.pods if pod.node is self]


class Pod(Place):
    """A namespace that the node's CNI plugin attached. Its programs see its own /etc/resolv.conf."""

    def __init__(self, node: Node, namespace: str, name: str, network: dict[str, Any]) -> None:
        key = f"{namespace}.{name}"
        super().__init__(f"{namespace}/{name}", node.lab.namespace(f"pod.{key}"), node.lab.runner)
        self.node = node
        self.key = (namespace, name)
        self.home = node.lab.home / "pods" / key
        self.network = network
        self.container_id = cni.container_id(node.lab.name, namespace, name, node.lab.serial())
        self.result: dict[str, Any] = {}

    @property
    def ips(self) -> tuple[str, ...]:
        return cni.addresses(self.result)

    @property
    def ip(self) -> str:
        """The first address; "" before `attach`."""
        return next(iter(self.ips), "")

    def ip_of(self, family: str) -> str:
        """The address of this family ("IPv4", "IPv6"). Raises Invalid when it has none."""
        for address in self.ips:
            if (":" in address) == (family == "IPv6"):
                return address
        raise Invalid(f"pod {self.name} has no {family} address, only {', '.join(self.ips) or 'none'}")

    @property
    def resolvers(self) -> tuple[str, ...]:
        return cni.resolvers(self.result)

    def cni(self, command: str, **network: Any) -> dict[str, Any]:
        """Run the plugin in the node, as a runtime does; its result. Raises Invalid, Unavailable."""
        env = {**os.environ, **cni.environment(command, self.container_id, self.netns, self.key)}
        program = self.node.lab.settings.programs.cni
        process = self.node.popen(program, env=env, **TEXT)
        assert process.stdin
        config = json.dumps({**self.network, **network})
        try:
            out, err = process.communicate(config, timeout=60)
        except BaseException:
            end(process)
            raise
        return cni.read(command, f"pod {self.name}", process.returncode, out, err)

    def attach(self) -> None:
        """CNI ADD. Keeps the result for DEL and CHECK, beneath the lab's directory too."""
        netns.run(self.netns, "ip", "link", "set", "lo", "up")
        self.result = self.cni("ADD")
        search = f"{self.key[0]}.svc.{DOMAIN} svc.{DOMAIN} {DOMAIN}"
        (self.home / "resolv.conf").write_text(cni.resolv_conf(self.result, search))
        self.save()

    def detach(self) -> None:
        """CNI DEL; the namespace and what runs in it stay, as while a container stops."""
        self.cni("DEL", **({"prevResult": self.result} if self.result else {}))
        self.result = {}

    def delete(self) -> None:
        """CNI DEL, then the namespace and everything in it goes. Raises what DEL says, afterwards."""
        try:
            self.detach()
        finally:
            kill_all([self.netns])
            netns.delete(self.netns)
            shutil.rmtree(self.home)
            self.node.lab.pods.remove(self)

    def command(self, argv: tuple[str | Path, ...]) -> tuple[str | Path, ...]:
        resolv = self.home / "resolv.conf"
        if not resolv.exists():
            return argv
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        return ("unshare", "--mount", "sh", "-c", script, resolv, *argv)

    def save(self) -> None:
        kept = {"node": self.node.name, "containerID": self.container_id}
        kept |= {"network": self.network, "result": self.result}  # type: ignore[dict-item]
        (self.home / "pod.json").write_text(json.dumps(kept))

    @classmethod
    def load(cls, lab: Lab, home: Path) -> Pod:
        """A pod that another process added. Raises Invalid when its record is not whole."""
        namespace, _, name = home.name.partition(".")
        try:
            kept = json.loads((home / "pod.json").read_text())
            pod = cls(lab.node(kept["node"]), namespace, name, kept["network"])
            pod.container_id, pod.result = kept["containerID"], kept["result"]
        except (OSError, ValueError, KeyError) as exc:
            raise Invalid(f"pod {home.name} of lab {lab.name} has no whole record: {exc!r}") from None
        return pod

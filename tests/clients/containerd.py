"""containerd on a test's machine: its configuration, its start, and `ctr`."""

from __future__ import annotations

import subprocess

from .machine import Machine
from .peers import program

SOCKET = "/run/containerd/containerd.sock"
PAUSE = "localhost/pause:1"
# The machine has no cgroup hierarchy of its own, nor AppArmor's policies; "native" needs no overlayfs.
CONFIG = f"""
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_cgroup = true
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
"""


def start(machine: Machine) -> None:
    """containerd with its defaults' directories; returns when its socket is there."""
    machine.write("/etc/containerd/config.toml", CONFIG)
    program("runc")
    machine.daemon("containerd", program("containerd"))
    machine.wait_for(SOCKET, "containerd")


class Ctr:
    """`ctr run --cni` in the foreground: ADD at its start, DEL at its end."""

    def __init__(self, machine: Machine, rootfs: str) -> None:
        self.machine, self.rootfs, self.program = machine, rootfs, program("ctr")

    def argv(self, name: str, *command: str) -> list[str]:
        options = ["--rm", "--cni", "--cgroup", "", "--rootfs", self.rootfs]
        return [self.program, "run", *options, name, *command]

    def run(self, name: str, *command: str) -> str:
        return self.machine.run(*self.argv(name, *command))

    def popen(self, name: str, *command: str) -> subprocess.Popen[str]:
        return self.machine.popen(*self.argv(name, *command), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def kill(self, name: str) -> None:
        self.machine.run(self.program, "task", "kill", "-s", "SIGKILL", name)

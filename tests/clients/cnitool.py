"""cnitool (libcni's own client) on a test's machine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .machine import BIN_DIR, CONF_DIR, SOCKET, Machine
from .peers import program


class Cnitool:
    """cnitool on one network configuration list of the machine."""

    def __init__(self, machine: Machine, version: str, **ours: Any) -> None:
        self.machine, self.version, self.program = machine, version, program("cnitool")
        self.chain({"type": "netplane", "socket": SOCKET, **ours})

    def chain(self, *plugins: dict[str, Any]) -> None:
        """Make the list of these plugins."""
        machine, version = self.machine, self.version
        machine.write(
            f"{CONF_DIR}/20-net.conflist",
            json.dumps({"cniVersion": version, "name": "net", "plugins": plugins}),
        )

    def __call__(self, verb: str, pod: str = "", **env: str) -> str:
        words = [self.program, verb, "net", f"/run/netns/{pod}"]
        return self.machine.run(*words, env={"CNI_PATH": BIN_DIR, **env})

    def refused(self, verb: str, pod: str) -> str:
        with pytest.raises(AssertionError) as caught:
            self(verb, pod)
        return str(caught.value)

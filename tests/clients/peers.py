"""Where the clients' programs are; a test skips without, with a line that says how to get it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from netplane.cni.config import CAPABILITIES

PORTS = pytest.mark.skipif("portMappings" not in CAPABILITIES, reason="no portMappings in this plugin")
PEERS = Path(sys.executable).parent.parent / "peers"  # made by tools/client-peers
PLUGINS = Path("/usr/lib/cni")
PATH = ":".join([*(str(PEERS / d) for d in ("bin", "usr/bin", "usr/sbin")), "/usr/sbin:/usr/bin:/sbin:/bin"])
HOW = {
    "podman": "apt-get install podman crun",
    "iptables": "apt-get install iptables",
    "conntrack": "apt-get install conntrack",
    "nerdctl": "tools/client-peers .venv/peers nerdctl (with Go, in some minutes)",
}


def program(name: str) -> str:
    """The path of a program, or a skipped test."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"no {name}: {HOW.get(name, 'make .venv/.peers')}")
    return found


def plugin(name: str) -> Path:
    """The path of a reference plugin, or a skipped test."""
    if not (PLUGINS / name).exists():
        pytest.skip(f"no {PLUGINS / name}: apt-get install containernetworking-plugins")
    return PLUGINS / name

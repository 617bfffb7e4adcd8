"""netplane install: the CNI binary, its helper for machines without an agent, and a network
configuration, where the container runtime looks."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from ..cni.config import CAPABILITIES
from ..model.errors import Invalid

BINARY = Path(__file__).parent.parent / "_bin" / "netplane-cni"
STANDALONE = "netplane-standalone"
CONFLIST = "10-netplane.conflist"


def conflist(socket: str) -> dict[str, Any]:
    """The network configuration list that goes beside the binary.

    libcni before 1.2 (containerd 1, podman 4) refuses a list of a version that it does not know, and
    ignores ``cniVersions``; later ones take the newest of both.
    """
    plugin = {
        "type": "netplane",
        "socket": socket,
        "capabilities": dict.fromkeys(CAPABILITIES, True),
    }
    versions = {"cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"]}
    return {**versions, "name": "netplane", "plugins": [plugin]}


def standalone() -> str:
    """The program beside the binary that does the work where there is no agent."""
    return f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -m netplane.standalone\n"


def install(bin_dir: Path, conf_dir: Path, run_dir: Path) -> tuple[Path, Path]:
    """Put both there, each by one atomic rename; what was there is replaced. Raises Invalid, OSError."""
    if not BINARY.exists():
        raise Invalid(f"{BINARY} is not built; install a C compiler (Debian: gcc libc6-dev) and reinstall")
    program, configuration = bin_dir / "netplane", conf_dir / CONFLIST
    text = json.dumps(conflist(str(run_dir.absolute() / "cni.sock")), indent=2) + "\n"
    _write(program, BINARY.read_bytes(), 0o755)
    _write(bin_dir / STANDALONE, standalone().encode(), 0o755)
    _write(configuration, text.encode(), 0o644)
    return program, configuration


def _write(target: Path, data: bytes, mode: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(fd, "wb") as out:
            out.write(data)
            os.fchmod(out.fileno(), mode)
            os.fsync(out.fileno())
        os.rename(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


@click.command("install")
@click.option("--cni-bin-dir", type=click.Path(path_type=Path), required=True, help="often /opt/cni/bin")
@click.option("--cni-conf-dir", type=click.Path(path_type=Path), required=True, help="often /etc/cni/net.d")
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("/run/netplane"), show_default=True)
def command(cni_bin_dir: Path, cni_conf_dir: Path, run_dir: Path) -> None:
    """Put the CNI binary and a network configuration where the container runtime looks."""
    try:
        for path in install(cni_bin_dir, cni_conf_dir, run_dir):
            click.echo(path)
    except OSError as exc:
        raise Invalid(f"{exc.filename}: {exc.strerror}") from exc


def register(group: click.Group) -> None:
    group.add_command(command)

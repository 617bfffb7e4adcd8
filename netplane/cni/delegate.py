"""Another plugin that gives the addresses: found in CNI_PATH and run as the specification says.

Rule 1: the configuration goes to it as it came, in the newest version that both of us know.
Rule 2: its errors are handed on with its code and its words, and with its name before them.
Rule 3: it has PATIENCE seconds; a plugin that hangs does not hang us.
"""

from __future__ import annotations

import os
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from ..model.own import AttachmentIP, AttachmentRoute
from .config import VERSIONS
from .errors import CONFIG, DECODE, IO, LATER, Refused
from .ranges import parse_routes
from .request import Request

PATIENCE = 20.0  # seconds; DHCP may take many


class Lease(msgspec.Struct, frozen=True):
    """What a delegate's ADD answered."""

    ips: tuple[AttachmentIP, ...]
    routes: tuple[AttachmentRoute, ...] = ()
    dns: dict[str, Any] = {}


def ask(command: str, name: str, request: Request, config: dict[str, Any]) -> dict[str, Any]:
    """Run the plugin ``name``; its answer, {} for none. Raises Refused with its code and words.

    STATUS and GC are not asked of a plugin that knows no 1.1.0.
    """
    binary = find(name, request.path)
    version = common_version(binary, os.stat(binary).st_mtime_ns, str(config.get("cniVersion", "")))
    if command in ("STATUS", "GC") and version != "1.1.0":
        return {}
    if command == "CHECK" and version < "0.4.0":
        return {}
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": request.container_id,
        "CNI_NETNS": request.netns,
        "CNI_IFNAME": request.ifname,
        "CNI_ARGS": request.args,
        "CNI_PATH": request.path,
        "PATH": os.environ.get("PATH", ""),
    }
    return _run(binary, environment, {**config, "cniVersion": version})


def lease(name: str, request: Request) -> Lease:
    """ADD. Raises Refused; also for an answer without addresses."""
    answer = ask("ADD", name, request, request.config.document)
    try:
        ips = tuple(
            AttachmentIP(address=one["address"], gateway=one.get("gateway") or "") for one in answer["ips"]
        )
    except (KeyError, TypeError) as exc:
        raise Refused(DECODE, f"ipam.type {name}: its answer has no ips: {answer!r:.200}") from exc
    return Lease(ips, parse_routes(answer.get("routes")), answer.get("dns") or {})


def find(name: str, path: str) -> str:
    """Raises Refused when no directory of CNI_PATH has the plugin."""
    for directory in filter(None, path.split(":")):
        binary = Path(directory) / name
        if binary.is_file() and os.access(binary, os.X_OK):
            return str(binary)
    where = f"is not in CNI_PATH ({path})" if path else "cannot be found: CNI_PATH is not set"
    raise Refused(CONFIG, f"ipam.type: the plugin {name} {where}")


@lru_cache(maxsize=64)
def common_version(binary: str, _changed: int, asked: str) -> str:
    """The newest version, up to the one asked for, that the plugin knows."""
    answer = _run(binary, {"CNI_COMMAND": "VERSION"}, {"cniVersion": asked})
    theirs = answer.get("supportedVersions") or ()
    ours = VERSIONS[: VERSIONS.index(asked) + 1] if asked in VERSIONS else VERSIONS
    for version in reversed(ours):
        if version in theirs:
            return version
    raise Refused(CONFIG, f"{binary} knows the versions {', '.join(theirs)}, and none up to {asked}")


def _run(binary: str, environment: dict[str, str], config: dict[str, Any]) -> dict[str, Any]:
    name = os.path.basename(binary)
    try:
        done = subprocess.run(
            [binary],
            input=msgspec.json.encode(config),
            env=environment,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Refused(LATER, f"ipam.type {name}: did not answer within {PATIENCE:.0f} s") from None
    except OSError as exc:
        raise Refused(IO, f"ipam.type {name}: cannot be run: {exc}") from None
    try:
        answer = msgspec.json.decode(done.stdout) if done.stdout.strip() else {}
    except msgspec.DecodeError:
        answer = None
    if not isinstance(answer, dict) or (done.returncode and "code" not in answer):
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise Refused(IO, f"ipam.type {name}: exit status {done.returncode}: {said:.500}")
    if done.returncode:
        raise Refused(int(answer["code"]), f"{name}: {answer.get('msg', '')}", str(answer.get("details", "")))
    return answer

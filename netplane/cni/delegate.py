"""Another plugin that gives the addresses: found in CNI_PATH and run as the specification says.

Rule 1: the configuration goes to it as it came, in the newest version that both of us know.
Rule 2: its errors are handed on with its code and its words, and with its name before them.
Rule 3: it has PATIENCE seconds, and all its runs for one request have BUDGET together (`clocked`), less than
        the CNI binary waits for us: so it is the plugin that is named when it hangs, and undoing its ADD
        has time left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from ..model.own import Attachment, AttachmentIP, AttachmentRoute
from .config import VERSIONS, NetConf
from .errors import CONFIG, DECODE, IO, LATER, Refused
from .ranges import parse_routes
from .request import Request

PATIENCE = 18.0  # seconds; DHCP may take many
BUDGET = 25.0  # seconds for one request, waiting for another of the same container included
_until: ContextVar[float] = ContextVar("until", default=float("inf"))


class Lease(msgspec.Struct, frozen=True):
    """What a delegate's ADD answered."""

    ips: tuple[AttachmentIP, ...]
    routes: tuple[AttachmentRoute, ...] = ()
    dns: dict[str, Any] = {}


@contextmanager
def clocked() -> Iterator[None]:
    """All runs inside belong to one request of this thread: to that of an outer one, if there is one."""
    with _by(min(_until.get(), time.monotonic() + BUDGET)):
        yield


@contextmanager
def unasked() -> Iterator[None]:
    """No plugin is run inside: what it is to take back is owed (`plan.owed`)."""
    with _by(float("-inf")):
        yield


def spent() -> bool:
    """Whether only what undoing takes is left of the request's time: nothing more is to be begun."""
    return _until.get() - time.monotonic() <= BUDGET - PATIENCE


@contextmanager
def _by(deadline: float) -> Iterator[None]:
    token = _until.set(deadline)
    try:
        yield
    finally:
        _until.reset(token)


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


def is_delegated(record: Attachment) -> bool:
    """Whether its addresses are another plugin's."""
    return "delegate" in record.spec.config


def tell(command: str, record: Attachment, prev: dict[str, Any] | None = None) -> None:
    """Ask the plugin that gave the record's addresses, if one did, as it was asked for them."""
    if not is_delegated(record):
        return
    spec, kept = record.spec, record.spec.config["delegate"]
    config = NetConf(version=str(kept["config"].get("cniVersion", "")), name=spec.network)
    request = Request(
        command,
        config,
        spec.container_id,
        spec.netns,
        spec.ifname,
        path=kept["path"],
        args=kept.get("args", ""),
    )
    more = {"prevResult": prev} if prev else {}
    ask(command, spec.ipam, request, {**kept["config"], **more})


def lease(name: str, request: Request) -> Lease:
    """ADD, and some of the request's time is left to undo it. Raises Refused; also without addresses."""
    with _by(_until.get() - (BUDGET - PATIENCE)):
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
    if "/" in name or "\0" in name:
        raise Refused(CONFIG, f"ipam.type: {name!r:.40} must be a plugin's name")
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


def _spoken(
    binary: str, text: bytes, environment: dict[str, str], patience: float
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end. Raises TimeoutExpired; then nothing of it runs on: what it started goes, too."""
    with subprocess.Popen(
        [binary],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(text, patience)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess([binary], process.returncode, out, err)


def _run(binary: str, environment: dict[str, str], config: dict[str, Any]) -> dict[str, Any]:
    name = os.path.basename(binary)
    command, patience = environment["CNI_COMMAND"], min(PATIENCE, _until.get() - time.monotonic())
    if patience <= 0:
        words = f"not asked for {command} now: there is no time left for it"
        raise Refused(LATER, f"ipam.type {name}: {words}")
    try:
        done = _spoken(binary, msgspec.json.encode(config), environment, patience)
    except subprocess.TimeoutExpired:
        raise Refused(LATER, f"ipam.type {name}: did not answer {command} in {patience:.1f} s") from None
    except OSError as exc:
        raise Refused(IO, f"ipam.type {name}: cannot be run: {exc}") from None
    try:
        answer = msgspec.json.decode(done.stdout) if done.stdout.strip() else {}
    except msgspec.DecodeError:
        answer = None
    if not isinstance(answer, dict) or (done.returncode and not isinstance(answer.get("code"), int)):
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise Refused(IO, f"ipam.type {name}: exit status {done.returncode}: {said:.500}")
    if done.returncode:
        raise Refused(answer["code"], f"{name}: {answer.get('msg', '')}", str(answer.get("details", "")))
    return answer

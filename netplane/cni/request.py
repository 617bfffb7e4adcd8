"""A frame into a Request: everything that the CNI specification lets a plugin refuse, refused here.

Rule 1: pure; what depends on the node (does the netns exist?) is the server's question.
Rule 2: a fault names the variable or the key, what it holds, and what would be right.
Rule 3: a key that we do not know is refused (code 2), so that a typing error is never silently
        without effect; ``cni.dev/…`` belongs to the specification and passes.
Rule 4: DEL reads no more than its key: what made ADD fail must not make DEL fail.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ..model import checks
from ..model.base import amend
from .config import NetConf, parse_config
from .errors import CONFIG, ENVIRONMENT, VERSION, Refused
from .frame import Frame
from .together import NOT_NAMES

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
IFNAME_FORBIDDEN = re.compile(r"[/:%\s]")
COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION")
_SINCE = {"CHECK": (0, 4, 0), "STATUS": (1, 1, 0), "GC": (1, 1, 0)}
_POD = ("K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID")


class PodRef(msgspec.Struct, frozen=True):
    """The pod that CNI_ARGS name; all empty when the runtime knows none."""

    namespace: str = ""
    name: str = ""
    uid: str = ""


class Request(msgspec.Struct, frozen=True):
    """One checked request. ``ips`` and ``mac`` are what was asked for, by whichever way."""

    command: str
    config: NetConf
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    pod: PodRef = PodRef()
    ips: tuple[str, ...] = ()
    mac: str = ""
    path: str = ""  # CNI_PATH, needed to delegate only
    args: str = ""  # CNI_ARGS as they came, for a delegate

    @property
    def chained(self) -> bool:
        """Whether a plugin before us made this very interface."""
        before = (self.config.prev_result or {}).get("interfaces") or ()
        return not self.config.is_ipam and any(
            isinstance(one, dict) and one.get("name") == self.ifname and one.get("sandbox") for one in before
        )


def parse(frame: Frame) -> Request:
    """Raises Refused with the specification's code."""
    if frame.command not in COMMANDS:
        raise Refused(ENVIRONMENT, f"CNI_COMMAND: {frame.command!r:.40} is not one of {', '.join(COMMANDS)}")
    _check_text(frame)
    config = parse_config(frame.config, only_identity=frame.command == "DEL")
    _check_since(frame.command, config)
    if frame.command in ("STATUS", "GC", "VERSION"):
        return Request(frame.command, config, path=frame.path)
    _check_environment(frame, config.kind)
    if frame.command == "CHECK" and config.prev_result is None and not config.is_ipam:
        raise Refused(CONFIG, "prevResult: required for CHECK (CNI 0.4.0 and later)")
    identity = Request(
        frame.command, config, frame.container_id, frame.netns, frame.ifname, path=frame.path, args=frame.args
    )
    if frame.command == "DEL":
        return identity
    words = parse_args(frame.args)
    asked: Request = amend(
        identity,
        pod=_pod(words),
        ips=config.runtime_ips or config.args_ips or _listed(words.get("IP", "")),
        mac=_mac(config.runtime_mac or config.args_mac or words.get("MAC", "")),
    )
    return asked


def parse_args(text: str) -> dict[str, str]:
    """CNI_ARGS: ``KEY=value;KEY=value``."""
    words = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Refused(ENVIRONMENT, f"CNI_ARGS: {pair!r:.60} is not KEY=value (pairs are joined by ';')")
        words[key] = value
    return words


def _check_since(command: str, config: NetConf) -> None:
    since = _SINCE.get(command)
    if since and tuple(map(int, config.version.split("."))) < since:
        wanted = ".".join(map(str, since))
        raise Refused(VERSION, f"cniVersion: {config.version} has no {command}; it needs {wanted} or later")


def _check_text(frame: Frame) -> None:
    """What reaches the kernel, the file system or the store is UTF-8 without NUL."""
    for name, value in (
        ("CNI_CONTAINERID", frame.container_id),
        ("CNI_NETNS", frame.netns),
        ("CNI_IFNAME", frame.ifname),
        ("CNI_ARGS", frame.args),
        ("CNI_PATH", frame.path),
    ):
        if "\0" in value or not _is_utf8(value):
            raise Refused(ENVIRONMENT, f"{name}: {value!r:.80} must be UTF-8, without a NUL character")


def _is_utf8(text: str) -> bool:
    """Bytes that are not arrive as lone surrogates (frame.py)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_environment(frame: Frame, kind: str) -> None:
    if not NAME.fullmatch(frame.container_id):
        raise Refused(
            ENVIRONMENT,
            f"CNI_CONTAINERID: {frame.container_id!r:.80} must be letters, digits and _.-,"
            " beginning with a letter or digit",
        )
    if not frame.ifname or len(frame.ifname.encode(errors="surrogateescape")) > 15:
        raise Refused(ENVIRONMENT, f"CNI_IFNAME: {frame.ifname!r:.40} must have 1 to 15 characters")
    if frame.ifname in NOT_NAMES or IFNAME_FORBIDDEN.search(frame.ifname):
        words = f"must not be {', '.join(map(repr, NOT_NAMES))} nor hold '/', ':', '%' or a space"
        raise Refused(ENVIRONMENT, f"CNI_IFNAME: {frame.ifname!r} {words}")
    if frame.ifname == "lo" and kind != "loopback":
        raise Refused(ENVIRONMENT, "CNI_IFNAME: 'lo' is the loopback of every namespace; use another name")
    if frame.command == "DEL":
        return
    if not frame.netns:
        raise Refused(ENVIRONMENT, "CNI_NETNS: required, the path of the container's network namespace")
    if not frame.netns.startswith("/"):
        raise Refused(ENVIRONMENT, f"CNI_NETNS: {frame.netns!r:.80} must be an absolute path")


def _pod(words: dict[str, str]) -> PodRef:
    """Names that no Pod can have, as podman and crictl give their users' own, name none."""
    namespace, name, uid = (words.get(key, "") for key in _POD)
    namespace = namespace or "default"
    wrong = (*checks.dns_label(_POD[0], namespace), *checks.dns_subdomain(_POD[1], name))
    return PodRef() if wrong else PodRef(namespace, name, uid)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def _mac(text: str) -> str:
    """Lower case, six octets, an individual address; "" stays ""."""
    if text and not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise Refused(CONFIG, f"mac: {text!r:.40} is not six octets such as 02:00:5e:10:00:01")
    if text and int(text[:2], 16) & 1:
        raise Refused(CONFIG, f"mac: {text} is a group address; an interface needs an individual one")
    return text.lower()


def version_of(config: bytes) -> str:
    """The version to answer an error in, as far as the configuration can be read. Never raises."""
    try:
        doc: Any = msgspec.json.decode(config)
        version = doc.get("cniVersion")
    except (msgspec.DecodeError, AttributeError, UnicodeDecodeError, RecursionError):
        return ""
    return version if isinstance(version, str) else ""


__all__ = ["COMMANDS", "PodRef", "Request", "parse", "parse_args", "version_of"]

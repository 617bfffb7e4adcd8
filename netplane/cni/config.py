"""The network configuration on stdin: JSON into a NetConf, strictly.

Ours: socket, mtu, ipMasq, hairpinMode, standalone, ipam. The specification's: cniVersion, name, type,
capabilities, runtimeConfig, args, prevResult, dns and ``cni.dev/…``. Of runtimeConfig we take ips,
mac and dns (`CAPABILITIES`); what a runtime may add unasked passes, what would have an effect that
we do not give yet is refused.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import field

from ..model import checks
from .errors import CONFIG, DECODE, UNSUPPORTED, VERSION, Refused

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CAPABILITIES = ("dns", "ips", "mac")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_RUNTIME_PASS = {"aliases", "cgroupPath", "infinibandGUID", "deviceID"}
_GC_KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")


class DNS(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """CNI's dns, as it is echoed in a result."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class RuntimeDNS(msgspec.Struct, frozen=True):
    """The dns capability's words (CONVENTIONS.md): servers, searches, options."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Runtime(msgspec.Struct, frozen=True):
    ips: tuple[str, ...] = ()
    mac: str = ""
    dns: RuntimeDNS | None = None


class CniArgs(msgspec.Struct, frozen=True):
    labels: tuple[dict[str, str], ...] | dict[str, str] = ()
    ips: tuple[str, ...] = ()
    mac: str = ""


class Args(msgspec.Struct, frozen=True):
    cni: CniArgs = field(default_factory=CniArgs)


class NetConf(msgspec.Struct, frozen=True, rename="camel"):
    """One network configuration; unknown keys were refused before it is made."""

    version: str = field(name="cniVersion")
    name: str = ""
    type: str = "netplane"
    socket: str = ""
    mtu: int = 0  # 0: the agent's, from the overlay
    ip_masq: bool | None = None  # None: the agent's
    hairpin_mode: bool = True
    standalone: bool = False
    state_dir: str = ""  # of work without an agent
    capabilities: dict[str, bool] = {}
    ipam: dict[str, Any] = {}  # for work without an agent; with one, the node's pod CIDRs rule
    dns: DNS = field(default_factory=DNS)
    args: Args = field(default_factory=Args)
    runtime_config: Runtime = field(default_factory=Runtime)
    prev_result: dict[str, Any] | None = None
    valid_attachments: tuple[dict[str, Any], ...] | None = field(default=None, name=_GC_KEYS[0])

    @property
    def labels(self) -> dict[str, str]:
        given = self.args.cni.labels
        if isinstance(given, dict):
            return given
        return {pair["key"]: pair["value"] for pair in given}

    @property
    def runtime_ips(self) -> tuple[str, ...]:
        return self.runtime_config.ips

    @property
    def runtime_mac(self) -> str:
        return self.runtime_config.mac

    @property
    def args_ips(self) -> tuple[str, ...]:
        return self.args.cni.ips

    @property
    def args_mac(self) -> str:
        return self.args.cni.mac

    @property
    def result_dns(self) -> DNS:
        """What the runtime asked for, or else what the network says."""
        asked = self.runtime_config.dns
        if asked is None:
            return self.dns
        return DNS(asked.servers, self.dns.domain, asked.searches, asked.options)


_KNOWN = set(NetConf.__struct_encode_fields__)


def parse_config(raw: bytes, only_identity: bool = False) -> NetConf:
    """Raises Refused: 6 not JSON, 1 version, 2 unknown key, 7 a value that cannot be.

    ``only_identity`` reads cniVersion and name and nothing else: for DEL, which must succeed for the
    very configuration that ADD refused.
    """
    try:
        doc = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise Refused(DECODE, f"the network configuration is not JSON: {exc}") from None
    if not isinstance(doc, dict):
        raise Refused(DECODE, f"the network configuration is a JSON object, not {doc!r:.40}")
    runtime = doc.get("runtimeConfig")
    if isinstance(runtime, dict):
        doc["runtimeConfig"] = {k: _go_names(v) if k in CAPABILITIES else v for k, v in runtime.items()}
    if _GC_KEYS[0] in doc and doc[_GC_KEYS[0]] is None:
        doc[_GC_KEYS[0]] = []  # what libcni sends for a runtime that has no attachment: Go's nil slice
    doc = {key: value for key, value in doc.items() if value is not None}
    if only_identity:
        doc = {key: doc[key] for key in ("cniVersion", "name") if key in doc}
    _check_version(doc.get("cniVersion"))
    for key, value in doc.items():
        if key not in _KNOWN and not key.startswith("cni.dev/"):
            raise Refused(UNSUPPORTED, f"{key}: {_short(value)}: this key is not known; {_closest(key)}")
    _check_runtime(doc.get("runtimeConfig", {}))
    try:
        config = msgspec.convert(doc, NetConf)
    except msgspec.ValidationError as exc:
        raise Refused(CONFIG, f"the network configuration is wrong: {exc}") from None
    _check_values(config)
    return config


def _go_names(value: Any) -> Any:
    """containerd's structures have no JSON names: HostPort for hostPort, null for an empty list."""
    if isinstance(value, dict):
        named = {key[:1].lower() + key[1:]: inner for key, inner in value.items()}
        return {key: inner for key, inner in named.items() if inner is not None}
    return [_go_names(one) for one in value] if isinstance(value, list) else value


def _check_version(version: object) -> None:
    if version not in VERSIONS:
        shown = "missing (which means 0.1.0)" if version is None else f"{version!r:.40} is not supported"
        raise Refused(VERSION, f"cniVersion: {shown}; use one of {', '.join(VERSIONS)}")


def _check_runtime(runtime: Any) -> None:
    if not isinstance(runtime, dict):
        return
    for key, value in runtime.items():
        passes = key in CAPABILITIES or key in _RUNTIME_PASS or key.startswith("io.kubernetes.cri")
        if value and not passes:
            raise Refused(
                UNSUPPORTED,
                f"runtimeConfig.{key}: {_short(value)}: not supported;"
                f" declare only the capabilities {', '.join(CAPABILITIES)}",
            )


def _check_values(config: NetConf) -> None:
    if not _NAME.fullmatch(config.name):
        raise Refused(
            CONFIG,
            f"name: {config.name!r:.80} must be letters, digits and _.-, beginning with a letter or digit",
        )
    if config.mtu and not 1280 <= config.mtu <= 65535:
        raise Refused(CONFIG, f"mtu: {config.mtu} must be 1280 (what IPv6 needs) to 65535, or 0")
    labels = config.args.cni.labels
    if not isinstance(labels, dict) and any(set(pair) != {"key", "value"} for pair in labels):
        raise Refused(CONFIG, 'args.cni.labels: a list of {"key": …, "value": …}, or a map')
    for path, reason in checks.label_map("args.cni.labels", config.labels):
        raise Refused(CONFIG, f"{path}: {reason}")


def _closest(key: str) -> str:
    for known in sorted(_KNOWN):
        if known.lower() == key.lower().replace("_", "").replace("-", ""):
            return f"did you mean {known}?"
    ours = sorted(k for k in _KNOWN if not k.startswith("cni.dev/"))
    return f"use one of {', '.join(ours)}"


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else text[:37] + "..."

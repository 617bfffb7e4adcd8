"""The network configuration on stdin: JSON into a NetConf, strictly.

``kind`` says which reference plugin's work this is: bridge (default), ptp, macvlan, loopback; their
keys mean what they mean there. The specification's keys pass, and of runtimeConfig the
`CAPABILITIES`; what a runtime may add unasked passes, what would have an effect that we do not give
is refused by name.

Called by another plugin as its ``ipam.type``, we read nothing but what concerns addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import field

from ..model import checks
from ..model.own import Bandwidth, PortMapping
from . import together, unsupported
from .errors import CONFIG, DECODE, UNSUPPORTED, VERSION, Refused
from .ranges import NONE, OURS, Leases, parse_leases

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CAPABILITIES = ("aliases", "bandwidth", "cgroupPath", "dns", "ipRanges", "ips", "mac", "portMappings")
KINDS = ("bridge", "ptp", "macvlan", "loopback")
TYPE = OURS
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_DEVICES = {
    "deviceID": "interfaces are made, no device of the node is handed over",
    "infinibandGUID": "interfaces here are Ethernet's",
}
_GC_KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")  # the second was 1.1.0's text (cni#1101)


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


class Runtime(msgspec.Struct, frozen=True, rename="camel"):
    """``aliases``: the names, or a map of them by network (podman)."""

    ips: tuple[str, ...] = ()
    mac: str = ""
    dns: RuntimeDNS | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth | None = None
    ip_ranges: Any = None
    aliases: tuple[str, ...] | dict[str, tuple[str, ...]] = ()
    cgroup_path: str = ""


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
    type: str = TYPE
    socket: str = ""
    kind: str = "bridge"
    mtu: int = 0  # 0: the agent's, from the overlay; a network's own: the kernel's
    bridge: str = ""
    is_gateway: bool | None = None
    is_default_gateway: bool | None = None
    force_address: bool = False  # another network's address on the bridge gives way
    ip_masq: bool | None = None  # None: the agent's, or for a network of its own no
    ip_masq_backend: str | None = None
    hairpin_mode: bool | None = None
    promisc_mode: bool = False
    macspoofchk: bool = False
    port_isolation: bool = False
    master: str = ""
    mode: str = ""
    sysctl: dict[str, str] = {}
    standalone: bool = False
    state_dir: str = ""  # of work without an agent
    capabilities: dict[str, bool] = {}
    ipam: dict[str, Any] = {}
    dns: DNS = field(default_factory=DNS)
    args: Args = field(default_factory=Args)
    runtime_config: Runtime = field(default_factory=Runtime)
    prev_result: dict[str, Any] | None = None
    valid_attachments: tuple[dict[str, Any], ...] | None = field(default=None, name=_GC_KEYS[0])
    leases: Leases = field(default_factory=Leases, name="cni.dev/-leases")  # ipam, understood
    document: dict[str, Any] = field(default_factory=dict, name="cni.dev/-document")  # as it came

    @property
    def is_ipam(self) -> bool:
        """Whether another plugin calls us for its addresses."""
        return self.type != TYPE

    @property
    def own_range(self) -> bool:
        """Whether the network has addresses of its own, and not the node's pod CIDRs."""
        return self.leases.type != ""

    @property
    def aliases(self) -> tuple[str, ...]:
        given = self.runtime_config.aliases
        return given.get(self.name, ()) if isinstance(given, dict) else given

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


_KNOWN = {key for key in NetConf.__struct_encode_fields__ if not key.startswith("cni.dev/-")}
_IDENTITY = ("cniVersion", "name", "type", "ipam", "kind")
_AS_IPAM = {
    "cniVersion",
    "name",
    "type",
    "ipam",
    "args",
    "socket",
    "standalone",
    "stateDir",
    *_GC_KEYS,
    "prevResult",
}


def parse_config(raw: bytes, only_identity: bool = False) -> NetConf:
    """Raises Refused: 6 not JSON, 1 version, 2 unknown key, 7 a value that cannot be.

    ``only_identity`` reads who is meant and whose addresses, and nothing else: for DEL, which must
    succeed for the very configuration that ADD refused.
    """
    doc = _document(raw)
    _check_version(doc.get("cniVersion"))
    if only_identity:
        return _identity(doc)
    _refuse_nul(raw, doc)
    runtime = doc.get("runtimeConfig", {})
    if _is_ipam(doc):
        kept = {key: value for key, value in doc.items() if key in _AS_IPAM}
        asked = {k: v for k, v in runtime.items() if k in ("ips", "ipRanges")} if runtime else {}
        return _converted({**kept, "runtimeConfig": asked}, doc)
    unsupported.check(doc, _KNOWN)
    _check_runtime(runtime)
    return _converted(doc, doc)


def _document(raw: bytes) -> dict[str, Any]:
    try:
        given = msgspec.json.decode(raw)
        doc = _without_nulls(given)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise Refused(DECODE, f"the network configuration is not JSON: {exc}") from None
    if not isinstance(doc, dict):
        raise Refused(DECODE, f"the network configuration is a JSON object, not {doc!r:.40}")
    runtime = doc.get("runtimeConfig")
    if isinstance(runtime, dict):
        doc["runtimeConfig"] = {k: _go_names(v) if k in CAPABILITIES else v for k, v in runtime.items()}
    for key in reversed([key for key in _GC_KEYS if key in given]):
        doc[_GC_KEYS[0]] = [] if given[key] is None else given[key]  # null: the runtime has none
    return {key: value for key, value in doc.items() if not key.startswith("cni.dev/-")}


def _without_nulls(value: Any) -> Any:
    """Go writes null for an empty list or pointer, and reads it as what is not there."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _refuse_nul(raw: bytes, doc: dict[str, Any]) -> None:
    """No name, path or value may hold a NUL: it would end there for the kernel. Raises Refused."""
    if rb"\u0000" in raw:
        for path in _nul(doc, ""):
            raise Refused(CONFIG, f"{path}: holds a NUL character, which no name, path or value can")


def _nul(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else key
            yield from [repr(here)] if "\0" in key else _nul(inner, here)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _nul(inner, f"{path}[{i}]")
    elif isinstance(value, str) and "\0" in value:
        yield path


def _is_ipam(doc: dict[str, Any]) -> bool:
    ipam = doc.get("ipam")
    return doc.get("type", TYPE) != TYPE and isinstance(ipam, dict) and ipam.get("type") == TYPE


def _identity(doc: dict[str, Any]) -> NetConf:
    """Lenient, but for what names the record: version and name."""
    found = {key: doc[key] for key in _IDENTITY if isinstance(doc.get(key), dict if key == "ipam" else str)}
    if not _is_ipam(doc):
        found.pop("type", None)
    if found.get("kind") != "loopback":
        found.pop("kind", None)
    config = msgspec.convert(found, NetConf)
    _check_name(config)
    kind = config.ipam.get("type")
    leases = Leases(kind if isinstance(kind, str) else "")
    identity: NetConf = msgspec.structs.replace(config, leases=leases, document=doc)
    return identity


def _converted(kept: dict[str, Any], doc: dict[str, Any]) -> NetConf:
    if isinstance(kept.get("prevResult"), dict):
        kept = {**kept, "prevResult": _before(kept["prevResult"])}
    try:
        config = msgspec.convert(kept, NetConf)
    except msgspec.ValidationError as exc:
        _refuse_unknown(kept, str(exc))
        raise Refused(CONFIG, f"the network configuration is wrong: {exc}") from None
    _check_values(config)
    default = "" if config.kind in ("bridge", "ptp") else NONE
    leases = parse_leases(config.ipam, config.runtime_config.ip_ranges, default)
    whole: NetConf = msgspec.structs.replace(config, leases=leases, document=doc)
    together.check(whole)
    return whole


def _refuse_unknown(value: Any, fault: str) -> None:
    """A key inside of another that is not known is an unsupported one, too: by its name, with its value."""
    found = re.fullmatch(r"Object contains unknown field `(.+)` - at `\$\.(.+)`", fault)
    if found is None:
        return
    key, path = found.groups()
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", path):
        value = value[int(index) if index else name]
    raise Refused(UNSUPPORTED, f"{path}.{key}: {_short(value[key])}: this key is not known")


def _before(result: dict[str, Any]) -> dict[str, Any]:
    """A previous result whose lists are lists of objects."""
    for key in ("interfaces", "ips", "routes"):
        value = result.get(key) or []
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise Refused(CONFIG, f"prevResult.{key}: {_short(value)} must be a list of objects")
    return result


def _go_names(value: Any) -> Any:
    """containerd's structures have no JSON names: HostPort for hostPort."""
    if isinstance(value, dict):
        return {key[:1].lower() + key[1:]: inner for key, inner in value.items()}
    return [_go_names(one) for one in value] if isinstance(value, list) else value


def _check_version(version: object) -> None:
    if version not in VERSIONS:
        shown = "missing (which means 0.1.0)" if version is None else f"{version!r:.40} is not supported"
        raise Refused(VERSION, f"cniVersion: {shown}; use one of {', '.join(VERSIONS)}")


def _check_runtime(runtime: Any) -> None:
    if not isinstance(runtime, dict):
        return
    for key, value in runtime.items():
        if value and key not in CAPABILITIES and not key.startswith("io.kubernetes.cri"):
            why = f": {_DEVICES[key]}" if key in _DEVICES else ""
            raise Refused(
                UNSUPPORTED,
                f"runtimeConfig.{key}: {_short(value)}: not supported{why};"
                f" declare only the capabilities {', '.join(CAPABILITIES)}",
            )


def _check_name(config: NetConf) -> None:
    if not _NAME.fullmatch(config.name):
        raise Refused(
            CONFIG,
            f"name: {config.name!r:.80} must be letters, digits and _.-, beginning with a letter or digit",
        )


def _check_values(config: NetConf) -> None:
    _check_name(config)
    if config.mtu and not 68 <= config.mtu <= 65535:
        raise Refused(
            CONFIG, f"mtu: {config.mtu} must be 68 (what IPv4 needs; IPv6 needs 1280) to 65535, or 0"
        )
    labels = config.args.cni.labels
    if not isinstance(labels, dict) and any(set(pair) != {"key", "value"} for pair in labels):
        raise Refused(CONFIG, 'args.cni.labels: a list of {"key": …, "value": …}, or a map')
    for path, reason in checks.label_map("args.cni.labels", config.labels):
        raise Refused(CONFIG, f"{path}: {reason}")


def _short(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else text[:37] + "..."

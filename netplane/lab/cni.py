"""The lab's container runtime, as far as a CNI plugin can tell: configuration, environment, result.

Source: CNI specification 1.1.0, sections 1 to 4, and CONVENTIONS.md (args.cni.labels). Pure: `Pod`
runs the plugin and passes what it prints here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..model.errors import Invalid, NetplaneError, Unavailable

VERSION = "1.1.0"
IFNAME = "eth0"
TRY_LATER = (11, 50, 51)


def configuration(socket: Path, labels: Mapping[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """The network configuration of the lab's pods on the node whose agent listens on ``socket``."""
    config: dict[str, Any] = {"cniVersion": VERSION, "name": "netplane", "type": "netplane"}
    config["socket"] = str(socket)
    config["capabilities"] = {"bandwidth": True}  # as `netplane install` declares it
    if labels:
        pairs = [{"key": key, "value": value} for key, value in labels.items()]
        config["args"] = {"cni": {"labels": pairs}}
    return config | more


def container_id(lab: str, namespace: str, name: str, serial: int) -> str:
    """64 hex digits, as a runtime gives; another one for each life of a pod (``serial``)."""
    return hashlib.sha256(f"{lab}/{namespace}/{name}/{serial}".encode()).hexdigest()


def environment(command: str, container: str, netns: Path, pod: tuple[str, str]) -> dict[str, str]:
    """CNI_* for one call; ``pod`` is (namespace, name)."""
    args = {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": pod[0],
        "K8S_POD_NAME": pod[1],
        "K8S_POD_INFRA_CONTAINER_ID": container,
    }
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": str(netns),
        "CNI_IFNAME": IFNAME,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in args.items()),
    }


def read(command: str, of: str, returncode: int, out: str, err: str = "") -> dict[str, Any]:
    """The plugin's result. Its error comes out as Unavailable (try again later) or Invalid."""
    try:
        answer = json.loads(out) if out.strip() else {}
    except ValueError:
        raise Invalid(f"CNI {command} of {of}: the plugin printed no JSON: {out.strip()!r:.200}") from None
    if returncode == 0 and isinstance(answer, dict):
        return answer
    raise _error(f"CNI {command} of {of}", answer if isinstance(answer, dict) else {}, err)


def _error(what: str, answer: dict[str, Any], err: str) -> NetplaneError:
    code = answer.get("code")
    reason = ": ".join(str(answer[key]) for key in ("msg", "details") if answer.get(key)) or err.strip()
    kind = Unavailable if code in TRY_LATER else Invalid
    return kind(f"{what}: {reason or 'failed without a word'} (code {code})")


def addresses(result: Mapping[str, Any]) -> tuple[str, ...]:
    """The container's addresses in a result, without prefix length."""
    return tuple(str(entry["address"]).partition("/")[0] for entry in result.get("ips", ()))


def resolv_conf(result: Mapping[str, Any], search: str) -> str:
    """What a runtime makes of a result; ``search`` and ndots:5 where the plugin says nothing."""
    dns = result.get("dns") or {}
    searches, options = dns.get("search") or [search], dns.get("options") or ["ndots:5"]
    lines = [f"nameserver {server}" for server in resolvers(result)]
    return "\n".join((*lines, f"search {' '.join(searches)}", f"options {' '.join(options)}", ""))


def resolvers(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the container asks for names: the result's own servers, else its gateways."""
    servers = (result.get("dns") or {}).get("nameservers") or ()
    gateways = (entry.get("gateway", "") for entry in result.get("ips", ()))
    return tuple(servers) or tuple(gateway for gateway in gateways if gateway)

"""The result of ADD in each version of the specification (pure).

Interfaces: 0 the bridge, 1 the host's veth end, 2 the container's; a host interface has no sandbox (a
chained bandwidth plugin finds the host end by that). What a chain had before us comes first.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..model.own import Attachment
from .config import NetConf
from .names import BRIDGE, bridge_mac, host_mac


def add_result(attachment: Attachment, config: NetConf, dns: dict[str, Any] | None = None) -> dict[str, Any]:
    """``dns``: the node's own, where neither the network nor a plugin before us names any."""
    spec = attachment.spec
    newest = config.version == "1.1.0"
    before = config.prev_result or {}
    interfaces = [
        *before.get("interfaces", ()),
        _interface(BRIDGE, bridge_mac(spec.node)),
        _interface(spec.host_ifname, host_mac(spec.host_ifname), mtu=spec.mtu if newest else 0),
        _interface(spec.ifname, spec.mac, spec.netns, spec.mtu if newest else 0),
    ]
    mine = len(interfaces) - 1
    return {
        "cniVersion": config.version,
        "interfaces": interfaces,
        "ips": [*before.get("ips", ()), *_ips(attachment, config.version, mine)],
        "routes": [*before.get("routes", ()), *_routes(attachment)],
        "dns": msgspec.to_builtins(config.result_dns) or before.get("dns") or dns or {},
    }


def _interface(name: str, mac: str, sandbox: str = "", mtu: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "mac": mac}
    if mtu:
        found["mtu"] = mtu
    if sandbox:
        found["sandbox"] = sandbox
    return found


def _ips(attachment: Attachment, version: str, interface: int) -> list[dict[str, Any]]:
    """Before 1.0.0 an address carries its family as "version"."""
    found = []
    for entry in attachment.spec.ips:
        one = {"address": entry.address, "gateway": entry.gateway, "interface": interface}
        if version.startswith("0."):
            one["version"] = "6" if ":" in entry.address else "4"
        found.append(one)
    return found


def _routes(attachment: Attachment) -> list[dict[str, Any]]:
    return [
        {"dst": "::/0" if ":" in entry.address else "0.0.0.0/0", "gw": entry.gateway}
        for entry in attachment.spec.ips
    ]

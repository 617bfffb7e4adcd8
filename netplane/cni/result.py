"""The result of ADD in each version of the specification (pure).

Interfaces: the bridge, the host's veth end, the container's, as far as the kind has them; a host
interface has no sandbox (a chained bandwidth plugin finds the host end by that). What a chain had
before us comes first, and stays as it was but for what we changed: MAC and MTU.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec

from ..model.base import amend
from ..model.own import Attachment
from .config import VERSIONS, NetConf
from .names import BRIDGE, bridge_mac, host_mac
from .request import Request
from .wiring import FOREIGN, metric, own_bridge

LOOPBACK = ("127.0.0.1/8", "::1/128")


def add_result(attachment: Attachment, config: NetConf, dns: dict[str, Any] | None = None) -> dict[str, Any]:
    """``dns``: the node's own, where neither the network nor a plugin before us names any."""
    spec = attachment.spec
    before = {} if spec.kind == "ipam" else config.prev_result or {}
    named = msgspec.to_builtins(config.result_dns) or spec.config.get("dns") or before.get("dns")
    dns = named or dns or {}
    if spec.kind == "chained":
        interfaces = [_changed(one, attachment, config) for one in before["interfaces"]]
        return {**before, "cniVersion": config.version, "interfaces": interfaces, "dns": dns}
    mine = [] if spec.kind == "ipam" else list(_interfaces(attachment, config.version == "1.1.0"))
    interfaces = [*before.get("interfaces", ()), *mine]
    found = {
        "cniVersion": config.version,
        "interfaces": interfaces,
        "ips": [*before.get("ips", ()), *_ips(attachment, config.version, len(interfaces) - 1)],
        "routes": [*before.get("routes", ()), *_routes(attachment, config.version)],
        "dns": dns,
    }
    if not interfaces:
        del found["interfaces"]
    return found


def version_result(request: Request) -> dict[str, Any]:
    """The binary answers this by itself; others that speak to the socket may ask too."""
    return {"cniVersion": request.config.version, "supportedVersions": list(VERSIONS)}


def loopback_result(netns: str, config: NetConf, there: Collection[str] = LOOPBACK) -> dict[str, Any]:
    """lo and those of its addresses that are ``there``; with a previous result, that one as it is."""
    if config.prev_result is not None:
        return {**config.prev_result, "cniVersion": config.version}
    lo = {"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": netns}
    ips = [_address(a, "", config.version, 0) for a in LOOPBACK if a in there]
    return {"cniVersion": config.version, "interfaces": [lo], "ips": ips, "dns": {}}


def _changed(before: dict[str, Any], attachment: Attachment, config: NetConf) -> dict[str, Any]:
    """An interface of the chain; the one that we are called for with the MAC and the MTU that we gave it."""
    spec = attachment.spec
    if not before.get("sandbox") or before.get("name") != spec.ifname:
        return before
    mac = {"mac": spec.mac} if spec.config.get("mac") else {}
    mtu = {"mtu": spec.mtu} if spec.mtu and config.version == "1.1.0" else {}
    return {**before, **mac, **mtu}


def _interfaces(attachment: Attachment, newest: bool) -> Iterator[dict[str, Any]]:
    spec = attachment.spec
    if spec.kind == "bridge":
        own = own_bridge(attachment)
        mac = spec.config.get(FOREIGN) or bridge_mac(f"{spec.node}/{own}" if own else spec.node)
        yield _interface(spec.bridge or BRIDGE, mac)
    if spec.kind != "macvlan":
        mac = host_mac(spec.kind, spec.host_ifname)
        yield _interface(spec.host_ifname, mac, mtu=spec.mtu if newest else 0)
    yield _interface(spec.ifname, spec.mac, spec.netns, spec.mtu if newest else 0)


def _interface(name: str, mac: str, sandbox: str = "", mtu: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "mac": mac}
    if mtu:
        found["mtu"] = mtu
    if sandbox:
        found["sandbox"] = sandbox
    return found


def _ips(attachment: Attachment, version: str, interface: int) -> list[dict[str, Any]]:
    return [_address(e.address, e.gateway, version, interface) for e in attachment.spec.ips]


def _address(address: str, gateway: str, version: str, interface: int) -> dict[str, Any]:
    """Before 1.0.0 an address carries its family as "version"; interface -1: there is none."""
    one: dict[str, Any] = {"address": address}
    if gateway:
        one["gateway"] = gateway
    if interface >= 0:
        one["interface"] = interface
    if version.startswith("0."):
        one["version"] = "6" if ":" in address else "4"
    return one


def _routes(attachment: Attachment, version: str) -> list[dict[str, Any]]:
    """Their properties came with 1.1.0; without a gw of its own a route goes by the address's gateway."""
    found = []
    for route in attachment.spec.routes:
        far = metric(attachment.spec, route.dst, route.priority)
        words = {
            key: value for key, value in msgspec.to_builtins(amend(route, priority=far)).items() if value
        }
        if route.scope is not None:
            words["scope"] = route.scope
        if version != "1.1.0":
            words = {key: value for key, value in words.items() if key in ("dst", "gw")}
        found.append(words)
    return found

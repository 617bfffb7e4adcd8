"""The ipam section of a network configuration (pure): host-local's words, ours, or another plugin's name.

    {}, {"type": "netplane"}                   this node's pod CIDRs
    {"type": "netplane", "ranges": [[…], […]]}  a network with ranges of its own
    {"type": "host-local", …}                   whatever that plugin does with it

Rule 1: each outer list gives an address, its inner lists are where that may come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec

from ..model.own import AttachmentRoute
from .errors import CONFIG, UNSUPPORTED, Refused

OURS = "netplane"
NONE = "none"  # no addresses at all
_RANGE_KEYS = {"subnet", "rangeStart", "rangeEnd", "gateway"}
# dataDir: of work without an agent
_KEYS = {"type", "ranges", "routes", "dataDir", "resolvConf"} | _RANGE_KEYS
_SCOPES = {0: "", 253: "link"}  # RT_SCOPE_UNIVERSE, RT_SCOPE_LINK


class Range(msgspec.Struct, frozen=True):
    """Addresses ``first`` to ``last`` of a subnet, all in RFC 5952's words; the gateway is never given."""

    subnet: str
    first: str
    last: str
    gateway: str


RangeSet = tuple[Range, ...]


class Leases(msgspec.Struct, frozen=True):
    """Where addresses come from: "" the node's pod CIDRs, OURS the sets, NONE, or a plugin's name."""

    type: str = ""
    sets: tuple[RangeSet, ...] = ()
    routes: tuple[AttachmentRoute, ...] = ()
    resolv_conf: str = ""  # the file whose words are the result's dns

    @property
    def delegated(self) -> bool:
        return self.type not in ("", OURS, NONE)


def whole(cidr: str) -> RangeSet:
    """All of a pod CIDR but the network's own, the gateway's and IPv4's broadcast address."""
    return (_range({"subnet": cidr}, "pod CIDR"),)


def parse_leases(ipam: Any, prepended: Any, default: str) -> Leases:
    """``prepended``: the capability ipRanges; ``default``: what no section means. Raises Refused."""
    if not isinstance(ipam, dict):
        raise Refused(CONFIG, f"ipam: {ipam!r:.40} must be an object")
    kind = ipam.get("type", OURS if ipam else "")
    if not isinstance(kind, str) or "/" in kind:
        raise Refused(CONFIG, f"ipam.type: {kind!r:.40} must be a plugin's name")
    if kind not in ("", OURS):
        return Leases(kind)
    for key in ipam.keys() - _KEYS:
        raise Refused(
            UNSUPPORTED,
            f"ipam.{key}: {ipam[key]!r:.40}: this key is not known; use one of {', '.join(sorted(_KEYS))}",
        )
    given = [*_lists(prepended, "runtimeConfig.ipRanges"), *_lists(ipam.get("ranges"), "ipam.ranges")]
    if "subnet" in ipam:
        given.append([{key: ipam[key] for key in _RANGE_KEYS & ipam.keys()}])
    else:
        for key in sorted(_RANGE_KEYS & ipam.keys()):
            raise Refused(CONFIG, f"ipam.{key}: {ipam[key]!r:.40}: of which subnet? Give ipam.subnet, too")
    sets = tuple(
        tuple(_range(one, f"ipam.ranges[{i}][{j}]") for j, one in enumerate(inner))
        for i, inner in enumerate(given)
    )
    _refuse_overlap(sets)
    resolv_conf = ipam.get("resolvConf", "")
    if not isinstance(resolv_conf, str):
        raise Refused(CONFIG, f"ipam.resolvConf: {resolv_conf!r:.40} must be a file's path")
    kind = OURS if sets else default if not ipam else ""
    return Leases(kind, sets, parse_routes(ipam.get("routes")), resolv_conf)


def parse_routes(routes: Any) -> tuple[AttachmentRoute, ...]:
    """Routes in CNI's words. Raises Refused."""
    try:
        found = msgspec.convert(routes or (), tuple[AttachmentRoute, ...])
    except msgspec.ValidationError as exc:
        raise Refused(CONFIG, f"ipam.routes: {exc}") from None
    return tuple(canonical_route(route, f"ipam.routes[{i}]") for i, route in enumerate(found))


def canonical_route(route: AttachmentRoute, path: str) -> AttachmentRoute:
    try:
        dst = str(ip_network(route.dst, strict=False))
        gw = str(ip_address(route.gw)) if route.gw else ""
    except ValueError as exc:
        raise Refused(CONFIG, f"{path}: {exc}") from None
    if gw and (":" in gw) != (":" in dst):
        raise Refused(CONFIG, f"{path}: gw {gw} is not of the family of dst {dst}")
    if route.scope is not None and route.scope not in _SCOPES:
        raise Refused(CONFIG, f"{path}.scope: {route.scope} must be 0 (global) or 253 (link)")
    canonical: AttachmentRoute = msgspec.structs.replace(route, dst=dst, gw=gw)
    return canonical


def scope_word(route: AttachmentRoute) -> str:
    return _SCOPES.get(route.scope or 0, "")


def _lists(value: Any, path: str) -> list[list[dict[str, Any]]]:
    value = value or []
    good = isinstance(value, list) and all(
        isinstance(inner, list) and inner and all(isinstance(one, dict) for one in inner) for inner in value
    )
    if not good:
        raise Refused(CONFIG, f'{path}: a list of lists such as [[{{"subnet": "10.88.0.0/16"}}]]')
    return list(value)


def _range(given: dict[str, Any], path: str) -> Range:
    """Raises Refused; what is left out is host-local's choice: all hosts, the gateway being the first."""
    for key in given.keys() - _RANGE_KEYS:
        raise Refused(
            UNSUPPORTED, f"{path}.{key}: {given[key]!r:.40}: use one of {', '.join(sorted(_RANGE_KEYS))}"
        )
    try:
        subnet = ip_network(str(given.get("subnet", "")))
        top = subnet.num_addresses - 1 - (subnet.version == 4)
        if subnet.num_addresses < 4:
            raise ValueError(f"{subnet} has no room for a gateway and pods; give at least a /30")
        first = ip_address(str(given.get("rangeStart") or subnet[1]))
        last = ip_address(str(given.get("rangeEnd") or subnet[top]))
        gateway = ip_address(str(given.get("gateway") or subnet[1]))
    except ValueError as exc:
        raise Refused(CONFIG, f"{path}: {exc}") from None
    for key, address in (("rangeStart", first), ("rangeEnd", last), ("gateway", gateway)):
        if address not in subnet:
            raise Refused(CONFIG, f"{path}.{key}: {address} is not in {subnet}")
    if int(first) > int(last):
        raise Refused(CONFIG, f"{path}: rangeStart {first} comes after rangeEnd {last}")
    return Range(str(subnet), str(first), str(last), str(gateway))


def _refuse_overlap(sets: Iterable[RangeSet]) -> None:
    seen: list[tuple[int, int, str]] = []
    for one in (r for ranges in sets for r in ranges):
        first, last = int(ip_address(one.first)), int(ip_address(one.last))
        for low, high, words in seen:
            if first <= high and low <= last and (":" in one.first) == (":" in words):
                raise Refused(CONFIG, f"ipam.ranges: {one.first} to {one.last} overlaps {words}")
        seen.append((first, last, f"{one.first} to {one.last}"))

"""What of a network configuration cannot be, or cannot be together (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import chain
from typing import TYPE_CHECKING

from ..model import checks
from .errors import CONFIG, Refused
from .names import BRIDGE, EVERY_BRIDGE, node_bridge_number
from .tuning import faults as sysctl_faults

if TYPE_CHECKING:
    from ..model.own import PortMapping
    from .config import NetConf

MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}  # MACVLAN_MODE_…
PROTOCOLS = ("tcp", "udp", "sctp")
NOT_NAMES = (".", "..", "all", "default")  # the kernel's own, of settings; with a % it makes a name up


def check(config: NetConf) -> None:
    """Raises Refused for the first fault."""
    for fault in chain(_links(config), _ports(config), _bandwidth(config), sysctl_faults(config.sysctl)):
        raise Refused(CONFIG, fault)


def _links(config: NetConf) -> Iterator[str]:
    if config.promisc_mode and config.hairpin_mode:
        yield "promiscMode, hairpinMode: only one of them can be true"
    if config.ip_masq_backend not in (None, "", "nftables"):
        yield f"ipMasqBackend: {config.ip_masq_backend} is not nftables, the only one here; leave the key out"
    if config.mode and config.mode not in MODES:
        yield f"mode: {config.mode!r:.40} is not one of {', '.join(MODES)}"
    for key, name in (("bridge", config.bridge), ("master", config.master)):
        if name and (len(name.encode()) > 15 or not re.fullmatch(r"[^\s/:\"%*]+", name) or name in NOT_NAMES):
            yield f"{key}: {name!r:.40} is not the name of an interface (1 to 15 characters)"
    if config.kind == "bridge" and not config.own_range:
        yield from _node_network(config)
    elif node_bridge_number(config.bridge) is not None:
        words = "a network with an ipam section has a bridge of its own"
        yield f"bridge: {config.bridge} is the node's own ({EVERY_BRIDGE}); {words}"


def _node_network(config: NetConf) -> Iterator[str]:
    """Without ranges of its own a network is the node's: one bridge for all, and it is the gateway."""
    own = 'give the network addresses of its own: "ipam": {"type": "netplane", "ranges": …}'
    if config.bridge not in ("", BRIDGE):
        none = f'{own}, or {{"type": "none"}} for a segment without any'
        yield f"bridge: {config.bridge}: this node's pods are on {BRIDGE}; leave the key out, or {none}"
    for key, value in (("isGateway", config.is_gateway), ("isDefaultGateway", config.is_default_gateway)):
        if value is False:
            yield f"{key}: false: the node is its pods' gateway; leave the key out, or {own}"
    if config.promisc_mode:
        yield f"promiscMode: the bridge {BRIDGE} is all networks'; {own}"


def _ports(config: NetConf) -> Iterator[str]:
    mappings = config.runtime_config.port_mappings
    if mappings and config.kind in ("macvlan", "loopback"):
        yield f"runtimeConfig.portMappings: the node cannot reach a {config.kind} interface"
    for i, one in enumerate(mappings):
        where = f"runtimeConfig.portMappings[{i}]"
        for key, port in (("hostPort", one.host_port), ("containerPort", one.container_port)):
            if not 0 < port < 65536:
                yield f"{where}.{key}: {port} must be 1 to 65535"
        if one.protocol.lower() not in PROTOCOLS:
            yield f"{where}.protocol: {one.protocol!r:.20} is not one of {', '.join(PROTOCOLS)}"
        if one.host_ip:
            yield from (f"{path}: {reason}" for path, reason in checks.ip(f"{where}.hostIP", one.host_ip))
            if one.host_ip == "::1":
                yield f"{where}.hostIP: Linux forwards nothing that came to ::1; use 127.0.0.1, or another"
    yield from _repeated(mappings)


def _repeated(mappings: tuple[PortMapping, ...]) -> Iterator[str]:
    """The second of a port could never be reached. For mappings without another fault."""
    first: dict[tuple[str, int, str], int] = {}
    for i, one in enumerate(mappings):
        protocol = one.protocol.lower()
        for address in _places(one.host_ip):
            before = first.setdefault((protocol, one.host_port, address), i)
            if before != i:
                ip = f"[{one.host_ip}]:" if ":" in one.host_ip else one.host_ip and f"{one.host_ip}:"
                yield (
                    f"runtimeConfig.portMappings[{i}]: {protocol} {ip}{one.host_port} repeats"
                    f" portMappings[{before}]; a host port leads to one container port: leave one out"
                )


def _places(host_ip: str) -> tuple[str, ...]:
    """An address, as the kernel writes it; any of a family, or of both."""
    return (str(ip_address(host_ip)),) if host_ip else ("0.0.0.0", "::")


def _bandwidth(config: NetConf) -> Iterator[str]:
    given = config.runtime_config.bandwidth
    if given is None:
        return
    for way, rate, burst in (
        ("ingress", given.ingress_rate, given.ingress_burst),
        ("egress", given.egress_rate, given.egress_burst),
    ):
        where = f"runtimeConfig.bandwidth.{way}"
        if rate < 0 or burst < 0 or bool(rate) != bool(burst):
            yield f"{where}Rate, {way}Burst: {rate}, {burst}: both must be given (bit/s and bits), or neither"
        elif rate and (rate < 8 or rate // 8 >= 1 << 63 or burst // 8 >= 1 << 32):
            yield f"{where}Rate, {way}Burst: {rate}, {burst}: 8 bit/s at least, and a burst below 2^35 bits"
        elif rate and (config.kind == "loopback" or (config.kind == "macvlan" and way == "ingress")):
            yield f"{where}Rate: a {config.kind} interface has no end on the node that could be slowed down"


def is_any(host_ip: str) -> bool:
    return not host_ip or ip_address(host_ip).is_unspecified

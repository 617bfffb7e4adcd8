"""What the node's own network looks like: its uplink, addresses and MTU. Reads only.

Rule 1: links of ours are never the uplink. These dump, so they are for registration, not for ADDs.
"""

from __future__ import annotations

import fcntl
import socket
import sys
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from ..model.errors import NotFound
from ..model.facts import ROUTE_PROTOCOL
from .linkread import View, addresses
from .nlsocket import Socket

SIOCGIFHWADDR = 0x8927


def _view(netns: str) -> tuple[View, Socket]:
    sock = Socket(netns)
    return View(sock), sock


def default_route_device(netns: str = "") -> str:
    """The device of the default route with the lowest metric, IPv4 before IPv6; "" without any."""
    view, sock = _view(netns)
    try:
        routes = [r for r, proto in view.routes() if r.table == 254 and proto != ROUTE_PROTOCOL and r.link]
    finally:
        sock.close()
    defaults = [(r.dst == "::/0", r.metric, r.link) for r in routes if r.dst in ("0.0.0.0/0", "::/0")]
    return min(defaults)[2] if defaults else ""


def underlay_of(ip: str, netns: str = "") -> tuple[str, int]:
    """The device that holds the address ``ip``, and its MTU. Raises NotFound."""
    view, sock = _view(netns)
    try:
        for fact, _ in view.addresses():
            if ip_address(fact.address.partition("/")[0]) == ip_address(ip):
                return fact.link, view.by_name[fact.link].mtu
    finally:
        sock.close()
    raise NotFound(f"no device of this node has the address {ip}; name one of its own with --node-ip")


def is_ethernet(link: str) -> bool:
    """Whether frames of this link begin with an Ethernet header (ARPHRD_ETHER); gone: no."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            answer = fcntl.ioctl(sock, SIOCGIFHWADDR, link.encode().ljust(40, b"\0"))
        except OSError:
            return False
    return int.from_bytes(answer[16:18], sys.byteorder) == 1


def node_addresses(netns: str = "") -> list[str]:
    """The node's address per family, IPv4 first: of the default route's device, else of the first
    device that has one. No loopback, no link-local address, none on links of ours."""
    uplink = default_route_device(netns)
    view, sock = _view(netns)
    try:
        facts = [fact for fact, proto in view.addresses() if proto != ROUTE_PROTOCOL]
    finally:
        sock.close()
    found: dict[int, tuple[bool, int, str]] = {}
    for fact in facts:
        link, address = view.by_name[fact.link], ip_address(fact.address.partition("/")[0])
        if link.ours or not link.up or address.is_loopback or address.is_link_local:
            continue
        candidate = (link.name != uplink, link.ifindex, str(address))
        if address.version not in found or candidate[:2] < found[address.version][:2]:
            found[address.version] = candidate
    return [found[version][2] for version in sorted(found)]


def own_addresses(netns: str = "") -> frozenset[str]:
    """Every address of the node, loopback's and those on links of ours too."""
    sock = Socket(netns)
    try:
        return frozenset(fact.address.partition("/")[0] for fact, _ in addresses(sock, {}))
    finally:
        sock.close()


def addresses_within(cidrs: Iterable[str], netns: str = "") -> list[str]:
    """The node's addresses that lie in one of these networks; no loopback and no link-local ones."""
    networks = [ip_network(cidr) for cidr in cidrs]
    view, sock = _view(netns)
    try:
        found = [ip_address(fact.address.partition("/")[0]) for fact, _ in view.addresses()]
    finally:
        sock.close()
    usable = {a for a in found if not a.is_loopback and not a.is_link_local}
    return [str(a) for a in sorted(usable, key=lambda a: (a.version, a)) if any(a in n for n in networks)]

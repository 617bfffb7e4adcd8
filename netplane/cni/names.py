"""Names and MAC addresses that follow from what they stand for, so that nobody has to remember them."""

from __future__ import annotations

import hashlib
import re

from ..model import checks

NODE_BRIDGES = "npbr"  # of the node's pods: with a number, npbr0, npbr1, … (see `nodebridges`)


def node_bridge(number: int) -> str:
    return f"{NODE_BRIDGES}{number}"


def node_bridge_number(name: str) -> int | None:
    """None for a bridge that is not the node's."""
    found = re.fullmatch(NODE_BRIDGES + r"(0|[1-9][0-9]*)", name)
    return int(found[1]) if found else None


def headroom(number: int) -> str:
    """The port of a node's bridge that is no pod's."""
    return f"nphr{number}"


BRIDGE, EVERY_BRIDGE = node_bridge(0), f"{NODE_BRIDGES}*"  # as nftables has it


def attachment_name(node: str, container_id: str, ifname: str, network: str) -> str:
    """The Attachment object of one interface of one container in one network."""
    return f"{_digest(container_id, ifname, network)[:12]}.{node}"


def turn_name(node: str, network: str) -> str:
    """The Allocation that keeps the place in a network's ranges; network "": in the node's pod CIDRs."""
    return f"turn.{_digest(network)[:12]}.{node}"


def host_ifname(container_id: str, ifname: str, network: str) -> str:
    """The veth end in the node's namespace: 14 of the 15 characters that a name may have."""
    return "npv" + _digest(container_id, ifname, network)[:11]


def pod_mac(container_id: str, ifname: str, network: str) -> str:
    """The container's MAC: the same for the same interface, whatever address it got."""
    return _mac("pod", container_id, ifname, network)


def host_mac(kind: str, host_name: str) -> str:
    """The host end's MAC, so that it needs no lookup for the result.

    A bridge's ports share one, as nobody speaks to them: the bridge's table, which the kernel walks for each
    port that comes or goes, is half as long so.
    """
    return _mac("port") if kind == "bridge" else _mac("host", host_name)


def bridge_mac(node: str) -> str:
    """The bridge's MAC. Left alone, a bridge takes its lowest port's and changes with the ports."""
    return _mac("bridge", node)


def pod_name(container_id: str) -> str:
    """The Pod object of a container that no runtime gave a pod name: its ID when that can be one."""
    valid = not any(checks.dns_subdomain("", container_id))
    return container_id if valid else "cni-" + _digest(container_id)[:12]


def _digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode(errors="surrogateescape")).hexdigest()


def _mac(*parts: str) -> str:
    """Locally administered, individual (IEEE 802c): x2, x6, xA or xE in the first octet."""
    octets = bytearray(hashlib.sha256("/".join(parts).encode(errors="surrogateescape")).digest()[:6])
    octets[0] = octets[0] & 0xFC | 0x02
    return octets.hex(":")

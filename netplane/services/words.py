"""The words that all of the services' rules share: families, protocols, marks. No logic."""

from __future__ import annotations

import ipaddress

MASQUERADE = 0x4000  # the mark's bit that kube-proxy uses, so other tools leave it alone
MESH = 0x2000  # masquerade, unless the endpoint is on this node
KERNEL_PATH = 0x20000  # NP_MARK_KERNEL: the fast path does not remember what has it
PROTOCOLS = ("tcp", "udp", "sctp")
WORDS = {"IPv4": ("4", "ip", "ipv4_addr"), "IPv6": ("6", "ip6", "ipv6_addr")}
MARK = f"meta mark set meta mark | {MASQUERADE:#x}"


def of_family(family: str, cidrs: tuple[str, ...]) -> str:
    """The CIDRs of a family as nft's right-hand side; "" without any."""
    version = int(WORDS[family][0])
    found = [c for c in cidrs if ipaddress.ip_network(c).version == version]
    return found[0] if len(found) == 1 else f"{{ {', '.join(found)} }}" if found else ""


def priority(number: int) -> str:
    """32 bits as nft writes a packet's priority: major:minor, in hexadecimal digits."""
    return f"{number >> 16:x}:{number & 0xFFFF:x}"

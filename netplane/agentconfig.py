"""What an agent is told on its command line, held to its rules before anything is touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .cluster.config import ClusterConfig
from .health import split_listen
from .model import checks
from .model.errors import Invalid

ROOMS = ("cni", "overlay", "services", "policy", "dns")
DATAPATHS = ("auto", "kernel", "fast")


@dataclass(frozen=True)
class AgentConfig:
    """Everything an agent is told; raises Invalid for what cannot be. No node IPs: found by itself."""

    node: str
    store: str
    run_dir: Path
    state_dir: Path
    node_ips: tuple[str, ...]
    cluster: ClusterConfig
    datapath: str = "auto"
    rooms: tuple[str, ...] = ROOMS
    domain: str = "cluster.local"
    dns_listen: tuple[str, ...] = ()
    dns_config: str = ""
    resolv_conf: str = "/etc/resolv.conf"
    http_listen: str = ""
    node_port_addresses: tuple[str, ...] = ()  # CIDRs; none: the node's own addresses

    def __post_init__(self) -> None:
        faults = list(checks.dns_subdomain("--node", self.node))
        for room in self.rooms:
            faults += checks.one_of("--rooms", room, ROOMS)
        for address in self.node_ips:
            faults += checks.ip("--node-ip", address)
        for cidr in self.node_port_addresses:
            faults += checks.cidr("--node-port-addresses", cidr)
        faults += checks.unique("--node-ip", (":" in a for a in self.node_ips), "family, IPv6: ")
        if faults:
            raise Invalid("; ".join(f"{path}: {reason}" for path, reason in faults))
        for text in (*self.dns_listen, *([self.http_listen] if self.http_listen else [])):
            split_listen(text)

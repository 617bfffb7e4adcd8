"""What Kubernetes' controllers would do, when there is no Kubernetes.

Controllers are pure (objects in, writes out) and run in every agent; `leases.rank` says who goes
first. The only edge is the node's registration.
"""

from __future__ import annotations

from .addresses import Addresses
from .config import ClusterConfig
from .endpoints import Endpoints
from .instance import Instance
from .leases import DURATION_SECONDS, RENEW_SECONDS, live_nodes, rank
from .nodes import Machine, Registrar
from .podcidr import PodCIDRs

__all__ = [
    "DURATION_SECONDS",
    "RENEW_SECONDS",
    "Addresses",
    "ClusterConfig",
    "Endpoints",
    "Instance",
    "Machine",
    "PodCIDRs",
    "Registrar",
    "controllers",
    "live_nodes",
    "rank",
]


def controllers(config: ClusterConfig) -> list[PodCIDRs | Addresses | Endpoints]:
    """Every controller, in the order in which a fresh cluster needs them."""
    return [PodCIDRs(config), Addresses(config), Endpoints(config)]

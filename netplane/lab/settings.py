"""What a lab is made of: its families, its addresses, its programs. Pure data.

The plan of addresses, the same in every lab because every lab is alone in its namespaces:

    wire      192.168.77.0/24  fd00:77::/64      outside .1 ::1, node-N .(10+N) ::(10+N)
    pods      10.244.0.0/16    fd00:10:244::/48  (each node gets a /24 and a /64 from its agent)
    services  10.96.0.0/16     fd00:10:96::/112
    internet  203.0.113.1      2001:db8::1       held by outside; the nodes' default route
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..model.errors import Invalid

ROOT = Path("/run/netplane-lab")
PACKAGE = Path(__file__).resolve().parent.parent
OUTSIDE = 1  # the host number of the outside namespace on the wire
FIRST_NODE = 11


@dataclass(frozen=True)
class Programs:
    """The programs that a lab starts; by default those of this Python's environment."""

    netplane: Path = field(default_factory=lambda: Path(sys.executable).parent / "netplane")
    storageplane: Path = field(default_factory=lambda: Path(sys.executable).parent / "storageplane")
    cni: Path = PACKAGE / "_bin" / "netplane-cni"


@dataclass(frozen=True)
class Settings:
    """How a lab is made. ``name`` empty: one of its own, beneath ``root``.

    ``persist``: the lab outlives this process (`netplane lab up`); otherwise it dies with it,
    whatever ends it. ``family`` is the only one when a lab is not dual stack.
    """

    name: str = ""
    root: Path = ROOT
    persist: bool = False
    family: str = "IPv4"
    mtu: int = 1500
    agent_args: tuple[str, ...] = ()
    programs: Programs = field(default_factory=Programs)


@dataclass(frozen=True)
class Plan:
    """The addresses of a lab of ``nodes`` nodes with these families ("IPv4", "IPv6")."""

    nodes: int
    families: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.nodes <= 200:
            raise Invalid(f"a lab has 0 to 200 nodes, not {self.nodes}")
        if not self.families or set(self.families) - {"IPv4", "IPv6"}:
            raise Invalid(f"a lab has the families IPv4, IPv6 or both, not {self.families}")

    def node(self, index: int) -> tuple[str, ...]:
        """The addresses of the node with this index (from 0), without prefix length."""
        return self._pick(f"192.168.77.{FIRST_NODE + index}", f"fd00:77::{FIRST_NODE + index}")

    @property
    def outside(self) -> tuple[str, ...]:
        return self._pick(f"192.168.77.{OUTSIDE}", f"fd00:77::{OUTSIDE}")

    @property
    def internet(self) -> tuple[str, ...]:
        """Addresses beyond the cluster and its wire: what masquerading is for."""
        return self._pick("203.0.113.1", "2001:db8::1")

    @property
    def cluster_cidrs(self) -> tuple[str, ...]:
        return self._pick("10.244.0.0/16", "fd00:10:244::/48")

    @property
    def service_cidrs(self) -> tuple[str, ...]:
        return self._pick("10.96.0.0/16", "fd00:10:96::/112")

    def _pick(self, v4: str, v6: str) -> tuple[str, ...]:
        return tuple({"IPv4": v4, "IPv6": v6}[family] for family in self.families)


def families(dual_stack: bool, family: str) -> tuple[str, ...]:
    return ("IPv4", "IPv6") if dual_stack else (family,)

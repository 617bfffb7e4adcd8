"""Ranges that cannot work are refused with what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from netplane.cluster.config import ClusterConfig
from netplane.model.errors import Invalid

REFUSED = {
    "not a CIDR": ({"cluster_cidrs": ("10.244/16",)}, "'10.244/16' is not a CIDR"),
    "host bits": ({"cluster_cidrs": ("10.244.0.1/16",)}, "has host bits set"),
    "two of a family": ({"service_cidrs": ("10.0.0.0/16", "10.1.0.0/16")}, "at most one per family"),
    "the same twice": ({"service_cidrs": ("10.0.0.0/16", "10.0.0.0/16")}, "at most one per family"),
    "overlap": (
        {"cluster_cidrs": ("10.0.0.0/8",), "service_cidrs": ("10.96.0.0/12",)},
        "cluster CIDR 10.0.0.0/8 overlaps service CIDR 10.96.0.0/12",
    ),
    "overlap v6": (
        {"cluster_cidrs": ("fd00::/48",), "service_cidrs": ("fd00:0:0:1::/64",)},
        "overlaps service CIDR fd00:0:0:1::/64",
    ),
    "mask too short": ({"cluster_cidrs": ("10.244.0.0/25",)}, "use /25 to /30"),
    "mask too long": ({"cluster_cidrs": ("10.244.0.0/16",), "node_mask_v4": 31}, "use /16 to /30"),
    "tiny service CIDR": ({"service_cidrs": ("10.96.0.0/31",)}, "4 addresses or more"),
    "ports backwards": ({"node_port_range": (32767, 30000)}, "low end first"),
    "ports beyond": ({"node_port_range": (60000, 70000)}, "within 1-65535"),
}


@pytest.mark.parametrize(("options", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        ClusterConfig(**options)


def test_the_first_service_cidr_is_the_default_family() -> None:
    config = ClusterConfig(service_cidrs=("fd00:96::/108", "10.96.0.0/12"))
    assert config.families == ("IPv6", "IPv4")

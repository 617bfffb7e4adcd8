"""Forgetting flows, on the real tracker.

a namespace alone: lo with 127.0.0.1 and ::1, a rule that makes the kernel track, one that translates
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from netplane.kernel import netns
from netplane.kernel.conntrack import Conntrack, Flows
from netplane.model.errors import Invalid

pytestmark = pytest.mark.root
RULES = """
add table inet t
add chain inet t out { type nat hook output priority -100; }
add rule inet t out udp dport 5003 dnat ip to 127.0.0.9:6003
add rule inet t out ct state new accept
"""


@pytest.fixture
def at(make_netns: Callable[[str], str]) -> str:
    path = make_netns("tracked")
    netns.run(path, "nft", "-f", "-", input=RULES, stdin=None)
    netns.call(path, _send)
    return path


def _send() -> None:
    for port in (5001, 5002, 5003):
        for family, to in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", (to, port))


def ports(at: str) -> list[str]:
    """Such as 4:5001 for each flow, by the port that the client sent to."""
    found = []
    for version in ("4", "6"):
        listing = netns.run(at, "conntrack", "-L", "-f", f"ipv{version}", "-p", "udp")
        found += [f"{version}:{line.split('dport=')[1].split()[0]}" for line in listing.splitlines()]
    return sorted(found)


def test_what_matches_goes_and_nothing_else(at: str) -> None:
    tracker = netns.call(at, Conntrack)
    every = ["4:5001", "4:5002", "4:5003", "6:5001", "6:5002", "6:5003"]
    assert ports(at) == every
    tracker.forget([Flows("udp", 4, dport=5999), Flows("tcp", 4, dport=5001)])
    assert ports(at) == every
    tracker.forget([Flows("udp", 4, dst="127.0.0.1", dport=5001), Flows("udp", 6, dport=5002)])
    assert ports(at) == ["4:5002", "4:5003", "6:5001", "6:5003"]
    tracker.forget([Flows("udp", 4, dst="127.0.0.2", dport=5002), Flows("udp", 4, backend="127.0.0.8")])
    assert ports(at) == ["4:5002", "4:5003", "6:5001", "6:5003"]
    tracker.forget([Flows("udp", 4, backend="127.0.0.9", backend_port=6003), Flows("udp", 6, backend="::1")])
    assert ports(at) == ["4:5002"]
    tracker.close()


def test_a_pattern_that_names_nothing_is_refused(at: str) -> None:
    tracker = netns.call(at, Conntrack)
    with pytest.raises(Invalid, match="name tcp, udp or sctp"):
        tracker.forget([Flows("udp", 4)])
    assert len(ports(at)) == 6
    tracker.close()

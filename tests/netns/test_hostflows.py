"""Forgetting all flows of addresses, on the real tracker: every protocol, translated or not, and no others.

a namespace alone: lo with 10.1.0.1 to .4 and fd00:1::1 to ::4, of which the second are "pods"
    10.1.0.9:80, fd00:1::9:80 ── dnat ──> 10.1.0.2:8080, fd00:1::2:8080      (host ports)
    from .3 and ::3 ── snat ──> 10.1.0.1, fd00:1::1                          (masquerade)
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import pytest

from netplane.kernel import hostflows, netns
from netplane.kernel.hostflows import HostFlows, cheap

pytestmark = pytest.mark.root
RULES = """
add table inet t
add chain inet t out { type nat hook output priority -100; }
add rule inet t out ip daddr 10.1.0.9 meta l4proto { tcp, udp } th dport 80 dnat ip to 10.1.0.2:8080
add rule inet t out ip6 daddr fd00:1::9 meta l4proto { tcp, udp } th dport 80 dnat ip6 to [fd00:1::2]:8080
add chain inet t post { type nat hook postrouting priority 100; }
add rule inet t post ip saddr 10.1.0.3 snat ip to 10.1.0.1
add rule inet t post ip6 saddr fd00:1::3 snat ip6 to fd00:1::1
"""
SERVERS = (("2", 81), ("2", 8080), ("4", 82), ("1", 83))
TALKS = (("4", "2", 81), ("4", "9", 80), ("3", "4", 82), ("4", "1", 83))
FAMILIES = ((socket.AF_INET, "10.1.0."), (socket.AF_INET6, "fd00:1::"))


@pytest.fixture
def at(make_netns: Callable[[str], str]) -> str:
    path = make_netns("tracked")
    for end in (1, 2, 3, 4, 9):
        netns.run(path, "ip", "addr", "add", f"10.1.0.{end}/32", "dev", "lo")
        netns.run(path, "ip", "addr", "add", f"fd00:1::{end}/128", "dev", "lo", "nodad")
    netns.run(path, "nft", "-f", "-", input=RULES, stdin=None)
    netns.call(path, _talk)
    return path


def _talk() -> None:
    """TCP and UDP each: to a pod directly, by a host port, from a pod that is masqueraded, and others'."""
    for family, net in FAMILIES:
        servers = [socket.create_server((net + to, port), family=family) for to, port in SERVERS]
        for source, to, port in TALKS:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(family, kind) as client, suppress(OSError):
                    client.bind((net + source, 0))
                    client.connect((net + to, port))
                    client.send(b"x")
        for server in servers:
            server.close()
    for family, net in FAMILIES:  # ICMP by what its own sockets send
        number = 1 if family == socket.AF_INET else 58
        with socket.socket(family, socket.SOCK_RAW, number) as raw:
            raw.bind((net + "2", 0))
            raw.sendto(bytes((8 if number == 1 else 128, 0, 0, 0, 0, 1, 0, 1)), (net + "4", 0))


def flows(at: str) -> list[str]:
    return [line for v in ("ipv4", "ipv6") for line in netns.run(at, "conntrack", "-L", "-f", v).splitlines()]


def of(lines: list[str], *addresses: str) -> list[str]:
    return [line for line in lines if any(f"={a} " in line + " " for a in addresses)]


@pytest.mark.parametrize("way", ["quiet", "many addresses", "many flows", "an old kernel"])
def test_all_flows_of_an_address_go_and_no_others(at: str, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Whichever way is the cheapest."""
    if way == "many addresses":
        monkeypatch.setattr(hostflows, "cheap", lambda *_: False)
    if way == "many flows":
        monkeypatch.setattr(hostflows, "FEW", 0)
    if way == "an old kernel":
        monkeypatch.setattr(hostflows, "FILTER", 99)
    driver = netns.call(at, HostFlows)
    pods = ("10.1.0.2", "fd00:1::2", "10.1.0.3", "fd00:1::3")
    for gone in (pods[:1], pods[1:2], pods[2:], ("10.1.0.77", "fd00:1::77")):
        before = flows(at)
        mine = of(before, *gone)
        kinds = {line.split()[0] for line in mine}
        assert {"tcp", "udp"} <= kinds or gone[0].endswith("77")
        driver.forget(gone)
        assert sorted(line.split("src=", 1)[1] for line in flows(at)) == sorted(
            line.split("src=", 1)[1] for line in before if line not in mine
        )
    assert of(flows(at), "10.1.0.4") and of(flows(at), "fd00:1::4")
    driver.close()


def test_where_nothing_is_tracked_nothing_is_walked(
    make_netns: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = netns.call(make_netns("quiet"), HostFlows)
    monkeypatch.setattr(driver, "_tracker", None)
    driver.forget(["10.1.0.1", "fd00:1::1"])


def test_walks_give_way_to_a_listing() -> None:
    assert cheap(32, 100) and cheap(1, 1_000_000) and not cheap(32, 100_000)

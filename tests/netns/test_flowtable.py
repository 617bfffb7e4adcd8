"""The table of tracked flows: what a dump says of each protocol, and the end of one flow.

a 10.0.0.1 ── 10.0.0.2 b      b tracks, because a rule of its asks for it
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from netplane.kernel import flowtable, netns
from netplane.kernel.flowtable import FlowTable, Tracked

pytestmark = pytest.mark.root
HOOK = "add table ip t; add chain ip t c { type filter hook input priority 0; };"
TRACK = f"{HOOK} add rule ip t c ct state new accept"


@pytest.fixture
def pair(make_netns: Callable[[str], str]) -> tuple[str, str]:
    a, b = make_netns("a"), make_netns("b")
    netns.run(a, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b)
    for path, address in ((a, "10.0.0.1/24"), (b, "10.0.0.2/24")):
        netns.run(path, "ip", "address", "add", address, "dev", "eth0")
        netns.run(path, "ip", "link", "set", "eth0", "up")
    netns.run(b, "nft", TRACK)
    return a, b


def talk(path: str, sport: int, protocol: int = socket.IPPROTO_UDP) -> None:
    def send() -> None:
        if protocol == socket.IPPROTO_UDP:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("10.0.0.1", sport))
                sock.sendto(b"x", ("10.0.0.2", 9))
            return
        from scapy.layers.sctp import SCTP, SCTPChunkInit

        chunk = SCTPChunkInit(init_tag=1, a_rwnd=65535, n_out_streams=1, n_in_streams=1, init_tsn=1)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as sock:
            sock.sendto(bytes(SCTP(sport=sport, dport=9) / chunk), ("10.0.0.2", 0))

    netns.call(path, send)


def test_a_dump_names_flows_of_every_protocol(pair: tuple[str, str]) -> None:
    a, b = pair
    table: Any = netns.call(b, FlowTable)
    talk(a, 1001)
    talk(a, 1002, 132)
    netns.run(a, "ping", "-c1", "-W1", "10.0.0.2")
    found = {flow.protocol: flow for flow in table.flows() if flow.source == "10.0.0.1"}
    assert set(found) == {"udp", "sctp", "icmp"}
    assert found["udp"][:4] == ("10.0.0.1", "10.0.0.2", "udp", 9)
    assert found["sctp"].source_port == 1002
    assert not any(flow.loose for flow in found.values())


def test_one_flow_goes_and_the_others_stay(pair: tuple[str, str]) -> None:
    a, b = pair
    table: Any = netns.call(b, FlowTable)
    for sport in (1001, 1002, 1003):
        talk(a, sport)

    def ports() -> set[int]:
        return {flow.source_port for flow in table.flows() if flow.protocol == "udp"}

    doomed: list[Tracked] = [flow for flow in table.flows() if flow.source_port == 1002]
    assert table.forget(doomed) == 1
    assert ports() == {1001, 1003}
    assert table.forget(doomed) == 0, "gone already is fine"


def test_what_is_read_by_its_places_is_what_its_attributes_say(make_netns: Callable[[str], str]) -> None:
    """TCP from its beginning and taken up in its middle, UDP, SCTP and ICMP, of both families."""
    alone = make_netns("alone")
    netns.run(alone, "ip", "link", "set", "lo", "up")

    def flows() -> None:
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.create_server((host, 7), family=family) as server:
                early = socket.create_connection((host, 7)), server.accept()[0]
                netns.run(
                    alone, "nft", HOOK.replace(" ip ", " inet ") + "add rule inet t c ct state new accept"
                )
                early[0].send(b"taken up in its middle")
                assert early[1].recv(100)
                early[1].send(b"and answered")
                with socket.create_connection((host, 7)) as late:
                    late.send(b"x")
                for one in early:
                    one.close()
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", (host, 9))
            netns.run(alone, "ping", "-c1", "-W1", host)
            netns.run(alone, "nft", "flush ruleset")

    netns.call(alone, flows)
    table: Any = netns.call(alone, FlowTable)
    found = table.flows()
    assert {(":" in f.source, f.protocol) for f in found} >= {
        (six, protocol) for six in (False, True) for protocol in ("tcp", "udp")
    }
    assert {flow.loose for flow in found if flow.protocol == "tcp"} == {True, False}
    usual = [flow for flow in found if flowtable._USUAL[flow.body[0]].fits(flow.body)]
    assert {flow.protocol for flow in usual} == {"tcp", "udp"} and len(usual) >= 6
    assert [flowtable.unusual(flow.body) for flow in found] == found
    assert table.forget(found) == len(found)

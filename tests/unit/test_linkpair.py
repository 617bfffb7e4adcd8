"""Which plans one call can make, and which are for the general way, that does all and words all errors."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from netplane.kernel import linkmsg, linkpair, ours
from netplane.model.facts import Address, Fdb, Link, Neighbour, Route, Shaper, Sysctl

POD, MAC = "/run/netns/a", "0a:58:0a:01:00:02"
PAIR = Link(
    name="npv0",
    kind="veth",
    alias="netplane:cni:a",
    master="npbr0",
    options=(("clsact", 1), ("hairpin", 1), ("peer", "eth0"), ("peer_mac", MAC), ("peer_netns", POD)),
)
ADDRESS = Address(link="eth0", address="10.1.0.2/16", netns=POD)
PLAN = (
    PAIR,
    Link(name="lo", netns=POD),
    ADDRESS,
    Route(dst="0.0.0.0/0", link="eth0", via="10.1.0.1", netns=POD),
    Neighbour(link="npbr0", address="10.1.0.2", mac=MAC),
    Shaper(link="npv0", rate=1_000_000, burst=20_000),
)
MASTERS = {"npbr0": 7}


def pair(**other: Any) -> Link:
    return msgspec.structs.replace(PAIR, **other)


def option(name: str, value: str | int) -> Link:
    return pair(options=tuple(sorted({**dict(PAIR.options), name: value}.items())))


def test_an_add_is_one_call_whose_alias_is_the_general_ways() -> None:
    packed = linkpair.pack(PLAN, MASTERS, True)
    assert packed is not None
    netns, told = packed
    assert netns == POD.encode()
    assert ours.alias_of(PAIR, linkmsg.wish(PAIR)).encode() + b"\0" in told
    plain = linkpair.pack((PAIR,), MASTERS, True)
    assert plain is not None and len(told) > len(plain[1])


@pytest.mark.parametrize(
    "plan",
    [
        (),
        PLAN[1:],
        (*PLAN, pair(name="npv1")),
        (*PLAN, Link(name="npbr0", kind="bridge")),
        (*PLAN, Link(name="eth0", netns=POD, mtu=1400)),
        (*PLAN, Link(name="lo", netns="/run/netns/b")),
        (*PLAN, Sysctl(name="net/ipv4/ip_forward", value="1")),
        (*PLAN, Fdb(link="npv0", mac=MAC, dst="10.0.0.1")),
        (*PLAN, Address(link="npbr0", address="10.1.0.1/16")),
        (*PLAN, Address(link="eth1", address="10.1.0.3/16", netns=POD)),
        (*PLAN, Address(link="eth0", address="10.1.0.3/16", netns="/run/netns/b")),
        (*PLAN, Neighbour(link="br1", address="10.1.0.2", mac=MAC)),
        (*PLAN, Neighbour(link="npbr0", address="10.1.0.2", mac="0a:58")),
        (*PLAN, Route(dst="10.3.0.0/16", kind="blackhole", netns=POD)),
        (*PLAN, Route(dst="10.3.0.0/16", link="eth0", kind="strange", netns=POD)),
        (*PLAN, Route(dst="10.3.0.0/16", link="eth0", scope="strange", netns=POD)),
        (*PLAN, Route(dst="10.3.0.0/16", link="eth0", via="fd00::1", netns=POD)),
        (*PLAN, Address(link="eth0", address="10.1.0.300/16", netns=POD)),
        (*PLAN, Address(link="eth0", address="10.1.0.3/33", netns=POD)),
        (*PLAN, Address(link="eth0", address="10.1.0.3/wide", netns=POD)),
        (*PLAN, Shaper(link="npv0", rate=-1, burst=1)),
        (PAIR, *(Address(link="eth0", address=f"10.1.0.{n}/16", netns=POD) for n in range(2, 51))),
        (pair(kind="macvlan"), ADDRESS),
        (pair(netns="/run/netns/b"), ADDRESS),
        (pair(up=False), ADDRESS),
        (pair(master="br1"), ADDRESS),
        (pair(mac="0a:58"), ADDRESS),
        (pair(mtu=-1), ADDRESS),
        (pair(alias="netplane:" + "é" * 240), ADDRESS),
        (option("peer_netns", ""), ADDRESS),
        (option("peer", "x" * 16), ADDRESS),
        (option("peer", "a\0b"), ADDRESS),
        (option("peer_netns", "/run/\0/a"),),
        (option("peer_netns", "/run/\udc80"),),
        (option("hairpin", 300), ADDRESS),
        (option("hairpin", "on"), ADDRESS),
    ],
    ids=lambda plan: ascii(plan[-1:]),
)
def test_all_else_goes_the_general_way(plan: tuple[Any, ...]) -> None:
    assert linkpair.pack(plan, MASTERS, True) is None


def test_a_pair_without_a_bridge_needs_none() -> None:
    assert linkpair.pack((pair(master=""), ADDRESS), {}, False) is not None

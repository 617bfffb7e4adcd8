"""Shapers, macvlans, promiscuous bridges, guards, and what verify says of nft facts.

node (ns)          pod (ns)
  v0 ─── veth ───── v1
   └ macvlan ────── eth9
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from netplane.kernel import netns
from netplane.kernel.nft_guard import GuardDriver
from netplane.kernel.nft_limit import LimitDriver
from netplane.kernel.nftables import NftDriver
from netplane.kernel.rtnetlink import LinkDriver
from netplane.model.errors import KernelError
from netplane.model.facts import Address, Chain, Element, Guard, Limit, Link, Plan, Set, Shaper

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
RATE, BURST = 1_250_000, 40_000


def veth(pod: str) -> Link:
    options = (("peer", "v1"), ("peer_netns", pod))
    return Link(name="v0", kind="veth", alias="netplane:test", options=options)


def test_shapers_on_both_ends_are_put_observed_changed_and_removed(make_netns: MakeNetns) -> None:
    node, pod = make_netns("node"), make_netns("pod")
    driver = netns.call(node, LinkDriver)
    ours, theirs = Shaper("v0", RATE, BURST), Shaper("v1", RATE, BURST, netns=pod)
    driver.apply(Plan(add=(veth(pod), ours, theirs)))
    driver.apply(Plan(add=(theirs,)))  # as after a restart
    assert driver.observe()[ours.key] == ours.mark
    assert driver.verify([ours, theirs]) == []
    assert "rate 10Mbit burst 40000b" in netns.run(pod, "tc", "qdisc", "show", "dev", "v1")
    fast = Shaper("v0", 20_000_000_000, BURST)  # more than 32 bits hold
    driver.apply(Plan(change=(fast,), remove=(theirs.key,)))
    assert driver.observe()[fast.key] == fast.mark
    (words,) = driver.verify([theirs])
    assert words == f"shaper v1 in {pod} is not there"
    assert "tbf" not in netns.run(pod, "tc", "qdisc", "show", "dev", "v1")
    driver.apply(Plan(remove=(veth(pod).key, fast.key)))
    assert driver.observe() == {}
    driver.close()


def test_a_plan_that_fails_takes_its_shaper_back(make_netns: MakeNetns) -> None:
    driver = netns.call(make_netns("node"), LinkDriver)
    with pytest.raises(Exception, match="look up link nowhere"):
        driver.apply(Plan(add=(Shaper("lo", RATE, BURST), Shaper("nowhere", RATE, BURST))))
    assert "tbf" not in netns.run(driver.netns, "tc", "qdisc", "show", "dev", "lo")
    driver.close()


def test_a_macvlan_is_born_in_the_pod_adopted_and_removed(make_netns: MakeNetns) -> None:
    node, pod = make_netns("node"), make_netns("pod")
    driver = netns.call(node, LinkDriver)
    driver.apply(Plan(add=(veth(pod),)))
    mac = "02:00:00:00:00:09"
    options = (("link", "v0"), ("mode", 4))
    link = Link(
        name="eth9", kind="macvlan", netns=pod, alias="netplane:x", mtu=1400, mac=mac, options=options
    )
    driver.apply(Plan(add=(link,)))
    driver.apply(Plan(add=(link,)))
    shown = netns.run(pod, "ip", "-d", "link", "show", "eth9")
    assert "macvlan mode bridge" in shown and mac in shown and "mtu 1400" in shown and ",UP" in shown
    assert driver.verify([link]) == []
    netns.run(pod, "ip", "link", "set", "eth9", "mtu", "1300")
    assert driver.verify([link]) == [f"link eth9 in {pod}: mtu is 1300, not 1400"]
    driver.apply(Plan(remove=(link.key,)))
    assert "eth9" not in netns.run(pod, "ip", "link")
    driver.close()


def test_the_host_end_of_a_pods_veth_is_found(make_netns: MakeNetns) -> None:
    node, pod = make_netns("node"), make_netns("pod")
    driver = netns.call(node, LinkDriver)
    driver.apply(Plan(add=(veth(pod),)))
    assert driver.peer(pod, "v1") == "v0"
    assert driver.peer(pod, "lo") == "" == driver.peer(pod, "none")
    driver.close()


def test_a_pair_carries_its_first_packet(make_netns: MakeNetns) -> None:
    """pods p0 … p19 ═ v0 … v19 ─ b0 10.9.0.1/24: no ARP question is lost (the next comes after 1 s)."""
    driver, pods = netns.call(make_netns("node"), LinkDriver), [make_netns(f"p{i}") for i in range(20)]
    bridge = Link(name="b0", kind="bridge", alias="netplane:test")
    driver.apply(Plan(add=(bridge, Address(link="b0", address="10.9.0.1/24"))))
    for i, pod in enumerate(pods):
        options = (("peer", "eth0"), ("peer_netns", pod))
        pair = Link(name=f"v{i}", kind="veth", alias="netplane:test", master="b0", options=options)
        shaper = Shaper(link=pair.name, rate=10_000_000, burst=100_000)
        address = Address(link="eth0", address=f"10.9.0.{i + 2}/24", netns=pod)
        driver.apply(Plan(add=(pair, shaper, address)))
        netns.run(pod, "ping", "-c", "1", "-W", "0.7", "10.9.0.1")
    driver.close()


def test_a_master_that_was_made_again_behind_our_back_is_found_again(make_netns: MakeNetns) -> None:
    node, one, two = make_netns("node"), make_netns("one"), make_netns("two")
    driver = netns.call(node, LinkDriver)
    bridge = Link(name="b0", kind="bridge", alias="netplane:test")

    def port(name: str, pod: str) -> Link:
        options = (("peer", "eth0"), ("peer_netns", pod))
        return Link(name=name, kind="veth", alias="netplane:test", master="b0", options=options)

    driver.apply(Plan(add=(bridge, port("v1", one))))
    netns.run(node, "ip", "link", "del", "b0")
    netns.run(node, "ip", "link", "add", "b0", "type", "bridge")
    driver.apply(Plan(add=(port("v2", two),)))
    assert "master b0" in netns.run(node, "ip", "link", "show", "v2")
    driver.close()


def test_a_bridge_may_be_promiscuous(make_netns: MakeNetns) -> None:
    driver = netns.call(make_netns("node"), LinkDriver)
    bridge = Link(name="b0", kind="bridge", alias="netplane:test", options=(("promisc", 1),))
    driver.apply(Plan(add=(bridge,)))
    assert driver.observe()[bridge.key] == bridge.mark
    netns.run(driver.netns, "ip", "link", "set", "b0", "promisc", "off")
    assert driver.verify([bridge]) == ["link b0: promisc is none, not 1"]
    driver.apply(Plan(change=(bridge,)))
    assert driver.verify([bridge]) == []
    driver.close()


def test_guards_of_links_come_change_and_go(make_netns: MakeNetns) -> None:
    node, pod = make_netns("node"), make_netns("pod")
    links, driver = netns.call(node, LinkDriver), netns.call(node, GuardDriver)
    links.apply(Plan(add=(veth(pod),)))
    guard = Guard("v0", ("ether saddr != 02:00:00:00:00:01 drop", "arp saddr ip != { 10.0.0.1 } drop"))
    driver.apply(Plan(add=(guard,)))
    assert driver.observe() == {guard.key: guard.mark} and driver.verify([guard]) == []
    other = Guard("v0", guard.rules[:1])
    assert driver.verify([other]) == ["nftables guard of v0 was changed"]
    driver.apply(Plan(change=(other,)))
    assert driver.observe() == {other.key: other.mark}
    links.apply(Plan(remove=(veth(pod).key,)))  # a chain may outlive its device: 6.16
    driver.apply(Plan(remove=(other.key,)))
    driver.apply(Plan(remove=(other.key,)))
    assert driver.verify([guard]) == ["nftables guard of v0 is not there"]
    assert netns.run(node, "nft", "list", "ruleset") == ""
    with pytest.raises(KernelError, match="nftables"):
        driver.apply(Plan(add=(Guard("v0", ("no such words",)),)))
    links.close()


RACE = """
import threading, time
from netplane.kernel.nft_guard import GuardDriver
from netplane.model.facts import Guard, Plan
driver, end = GuardDriver(), time.monotonic() + 2
guard = Guard(link="v0", rules=("ip saddr != { 10.0.0.1 } drop",))
def check():
    while time.monotonic() < end:
        driver.verify([guard])
checker = threading.Thread(target=check)
checker.start()
while time.monotonic() < end:
    driver.apply(Plan(add=(guard,)))
    driver.apply(Plan(remove=(guard.key,)))
checker.join()
print("alive")
"""


def test_a_check_and_a_change_at_once_do_not_end_the_process(make_netns: MakeNetns) -> None:
    """libnftables aborts when two threads are in one context of it."""
    node = make_netns("node")
    netns.run(node, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    assert netns.run(node, sys.executable, "-c", RACE) == "alive\n"


def test_limits_of_links_come_change_and_go_and_leave_nothing(make_netns: MakeNetns) -> None:
    node = make_netns("node")
    driver, fresh = netns.call(node, LimitDriver), netns.call(node, LimitDriver)
    one, two = Limit("v0", 1_000_000, 50_000), Limit("v1", 2_000_000, 60_000)
    driver.apply(Plan(add=(one,)))
    driver.apply(Plan(add=(two,)))
    assert fresh.observe() == {one.key: one, two.key: two}
    assert "v1" in netns.run(node, "nft", "list", "set", "bridge", "netplane", "cni-limits")
    more = Limit("v0", 3_000_000, 50_000)
    driver.apply(Plan(change=(more,), remove=(two.key,)))
    assert driver.verify([more]) == []
    assert driver.verify([one, two]) == [
        "nftables limit of v0 is 3000000 bytes/s, not 1000000",
        "nftables limit of v1 is not there",
    ]
    fresh.apply(Plan(add=(two, one), remove=(("limit", "v9"),)))  # another's, one that is gone: all the same
    assert fresh.verify([one, two]) == []
    fresh.apply(Plan(remove=(one.key, two.key)))
    fresh.apply(Plan(remove=(one.key,)))
    fresh.clean()
    assert netns.run(node, "nft", "list", "ruleset") == ""


LIMITS = "bridge netplane cni-limits"


@pytest.mark.parametrize(
    "breakage",
    [f"flush chain {LIMITS}", f"flush chain {LIMITS}; delete chain {LIMITS}"],
    ids=["rule", "chain"],
)
def test_limits_without_their_rule_are_missed_and_put_back(make_netns: MakeNetns, breakage: str) -> None:
    node = make_netns("node")
    driver = netns.call(node, LimitDriver)
    one, two = Limit("v0", 1_000_000, 50_000), Limit("v1", 2_000_000, 60_000)
    driver.apply(Plan(add=(one, two)))
    whole = netns.run(node, "nft", "list", "ruleset")
    netns.run(node, "nft", breakage)
    assert driver.verify([one]) == ["nftables chain cni-limits of table bridge netplane was changed"]
    assert driver.observe() == {one.key: "", two.key: ""}  # neither is what anybody wants
    driver.apply(Plan(change=(two,)))
    driver.apply(Plan(change=(one,)))
    assert driver.verify([one, two]) == []
    assert sorted(netns.run(node, "nft", "list", "ruleset").splitlines()) == sorted(whole.splitlines())
    driver.apply(Plan(remove=(one.key, two.key)))
    assert netns.run(node, "nft", "list", "ruleset") == ""


@pytest.mark.parametrize("driver_type", [LimitDriver, GuardDriver])
def test_what_killed_processes_left_of_a_table_is_seen_and_goes(
    make_netns: MakeNetns, driver_type: type[LimitDriver] | type[GuardDriver]
) -> None:
    node = make_netns("node")
    driver = netns.call(node, driver_type)
    left = {LimitDriver: "bridge", GuardDriver: "netdev"}[driver_type]
    assert driver.observe() == {}
    netns.run(node, "nft", f"add table {left} netplane")
    (key,) = driver.observe()
    assert key[1] == ""  # no link's
    driver.apply(Plan(remove=(key,)))
    assert netns.run(node, "nft", "list", "ruleset") == ""


def test_the_last_of_one_process_does_not_take_those_of_another_along(make_netns: MakeNetns) -> None:
    node = make_netns("node")
    netns.run(node, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    work: list[tuple[Any, Any, Any]] = [
        (LimitDriver, Limit("v0", 1, 1), Limit("v1", 2, 2)),
        (GuardDriver, Guard("v0", ("drop",)), Guard("v1", ("drop",))),
    ]
    for kind, one, two in work:
        first, second = netns.call(node, kind), netns.call(node, kind)
        first.apply(Plan(add=(one,)))
        second.apply(Plan(add=(two,)))
        first.apply(Plan(remove=(one.key,)))
        assert second.observe() == {two.key: two.mark}
        second.apply(Plan(remove=(two.key,)))
    assert netns.run(node, "nft", "list", "ruleset") == ""


@pytest.mark.parametrize("count", [1_000, 20_000])
def test_limits_are_one_transaction_that_is_listed_whole(make_netns: MakeNetns, count: int) -> None:
    driver = netns.call(make_netns("node"), LimitDriver)
    many = tuple(Limit(f"v{i}", 1000 + i, 2000 + i) for i in range(count))
    driver.apply(Plan(add=many))
    assert driver.observe() == {fact.key: fact for fact in many}
    driver.clean()


def test_a_spoilt_listing_of_limits_is_made_again(
    make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = netns.call(make_netns("node"), LimitDriver)
    one, two = Limit("v1", 1000, 2000), Limit("v2", 1000, 2000)
    listings = [([one, one], False), ([one], True), ([one, two], False)]
    monkeypatch.setattr(driver, "_dump_once", lambda: listings.pop(0))
    assert driver.observe() == {one.key: one, two.key: two} and not listings
    monkeypatch.setattr(driver, "_dump_once", lambda: ([one, one], False))
    with pytest.raises(KernelError, match="others commit all the time"):
        driver.observe()


def test_verify_names_what_is_missing_or_different(make_netns: MakeNetns) -> None:
    driver = netns.call(make_netns("node"), NftDriver)
    chain = Chain("cni-c", ("meta l4proto tcp accept",), type="filter", hook="forward", priority="filter")
    ports = Set("cni-p", ("type inet_proto . inet_service : ipv4_addr . inet_service",), map=True)
    one = Element("cni-p", ("tcp", 8080), ("10.0.0.1", 80))
    facts = (chain, ports, one)
    driver.apply(Plan(add=facts))
    assert driver.verify(facts) == []
    moved = Element("cni-p", ("tcp", 8081), ("10.0.0.2", 80))
    driver.apply(Plan(remove=(one.key, chain.key), add=(moved,)))
    assert driver.verify([*facts, Element("cni-p", moved.item, ("10.0.0.1", 80))]) == [
        "nftables chain cni-c is not there",
        "nftables element tcp . 8080 of cni-p is not there",
        "nftables element tcp . 8081 of cni-p is 10.0.0.2 . 80, not 10.0.0.1 . 80",
    ]

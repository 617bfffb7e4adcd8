"""What every driver promises, held to by the driver of links on the real kernel.

node (make_netns "node": the driver works here)        pod (make_netns "pod")
npbr0 10.244.1.1/24, fd00:10:244:1::1/64
  └── npv00000000001 ─────────────── veth ─────────────── eth0 10.244.1.5/24, fd00:10:244:1::5/64
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from netplane.kernel import netns
from netplane.kernel.rtnetlink import LinkDriver
from netplane.model.errors import Invalid, KernelError
from netplane.model.facts import Address, Chain, Fdb, Link, Neighbour, Plan, Route, Sysctl

pytestmark = pytest.mark.root

BRIDGE = Link(
    name="npbr0",
    kind="bridge",
    alias="netplane:cni",
    mtu=1450,
    options=(("forward_delay", 0), ("mcast_snooping", 0), ("stp", 0), ("vlan_filtering", 0)),
)
VXLAN = Link(
    name="npvx0",
    kind="vxlan",
    alias="netplane:overlay",
    mtu=1450,
    mac="02:11:22:33:44:55",
    options=(("id", 1), ("learning", 0), ("local", "192.0.2.1"), ("port", 8472), ("udp_csum", 0)),
)
NODE = (
    BRIDGE,
    VXLAN,
    Address(link="npbr0", address="10.244.1.1/24"),
    Address(link="npbr0", address="fd00:10:244:1::1/64"),
    Address(link="npvx0", address="10.244.1.0/32"),
    Neighbour(link="npvx0", address="10.244.2.0", mac="02:00:00:00:00:02"),
    Neighbour(link="npvx0", address="fd00:10:244:2::", mac="02:00:00:00:00:02"),
    Fdb(link="npvx0", mac="02:00:00:00:00:02", dst="192.0.2.2"),
    Route(dst="10.244.2.0/24", link="npvx0", via="10.244.2.0", onlink=True, mtu=1400),
    Route(dst="fd00:10:244:2::/64", link="npvx0", via="fd00:10:244:2::", onlink=True),
    Route(dst="10.96.0.0/12", kind="blackhole", metric=200),
    Route(dst="10.9.0.0/16", link="npbr0", src="10.244.1.1", advmss=1360, table=1078),
    Sysctl(name="net/ipv4/ip_forward", value="1"),
)


class Place(NamedTuple):
    driver: LinkDriver
    node: str
    pod: str

    def apply(self, *add: Any, change: tuple[Any, ...] = (), remove: tuple[Any, ...] = ()) -> None:
        self.driver.apply(Plan(add=add, change=change, remove=tuple(fact.key for fact in remove)))

    def link(self, name: str, where: str = "") -> dict[str, Any]:
        found = json.loads(netns.run(where or self.node, "ip", "-d", "-j", "link", "show", "dev", name))
        return dict(found[0])

    def picture(self) -> list[Any]:
        """What of the node does not follow by itself, and later, from a link's carrier."""
        found = json.loads(netns.run(self.node, "ip", "-j", "address"))
        links = [[link[key] for key in ("ifindex", "ifname", "mtu", "address")] for link in found]
        links += [[a["local"] for a in link["addr_info"] if a["scope"] == "global"] for link in found]
        commands = "ip route show proto 78", "ip -6 route show proto 78", "ip neigh show nud permanent"
        shown = [netns.run(self.node, *command.split()) for command in commands]
        return [links, *shown, netns.run(self.node, "bridge", "fdb", "show", "dev", "npvx0")]

    def names(self, where: str = "") -> set[str]:
        links = json.loads(netns.run(where or self.node, "ip", "-j", "link"))
        return {link["ifname"] for link in links}


@pytest.fixture
def place(make_netns: Callable[[str], str]) -> Iterator[Place]:
    node, pod = make_netns("node"), make_netns("pod")
    driver = netns.call(node, LinkDriver)
    yield Place(driver, node, pod)
    driver.close()


def veth(pod: str, **changes: Any) -> Link:
    options = {"hairpin": 1, "peer": "eth0", "peer_mac": "02:00:00:00:01:05", "peer_netns": pod}
    fact = Link(
        name="npv00000000001",
        kind="veth",
        alias="netplane:cni:web",
        mtu=1450,
        master="npbr0",
        options=tuple(sorted(options.items())),
    )
    return replace(fact, **changes)


def attachment(pod: str) -> tuple[Any, ...]:
    return (
        veth(pod),
        Address(link="eth0", netns=pod, address="10.244.1.5/24"),
        Address(link="eth0", netns=pod, address="fd00:10:244:1::5/64"),
        Route(dst="0.0.0.0/0", link="eth0", via="10.244.1.1", netns=pod),
        Route(dst="::/0", link="eth0", via="fd00:10:244:1::1", netns=pod),
        Sysctl(name="net/ipv4/conf/eth0/arp_notify", value="1", netns=pod),
    )


def observable(facts: tuple[Any, ...]) -> dict[Any, Any]:
    return {f.key: f.mark for f in facts if not f.netns and not isinstance(f, Sysctl)}


def test_everything_added_is_observed_with_the_marks_that_were_wanted(place: Place) -> None:
    facts = (*NODE, *attachment(place.pod))
    place.apply(*facts)
    assert place.driver.observe() == observable(facts)
    assert place.driver.verify(facts) == []


def test_a_pod_reaches_its_gateway_at_once_in_both_families(place: Place) -> None:
    place.apply(*NODE, *attachment(place.pod))
    for gateway in ("10.244.1.1", "fd00:10:244:1::1"):
        netns.run(place.pod, "ping", "-c1", "-W5", gateway)  # the first packet is not lost; it may be late
    assert "tentative" not in netns.run(place.pod, "ip", "-6", "address")
    accept = netns.run(place.pod, "cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra")
    assert accept.strip() == "0"


def test_a_fresh_process_adopts_all_of_it_and_touches_nothing(place: Place) -> None:
    facts = (*NODE, *attachment(place.pod))
    place.apply(*facts)
    before = place.picture()
    program = (
        "from netplane.kernel.rtnetlink import LinkDriver; d = LinkDriver();"
        "print(sorted((repr(k), repr(m)) for k, m in d.observe().items()))"
    )
    seen = netns.run(place.node, sys.executable, "-c", program).strip()
    assert seen == str(sorted((repr(k), repr(m)) for k, m in observable(facts).items()))
    netns.call(place.node, LinkDriver).apply(Plan(add=facts))  # a driver that knows nothing yet
    assert place.picture() == before


def test_everything_removed_is_gone_and_removing_it_again_is_fine(place: Place) -> None:
    facts = (*NODE, *attachment(place.pod))
    place.apply(*facts)
    place.apply(remove=facts)
    assert place.driver.observe() == {}
    assert place.names() == {"lo"} and place.names(place.pod) == {"lo"}
    place.apply(remove=facts)
    netns.delete(place.pod)
    place.apply(remove=attachment(place.pod))


def test_routes_and_entries_go_one_by_one_while_the_link_stays(place: Place) -> None:
    place.apply(*NODE)
    gone = NODE[2:-1]
    place.apply(remove=gone)
    assert place.driver.observe() == observable(NODE[:2])


@pytest.mark.parametrize(
    ("changes", "path", "value"),
    [
        ({"mtu": 1400}, ("mtu",), 1400),
        ({"mac": "02:00:00:00:00:77"}, ("address",), "02:00:00:00:00:77"),
        ({"up": False}, ("flags",), None),
        ({"master": ""}, ("master",), None),
        ({"alias": "netplane:cni:other"}, ("ifalias",), None),
        (
            {"options": (("hairpin", 0), ("isolated", 1), ("peer", "eth0"))},
            ("linkinfo", "info_slave_data", "isolated"),
            True,
        ),
    ],
    ids=["mtu", "mac", "down", "no master", "alias", "port options"],
)
def test_a_link_is_changed_in_place(
    place: Place, changes: dict[str, Any], path: tuple[str, ...], value: Any
) -> None:
    place.apply(*NODE, *attachment(place.pod))
    index = place.link("npv00000000001")["ifindex"]
    if "options" in changes:
        changes = {"options": (*changes["options"], ("peer_netns", place.pod))}
    wanted = veth(place.pod, **changes)
    place.apply(change=(wanted,))
    link = place.link("npv00000000001")
    assert link["ifindex"] == index, "made again"
    found: Any = link
    for step in path:
        found = found.get(step) if found else None
    if path == ("flags",):
        assert "UP" not in found
    elif path == ("ifalias",):
        assert found.startswith("netplane:cni:other ")
    else:
        assert found == value
    assert place.driver.observe()[wanted.key] == wanted.mark


def test_the_tunnel_follows_a_changed_address_and_keeps_what_hangs_on_it(place: Place) -> None:
    place.apply(*NODE)
    moved = replace(VXLAN, options=(*VXLAN.options[:2], ("local", "192.0.2.9"), *VXLAN.options[3:]))
    place.apply(change=(moved,))
    assert place.link("npvx0")["linkinfo"]["info_data"]["local"] == "192.0.2.9"
    assert place.driver.observe() == observable((moved, *NODE[2:], BRIDGE))


def test_what_cannot_change_is_made_again_with_what_hangs_on_it(place: Place) -> None:
    place.apply(*NODE)
    other = replace(VXLAN, options=(("id", 2), *VXLAN.options[1:]))
    place.apply(change=(other,))
    assert place.link("npvx0")["linkinfo"]["info_data"]["id"] == 2
    assert place.driver.observe() == observable((other, *NODE[2:], BRIDGE))


def test_a_route_neighbour_and_entry_change_in_place(place: Place) -> None:
    place.apply(*NODE)
    changed = (
        Route(dst="10.244.2.0/24", link="npvx0", via="10.244.2.0", onlink=True, mtu=1380),
        Neighbour(link="npvx0", address="10.244.2.0", mac="02:00:00:00:00:03"),
        Fdb(link="npvx0", mac="02:00:00:00:00:02", dst="192.0.2.7"),
    )
    place.apply(change=changed)
    assert place.driver.observe() == observable(NODE) | observable(changed)


def test_drift_is_seen_by_observe_and_mended_by_a_change(place: Place) -> None:
    place.apply(*NODE, *attachment(place.pod))
    fact = veth(place.pod)
    netns.run(place.node, "ip", "link", "set", fact.name, "mtu", "1300", "nomaster")
    assert place.driver.observe()[fact.key] == "differs: hairpin master mtu"
    assert any("mtu is 1300, not 1450" in line for line in place.driver.verify([fact]))
    place.apply(change=(fact,))
    assert place.driver.observe()[fact.key] == fact.mark
    assert place.driver.verify([fact]) == []


def test_a_foreign_link_of_that_name_is_reported_and_left_alone(place: Place) -> None:
    place.apply(BRIDGE)
    netns.run(place.node, "ip", "link", "add", "npv00000000001", "type", "veth", "peer", "name", "other")
    before = place.link("npv00000000001")
    with pytest.raises(
        KernelError, match=r"create veth npv00000000001: the name is taken, not by us: .*veth"
    ):
        place.apply(*attachment(place.pod))
    place.apply(remove=(veth(place.pod),))
    assert place.link("npv00000000001") == before


def test_a_foreign_route_is_reported_and_left_alone(place: Place) -> None:
    place.apply(BRIDGE, NODE[2])
    netns.run(place.node, "ip", "route", "add", "10.7.0.0/16", "dev", "lo")
    with pytest.raises(KernelError, match=r"add route 10\.7\.0\.0/16.*not by us"):
        place.apply(Route(dst="10.7.0.0/16", link="npbr0"))
    place.apply(remove=(Route(dst="10.7.0.0/16", link="npbr0"),))
    assert "dev lo" in netns.run(place.node, "ip", "route", "show", "10.7.0.0/16")


@pytest.mark.parametrize("bad", ["route", "address", "sysctl", "netns", "interface"])
def test_a_plan_that_fails_half_way_leaves_nothing(place: Place, bad: str) -> None:
    place.apply(*NODE)
    before = place.driver.observe()
    facts = [*attachment(place.pod), Route(dst="10.50.0.0/16", link="npbr0")]
    broken = {
        "route": Route(dst="10.60.0.0/16", via="203.0.113.1", link="eth0", netns=place.pod),
        "address": Address(link="nosuch", address="10.244.1.9/24", netns=place.pod),
        "sysctl": Sysctl(name="net/ipv4/conf/eth0/nosuch", value="1", netns=place.pod),
        "netns": Address(link="eth0", address="10.244.1.9/24", netns="/nonexistent/ns"),
        "interface": replace(veth(place.pod), name="npv00000000002"),
    }[bad]
    with pytest.raises(KernelError) as failure:
        place.apply(*facts, broken)
    hint = {"route": "10.60.0.0/16", "address": "nosuch", "sysctl": "nosuch", "netns": "/nonexistent/ns"}
    assert hint.get(bad, "eth0 is there already in") in str(failure.value)
    assert place.driver.observe() == before
    assert place.names(place.pod) == {"lo"}


def test_a_link_that_was_left_half_made_is_observed_and_can_be_removed(place: Place) -> None:
    netns.run(place.node, "ip", "link", "add", "npv00000000001", "type", "veth", "peer", "name", "x")
    netns.run(place.node, "ip", "link", "set", "npv00000000001", "group", str(0x6E700001))
    assert place.driver.observe() == {veth(place.pod).key: "incomplete"}
    place.apply(remove=(veth(place.pod),))
    assert place.names() == {"lo"}


def test_verify_says_in_words_what_a_pod_lacks(place: Place) -> None:
    facts = (*NODE, *attachment(place.pod))
    place.apply(*facts)
    netns.run(place.pod, "ip", "address", "del", "10.244.1.5/24", "dev", "eth0")
    netns.run(place.pod, "ip", "link", "set", "eth0", "address", "02:00:00:00:99:99")
    words = "\n".join(place.driver.verify(facts))
    assert f"address eth0 10.244.1.5/24 in {place.pod} is not there" in words
    assert f"link eth0 in {place.pod}: mac is 02:00:00:00:99:99, not 02:00:00:00:01:05" in words
    assert f"route 254 0.0.0.0/0 0 in {place.pod} is not there" in words
    netns.run(place.node, "ip", "link", "del", "npv00000000001")
    assert "link npv00000000001 is not there" in place.driver.verify(facts)


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        (Link(name="a-name-too-long-x", kind="bridge"), "1 to 15 bytes"),
        (Link(name="x", kind="dummy"), "kind 'dummy' is not known"),
        (Link(name="x", kind="bridge", options=(("colour", 1),)), "option 'colour' is not known"),
        (Link(name="x", kind="veth"), "needs the option peer"),
        (Address(link="lo", address="10.0.0.300/24"), "10.0.0.300"),
        (Route(dst="10.0.0.0/33", link="lo"), "at most 32"),
        (Neighbour(link="lo", address="10.0.0.1", mac="zz"), "set neighbour 10.0.0.1 on lo"),
        (Link(name="x", kind="bridge", mac="02:00"), "not a MAC address"),
        (Link(name="x", kind="bridge", mtu=-1), "cannot be put into a request"),
        (Sysctl(name="../etc/passwd", value="1"), "below /proc/sys"),
        (Chain(name="x"), "Chain is not for the driver links"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_a_fact_that_can_never_be_is_invalid(place: Place, fact: Any, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        place.apply(fact)
    assert place.names() == {"lo"}


def test_a_driver_stays_in_its_namespace_whoever_calls_it(place: Place) -> None:
    mine = subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout
    netns.call(place.pod, place.driver.apply, Plan(add=(BRIDGE, NODE[-1])))
    assert "npbr0" in place.names() and "npbr0" not in place.names(place.pod)
    assert netns.run(place.node, "cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"
    assert netns.run(place.pod, "cat", "/proc/sys/net/ipv4/ip_forward").strip() == "0"
    assert subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout == mine

"""A fresh pair made by one call is what the general way makes of the same plan, and is whole or nothing.

node (the driver works here)                     pod
npbr0 10.1.0.1/16 ── npv0 ───────── veth ─────── eth0     a bridge's port
   └─ first ═ other  npv0 ───────── veth ─────── eth0     ptp
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.kernel import linkpair, netns
from netplane.kernel.linkwatch import LinkMonitor
from netplane.kernel.nlsocket import Socket
from netplane.kernel.rtnetlink import LinkDriver
from netplane.model.errors import KernelError
from netplane.model.facts import Address, Link, Neighbour, Plan, Route, Shaper

from ..descriptors import held

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]

MAC, PEER_MAC = "0a:58:0a:01:00:01", "0a:58:0a:01:00:02"
OTHER = (("peer", "other"), ("peer_mac", "0a:58:0a:01:01:02"))
BASE = (
    Link(name="npbr0", kind="bridge", alias="netplane:cni", mtu=1450, options=(("mcast_snooping", 0),)),
    Address(link="npbr0", address="10.1.0.1/16"),
    Address(link="npbr0", address="fd00:1::1/64"),
    Link("first", "veth", alias="netplane:test", mac="0a:58:0a:01:01:01", master="npbr0", options=OTHER),
)
TRANSIENT = (
    "index",
    "timer",
    "cacheinfo",
    "bridge_id",
    "root_id",
    "designated",
    "handle",
    "netnsid",
    "port_",
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each call of C said."""
    said: list[int] = []
    real = Socket.make_pair

    def make_pair(self: Socket, path: bytes, told: bytes) -> int:
        said.append(real(self, path, told))
        return said[-1]

    monkeypatch.setattr(Socket, "make_pair", make_pair)
    return said


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Of the node's and the pod's namespace: `world` makes them, again and again."""
    both = str(tmp_path / "node"), str(tmp_path / "pod")
    yield both
    for path in both:
        netns.delete(path)


def world(paths: tuple[str, str]) -> LinkDriver:
    for path in paths:
        netns.delete(path)
        netns.create(path)
    driver = netns.call(paths[0], LinkDriver)
    driver.hooked = True
    driver.apply(Plan(add=BASE))  # by the general way, which knows the bridge from then on
    netns.run(paths[0], "ip", "link", "set", "lo", "up")
    return driver


def pair(pod: str, bridged: bool = True, *more: tuple[str, int], mtu: int = 1450) -> Link:
    ends = (("peer", "eth0"), ("peer_mac", PEER_MAC), ("peer_mtu", mtu), ("peer_netns", pod))
    master = "npbr0" if bridged else ""
    options = tuple(sorted((*more, *ends)))
    return Link("npv0", "veth", alias="netplane:cni:a", mtu=mtu, mac=MAC, master=master, options=options)


def bridged4(pod: str) -> tuple[Any, ...]:
    """As the CNI room has it: port options, a place for programs, shapers on both ends."""
    port = (("bcast_flood", 0), ("clsact", 1), ("hairpin", 1), ("isolated", 1), ("mcast_flood", 0))
    return (
        pair(pod, True, *port),
        Link(name="lo", netns=pod),
        Address(link="eth0", address="10.1.0.2/32", netns=pod),
        Route(dst="10.1.0.1/32", link="eth0", netns=pod, scope="link"),
        Neighbour(link="npbr0", address="10.1.0.2", mac=PEER_MAC),
        Route(dst="0.0.0.0/0", link="eth0", via="10.1.0.1", netns=pod),
        Shaper(link="npv0", rate=12_500_000, burst=125_000),
        Shaper(link="eth0", rate=20_000_000_000, burst=9_000, netns=pod),
    )


def bridged6(pod: str) -> tuple[Any, ...]:
    return (
        pair(pod, True, ("hairpin", 0), ("learning", 0), ("flood", 0), ("neigh_suppress", 1)),
        Link(name="lo", netns=pod),
        Address(link="eth0", address="fd00:1::2/128", netns=pod),
        Route(dst="fd00:1::1/128", link="eth0", netns=pod, scope="link"),
        Neighbour(link="npbr0", address="fd00:1::2", mac=PEER_MAC),
        Route(dst="::/0", link="eth0", via="fd00:1::1", netns=pod),
    )


def further(pod: str) -> tuple[Any, ...]:
    """On a bridge whose own network is not the pod's."""
    routes = (Route(dst=dst, link="npbr0", scope="link") for dst in ("10.9.0.2/32", "fd00:9::2/128"))
    return (*bridged4(pod), *routes, Neighbour(link="npbr0", address="fd00:9::2", mac=PEER_MAC))


def several(pod: str) -> tuple[Any, ...]:
    """Several addresses of either family, and a route for each property."""
    in_pod = {"link": "eth0", "netns": pod}
    return (
        Route(dst="192.0.2.0/24", via="10.1.0.1", src="10.1.0.3", **in_pod),  # before what it rests on
        pair(pod, True),
        Address(address="10.1.0.2/16", **in_pod),
        Address(address="10.1.0.3/16", **in_pod),
        Address(address="10.1.0.5/31", **in_pod),
        Address(address="fd00:1::2/64", **in_pod),
        Address(address="fd00:2::2/64", **in_pod),
        Route(dst="198.51.100.0/24", via="203.0.113.1", onlink=True, **in_pod),
        Route(dst="198.51.101.0/24", via="10.1.0.1", mtu=1300, advmss=1200, **in_pod),
        Route(dst="198.51.102.0/24", via="10.1.0.1", metric=7, table=1000, **in_pod),
        Route(dst="198.51.103.0/24", scope="link", table=100, **in_pod),
        Route(dst="198.51.104.0/24", scope="host", **in_pod),
        Route(dst="198.51.105.1/32", kind="local", scope="host", **in_pod),
        Route(dst="2001:db8::/32", via="fd00:1::1", src="fd00:1::2", mtu=1300, metric=9, **in_pod),
        Route(dst="2001:db9::/32", via="fd00:9::1", onlink=True, advmss=1200, table=300, **in_pod),
    )


def ptp(pod: str) -> tuple[Any, ...]:
    return (
        pair(pod, False, mtu=0),
        Link(name="lo", netns=pod),
        *(fact for plain, gateway in (("10.2.0.2", "10.2.0.1"), ("fd00:2::2", "fd00:2::1"))
          for fact in _ends(plain, gateway, pod)),
        Route(dst="0.0.0.0/0", link="eth0", via="10.2.0.1", netns=pod),
        Route(dst="::/0", link="eth0", via="fd00:2::1", netns=pod),
        Shaper(link="npv0", rate=1_000_000, burst=20_000),
    )  # fmt: skip


def _ends(plain: str, gateway: str, pod: str) -> Iterator[Any]:
    wide = "/128" if ":" in plain else "/32"
    yield Address(link="eth0", address=plain + wide, netns=pod)
    yield Route(dst=gateway + wide, link="eth0", netns=pod, scope="link")
    yield Route(dst=plain + wide, link="npv0", scope="link")
    yield Neighbour(link="npv0", address=plain, mac=PEER_MAC)
    yield Neighbour(link="eth0", address=gateway, mac=MAC, netns=pod)
    yield Address(link="npv0", address=gateway + wide)


def stripped(found: Any) -> Any:
    """Without what differs from one namespace to the next; a list's order says nothing."""
    if isinstance(found, dict):
        return {k: stripped(v) for k, v in found.items() if not any(word in k for word in TRANSIENT)}
    return sorted(map(stripped, found), key=str) if isinstance(found, list) else found


COMMANDS = (
    "ip -d -j link", "ip -d -j address", "ip -d -j -4 route show table all",
    "ip -d -j -6 route show table all", "ip -d -j neighbour show nud permanent", "tc -d -j qdisc",
    "bridge -d -j link",
)  # fmt: skip


def holdings(path: str) -> dict[str, Any]:
    found = {words: stripped(json.loads(netns.run(path, *words.split()) or "[]")) for words in COMMANDS}
    find = "grep -rs . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf /proc/sys/net/ipv6/neigh | sort"
    return {**found, "sysctls": netns.run(path, "sh", "-c", find).split("\n")}


def settled(paths: tuple[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both namespaces hold, once the kernel's own workers have done theirs (carriers, link-local)."""
    before: Any = None
    until = time.monotonic() + 10
    while time.monotonic() < until:
        now = holdings(paths[0]), holdings(paths[1])
        states = [
            link["operstate"] for side in now for link in side["ip -d -j link"] if link["ifname"] != "lo"
        ]
        if now == before and set(states) <= {"UP"} and "tentative" not in str(now):
            return now
        before = now
    raise AssertionError(f"it does not come to rest: {before}")


@pytest.mark.parametrize("plan", [bridged4, bridged6, further, several, ptp])
def test_one_call_makes_what_the_general_way_makes(
    plan: Callable[[str], tuple[Any, ...]],
    paths: tuple[str, str],
    made: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    for general in (True, False):
        driver, facts = world(paths), plan(paths[1])
        with monkeypatch.context() as patch:
            if general:
                patch.setattr(linkpair, "pack", lambda *_: None)
            driver.apply(Plan(add=facts))
        assert driver.verify(facts) == []
        marks = driver.observe()
        assert all(marks.get(f.key) == f.mark for f in facts if not f.netns)  # a restart adopts it all
        seen.append((settled(paths), marks))
        driver.apply(Plan(add=facts))  # as after a restart: nothing to do
        assert settled(paths) == seen[-1][0]
        driver.close()
    assert made == [17, 0, 17]  # one call made the second, and made none again
    (general_way, general_marks), (fast_way, fast_marks) = seen
    for ours, theirs in zip(fast_way, general_way, strict=True):
        for words in theirs:
            assert ours[words] == theirs[words], words
    assert fast_marks == general_marks
    routes = [r for r in fast_way[0]["ip -d -j -6 route show table all"] if r.get("dev") == "npv0"]
    assert bool(routes) == (plan is ptp)  # a port's would be walked for every link that comes or goes


def refused_route(pod: str) -> tuple[Any, ...]:
    return (*bridged4(pod), Route(dst="192.0.2.0/24", link="eth0", via="198.51.100.1", netns=pod))


def refused_further(pod: str) -> tuple[Any, ...]:
    return (*further(pod), Route(dst="192.0.2.0/24", link="npbr0", via="198.51.100.1"))


def refused_address(pod: str) -> tuple[Any, ...]:
    return (*bridged4(pod), Address(link="eth0", address="ff02::1/128", netns=pod))


def refused_own_route(pod: str) -> tuple[Any, ...]:
    return (*ptp(pod), Route(dst="192.0.2.0/24", link="npv0", via="198.51.100.1"))


def refused_own_address(pod: str) -> tuple[Any, ...]:
    return (*ptp(pod), Address(link="npv0", address="ff02::1/128"))


def refused_mtu(pod: str) -> tuple[Any, ...]:
    return (pair(pod, True, mtu=70000), *bridged4(pod)[1:])


def refused_shaper(pod: str) -> tuple[Any, ...]:
    return (*bridged4(pod)[:-1], Shaper(link="eth0", rate=0, burst=0, netns=pod))


def no_namespace(paths: tuple[str, str]) -> None:
    netns.delete(paths[1])


def a_file(paths: tuple[str, str]) -> None:
    netns.delete(paths[1])
    Path(paths[1]).write_text("")


def taken_inside(paths: tuple[str, str]) -> None:
    netns.run(paths[1], "ip", "link", "add", "eth0", "type", "bridge")


def taken_here(paths: tuple[str, str]) -> None:
    netns.run(paths[0], "ip", "link", "add", "npv0", "type", "bridge")


def strangers_route(paths: tuple[str, str]) -> None:
    for line in ("link add d0 type bridge", "link set d0 up", "route add 10.1.0.1/32 dev d0"):
        netns.run(paths[1], "ip", *line.split())


def as_it_is(_: tuple[str, str]) -> None:
    pass


@pytest.mark.parametrize(
    ("plan", "spoil"),
    [
        (bridged4, no_namespace), (bridged4, a_file), (bridged4, taken_inside), (bridged4, taken_here),
        (refused_mtu, as_it_is), (refused_shaper, as_it_is), (refused_own_route, as_it_is),
        (refused_own_address, as_it_is), (refused_address, as_it_is), (refused_route, as_it_is),
        (refused_further, as_it_is), (bridged4, strangers_route),
    ],
    ids=lambda function: function.__name__,
)  # fmt: skip
def test_what_is_refused_leaves_nothing_and_has_the_same_words(
    plan: Callable[[str], tuple[Any, ...]],
    spoil: Callable[[tuple[str, str]], None],
    paths: tuple[str, str],
    made: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = []
    for general in (True, False):
        driver = world(paths)
        netns.run(paths[1], "ip", "link", "set", "lo", "up")  # as a plan that fails leaves it
        spoil(paths)
        there = [path for path in paths if netns.exists(path)]
        before, marks = [holdings(path) for path in there], driver.observe()
        here, open_files = os.readlink("/proc/thread-self/ns/net"), held()
        with monkeypatch.context() as patch:
            if general:
                patch.setattr(linkpair, "pack", lambda *_: None)
            with pytest.raises(KernelError) as caught:
                driver.apply(Plan(add=plan(paths[1])))
        words.append(str(caught.value))
        assert [holdings(path) for path in there] == before
        assert driver.observe() == marks
        assert os.readlink("/proc/thread-self/ns/net") == here
        assert held() == open_files
        driver.close()
    assert len(made) == 1 and made[0] > 0
    assert words[0] == words[1]


def test_where_ipv6_is_off_the_call_is_refused_and_the_general_way_switches_it_on(
    paths: tuple[str, str], made: list[int]
) -> None:
    driver, facts = world(paths), bridged6(paths[1])
    netns.run(paths[1], "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    driver.apply(Plan(add=facts))
    assert made == [13] and driver.verify(facts) == []  # EACCES
    driver.close()


def test_a_call_that_is_refused_has_itself_taken_everything_back(paths: tuple[str, str]) -> None:
    """The general way does not follow: what is left is the call's own."""
    driver = world(paths)
    netns.run(paths[1], "ip", "link", "set", "lo", "up")
    before = [holdings(path) for path in paths]
    own = (refused_own_route, refused_own_address, refused_further)
    for plan in (refused_shaper, refused_route, refused_address, *own):
        told = linkpair.pack(plan(paths[1]), driver._masters, True)
        assert told is not None
        with driver._pool.take() as own:
            assert own.make_pair(*told) > 0, plan
        assert [holdings(path) for path in paths] == before, plan
    driver.close()


def test_a_link_that_is_not_ours_is_left_alone_by_the_call(paths: tuple[str, str]) -> None:
    driver = world(paths)
    taken_here(paths)
    before = [holdings(path) for path in paths]
    told = linkpair.pack(bridged4(paths[1]), driver._masters, True)
    assert told is not None
    with driver._pool.take() as own:
        assert own.make_pair(*told) == 17
    assert [holdings(path) for path in paths] == before
    driver.close()


def test_a_route_of_ours_on_another_interface_gives_way_as_ever(
    paths: tuple[str, str], made: list[int]
) -> None:
    """The pod's second network has the default route, too."""
    driver = world(paths)
    driver.apply(Plan(add=bridged4(paths[1])))
    ends = (("peer", "eth1"), ("peer_netns", paths[1]))
    second = Link("npv1", "veth", alias="netplane:cni:b", master="npbr0", options=ends)
    inside = {"link": "eth1", "netns": paths[1]}
    address, route = Address(address="10.1.0.3/16", **inside), Route("0.0.0.0/0", via="10.1.0.1", **inside)
    driver.apply(Plan(add=(second, address, route)))
    assert made == [0, 17]
    assert "dev eth1" in netns.run(paths[1], "ip", "route", "show", "default")
    driver.close()


def test_a_master_that_was_made_again_is_found_again(paths: tuple[str, str], made: list[int]) -> None:
    driver = world(paths)
    netns.run(paths[0], "ip", "link", "del", "npbr0")
    netns.run(paths[0], "ip", "link", "add", "npbr0", "type", "bridge")
    driver.apply(Plan(add=bridged4(paths[1])))
    assert made[0] > 0
    assert "master npbr0" in netns.run(paths[0], "ip", "link", "show", "npv0")
    driver.close()


def test_the_monitor_knows_the_calls_doings_as_our_own(paths: tuple[str, str], made: list[int]) -> None:
    driver, seen = world(paths), queue.Queue[str]()
    with LinkMonitor(seen.put, driver.netns, driver.portids):
        driver.apply(Plan(add=ptp(paths[1])))
        netns.run(paths[0], "ip", "link", "del", "npbr0")  # the end of what is to be seen
        words = [seen.get(timeout=10)]
        while words[-1] != "link npbr0 was removed":
            words.append(seen.get(timeout=10))
    assert made == [0]
    assert not [w for w in words if "npv" in w or "10.2.0" in w or "fd00:2" in w]
    driver.close()


def test_the_first_packet_passes_a_shaper_that_came_before_the_link_was_up(
    paths: tuple[str, str], made: list[int]
) -> None:
    driver = world(paths)
    driver.apply(Plan(add=bridged4(paths[1])))
    netns.run(paths[1], "ping", "-c", "1", "-W", "0.7", "10.1.0.1")
    assert made == [0]
    assert netns.run(paths[0], "tc", "qdisc", "show", "dev", "npv0").count("tbf") == 1
    driver.close()


def test_a_bridge_that_had_lost_its_carrier_carries_when_the_pair_is_there(
    paths: tuple[str, str], made: list[int]
) -> None:
    """Else what the node sends to the pod first is dropped; how soon the kernel looks by itself varies."""
    driver, facts = world(paths), (pair(paths[1]), Link(name="lo", netns=paths[1]))
    driver.apply(Plan(remove=(("link", "", "first"),)))
    with netns.call(paths[0], socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for turn in range(100):
            assert driver.look("", "npbr0") and not running(probe, "npbr0")
            driver.apply(Plan(add=facts))
            assert running(probe, "npbr0"), turn
            driver.apply(Plan(remove=(facts[0].key,)))
    assert made == [0] * 100
    driver.close()


def running(probe: socket.socket, link: str) -> bool:
    """As the kernel has it without looking (netdevice(7): IFF_RUNNING)."""
    told = fcntl.ioctl(probe, 0x8913, struct.pack("16s24x", link.encode()))  # SIOCGIFFLAGS
    return bool(struct.unpack_from("H", told, 16)[0] & 0x40)

"""The driver of links at work: many at once, many deletions in one wait, and what watches over them.

node (the driver works here)                     pod-0 … pod-n
npbr0 ── npv00000000000 … ─────── veth ───────── eth0
"""

from __future__ import annotations

import queue
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from netplane.kernel import netns, sysctl, underlay
from netplane.kernel.linkreap import Reaper
from netplane.kernel.linkwatch import LinkMonitor
from netplane.kernel.rtnetlink import LinkDriver
from netplane.model.errors import Invalid, KernelError, NotFound
from netplane.model.facts import Address, Link, Plan, Route, Scope
from netplane.reconcile.settle import Settler

pytestmark = pytest.mark.root

BRIDGE = Link(name="npbr0", kind="bridge", alias="netplane:cni", mtu=1450)
GATEWAYS = (Address(link="npbr0", address="10.1.0.1/16"), Address(link="npbr0", address="fd00:1::1/64"))


@pytest.fixture
def node(make_netns: Callable[[str], str]) -> str:
    return make_netns("node")


@pytest.fixture
def driver(node: str) -> Iterator[LinkDriver]:
    made = netns.call(node, LinkDriver)
    made.apply(Plan(add=(BRIDGE, *GATEWAYS)))
    yield made
    made.close()


def attachment(number: int, pod: str) -> tuple[Any, ...]:
    options = (("hairpin", 1), ("peer", "eth0"), ("peer_netns", pod))
    name = f"npv{number:011x}"
    return (
        Link(name=name, kind="veth", alias="netplane:cni", mtu=1450, master="npbr0", options=options),
        Address(link="eth0", netns=pod, address=f"10.1.1.{number + 1}/16"),
        Address(link="eth0", netns=pod, address=f"fd00:1::1:{number:x}/64"),
        Route(dst="0.0.0.0/0", link="eth0", via="10.1.0.1", netns=pod),
        Route(dst="::/0", link="eth0", via="fd00:1::1", netns=pod),
    )


def bare(number: int) -> Link:
    options = (("peer", f"peer{number}"),)
    return Link(name=f"npv{number:011x}", kind="veth", alias="netplane:test", options=options)


def removal(facts: tuple[Any, ...]) -> Plan:
    return Plan(remove=tuple(fact.key for fact in facts))


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_many_threads_attach_and_detach_at_once(driver: LinkDriver, make_netns: Callable[[str], str]) -> None:
    facts = [attachment(n, make_netns(f"pod-{n}")) for n in range(32)]
    before = driver.observe()
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda f: driver.apply(Plan(add=f)), facts))
        assert driver.verify([fact for each in facts for fact in each]) == []
        assert len(driver.observe()) == len(before) + 32
        list(pool.map(lambda f: driver.apply(removal(f)), facts))
    assert driver.observe() == before


def test_removing_links_does_not_wait_for_the_kernel_to_let_their_memory_go(
    driver: LinkDriver, node: str
) -> None:
    """`ip link del` waits some 20 ms for each; a hundred of ours are gone before ten of those."""

    def ours(count: int) -> float:
        facts = tuple(bare(n) for n in range(count))
        driver.apply(Plan(add=facts))
        took = seconds(lambda: driver.apply(removal(facts)))
        assert "npv" not in netns.run(node, "ip", "-br", "link")
        return took

    def theirs() -> float:
        driver.apply(Plan(add=(bare(0),)))
        return seconds(lambda: netns.run(node, "ip", "link", "del", bare(0).name))

    ip = statistics.median(theirs() for _ in range(5))
    assert statistics.median(ours(1) for _ in range(5)) < ip / 2
    assert min(ours(100) for _ in range(3)) < 10 * ip


def test_plans_that_remove_at_once_share_the_wait() -> None:
    started, go, batches = threading.Event(), threading.Event(), []

    def delete(names: list[str]) -> None:
        batches.append(sorted(names))
        started.set()
        go.wait(10)

    reaper = Reaper(delete)
    threads = [threading.Thread(target=reaper.reap, args=([n],)) for n in "abcde"]
    threads[0].start()
    started.wait(10)
    for thread in threads[1:]:
        thread.start()
    deadline = time.monotonic() + 10
    while len(reaper.together) < 4 and time.monotonic() < deadline:
        threading.Event().wait(0.001)
    go.set()
    for thread in threads:
        thread.join()
    assert batches == [["a"], ["b", "c", "d", "e"]]


def test_a_deletion_that_fails_is_reported_to_everyone_who_waited() -> None:
    def delete(_: list[str]) -> None:
        raise KernelError(1, "delete links")

    with pytest.raises(KernelError, match="delete links"):
        Reaper(delete).reap(["a"])


def test_foreign_links_survive_a_group_deletion(driver: LinkDriver, node: str) -> None:
    netns.run(node, "ip", "link", "add", "foreign", "type", "bridge")
    facts = tuple(bare(n) for n in range(3))
    driver.apply(Plan(add=facts))
    keys = (*(f.key for f in facts), ("link", "", "foreign"), ("link", "", "lo"), ("link", "", "nosuch"))
    driver.apply(Plan(remove=keys))
    names = netns.run(node, "ip", "-br", "link")
    assert "foreign" in names and "lo" in names and "npv" not in names


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ip link del npbr0", "link npbr0 was removed"),
        ("ip link set npbr0 down", "link npbr0 changed: up"),
        ("ip link set npbr0 mtu 1300", "link npbr0 changed: mtu"),
        ("ip address del 10.1.0.1/16 dev npbr0", "address 10.1.0.1/16 was removed"),
        ("ip address del fd00:1::1/64 dev npbr0", "address fd00:1::1/64 was removed"),
        ("ip route del 10.8.0.0/16", "route 10.8.0.0/16 was removed"),
    ],
    ids=["removed", "down", "mtu", "address", "IPv6 address", "route"],
)
def test_the_monitor_tells_what_somebody_took_away(
    driver: LinkDriver, node: str, command: str, words: str
) -> None:
    driver.apply(Plan(add=(Route(dst="10.8.0.0/16", link="npbr0"),)))
    seen: queue.Queue[str] = queue.Queue()
    with LinkMonitor(seen.put, driver.netns, driver.portids):
        netns.run(node, *command.split())
        first = seen.get(timeout=10)
        while first != words:
            first = seen.get(timeout=10)


def test_the_monitor_is_silent_about_our_own_work_and_about_strangers(driver: LinkDriver, node: str) -> None:
    seen: queue.Queue[str] = queue.Queue()
    extra = (Address(link="npbr0", address="10.9.0.1/24"), Route(dst="10.8.0.0/16", link="npbr0"), bare(1))
    bridge = Link("npbr1", "bridge", alias="netplane:cni", mac="02:00:00:00:00:01")
    further = (bridge, *(Address("npbr1", one) for one in ("10.7.0.1/32", "fd00:7::1/128")))
    with LinkMonitor(seen.put, driver.netns, driver.portids):
        driver.apply(Plan(add=extra))
        driver.apply(removal(extra))
        for _ in range(5):
            driver.apply(Plan(add=further))
            driver.apply(Plan(remove=tuple(fact.key for fact in further)))
        netns.run(node, "ip", "link", "add", "foreign", "type", "bridge")
        netns.run(node, "ip", "link", "del", "foreign")
        netns.run(node, "ip", "link", "del", "npbr0")  # the end of what is to be seen
        words = [seen.get(timeout=10)]
        while words[-1] != "link npbr0 was removed":
            words.append(seen.get(timeout=10))
    assert not [w for w in words if "npv" in w or "foreign" in w or "10.8.0.0" in w or "10.9.0.1" in w]
    assert not [w for w in words if "npbr1" in w or "10.7.0.1" in w or "fd00:7::1" in w]


@pytest.mark.usefixtures("driver")
def test_the_underlay_is_the_default_routes_device(node: str) -> None:
    for line in (
        "ip link add up0 mtu 1400 type veth peer name far0",
        "ip link set up0 up",
        "ip link set far0 up",
        "ip address add 192.0.2.1/24 dev up0",
        "ip address add 198.51.100.1/24 dev far0",
        "ip address add 2001:db8::1/64 dev up0 nodad",
        "ip route add default via 192.0.2.254 metric 100",
        "ip route add default via 198.51.100.254 metric 200",
    ):
        netns.run(node, *line.split())
    assert underlay.default_route_device(node) == "up0"
    assert underlay.node_addresses(node) == ["192.0.2.1", "2001:db8::1"]
    assert underlay.underlay_of("192.0.2.1", node) == ("up0", 1400)
    assert underlay.underlay_of("2001:db8:0::1", node) == ("up0", 1400)
    with pytest.raises(NotFound, match=r"192\.0\.2\.77"):
        underlay.underlay_of("192.0.2.77", node)


def test_a_node_without_a_default_route_still_has_an_address(driver: LinkDriver, node: str) -> None:
    assert underlay.node_addresses(node) == []  # npbr0's are ours, lo's are nobody's
    assert underlay.default_route_device(node) == ""
    netns.run(node, "ip", "link", "add", "up0", "up", "type", "bridge")
    netns.run(node, "ip", "address", "add", "192.0.2.1/24", "dev", "up0")
    assert underlay.node_addresses(node) == ["192.0.2.1"]
    assert driver.observe()


def test_links_are_looked_up_by_name(driver: LinkDriver, make_netns: Callable[[str], str]) -> None:
    pod = make_netns("pod")
    driver.apply(Plan(add=attachment(1, pod)))
    assert driver.link_exists(pod, "eth0") and driver.link_exists("", "npbr0")
    assert not driver.link_exists(pod, "eth1")
    assert driver.mtu_and_mac("npbr0")[1].count(":") == 5 and driver.mtu_and_mac("nosuch") == (0, "")
    with pytest.raises(KernelError, match="nowhere"):
        driver.link_exists("/nowhere", "eth0")


def test_a_bridge_keeps_its_mac_while_pods_come_and_go(
    driver: LinkDriver, make_netns: Callable[[str], str]
) -> None:
    before = driver.mtu_and_mac("npbr0")
    facts = attachment(1, make_netns("pod"))
    driver.apply(Plan(add=facts))
    assert driver.mtu_and_mac("npbr0") == before
    driver.apply(removal(facts))
    assert driver.mtu_and_mac("npbr0") == before


def test_existing_links_are_configured_and_never_removed(driver: LinkDriver, node: str) -> None:
    lo = Link(name="lo", up=True, mtu=60000)
    driver.apply(Plan(add=(lo,)))
    assert driver.verify([lo]) == []
    driver.apply(removal((lo,)))
    assert netns.call(node, socket.if_nametoindex, "lo") == 1
    assert netns.run(node, "cat", "/proc/sys/net/ipv6/conf/lo/mtu").strip() == "60000"
    with pytest.raises(KernelError, match="set link nosuch up"):
        driver.apply(Plan(add=(Link(name="nosuch"),)))


def test_sysctls_are_of_the_namespace_that_is_named(node: str) -> None:
    sysctl.ensure([("net/ipv4/ip_forward", "1")], node)
    assert sysctl.read("net/ipv4/ip_forward", node) == "1"
    assert sysctl.read("net/ipv4/ip_forward") == "0"
    assert sysctl.read("net/ipv4/nosuch", node) is None
    with pytest.raises(KernelError, match="set sysctl net/ipv4/nosuch = 1"):
        sysctl.ensure([("net/ipv4/nosuch", "1")], node)
    with pytest.raises(Invalid, match="below /proc/sys"):
        sysctl.read("/etc/passwd")
    with pytest.raises(Invalid, match="ip_forward: the value"):
        sysctl.write([("net/ipv4/ip_forward", "1\0net/ipv4/tcp_ecn")], node)


def test_a_path_that_is_no_namespace_any_more_is_nothing_to_remove_from(
    driver: LinkDriver, tmp_path: Path
) -> None:
    left_behind = tmp_path / "plain"
    left_behind.touch()
    facts = attachment(1, str(left_behind))
    with pytest.raises(KernelError, match="plain"):
        driver.apply(Plan(add=facts))
    driver.apply(removal(facts))
    assert ("link", "", facts[0].name) not in driver.observe()


def test_what_lies_in_a_pod_goes_with_its_scope_also_after_a_full_comparison(
    driver: LinkDriver, node: str, make_netns: Callable[[str], str]
) -> None:
    """The comparison lists the node's namespace alone: of a macvlan in a pod it says nothing, neither way."""
    pod, settler, scope = make_netns("pod"), Settler(driver), Scope("cni", "macvlan")
    netns.run(node, "ip", "link", "add", "m0", "up", "type", "veth", "peer", "name", "m1")
    options = (("link", "m0"), ("mode", 4))
    link = Link(name="eth0", kind="macvlan", netns=pod, alias="netplane:cni", options=options)
    facts = (link, Address(link="eth0", netns=pod, address="10.1.1.1/16"))
    assert settler.settle({scope: facts}) == {}
    settler.compare()
    assert settler.settle({scope: ()}) == {}
    assert "eth0" not in netns.run(pod, "ip", "link")
    settler.settle({scope: facts})
    netns.run(pod, "ip", "link", "del", "eth0")
    settler.compare()
    assert settler.settle({scope: facts}) == {}, "who goes on wanting it has it made again"
    assert "10.1.1.1/16" in netns.run(pod, "ip", "addr")

"""Fresh pairs that are made while their caller goes on: the same links, the same words, from any thread.

node (the driver works here)              pod, pod0 … pod15
npbr0 10.1.0.1/16 ── npv… ─── veth ─────── eth0
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import msgspec
import pytest

from netplane.kernel import netns
from netplane.kernel.rtnetlink import LinkDriver
from netplane.model.errors import Invalid, KernelError
from netplane.model.facts import Address, Link, Neighbour, Plan

from .test_linkpair import bridged4, holdings, paths, refused_route, stripped, world

__all__ = ["paths"]
pytestmark = pytest.mark.root


def begun(driver: LinkDriver, plan: Plan) -> None:
    end = driver.begin(plan)
    assert end is not None
    end()


def test_what_was_begun_is_what_apply_makes(paths: tuple[str, str]) -> None:
    found = []
    for way in (LinkDriver.apply, begun):
        driver = world(paths)
        way(driver, Plan(add=bridged4(paths[1])))
        found.append([stripped(holdings(path)) for path in paths])
        driver.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("bridge", ["there", "new"])
def test_what_is_sent_as_soon_as_it_is_done_arrives_though_it_is_the_bridge_s_first_port(
    paths: tuple[str, str], bridge: str
) -> None:
    """A bridge has its carrier from its ports, and drops what it is sent until the kernel has seen that."""
    node, pod = paths
    driver, pair = world(paths), bridged4(pod)
    own = Link("npbr1", "bridge", alias="netplane:cni", mtu=1450, mac="02:00:00:00:01:01")
    one = msgspec.structs.replace(pair[0], master="npbr1")
    address = Address(link="npbr1", address="192.0.2.1/24")
    facts = (one, *(Neighbour("npbr1", "192.0.2.2", dict(one.options)["peer_mac"]),))
    inside = (Link(name="lo", netns=pod), Address(link="eth0", address="192.0.2.2/24", netns=pod))
    if bridge == "there":
        driver.apply(Plan(add=(own, address)))
    with (
        netns.call(node, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sender,
        netns.call(pod, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("", 5300))
        receiver.settimeout(0.3)
        for _ in range(8):
            netns.run(node, "ip", "link")  # by which the kernel sees that the last port is gone
            driver.apply(Plan(add=(*((own, address) if bridge == "new" else ()), *facts, *inside)))
            sender.sendto(b"x", ("192.0.2.2", 5300))
            assert receiver.recv(10) == b"x"
            gone = (one.key, own.key) if bridge == "new" else (one.key, facts[1].key)
            driver.apply(Plan(remove=gone))
    driver.close()


def test_only_a_fresh_pair_is_begun(paths: tuple[str, str]) -> None:
    driver = world(paths)
    facts = bridged4(paths[1])
    for plan in (Plan(add=facts[2:]), Plan(change=facts), Plan(add=facts, remove=(("link", "", "x"),))):
        assert driver.begin(plan) is None
    with pytest.raises(Invalid, match="1 to 15 bytes"):
        driver.begin(Plan(add=(Link(name="a" * 16, kind="veth"),)))
    driver.close()


def test_a_refusal_has_the_words_of_apply_and_leaves_nothing(paths: tuple[str, str]) -> None:
    driver = world(paths)
    before, plan = driver.observe(), Plan(add=refused_route(paths[1]))
    with pytest.raises(KernelError) as plain:
        driver.apply(plan)
    with pytest.raises(KernelError) as told:
        begun(driver, plan)
    assert str(told.value) == str(plain.value)
    assert driver.observe() == before and driver._pool._idle, "the socket is back"
    driver.close()


def test_many_threads_begin_at_once(paths: tuple[str, str], tmp_path: Path) -> None:
    driver = world(paths)
    pods = [str(tmp_path / f"pod{i}") for i in range(16)]
    for pod in pods:
        netns.create(pod)
    faults: list[BaseException] = []

    def add(number: int) -> None:
        mac, address = f"0a:58:0a:02:00:{number:02x}", f"10.1.2.{number}"
        options = (("peer", "eth0"), ("peer_mac", mac), ("peer_mtu", 1450), ("peer_netns", pods[number]))
        name = f"npv{number}"
        facts = (
            Link(name, "veth", alias=f"netplane:cni:{name}", mtu=1450, master="npbr0", options=options),
            Link(name="lo", netns=pods[number]),
            Address(link="eth0", address=f"{address}/32", netns=pods[number]),
            Neighbour(link="npbr0", address=address, mac=mac),
        )
        try:
            begun(driver, Plan(add=facts))
        except BaseException as exc:
            faults.append(exc)

    threads = [threading.Thread(target=add, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not faults
    held = driver.observe()
    assert all(("link", "", f"npv{i}") in held for i in range(16))
    assert all(("neighbour", "", "npbr0", f"10.1.2.{i}") in held for i in range(16))
    driver.close()
    for pod in pods:
        netns.delete(pod)


def test_a_child_that_is_forked_begins_with_threads_of_its_own(paths: tuple[str, str]) -> None:
    driver = world(paths)
    begun(driver, Plan(add=bridged4(paths[1])))  # so there are threads
    driver.apply(Plan(remove=(("link", "", "npv0"),)))
    child = os.fork()
    if not child:
        try:
            begun(driver, Plan(add=bridged4(paths[1])))
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ("link", "", "npv0") in driver.observe()
    driver.close()

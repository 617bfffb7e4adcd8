"""The batch encoder on the real kernel: the same bytes as nft's, in one transaction."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from netplane.kernel import netns
from netplane.kernel.nft_batch import Batches
from netplane.kernel.nft_text import transaction
from netplane.kernel.nftables import NftDriver
from netplane.model.errors import KernelError
from netplane.model.facts import Chain, Element, Fact, Plan, Set

pytestmark = pytest.mark.root

SLOT = "{0} daddr . {1} dport . numgen random mod 2"
STRUCTURE = (
    Chain("lb"),
    Chain("svc-lb4-tcp-3"),
    Set("s4", ("typeof ip daddr . meta l4proto . th dport : meta priority", "counter"), map=True),
    Set("s6", ("typeof ip6 daddr . meta l4proto . th dport : meta priority",), map=True),
    Set("c4", ("typeof meta l4proto . meta priority : verdict",), map=True),
    Set("e4", (f"typeof {SLOT.format('ip', 'tcp')} : ip daddr . tcp dport",), map=True),
    Set("e6", (f"typeof {SLOT.format('ip6', 'udp')} : ip6 daddr . udp dport",), map=True),
    Set("a4", ("type ipv4_addr",)),
    Set("a6", ("type ipv6_addr",)),
    Set("h4", ("typeof ip saddr . ip daddr",)),
    Set("ifs", ("type ifname",)),
    Set("marks", ("typeof ip daddr . th dport : meta mark",), map=True),
)
ELEMENTS = (
    Element("s4", ("10.96.0.1", "tcp", 80), ("1:a",)),
    Element("s4", ("10.96.0.1", "sctp", 65535), ("2:ffff",)),
    Element("s4", ("255.255.255.255", 99, 0), ("0:1",)),
    Element("s6", ("fd96::1", "udp", 53), ("3:1",)),
    Element("s6", ("::ffff:a00:1", "ipv6-icmp", 1), ("3:2",)),
    Element("c4", ("tcp", "1:3"), ("goto svc-lb4-tcp-3",)),
    Element("c4", ("udp", "1:3"), ("jump lb",)),
    Element("c4", ("tcp", "3:2"), ("drop",)),
    Element("c4", ("sctp", "3:2"), ("accept",)),
    Element("c4", ("icmp", "3:2"), ("return",)),
    Element("e4", ("10.96.0.1", 80, 0), ("10.244.0.5", 8080)),
    Element("e4", ("10.96.0.1", 80, 4294967295), ("10.244.0.5", 1)),
    Element("e6", ("fd96::1", 53, 700), ("fd01::5", 5353)),
    Element("a4", ("10.0.0.1",)),
    Element("a6", ("fd00::1",)),
    Element("h4", ("10.0.0.1", "10.0.0.2")),
    Element("ifs", ("npv0123456789a",)),
    Element("marks", ("10.0.0.1", 80), (17,)),
)


def raw(path: str) -> list[str]:
    """The sets' elements as the kernel keeps them, in registers."""
    listing = netns.run(path, "nft", "--debug=netlink", "list", "table", "inet", "netplane")
    return sorted(line for line in listing.splitlines() if "element " in line)


def test_elements_reach_the_kernel_as_nft_itself_would_put_them(make_netns: Callable[[str], str]) -> None:
    ours, nfts = make_netns("ours"), make_netns("nft")
    driver = netns.call(ours, NftDriver)
    driver.apply(Plan(add=STRUCTURE))
    assert netns.call(ours, Batches).encodable(Plan(add=ELEMENTS)), "not by libnftables"
    driver.apply(Plan(add=ELEMENTS))
    netns.run(nfts, "nft", "-f", "-", stdin=None, input=transaction(Plan(add=(*STRUCTURE, *ELEMENTS))))
    assert raw(ours) == raw(nfts)
    assert len(raw(ours)) == len(ELEMENTS)
    assert driver.observe() == {f.key: f.mark for f in (*STRUCTURE, *ELEMENTS)}


def test_changes_and_removals_are_batches_too(make_netns: Callable[[str], str]) -> None:
    path = make_netns("n")
    driver = netns.call(path, NftDriver)
    driver.apply(Plan(add=(*STRUCTURE, *ELEMENTS)))
    changed = (Element("s4", ("10.96.0.1", "tcp", 80), ("1:b",)), Element("c4", ("udp", "1:3"), ("goto lb",)))
    gone = (ELEMENTS[2].key, ELEMENTS[12].key)
    plan = Plan(change=changed, remove=gone)
    assert netns.call(path, Batches).encodable(plan)
    driver.apply(plan)
    wanted = {f.key: f.mark for f in (*STRUCTURE, *ELEMENTS, *changed)}
    assert driver.observe() == {key: mark for key, mark in wanted.items() if key not in gone}


@pytest.mark.parametrize(
    "bad",
    [
        Element("s4", ("10.96.0.1", "tcp", 65536), ("1:a",)),
        Element("s4", ("10.96.0.1", "tcp"), ("1:a",)),
        Element("s4", ("10.96.0.1", "tcp", 80, 7), ("1:a",)),
        Element("s4", ("10.96.0.1", "xcp", 80), ("1:a",)),
        Element("s4", ("fd00::1", "tcp", 80), ("1:a",)),
        Element("s4", ("10.96.0.1", "tcp", 80), ("1:10000",)),
        Element("c4", ("tcp", "1:3"), ("goto",)),
        Element("c4", ("tcp", "1:3"), ("goto nowhere",)),
        Element("a6", ("10.0.0.1",)),
        Element("ifs", ("name-longer-than-a-device-can-have",)),
    ],
    ids=str,
)
def test_words_of_another_type_are_refused_and_nothing_is_done(
    make_netns: Callable[[str], str], bad: Fact
) -> None:
    path = make_netns("n")
    driver, batches = netns.call(path, NftDriver), netns.call(path, Batches)
    driver.apply(Plan(add=STRUCTURE))
    with pytest.raises(KernelError, match="nftables batch") as caught:
        batches.apply(Plan(add=(ELEMENTS[0], bad)))
    assert caught.value.errno in (errno.EINVAL, errno.ENOENT)
    assert driver.observe() == {f.key: f.mark for f in STRUCTURE}


def test_what_the_encoder_does_not_know_goes_through_libnftables(make_netns: Callable[[str], str]) -> None:
    path = make_netns("n")
    driver, batches = netns.call(path, NftDriver), netns.call(path, Batches)
    sets = (
        Set("ranges", ("type ipv4_addr", "flags interval")),
        Set("ports", ("type inet_service",)),
        Set("macs", ("type ether_addr",)),
    )
    elements = (
        Element("ranges", ("10.0.0.0/8",)),
        Element("ports", (80,)),
        Element("macs", ("02:00:00:00:00:01",)),
    )
    driver.apply(Plan(add=sets))
    for element in elements:
        assert not batches.encodable(Plan(add=(element,)))
    driver.apply(Plan(add=elements))
    assert driver.observe() == {f.key: f.mark for f in (*sets, *elements)}


def test_a_batch_of_many_messages_is_one_transaction(make_netns: Callable[[str], str]) -> None:
    path = make_netns("n")
    driver, batches = netns.call(path, NftDriver), netns.call(path, Batches)
    driver.apply(Plan(add=STRUCTURE))
    many = tuple(Element("a4", (f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}",)) for i in range(20_000))
    with pytest.raises(KernelError):
        batches.apply(Plan(add=(*many, Element("c4", ("tcp", "1:3"), ("goto nowhere",)))))
    assert driver.observe() == {f.key: f.mark for f in STRUCTURE}
    before = batches.generation()
    batches.apply(Plan(add=many))
    assert batches.generation() == before + 1
    assert len(driver.observe()) == len(STRUCTURE) + len(many)


def test_single_elements_are_compared_with_the_kernel_in_words(make_netns: Callable[[str], str]) -> None:
    path = make_netns("n")
    driver = netns.call(path, NftDriver)
    driver.apply(Plan(add=(*STRUCTURE, *ELEMENTS)))
    assert driver.differing(ELEMENTS) == []
    netns.run(path, "nft", "delete element inet netplane s4 { 10.96.0.1 . tcp . 80 }")
    other = Element("e4", ("10.96.0.1", 80, 0), ("10.244.0.99", 8080))
    assert driver.differing((ELEMENTS[0], ELEMENTS[1], other)) == [
        "s4 holds nothing for 10.96.0.1 . tcp . 80",
        "e4 holds 10.244.0.5 . 8080 for 10.96.0.1 . 80 . 0",
    ]

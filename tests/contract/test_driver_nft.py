"""The nftables driver on the real kernel: what is applied is observed, or nothing is done."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator

import pytest

from netplane.kernel import netns
from netplane.kernel.nftables import NftDriver
from netplane.model.errors import Invalid, KernelError
from netplane.model.facts import Chain, Element, Fact, FactKey, Mark, Plan, Set

pytestmark = pytest.mark.root


@pytest.fixture
def path(make_netns: Callable[[str], str]) -> str:
    return make_netns("n")


@pytest.fixture
def driver(path: str) -> Iterator[NftDriver]:
    return netns.call(path, NftDriver)


def marks(*facts: Fact) -> dict[FactKey, Mark]:
    return {fact.key: fact.mark for fact in facts}


KEY = "typeof ip daddr . meta l4proto . th dport : verdict"
SHAPES: dict[str, tuple[Fact, ...]] = {
    "addresses": (
        Set("a4", ("type ipv4_addr",)), Element("a4", ("10.0.0.1",)),
        Set("a6", ("type ipv6_addr",)), Element("a6", ("fd00::1",)), Element("a6", ("::ffff:a00:1",)),
    ),
    "intervals": (
        Set("i4", ("type ipv4_addr", "flags interval")),
        Element("i4", ("10.0.0.0/24",)), Element("i4", ("10.1.0.1-10.1.0.5",)), Element("i4", ("10.2.0.1",)),
        Set("i6", ("type ipv6_addr", "flags interval")), Element("i6", ("fd00::/64",)),
    ),
    "concatenated intervals": (
        Set("ci", ("typeof ip saddr . ip daddr . meta l4proto . th dport", "flags interval")),
        Element("ci", ("10.0.0.0/24", "10.1.0.1", "tcp", "80-90")),
        Element("ci", ("10.0.0.0/24", "10.1.0.1", "udp", 53)),
    ),
    "verdicts": (
        Chain("lb", ("accept",)),
        Set("v4", (KEY,), map=True),
        Element("v4", ("10.96.0.1", "tcp", 80), ("goto lb",)),
        Element("v4", ("10.96.0.1", "udp", 53), ("drop",)),
        Element("v4", ("10.96.0.1", "sctp", 9), ("jump lb",)),
        Set("v6", (KEY.replace("ip ", "ip6 "),), map=True),
        Element("v6", ("fd96::1", "tcp", 80), ("accept",)),
    ),
    "address and port by slot": (
        Set("e4", ("typeof ip daddr . tcp dport . numgen random mod 2 : ip daddr . tcp dport",), map=True),
        Element("e4", ("10.96.0.1", 80, 0), ("10.244.0.5", 8080)),
        Set("e6", ("typeof ip6 daddr . udp dport . numgen random mod 2 : ip6 daddr . udp dport",), map=True),
        Element("e6", ("fd96::1", 53, 700), ("fd01::5", 5353)),
    ),
    "interfaces": (
        Set("ifs", ("type ifname",)), Element("ifs", ("eth0.100",)), Element("ifs", ("npv0123456789a",)),
    ),
    "chains": (
        Chain("empty"),
        Chain("regular", ("ct state established,related accept", "ip saddr 10.0.0.0/8 counter drop")),
        Chain("pre", ("jump regular",), "nat", "prerouting", "dstnat"),
        Chain("out", ("jump empty", "accept"), "nat", "output", "dstnat"),
        Chain("passing", ("jump empty",), "filter", "forward", "filter", "drop"),
        Chain("post", ("masquerade fully-random",), "nat", "postrouting", "srcnat"),
        Chain("odd", (), "filter", "input", "-7"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPES)
def test_a_fresh_process_observes_exactly_what_was_wanted(shape: str, path: str, driver: NftDriver) -> None:
    driver.apply(Plan(add=SHAPES[shape]))
    assert netns.call(path, NftDriver).observe() == marks(*SHAPES[shape])


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPES)
def test_all_goes_away_in_one_plan(shape: str, driver: NftDriver) -> None:
    driver.apply(Plan(add=SHAPES[shape]))
    driver.apply(Plan(remove=tuple(fact.key for fact in SHAPES[shape])))
    assert driver.observe() == {}


@pytest.mark.parametrize("shape", SHAPES, ids=SHAPES)
def test_adding_what_is_there_and_removing_what_is_gone_is_success(shape: str, driver: NftDriver) -> None:
    facts = SHAPES[shape]
    driver.apply(Plan(add=facts))
    driver.apply(Plan(add=facts))
    assert driver.observe() == marks(*facts)
    driver.apply(Plan(remove=tuple(fact.key for fact in facts)))
    driver.apply(Plan(remove=tuple(fact.key for fact in facts)))
    assert driver.observe() == {}


def test_without_a_table_nothing_is_observed_and_clean_is_fine(driver: NftDriver) -> None:
    assert driver.observe() == {} and driver.ruleset() == ""
    driver.clean()
    assert driver.observe() == {}


def test_a_changed_element_chain_and_hook_are_observed_as_changed(driver: NftDriver) -> None:
    before = (*SHAPES["verdicts"], Chain("in", ("accept",), "filter", "input", "filter"))
    after = (
        Chain("lb", ("drop",)),
        Element("v4", ("10.96.0.1", "tcp", 80), ("drop",)),
        Chain("in", ("accept",), "filter", "input", "7", "drop"),
    )
    driver.apply(Plan(add=before))
    driver.apply(Plan(change=after))
    assert driver.observe() == marks(*before) | marks(*after)
    assert "priority filter + 7; policy drop" in driver.ruleset()


def test_a_chain_moves_aside_for_its_successor_in_one_plan(driver: NftDriver) -> None:
    """The last user of lb-2 turns to lb-3: the element must let go before the chain can go."""
    services = Set("v4", (KEY,), map=True)
    key = ("10.96.0.1", "tcp", 80)
    driver.apply(Plan(add=(services, Chain("lb-2"), Element("v4", key, ("goto lb-2",)))))
    turned = Element("v4", key, ("goto lb-3",))
    driver.apply(Plan(add=(Chain("lb-3"),), change=(turned,), remove=(("chain", "lb-2"),)))
    assert driver.observe() == marks(services, Chain("lb-3"), turned)


def test_chains_that_jump_to_each_other_go_in_any_order(driver: NftDriver) -> None:
    facts = (Chain("z", ("accept",)), Chain("a", ("jump z",)), Chain("m", ("jump a", "jump z")))
    driver.apply(Plan(add=facts))
    driver.apply(Plan(remove=tuple(f.key for f in facts)))
    assert driver.observe() == {}


BAD: dict[str, tuple[Fact, int, str]] = {
    "a chain that is not there": (
        Element("v4", ("10.96.0.9", "tcp", 80), ("goto no",)),
        errno.ENOENT,
        "goto no",
    ),
    "a set that is not there": (Element("nosuch", ("10.96.0.9",)), errno.ENOENT, "nosuch"),
    "not nft": (Chain("x", ("accept quickly",)), errno.EINVAL, "accept quickly"),
    "not an address": (Element("v4", ("10.96.0.900", "tcp", 80), ("drop",)), errno.EINVAL, "10.96.0.900"),
}


@pytest.mark.parametrize("case", BAD, ids=BAD)
def test_a_refused_plan_changes_nothing_and_says_which_words(case: str, driver: NftDriver) -> None:
    good = SHAPES["verdicts"]
    driver.apply(Plan(add=good))
    fact, number, words = BAD[case]
    with pytest.raises(KernelError, match="nftables") as caught:
        driver.apply(Plan(add=(Chain("fine"), fact), remove=(good[2].key,)))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.errno in (number, errno.EINVAL)
    assert driver.observe() == marks(*good)


def test_a_set_cannot_change_its_specification(driver: NftDriver) -> None:
    old, new = Set("s", ("type ipv4_addr",)), Set("s", ("type ipv6_addr",))
    driver.apply(Plan(add=(old,)))
    for plan in (Plan(change=(new,)), Plan(add=(new,))):
        with pytest.raises(Invalid, match="set s"):
            driver.apply(plan)
    assert driver.observe() == marks(old)


def test_elements_that_packets_added_are_not_facts_and_survive(path: str, driver: NftDriver) -> None:
    fact = Set("svc-affinity4", ("type ipv4_addr", "flags dynamic,timeout"))
    driver.apply(Plan(add=(fact,)))
    netns.run(path, "nft", "add element inet netplane svc-affinity4 { 10.0.0.1 timeout 1h }")
    assert netns.call(path, NftDriver).observe() == marks(fact)
    driver.apply(Plan(add=(Chain("c"),)))
    assert "10.0.0.1" in driver.ruleset()


def test_what_is_not_ours_is_never_seen_or_touched(path: str, driver: NftDriver) -> None:
    netns.run(path, "nft", "add table ip other; add chain ip other lb; add table inet netplane2")
    before = netns.run(path, "nft", "list table ip other")
    driver.apply(Plan(add=(Chain("lb"),)))
    assert driver.observe() == marks(Chain("lb"))
    driver.clean()
    assert netns.run(path, "nft", "list table ip other") == before
    assert "netplane2" in netns.run(path, "nft", "list tables")


def test_what_somebody_put_into_our_table_is_observed_so_that_it_can_go(path: str, driver: NftDriver) -> None:
    driver.apply(Plan(add=(Chain("c"),)))
    netns.run(path, "nft", "add chain inet netplane alien; add set inet netplane aset { type ipv4_addr; }")
    assert driver.observe() == {**marks(Chain("c")), ("chain", "alien"): "", ("set", "aset"): ""}
    driver.apply(Plan(remove=(("chain", "alien"), ("set", "aset"))))
    assert driver.observe() == marks(Chain("c"))


def test_it_works_in_the_namespace_that_it_was_made_in_from_any_thread(path: str, driver: NftDriver) -> None:
    threads = [threading.Thread(target=driver.apply, args=(Plan(add=(Chain(f"c{i}"),)),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert driver.observe() == marks(*(Chain(f"c{i}") for i in range(8)))
    assert "netplane" not in netns.run("/proc/self/ns/net", "nft", "list tables")
    assert "inet netplane" in netns.run(path, "nft", "list tables")


def test_somebody_elses_change_between_two_of_ours_is_survived(path: str, driver: NftDriver) -> None:
    """Another program's commit moves the generation: our cached view must not refuse the next plan."""
    driver.apply(Plan(add=SHAPES["verdicts"]))
    for number in range(5):
        netns.run(path, "nft", f"add table ip other{number}")
        driver.apply(Plan(add=(Element("v4", ("10.96.1.1", "tcp", number + 1), ("goto lb",)),)))
    assert len(driver.observe()) == len(SHAPES["verdicts"]) + 5


def test_the_table_deleted_behind_our_back_is_an_error_then_a_clean_start(
    path: str, driver: NftDriver
) -> None:
    driver.apply(Plan(add=SHAPES["verdicts"]))
    netns.run(path, "nft", "delete table inet netplane")
    with pytest.raises(KernelError):
        driver.apply(Plan(add=(Element("v4", ("10.96.1.1", "tcp", 1), ("goto lb",)),)))
    assert driver.observe() == {}
    driver.apply(Plan(add=SHAPES["verdicts"]))
    assert driver.observe() == marks(*SHAPES["verdicts"])

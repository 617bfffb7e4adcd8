"""The watch over our table: another program's change is told, ours are not.

a namespace alone, with the table `inet netplane` in it
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator

import pytest

from netplane.kernel import netns
from netplane.kernel.nftables import NftDriver
from netplane.kernel.nftwatch import NftMonitor
from netplane.model.facts import Chain, Element, Plan, Set

pytestmark = pytest.mark.root

WORDS = "inet netplane"


class Watched:
    def __init__(self, path: str) -> None:
        self.path = path
        self.told: queue.Queue[str] = queue.Queue()
        self.driver = netns.call(path, NftDriver)
        self.driver.apply(Plan(add=(Set("s", ("type ipv4_addr",)), Chain("c", ("accept",)))))
        self.monitor = NftMonitor(self.told.put, path, self.driver.portids).start()

    def nft(self, text: str) -> None:
        netns.run(self.path, "nft", text)

    def until(self, mark: str) -> list[str]:
        """What was told up to a change by another program that bears this mark."""
        self.nft(f"add chain {WORDS} {mark}")
        found: list[str] = []
        while not found or mark not in found[-1]:
            found.append(self.told.get(timeout=5))
        return found[:-1]


@pytest.fixture
def watched(make_netns: Callable[[str], str]) -> Iterator[Watched]:
    watched = Watched(make_netns("n"))
    yield watched
    watched.monitor.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("flush table inet netplane", "rule c removed"),
        ("delete table inet netplane", "removed"),
        ("add element inet netplane s { 10.0.0.1 }", "element s added"),
        ("add rule inet netplane c drop", "rule c added"),
        ("delete chain inet netplane empty", "chain empty removed"),
    ],
)
def test_another_programs_change_is_told_in_words(watched: Watched, change: str, words: str) -> None:
    watched.driver.apply(Plan(add=(Chain("empty"),)))
    if "empty" in change:
        watched.nft(f"flush chain {WORDS} empty")
        watched.told.get(timeout=5)
    watched.nft(change)
    told = watched.told.get(timeout=5)
    assert words in told and "by nft" in told


@pytest.mark.parametrize("family", ["bridge", "netdev"])
def test_limits_and_guards_are_watched_too(watched: Watched, family: str) -> None:
    watched.nft(f"add table {family} netplane; add chain {family} netplane c")
    assert "by nft" in watched.told.get(timeout=5)
    watched.nft(f"delete chain {family} netplane c")
    assert "chain c removed by nft" in watched.told.get(timeout=5)


def test_our_own_commits_are_not_told(watched: Watched) -> None:
    """Batches (elements alone), libnftables (chains), and thousands of elements at once."""
    watched.driver.apply(Plan(add=(Element("s", ("10.0.0.1",)),)))
    watched.driver.apply(Plan(add=(Chain("d", ("drop",)),), remove=(("element", "s", ("10.0.0.1",)),)))
    many = tuple(Element("s", (f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}",)) for i in range(100_000))
    watched.driver.apply(Plan(add=many))
    assert watched.until("sentinel") == []


def test_what_any_thread_of_ours_commits_is_not_told(watched: Watched) -> None:
    """The kernel names the thread that committed, not the process."""
    for i in range(3):
        netns.call(watched.path, watched.driver.apply, Plan(add=(Chain(f"t{i}", ("accept",)),)))
    assert watched.until("sentinel") == []


def test_other_tables_are_none_of_our_business(watched: Watched) -> None:
    watched.nft("add table ip other; add chain ip other c; add rule ip other c accept")
    watched.nft("add table ip netplane; add chain ip netplane c")
    assert watched.until("sentinel") == []

"""The newest pod's namespace has the lowest number, so that the kernel finds it first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netplane.kernel import netns
from netplane.kernel.nsnumbers import BOTTOM, TOP, Numbers, given, lowest
from netplane.kernel.rtnetlink import LinkDriver
from netplane.model.facts import Link, Plan

pytestmark = pytest.mark.root
BRIDGE = Link(name="npbr0", kind="bridge", alias="netplane:cni", mtu=1450)


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[list[str]]:
    found = [str(tmp_path / f"pod-{number}") for number in range(6)]
    for path in found:
        netns.create(path)
    yield found
    for path in found:
        netns.delete(path)


def pair(number: int, pod: str) -> Link:
    ends = (("peer", "eth0"), ("peer_netns", pod))
    return Link(f"npv{number}", "veth", alias="netplane:cni:a", master="npbr0", options=ends)


def ours(driver: LinkDriver) -> list[int]:
    """The numbers that we gave, in the kernel's order."""
    with driver._pool.take() as sock:
        return [number for number in given(sock) if number >= BOTTOM]


def test_each_pod_is_found_before_those_that_came_earlier(
    make_netns: Callable[[str], str], pods: list[str]
) -> None:
    driver = netns.call(make_netns("node"), LinkDriver)
    driver.apply(Plan(add=(BRIDGE, pair(0, pods[0]))))  # by the general way, which leaves it to the kernel
    for number in (1, 2):
        driver.apply(Plan(add=(pair(number, pods[number]),)))
    assert ours(driver) == [TOP - 2, TOP - 1]
    # another process goes on below; a namespace that has a number keeps it
    anew = netns.call(driver.netns, LinkDriver)
    driver.close()
    anew.apply(Plan(add=(pair(3, pods[3]),)))  # by the general way: it has yet to learn of the bridge
    anew.apply(Plan(remove=(pair(1, pods[1]).key,)))
    anew.apply(Plan(add=(pair(1, pods[1]),)))
    wait = anew.begin(Plan(add=(pair(4, pods[4]),)))
    assert wait is not None
    wait()
    assert ours(anew) == [TOP - 4, TOP - 2, TOP - 1]  # TOP - 3 was for the one that has its own
    anew.close()


def test_a_number_that_is_taken_leaves_the_choice_to_the_kernel(
    make_netns: Callable[[str], str], pods: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = netns.call(make_netns("node"), LinkDriver)
    driver.apply(Plan(add=(BRIDGE, pair(0, pods[0]))))
    monkeypatch.setattr(Numbers, "take", lambda *_: TOP - 1)
    for number in (1, 2):
        driver.apply(Plan(add=(pair(number, pods[number]),)))
    with driver._pool.take() as sock:
        assert given(sock) == [0, 1, TOP - 1]
    driver.close()


@pytest.mark.parametrize(
    ("numbers", "found"), [([], TOP), ([0, 7], TOP), ([3, TOP - 9, TOP - 8], TOP - 9), ([TOP], TOP)]
)
def test_what_is_not_ours_does_not_count(numbers: list[int], found: int) -> None:
    assert lowest(numbers) == found


def test_the_numbers_begin_again_when_all_were_given() -> None:
    numbers = Numbers()
    numbers._last = BOTTOM + 1
    assert [numbers.take(None) for _ in range(3)] == [BOTTOM, TOP - 1, TOP - 2]  # type: ignore[arg-type]

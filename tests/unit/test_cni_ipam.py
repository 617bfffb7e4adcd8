"""Addresses: in turn, honoured or refused with the holder's name, never twice."""

from __future__ import annotations

import time

import pytest

from netplane.cni.errors import Refused
from netplane.cni.ipam import Ipam, Pool
from netplane.cni.ranges import whole
from netplane.cni.turns import keep, kept
from netplane.model.base import ObjectMeta, amend
from netplane.model.errors import Unavailable
from netplane.model.own import Attachment, AttachmentIP, AttachmentSpec

BOTH = ("10.244.1.0/29", "fd00:10:244:1::/64")


def ipam(*cidrs: str, records: tuple[Attachment, ...] = ()) -> Ipam:
    made = Ipam()
    made.rebuild(map(whole, cidrs or BOTH), lambda: records)
    return made


def take(pool: Ipam, name: str, *asked: str) -> list[str]:
    return [e.address for e in pool.take(name, f"holder of {name}", asked)]


def record(name: str, *addresses: str, revision: int = 1) -> Attachment:
    return Attachment(
        metadata=ObjectMeta(name=name, resource_version=str(revision)),
        spec=AttachmentSpec(
            node="n1", container_id=f"c-{name}", ifname="eth0", netns="/n", network="net",
            pod_namespace="default", pod_name=name, host_ifname=f"npv{name}",
            ips=tuple(AttachmentIP(address=a) for a in addresses),
        ),
    )  # fmt: skip


def test_one_address_per_family_after_the_gateway_with_host_length() -> None:
    given = ipam().take("a", "a")
    assert [(e.address, e.gateway) for e in given] == [
        ("10.244.1.2/32", "10.244.1.1"),
        ("fd00:10:244:1::2/128", "fd00:10:244:1::1"),
    ]


def test_an_address_given_back_is_the_last_to_be_given_again() -> None:
    pool = ipam("10.244.1.0/29")  # .2 to .6
    take(pool, "a")
    pool.release("a")
    order = [take(pool, f"x{i}")[0] for i in range(5)]
    assert order == [f"10.244.1.{i}/32" for i in (3, 4, 5, 6, 2)]


def test_exhaustion_names_the_range_and_its_use() -> None:
    pool = ipam("10.244.1.0/29")
    for i in range(5):
        pool.check()
        take(pool, f"x{i}")
    with pytest.raises(Unavailable, match=r"range 10\.244\.1\.0/29: 5 of 5 addresses in use"):
        take(pool, "one-more")
    with pytest.raises(Unavailable, match="5 of 5"):
        pool.check()
    pool.release("x3")
    assert take(pool, "one-more") == ["10.244.1.5/32"]


def test_when_one_family_is_exhausted_the_other_gives_nothing_away() -> None:
    pool = ipam("fd00::/64", "10.0.0.0/30")  # one IPv4 address
    take(pool, "a")
    with pytest.raises(Unavailable):
        take(pool, "b")
    pool.release("a")
    assert pool.usage() == (
        "range fd00::/64: 0 of 18446744073709551614 addresses in use",
        "range 10.0.0.0/30: 0 of 1 addresses in use",
    )


def test_an_address_asked_for_is_honoured_or_refused_with_its_holder() -> None:
    pool = ipam()
    assert take(pool, "a", "10.244.1.5", "fd00:10:244:1::55/64") == [
        "10.244.1.5/32",
        "fd00:10:244:1::55/128",
    ]
    with pytest.raises(Unavailable, match=r"10\.244\.1\.5 is held by holder of a"):
        take(pool, "b", "10.244.1.5")
    pool.release("a")
    assert take(pool, "b", "10.244.1.5")[0] == "10.244.1.5/32"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (("10.244.1.1",), "gateway"),
        (("10.244.1.0",), "reserved"),
        (("10.244.1.7",), "reserved"),
        (("10.9.9.9",), "outside of the ranges"),
        (("nonsense",), "not an IPv4 or IPv6 address"),
        (("10.244.1.2", "10.244.1.3"), "one address of each range set"),
    ],
)
def test_what_cannot_be_had_is_refused(asked: tuple[str, ...], reason: str) -> None:
    pool = ipam()
    with pytest.raises(Refused, match=reason):
        take(pool, "a", *asked)
    assert "0 of 5" in pool.usage()[0]


def test_after_a_restart_the_records_hold_and_the_turn_goes_on() -> None:
    records = (
        record("old", "10.244.1.5/32", revision=3),
        record("new", "10.244.1.3/32", revision=9),
    )
    pool = ipam("10.244.1.0/29", records=records)
    assert [take(pool, f"x{i}")[0] for i in range(3)] == [f"10.244.1.{i}/32" for i in (4, 6, 2)]
    with pytest.raises(Unavailable, match=r"held by pod default/old"):
        take(pool, "b", "10.244.1.5")
    pool.release("old")
    assert take(pool, "b") == ["10.244.1.5/32"]


def test_what_is_taken_and_not_yet_written_survives_a_rebuild() -> None:
    pool = ipam("10.244.1.0/29")
    take(pool, "flying")
    take(pool, "deleted behind our back")
    pool.unpin("deleted behind our back")
    pool.pin(record("record gone, kernel not clean", "10.244.1.6/32"))
    pool.rebuild((whole("10.244.1.0/29"),), tuple)
    assert "2 of 5" in pool.usage()[0]


def test_an_address_costs_the_same_in_a_range_almost_full() -> None:
    """60,000 in use, one free at a time: a scan would take minutes."""
    pool = Pool(*whole("10.0.0.0/16"))
    for i in range(pool.size):
        pool.take(str(i))
    begin = time.perf_counter()
    for offset in range(2, 20_000):
        pool.release(offset)
        assert pool.take("again") == offset
    assert time.perf_counter() - begin < 2


def test_a_high_address_in_a_large_range_costs_nothing() -> None:
    pool = ipam("fd00::/64", records=(record("far", "fd00::ffff:ffff:ffff:fff0/128"),))
    assert take(pool, "a") == ["fd00::ffff:ffff:ffff:fff1/128"]


@pytest.mark.parametrize("cidr", ["10.0.0.0/31", "10.0.0.0/32"])
def test_a_range_without_room_is_refused(cidr: str) -> None:
    with pytest.raises(Refused, match="no room"):
        whole(cidr)


def test_the_turn_of_records_that_are_gone_is_kept_for_each_subnet() -> None:
    first = keep(None, record("a", "10.244.1.3/29", "fd00::7/64", revision=5))
    assert first is not None and first.revision == 0
    assert kept(first) == [("10.244.1.3", 5), ("fd00::7", 5)]
    later = keep(first, record("b", "10.244.1.2/29", revision=8))
    assert later is not None
    assert kept(later) == [("fd00::7", 5), ("10.244.1.2", 8)]
    assert keep(later, record("older", "10.244.1.5/29", "fd00::6/64", revision=4)) is None
    assert keep(None, record("c")) is None
    spoilt = amend(later, spec=amend(later.spec, value="x @ 10.244.1.3@ fd00::7@5"))
    assert kept(spoilt) == [("fd00::7", 5)]


def test_after_a_restart_each_range_goes_on_behind_its_newest_address() -> None:
    def made(*kept: tuple[str, int]) -> list[str]:
        pool = Ipam()
        records = (record("a", "10.0.0.3/32", "fd00::5/128", revision=4),)
        pool.rebuild(map(whole, ("10.0.0.0/29", "fd00::/64")), lambda: records, lambda: kept)
        return take(pool, "x")

    assert made() == ["10.0.0.4/32", "fd00::6/128"]
    assert made(("10.0.0.5", 3), ("fd00::9", 9)) == ["10.0.0.4/32", "fd00::a/128"]
    assert made(("10.0.0.6", 5)) == ["10.0.0.2/32", "fd00::6/128"]  # the last of the range: round again


def test_only_the_last_that_was_given_is_where_the_turn_is() -> None:
    pool = ipam("10.0.0.0/29")
    first, second = pool.take("a", "a"), pool.take("b", "b")
    assert not pool.at_turn(first) and pool.at_turn(second)
    assert Ipam().at_turn(first), "who has no index cannot tell"

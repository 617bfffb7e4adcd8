"""Plans → the exact text of one transaction."""

from __future__ import annotations

import time

import pytest

from netplane.kernel.nft_text import transaction
from netplane.model.errors import Invalid
from netplane.model.facts import Chain, Element, Plan, Set

MAP = Set("svc-services4", ("typeof ip daddr . meta l4proto . th dport : verdict",), map=True)
DYNAMIC = Set("svc-seen", ("type ipv4_addr", "flags dynamic,timeout"))
BASE = Chain("svc-nat-output", ("jump svc-dispatch", "counter"), "nat", "output", "dstnat")
LB = Chain("svc-lb4-2", ("accept",))
ONE = Element("svc-services4", ("10.96.0.1", "tcp", 80), ("goto svc-lb4-2",))
TWO = Element("svc-services4", ("10.96.0.2", "udp", 53), ("drop",))
SLOT = Element("svc-endpoints4", ("10.96.0.1", 80, 0), ("10.244.1.5", 8080))
MEMBER = Element("pods", ("fd00::1",))

CASES = {
    "a regular chain, its mark on its first rule": (
        Plan(add=(Chain("c", ("ct state new", "drop")),)),
        f"""\
add table inet netplane
add chain inet netplane c
flush chain inet netplane c
add rule inet netplane c ct state new comment "{Chain("c", ("ct state new", "drop")).mark}"
add rule inet netplane c drop
""",
    ),
    "a chain without rules still carries its mark": (
        Plan(add=(Chain("c"),)),
        f"""\
add table inet netplane
add chain inet netplane c
flush chain inet netplane c
add rule inet netplane c continue comment "{Chain("c").mark}"
""",
    ),
    "a base chain is made anew, with a number where nft knows no name": (
        Plan(change=(BASE,)),
        f"""\
add table inet netplane
flush chain inet netplane svc-nat-output
delete chain inet netplane svc-nat-output
add chain inet netplane svc-nat-output {{ type nat hook output priority -100; policy accept; }}
flush chain inet netplane svc-nat-output
add rule inet netplane svc-nat-output jump svc-dispatch comment "{BASE.mark}"
add rule inet netplane svc-nat-output counter
""",
    ),
    "sets and maps, a dynamic one saying so": (
        Plan(add=(MAP, DYNAMIC)),
        f"""\
add table inet netplane
add map inet netplane svc-services4 {{ {MAP.spec[0]}; comment "{MAP.mark}"; }}
add set inet netplane svc-seen {{ type ipv4_addr; flags dynamic,timeout; comment "{DYNAMIC.mark} dynamic"; }}
""",
    ),
    "elements are grouped by set": (
        Plan(add=(ONE, SLOT, TWO, MEMBER)),
        """\
add table inet netplane
add element inet netplane svc-services4 { 10.96.0.1 . "tcp" . 80 : goto svc-lb4-2, \
10.96.0.2 . "udp" . 53 : drop }
add element inet netplane svc-endpoints4 { 10.96.0.1 . 80 . 0 : 10.244.1.5 . 8080 }
add element inet netplane pods { fd00::1 }
""",
    ),
    "a changed element is a deletion and an addition": (
        Plan(change=(ONE,)),
        """\
add table inet netplane
delete element inet netplane svc-services4 { 10.96.0.1 . "tcp" . 80 }
add element inet netplane svc-services4 { 10.96.0.1 . "tcp" . 80 : goto svc-lb4-2 }
""",
    ),
    "an element lets go of its chain before the chain goes": (
        Plan(remove=(LB.key, TWO.key)),
        """\
add table inet netplane
delete element inet netplane svc-services4 { 10.96.0.2 . "udp" . 53 }
flush chain inet netplane svc-lb4-2
delete chain inet netplane svc-lb4-2
""",
    ),
    "a set that goes takes its elements along": (
        Plan(remove=(MAP.key, TWO.key)),
        """\
add table inet netplane
delete set inet netplane svc-services4
""",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=CASES)
def test_a_plan_is_exactly_this_text(case: str) -> None:
    plan, text = CASES[case]
    assert transaction(plan) == text


def test_a_long_list_of_elements_is_several_statements() -> None:
    plan = Plan(add=tuple(Element("s", (i,)) for i in range(10_000)))
    assert transaction(plan).count("add element inet netplane s {") == 3


def test_a_set_whose_specification_changed_is_refused_by_name() -> None:
    with pytest.raises(Invalid, match=r"svc-services4.*another name"):
        transaction(Plan(change=(MAP,)))


def test_a_third_of_a_million_elements_are_text_within_two_seconds() -> None:
    plan = Plan(
        add=tuple(
            Element("s", ("10.96.0.1", i, j), ("10.0.0.1", 80)) for i in range(33_000) for j in range(10)
        )
    )
    begin = time.process_time()
    assert len(transaction(plan)) > 330_000 * 30
    assert time.process_time() - begin < 2


def test_a_name_is_never_one_of_nfts_own_words() -> None:
    words = ("map", "1br", "10.0.0.1", "10.0.0.0-10.0.0.9", "fd00::1", "10.0.0.0/8", "02:00:00:00:00:01", 80)
    text = transaction(Plan(add=(Element("s", words),)))
    assert text.endswith(
        'add element inet netplane s { "map" . "1br" . 10.0.0.1 . 10.0.0.0-10.0.0.9 . fd00::1 . 10.0.0.0/8'
        " . 02:00:00:00:00:01 . 80 }\n"
    )

"""nft's JSON → marks, and what a refused plan becomes beside what is held."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest

from netplane.kernel.nft_read import marks
from netplane.kernel.nftables import failure, fit
from netplane.model.errors import Invalid
from netplane.model.facts import Chain, Element, Plan, Set


def listing(*items: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"nftables": [{"metainfo": {"version": "1.0.6"}}, *items]})


def a_set(types: Any, *elements: Any, **more: Any) -> dict[str, Any]:
    return {"set": {"name": "s", "type": types, "elem": list(elements), **more}}


def a_map(types: Any, value: str, *elements: Any) -> dict[str, Any]:
    return {"map": {"name": "s", "type": types, "map": value, "elem": list(elements)}}


CASES = {
    "address": (a_set("ipv6_addr", "fd00::1"), {("fd00::1",): None}),
    "mapped address": (a_set("ipv6_addr", "::ffff:10.0.0.1"), {("::ffff:a00:1",): None}),
    "prefix": (a_set("ipv4_addr", {"prefix": {"addr": "10.0.0.0", "len": 24}}), {("10.0.0.0/24",): None}),
    "range": (a_set("inet_service", {"range": [80, 90]}), {("80-90",): None}),
    "protocol": (a_set(["inet_proto", "inet_service"], {"concat": [6, 80]}), {("tcp", 80): None}),
    "rare protocol": (a_set("inet_proto", 47), {(47,): None}),
    "port alone": (a_set("inet_service", 80), {(80,): None}),
    "with a timeout": (a_set("inet_service", {"elem": {"val": 80, "timeout": 9}}), {(80,): None}),
    "verdict": (
        a_map(
            ["ipv4_addr"], "verdict", ["10.0.0.1", {"goto": {"target": "c"}}], ["10.0.0.2", {"drop": None}]
        ),
        {("10.0.0.1",): ("goto c",), ("10.0.0.2",): ("drop",)},
    ),
    "address and port": (
        a_map(["inet_service"], "ipv4_addr . inet_service", [80, {"concat": ["10.0.0.1", 8080]}]),
        {(80,): ("10.0.0.1", 8080)},
    ),
    "dynamic": (a_set("inet_service", 80, comment="abc dynamic"), {}),
}


@pytest.mark.parametrize("case", CASES, ids=CASES)
def test_elements_read_back_as_facts(case: str) -> None:
    item, expected = CASES[case]
    found = {key[2]: mark for key, mark in marks(listing(item)).items() if key[0] == "element"}
    assert found == expected


def test_chains_and_sets_read_back_by_their_comments() -> None:
    found = marks(
        listing(
            a_set("inet_service", comment="5e7"),
            {"chain": {"name": "c"}},
            {"chain": {"name": "stranger"}},
            {"rule": {"chain": "c", "comment": "first", "expr": []}},
            {"rule": {"chain": "c", "comment": "second", "expr": []}},
        )
    )
    assert found == {("set", "s"): "5e7", ("chain", "c"): "first", ("chain", "stranger"): ""}


def test_a_plan_is_fitted_to_what_is_held() -> None:
    same, other, new = (
        Element("s", (1,), ("drop",)),
        Element("s", (2,), ("drop",)),
        Element("s", (3,), ("drop",)),
    )
    held = {same.key: same.mark, other.key: ("accept",), ("element", "s", (4,)): ("drop",)}
    plan = Plan(add=(same, other), change=(new,), remove=(("element", "s", (4,)), ("element", "s", (5,))))
    assert fit(plan, held) == Plan(add=(new,), change=(other,), remove=(("element", "s", (4,)),))


def test_a_set_that_is_there_with_another_specification_is_refused() -> None:
    fact = Set("s", ("type ipv4_addr",))
    with pytest.raises(Invalid, match="nftables set s"):
        fit(Plan(add=(fact,)), {fact.key: "other"})


def test_a_failure_quotes_the_statement_that_nft_underlined() -> None:
    script = b"add table inet netplane ; add rule inet netplane c jump nosuch"
    error = b"Error: Could not process rule: No such file or directory\n" + script + b"\n"
    error += b" " * script.index(b"nosuch") + b"^^^^^^\n"
    found = failure(script, error)
    assert found.errno == errno.ENOENT
    assert str(found).startswith(
        "nftables: add rule inet netplane c jump nosuch: Could not process rule: No such"
    )


def test_a_failure_in_a_long_statement_quotes_its_head_and_the_words() -> None:
    script = b"add table inet netplane ; add element inet netplane s { " + b"10.0.0.1, " * 100 + b"oops }"
    error = b"Error: syntax error\n" + script + b"\n" + b" " * script.index(b"oops") + b"^^^^\n"
    assert failure(script, error).operation == "nftables: add element inet netplane s … oops"


def test_a_failure_without_an_underline_says_what_nft_said() -> None:
    found = failure(b"add table inet netplane", b"internal:0:0-0: Error: Out of memory\n")
    assert (found.operation, found.detail) == ("nftables: transaction", "Out of memory")


def test_an_empty_chain_has_a_mark_of_its_own() -> None:
    assert Chain("c").mark != Chain("c", ("continue",)).mark

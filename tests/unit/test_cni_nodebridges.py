"""Which of the node's bridges a pod gets: counted from records, the first with room."""

from __future__ import annotations

from typing import Any

import pytest

from netplane.cni import nodebridges
from netplane.cni.nodebridges import NodeBridges
from netplane.model.base import amend
from netplane.model.own import Attachment
from tests.unit.test_cni_render import attachment


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodebridges, "PODS", 2)


def pod(number: int, bridge: str = "npbr0", **more: Any) -> Attachment:
    return attachment(f"c{number}", bridge=bridge, **more)


def placed(bridges: NodeBridges, number: int) -> str:
    return str(bridges.place(pod(number)).spec.bridge)


def test_bridges_fill_one_after_the_other_and_the_first_gap_is_filled_first() -> None:
    bridges = NodeBridges(tuple)
    assert [placed(bridges, n) for n in range(5)] == ["npbr0", "npbr0", "npbr1", "npbr1", "npbr2"]
    for gone in (3, 0):
        bridges.release(pod(gone).name)
    assert [placed(bridges, n) for n in (5, 6, 7)] == ["npbr0", "npbr1", "npbr2"]


def test_the_records_say_what_is_taken() -> None:
    bridges = NodeBridges(lambda: (pod(1), pod(2), pod(3, "npbr5"), pod(4, "npbr1", kind="ptp")))
    assert [placed(bridges, n) for n in (5, 6, 7)] == ["npbr1", "npbr1", "npbr2"]
    bridges.release(pod(2).name)
    assert placed(bridges, 8) == "npbr0"


def test_who_is_placed_or_released_twice_counts_once() -> None:
    bridges = NodeBridges(tuple)
    assert [placed(bridges, n) for n in (1, 1, 1, 2)] == ["npbr0"] * 4
    for _ in range(3):
        bridges.release(pod(1).name)
    assert [placed(bridges, n) for n in (3, 4)] == ["npbr0", "npbr1"]


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "ptp", "bridge": ""},
        {"kind": "macvlan", "bridge": "eth0"},
        {"bridge": "cni0", "ipam": "netplane"},
    ],
)
def test_who_is_on_no_bridge_of_the_node_stays_where_it_is(other: dict[str, str]) -> None:
    bridges, one = NodeBridges(tuple), amend(pod(1), spec=amend(pod(1).spec, **other))
    assert bridges.place(one) is one
    assert [placed(bridges, n) for n in (2, 3, 4)] == ["npbr0", "npbr0", "npbr1"]

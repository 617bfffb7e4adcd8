"""Programs on devices, by tcx and by clsact: put there, found, replaced in one step, taken away.

one namespace: v0 ── v1, and lo
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from netplane.kernel import bpfhook, netns
from netplane.kernel.bpfhook import EGRESS, INGRESS, Clsact, Hooks, Tcx
from netplane.kernel.datapath import PathDriver
from netplane.kernel.forgetting import Forgetting
from netplane.kernel.rtnetlink import LinkDriver
from netplane.model.facts import FastPath, Hook, Link, Plan

from ..datapath_world import eventually
from .kit import Path

pytestmark = pytest.mark.root


@pytest.fixture(params=[Tcx, Clsact], ids=["tcx", "clsact"])
def hooks(request: Any) -> Hooks:
    way: Hooks = request.param()
    return way


@pytest.fixture
def place(make_netns: Callable[[str], str]) -> str:
    path = make_netns("a")
    netns.run(path, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    return path


def index(place: str, name: str) -> int:
    return int(netns.call(place, socket.if_nametoindex, name))


def names(place: str, hooks: Hooks, link: str, side: int) -> list[tuple[str, int]]:
    found = netns.call(place, hooks.attached, index(place, link), side)
    for one in found:
        one.close()
    return [(one.name, one.id) for one in found]


def test_a_program_is_found_replaced_and_taken_away(path: Path, place: str, hooks: Hooks) -> None:
    first, second = path.loaded.programs["np_from_wire"], path.loaded.programs["np_from_pod"]
    v0 = index(place, "v0")
    assert names(place, hooks, "v0", INGRESS) == []
    netns.call(place, hooks.attach, v0, INGRESS, first)
    assert names(place, hooks, "v0", INGRESS) == [("np_from_wire", first.id)]
    assert names(place, hooks, "v0", EGRESS) == [] == names(place, hooks, "v1", INGRESS)
    netns.call(place, hooks.attach, v0, INGRESS, second)
    assert names(place, hooks, "v0", INGRESS) == [("np_from_pod", second.id)]
    for _ in range(2):  # the second time it is gone already
        netns.call(place, hooks.detach, v0, INGRESS, second)
    assert names(place, hooks, "v0", INGRESS) == []


def test_a_device_that_is_gone_has_no_programs(path: Path, place: str, hooks: Hooks) -> None:
    assert netns.call(place, hooks.attached, 4711, INGRESS) == []
    netns.call(place, hooks.detach, 4711, INGRESS, path.loaded.programs["np_from_wire"])


def test_others_filters_stay(path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks, v0 = Clsact(), index(place, "v0")
    theirs, mine = path.loaded.programs["np_to_wire"], path.loaded.programs["np_from_wire"]
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(bpfhook, "PRIORITY", 5)
        netns.call(place, hooks.attach, v0, INGRESS, theirs)
    netns.call(place, hooks.attach, v0, INGRESS, mine)
    netns.call(place, hooks.detach, v0, INGRESS, mine)
    shown = netns.run(place, "tc", "filter", "show", "dev", "v0", "ingress")
    assert "pref 5 bpf" in shown and "np_from_wire" not in shown


FACTS = (FastPath(gateway_mac="02:00:00:00:00:01"), Hook("v0", "pod", shaped=True), Hook("lo", "wire"))


def driver(place: str, hooks: Hooks) -> PathDriver:
    made = PathDriver(ways=(hooks,))
    assert netns.call(place, made.open), made.problem
    return made


def test_the_driver_holds_what_it_was_given(place: str, hooks: Hooks) -> None:
    first = driver(place, hooks)
    assert netns.call(place, first.observe) == {}
    netns.call(place, first.apply, Plan(add=FACTS))
    assert netns.call(place, first.observe) == {fact.key: fact.mark for fact in FACTS}
    netns.call(place, first.apply, Plan(change=(Hook("v0", "pod", barred=True),)))
    assert netns.call(place, first.observe)[("hook", "v0")] == Hook("v0", "pod", barred=True)
    netns.call(place, first.apply, Plan(remove=tuple(fact.key for fact in FACTS)))
    assert netns.call(place, first.observe) == {}
    first.close()


def test_a_fresh_driver_adopts_the_programs_with_their_maps(place: str, hooks: Hooks) -> None:
    first = driver(place, hooks)
    netns.call(place, first.apply, Plan(add=FACTS))
    for _ in range(5):
        first.forget()
    before = first.generation
    first.close()
    second = driver(place, hooks)
    assert second.generation == before
    found = netns.call(place, second.observe)
    assert {key: found[key] for key in (("hook", "v0"), ("hook", "lo"))} == {f.key: f for f in FACTS[1:]}
    second.close()


def test_a_driver_that_is_off_takes_away_what_it_finds(place: str) -> None:
    first = driver(place, Clsact())
    netns.call(place, first.apply, Plan(add=FACTS))
    first.close()
    off = PathDriver(on=False)
    assert not netns.call(place, off.open) and "--datapath kernel" in off.problem
    found = netns.call(place, off.observe)
    assert set(found) == {("hook", "v0"), ("hook", "lo")}
    netns.call(place, off.apply, Plan(remove=tuple(found)))
    assert netns.call(place, off.observe) == {}


def test_a_device_that_was_made_again_gets_its_programs_back(place: str) -> None:
    held = driver(place, Clsact())
    netns.call(place, held.apply, Plan(add=(FACTS[0], Hook("v1", "wire"))))
    netns.run(place, "ip", "link", "del", "v0")
    netns.run(place, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    assert netns.call(place, held.observe) == {FACTS[0].key: FACTS[0]}
    netns.call(place, held.look)
    assert netns.call(place, held.observe)[("hook", "v1")] == Hook("v1", "wire")
    held.close()


def test_the_ports_of_a_bridge_that_was_made_again_lead_to_the_new_one(place: str) -> None:
    """Else what their pods send would be received by nobody."""
    held, port = driver(place, Clsact()), Hook("v0", "pod", shaped=True, bridge="bridge0")
    netns.run(place, "ip", "link", "add", "bridge0", "type", "bridge")
    netns.call(place, held.apply, Plan(add=(FACTS[0], Hook("bridge0", "bridge"), port, Hook("v1", "pod"))))
    count(held, index(place, "v0"), 7)
    netns.run(place, "ip", "link", "del", "bridge0")
    netns.run(place, "ip", "link", "add", "bridge0", "type", "bridge")
    assert netns.call(place, held.observe)[port.key] == replace(port, bridge="")
    netns.call(place, held.look)
    found = netns.call(place, held.observe)
    assert (found[port.key], found["hook", "v1"]) == (port, Hook("v1", "pod"))
    assert netns.call(place, held.ports)["v0"][0] == 7
    held.close()


def count(held: PathDriver, port: int, packets: int) -> None:
    """As the programs do, on one CPU."""
    assert held._loaded is not None
    ports, key = held._loaded.maps["np_ports"], port.to_bytes(4, sys.byteorder)
    words = memoryview(bytearray(ports.get(key) or b"")).cast("Q")
    words[1] += packets
    ports.put(key, words.tobytes())


def test_a_fresh_agent_knows_what_an_earlier_one_put_on_a_bridge(place: str) -> None:
    """It adopts it as it is, and mends it when the bridge is made again; what was counted stays."""
    first, port = driver(place, Clsact()), Hook("v0", "pod", bridge="bridge0")
    facts = (FACTS[0], Hook("bridge0", "bridge"), port)
    netns.run(place, "ip", "link", "add", "bridge0", "type", "bridge")
    netns.call(place, first.apply, Plan(add=facts))
    count(first, index(place, "v0"), 7)
    first.close()
    fresh = driver(place, Clsact())
    found = netns.call(place, fresh.observe)
    assert all(found[fact.key] == fact for fact in facts[1:])
    netns.call(place, fresh.apply, Plan(change=facts[:1]))
    netns.run(place, "ip", "link", "del", "bridge0")
    netns.run(place, "ip", "link", "add", "bridge0", "type", "bridge")
    netns.call(place, fresh.made, "bridge0")
    assert netns.call(place, fresh.observe) == {fact.key: fact for fact in facts}
    assert netns.call(place, fresh.ports)["v0"][0] == 7
    fresh.close()


@pytest.mark.parametrize("queue", ["clsact", ""], ids=lambda queue: queue or "none")
def test_pods_have_clsact_when_they_are_born_with_it_and_what_stays_has_tcx(place: str, queue: str) -> None:
    """Also where an earlier version chose otherwise: nothing is attached twice."""
    if queue:
        netns.run(place, "tc", "qdisc", "add", "dev", "v0", queue)
    first = PathDriver(ways=(Tcx(), Clsact()) if queue else (Clsact(make=False), Tcx()))
    assert netns.call(place, first.open), first.problem
    netns.call(place, first.apply, Plan(add=FACTS))
    second = PathDriver()
    assert netns.call(place, second.open), second.problem
    netns.call(place, second.apply, Plan(change=FACTS))
    found = {(way.name, link): [len(names(place, way, link, side)) for side in (INGRESS, EGRESS)]
             for way in (Clsact(), Tcx()) for link in ("v0", "lo")}  # fmt: skip
    nothing = [0, 0]
    assert found == {
        ("clsact", "v0"): [1, 0] if queue else nothing, ("tcx", "v0"): nothing if queue else [1, 0],
        ("clsact", "lo"): nothing, ("tcx", "lo"): [1, 1],
    }  # fmt: skip
    assert netns.call(place, second.observe) == {fact.key: fact.mark for fact in FACTS}
    first.close()
    second.close()


def test_every_change_makes_entries_stale(place: str) -> None:
    held = driver(place, Clsact())
    before = held.generation
    netns.call(place, held.apply, Plan(add=FACTS))
    assert held.generation > before
    held.close()


def test_a_pod_is_attached_once_it_is_calm_and_leaves_no_entry(place: str) -> None:
    """Also a pod that went before it was attached, and one whose device went before its hook."""
    held = PathDriver(delay=0.5)
    assert netns.call(place, held.open), held.problem
    netns.call(place, held.apply, Plan(add=FACTS))
    assert ("hook", "v0") not in netns.call(place, held.observe)
    eventually(lambda: netns.call(place, held.observe).get(("hook", "v0")) == FACTS[1])
    assert set(netns.call(place, held.ports)) == {"v0"}
    netns.run(place, "ip", "link", "del", "v0")
    netns.call(place, held.apply, Plan(remove=(FACTS[1].key,)))
    eventually(lambda: not entries(held))
    netns.run(place, "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for _ in range(3):  # ends with the pod gone
        netns.call(place, held.apply, Plan(add=(FACTS[1],)))
        netns.call(place, held.apply, Plan(remove=(FACTS[1].key,)))
    netns.call(place, held.apply, Plan(add=(Hook("v1", "pod"),)))
    eventually(lambda: set(netns.call(place, held.ports)) == {"v1"})
    assert ("hook", "v0") not in netns.call(place, held.observe)
    netns.call(place, held.clean)
    assert not entries(held)
    held.close()


def test_a_pod_that_goes_while_it_is_being_attached_leaves_no_entry(place: str) -> None:
    held, hook = PathDriver(delay=60), Hook("v0", "pod", mac="02:00:00:00:00:0a")
    assert netns.call(place, held.open), held.problem
    netns.call(place, held.apply, Plan(add=(hook,)))
    netns.call(place, held.apply, Plan(remove=(hook.key,)))
    netns.call(place, held._hook_late, {"v0": hook})  # taken up by the other thread before it went
    assert not entries(held)
    netns.call(place, held.clean)
    held.close()


@pytest.mark.parametrize("adopted", [False, True])
def test_a_pod_s_device_that_is_made_again_under_its_name_is_the_one_that_is_known(
    place: str, adopted: bool
) -> None:
    """A container that starts again: the plans of its hook cancel out, its MAC and names are the same."""
    mac, key = "02:00:00:00:00:0a", bytes.fromhex("02000000000a0000")
    held = PathDriver(delay=0.05)
    assert netns.call(place, held.open), held.problem
    netns.call(place, held.apply, Plan(add=(FACTS[0], Hook("lo", "bridge"), Hook("v0", "pod", mac=mac))))

    def at() -> int:
        assert held._loaded is not None
        return int.from_bytes(held._loaded.maps["np_pods"].get(key) or b"", "little")

    eventually(lambda: at() == index(place, "v0") and ("hook", "v0") in netns.call(place, held.observe))
    if adopted:
        held.close()
        held = PathDriver(delay=0.05)
        assert netns.call(place, held.open), held.problem
        netns.call(place, held.observe)
    links = Forgetting(netns.call(place, LinkDriver), held)
    netns.run(place, "ip", "link", "del", "v0")
    netns.call(place, links.apply, Plan(remove=(("link", "", "v0"),)))
    assert at() == 0, "what is sent to it meanwhile is not sent to nowhere"
    peer = (("peer", "v1"),)
    netns.call(place, links.apply, Plan(add=(Link(name="v0", kind="veth", options=peer),)))
    eventually(lambda: at() == index(place, "v0"))
    eventually(lambda: netns.call(place, held.observe).get(("hook", "v0")) == Hook("v0", "pod", mac=mac))
    netns.call(place, held.apply, Plan(remove=(("hook", "v0"),)))
    assert at() == 0
    netns.call(place, held.clean)
    links.close()
    held.close()


def test_a_port_s_entry_follows_its_pod_s_mac(place: str) -> None:
    """Also when another pod has it before the first one's hook went, and after an agent's death.

    It goes at once, so that what is sent to a pod that has it next is not sent to nowhere.
    """
    mac, key = "02:00:00:00:00:0a", bytes.fromhex("02000000000a0000")
    held = PathDriver(delay=0.05)
    assert netns.call(place, held.open), held.problem
    netns.run(place, "ip", "link", "add", "v2", "type", "veth", "peer", "name", "v3")

    def at(one: PathDriver) -> int:
        assert one._loaded is not None
        return int.from_bytes(one._loaded.maps["np_pods"].get(key) or b"", "little")

    for link in ("v0", "v2"):
        netns.call(place, held.apply, Plan(add=(Hook(link, "pod", mac=mac),)))
        eventually(lambda link=link: at(held) == index(place, link))
    netns.call(place, held.apply, Plan(remove=(("hook", "v0"),)))
    assert at(held) == index(place, "v2")
    netns.call(place, held.apply, Plan(remove=(("hook", "v2"),)))
    assert at(held) == 0
    netns.call(place, held.apply, Plan(add=(Hook("v2", "pod", mac=mac),)))
    eventually(lambda: at(held) == index(place, "v2"))
    netns.call(place, held.apply, Plan(add=(Hook("lo", "bridge"),)))  # which holds the maps
    held.close()
    netns.run(place, "ip", "link", "del", "v2")
    fresh = driver(place, Clsact())
    assert at(fresh) == 0 and entries(fresh) == []
    fresh.close()


def test_a_barred_port_has_no_program_and_is_known_all_the_same(place: str) -> None:
    held, hook = driver(place, Clsact()), Hook("v0", "pod", barred=True, mac="02:00:00:00:00:0b")
    netns.call(place, held.apply, Plan(add=(FACTS[0], Hook("lo", "bridge"), Hook("v0", "pod"))))
    netns.call(place, held.apply, Plan(change=(hook,)))
    assert names(place, Clsact(), "v0", INGRESS) == []
    held.close()
    fresh = driver(place, Clsact())
    assert netns.call(place, fresh.observe)[hook.key] == hook
    fresh.close()


def entries(held: PathDriver) -> list[bytes]:
    assert held._loaded is not None
    return [key for key, _ in held._loaded.maps["np_ports"].items()]

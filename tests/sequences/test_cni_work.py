"""What one ADD and one DEL cost the agent, counted rather than timed: the same among 10 pods and 1,000."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from netplane.cni import frame as wire
from netplane.cni.frame import Frame
from netplane.cni.nodebridges import PODS
from netplane.cni.render import CniConfig, CniRoom
from netplane.cni.server import CniServer
from netplane.cnihost import CniHost
from netplane.datapath.room import PathConfig, PathRoom
from netplane.kernel.rtnetlink import LinkDriver
from netplane.model.facts import Fact, FactKey, FastPath, Mark, Plan
from netplane.overlay.room import OverlayRoom
from netplane.policy.birth import Birth
from netplane.policy.room import PolicyRoom
from netplane.reconcile.core import Core
from netplane.services.room import ServicesRoom
from netplane.spare import Spare
from netplane.store.sqlite import SqliteStore
from tests.cnihost import node

pytestmark = pytest.mark.root
RANGE = "10.244.0.0/20"
ASKED = {
    "portMappings": [{"hostPort": 30000, "containerPort": 80, "protocol": "tcp"}],
    "bandwidth": {"ingressRate": 10**8, "ingressBurst": 10**6, "egressRate": 10**8, "egressBurst": 10**6},
}


class Table:
    """A driver whose kernel is a dict, which counts what it is told."""

    name = "table"
    accepts: tuple[type[Fact], ...] = (Fact,)
    parallel = False

    def __init__(self, work: Counter[str]) -> None:
        self.work = work
        self.rows: dict[FactKey, Mark] = {}

    def observe(self) -> Mapping[FactKey, Mark]:
        return dict(self.rows)

    def apply(self, plan: Plan) -> None:
        self.work["plans"] += 1
        self.work["facts"] += len(plan.add) + len(plan.change) + len(plan.remove)
        self.rows.update((fact.key, fact.mark) for fact in (*plan.add, *plan.change))
        for key in plan.remove:
            self.rows.pop(key, None)


class Machine:
    """A core without its loops, with the rooms of an agent, over a store in a file."""

    def __init__(self, directory: Path, netns: str) -> None:
        self.netns = netns
        self.work: Counter[str] = Counter()
        self.store = SqliteStore(str(directory / "state.db"))
        self.store.put(node(RANGE))
        config = CniConfig(cluster_cidrs=("10.244.0.0/16",), boot_id="boot-1")
        path = PathConfig(("eth0",), FastPath(gateway_mac="02:00:00:00:00:01"), "npbr0")
        policy = PolicyRoom("n1")
        rooms: list[Any] = [
            CniRoom("n1", config),
            OverlayRoom("n1"),
            ServicesRoom("n1", ("192.0.2.1",), ("10.244.0.0/16",), ("10.96.0.0/16",)),
            policy,
            PathRoom("n1", path),
        ]
        table = Table(self.work)
        self.core = Core(self.store, [(room, (table,)) for room in rooms])
        self.core.load()
        self._count(rooms)
        self.links = LinkDriver()
        host = CniHost(rooms[0], self.core, self.links)
        host.birth, host.spare = Birth(policy, "cni"), Spare(directory, self.store)
        self.server = CniServer(str(directory / "cni.sock"), host, config)
        self.server.verbs.recover()

    def _count(self, rooms: list[Any]) -> None:
        for room in rooms:
            room.render = self._counting("renders", room.render)
        ledger = self.core._rooms.settlers[0].ledger
        plain = ledger.difference

        def difference(updates: Any) -> Any:
            self.work["diffed"] += sum(len(facts) for facts in updates.values())
            return plain(updates)

        ledger.difference = difference  # type: ignore[method-assign]
        with self.store._writer.use() as db:
            db.set_trace_callback(lambda _: self.work.update(statements=1))
        queue = self.core._rooms.queue
        queue.add_all = self._counting("wakes", queue.add_all)  # type: ignore[method-assign]

    def _counting(self, what: str, call: Any) -> Any:
        def counted(*words: Any) -> Any:
            self.work[what] += 1
            return call(*words)

        return counted

    def __call__(self, command: str, container: str) -> None:
        runtime = ASKED if container == "counted" else {}
        config = {"cniVersion": "1.0.0", "name": "net", "type": "netplane", "runtimeConfig": runtime}
        frame = Frame(command, container, self.netns, "eth0", "", "", json.dumps(config).encode())
        raw = wire.request(frame)
        status, text = wire.unpack(self.server.answer(raw))
        assert status == b"0", text

    def costs(self, command: str) -> Counter[str]:
        self.work.clear()
        self(command, "counted")
        return Counter(self.work)

    def close(self) -> None:
        self.links.close()
        self.store.close()


def test_an_add_and_a_del_cost_the_same_among_ten_pods_and_a_thousand(
    tmp_path: Path, make_netns: Callable[[str], str]
) -> None:
    machine = Machine(tmp_path, make_netns("pod"))
    costs: dict[int, list[Counter[str]]] = {}
    there = 0
    for pods in (10, PODS - 1, PODS + 10, 1000):
        for number in range(there, pods):
            machine("ADD", f"other-{number}")
        there = pods
        costs[pods] = [machine.costs(command) for command in ("ADD", "DEL")]
    assert costs[10] == costs[PODS - 1]
    assert costs[PODS + 10] == costs[1000]
    for first, further in zip(costs[10], costs[1000], strict=True):
        assert further - first <= Counter(facts=1, diffed=6)  # its route; and its bridge, which is there
    add, delete = costs[10]
    assert add["statements"] <= 15 and add["plans"] <= 3 and add["renders"] <= 4, add
    assert add["wakes"] <= 1 and delete["wakes"] <= 1, (add, delete)  # of the loop, for what is not theirs
    assert delete["statements"] <= 10 and delete["plans"] <= 2 and delete["renders"] <= 2, delete
    machine.close()

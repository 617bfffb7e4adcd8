"""What one ADD costs among 10 leases and among 10,000 of a store in a file, counted rather than timed.

Without an agent: all of the process's work, from opening the file. With one: an ADD once it runs, by the
store, the index of addresses and the rooms that a node has.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from netplane import standalone
from netplane.cni import frame as wire
from netplane.kernel import netns
from netplane.model import codec
from netplane.model.base import Object, ObjectMeta
from netplane.model.own import Attachment, AttachmentIP, AttachmentSpec
from netplane.model.pods import Pod, PodSpec
from netplane.model.snapshot import Snapshot
from netplane.store import sqlitefile
from netplane.store.sqlite import SqliteStore
from tests.sequences.test_cni_work import ASKED, Machine

pytestmark = pytest.mark.root
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
FIRST = int(ip_address("10.64.0.2"))
NETWORK = {
    "name": "many",
    "bridge": "br-many",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"ranges": [[{"subnet": "10.64.0.0/16"}], [{"subnet": "fd00:64::/64"}]]},
    "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
}


def leases(first: int, last: int, node: str, netns_path: str, boot: str = BOOT) -> Iterator[Object]:
    """Of the network, with a port each, and their pods."""
    for i in range(first, last):
        ips = (
            AttachmentIP(address=f"{ip_address(FIRST + i)}/16", gateway="10.64.0.1"),
            AttachmentIP(address=f"fd00:64::{i + 2:x}/64", gateway="fd00:64::1"),
        )
        spec = AttachmentSpec(
            node=node, container_id=f"c{i}", ifname="eth0", netns=netns_path, network="many", ips=ips,
            pod_namespace="default", pod_name=f"c{i}", host_ifname=f"npv{i:011x}", bridge="br-many",
            ipam="netplane", boot_id=boot, config={"isGateway": True, "ipMasq": True},
        )  # fmt: skip
        yield Attachment(metadata=ObjectMeta(name=f"{i:012x}.{node}"), spec=spec, phase="Ready")
        yield Pod(metadata=ObjectMeta(name=f"c{i}", namespace="default"), spec=PodSpec(node_name=node))


class Counted:
    """Steps of SQLite's machine in every store that is opened from now on, objects that are decoded, and
    those that anybody is given by an index of the snapshot."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.work: Counter[str] = Counter()
        decode, connect = codec.decode, sqlitefile.connect

        def decoding(kind: str, body: bytes) -> Object:
            self.work["decoded"] += 1
            return decode(kind, body)

        def connecting(path: str) -> sqlite3.Connection:
            db = connect(path)
            db.set_progress_handler(self._step, 1)
            return db

        by, listed = Snapshot.by, Snapshot.list

        def looking(snapshot: Snapshot, *words: Any) -> Any:
            found = by(snapshot, *words)
            self.work["looked at"] += len(found)
            return found

        def listing(snapshot: Snapshot, *words: Any) -> Iterator[Any]:
            for obj in listed(snapshot, *words):
                self.work["looked at"] += 1
                yield obj

        patch.setattr(Snapshot, "by", looking)
        patch.setattr(Snapshot, "list", listing)
        patch.setattr(codec, "decode", decoding)
        patch.setattr(sqlitefile, "connect", connecting)

    def _step(self) -> int:
        self.work["steps"] += 1
        return 0

    def of(self, call: Callable[[], Any]) -> Counter[str]:
        self.work.clear()
        call()
        return Counter(self.work)


def test_without_an_agent_an_add_reads_the_same_among_ten_leases_and_ten_thousand(
    tmp_path: Path, make_netns: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at, pod = make_netns("node"), make_netns("pod")
    node, state = socket.gethostname().lower(), tmp_path / "state"
    config = {
        "cniVersion": "1.0.0", "type": "netplane", "socket": str(tmp_path / "run" / "cni.sock"),
        "stateDir": str(state), **NETWORK,
    }  # fmt: skip
    given: list[str] = []

    def ask(command: str, container: str) -> None:
        """Each has an interface and a port of its own, and none goes for the next: a DEL reads all leases."""
        port = {"hostPort": 8080 + len(given), "containerPort": 80, "protocol": "tcp"}
        more = json.dumps({**config, "runtimeConfig": {"portMappings": [port]}})
        frame = wire.Frame(command, container, pod, container, "", "", more.encode())
        status, text = netns.call(at, standalone.carry_out, frame)
        assert status == 0, text
        if command == "ADD":
            given.append(json.loads(text)["ips"][0]["address"])

    for command in ("ADD", "DEL"):
        ask(command, "first")  # makes the index
    costs: dict[int, Counter[str]] = {}
    there = 0
    for held in (10, 10_000):
        with_more = SqliteStore(str(state / "state.db"))
        with_more.put_all(leases(there, held, node, pod))
        with_more.close()
        there = held
        ask("ADD", "warm")
        with monkeypatch.context() as patch:
            counted = Counted(patch)
            costs[held] = counted.of(lambda: ask("ADD", "counted"))
        for container in ("warm", "counted") if held == 10 else ():
            ask("DEL", container)
    assert len(set(given)) == len(given), "each of them is another's, or was a moment ago"
    few, many = costs[10], costs[10_000]
    assert few["decoded"] == many["decoded"] <= 12 and few["looked at"] == many["looked at"] <= 20, costs
    assert many["steps"] <= 1.25 * few["steps"], costs  # a tree of 10,000 is a page or two deeper
    assert os.path.getsize(state / "state.db") > 5_000_000


class Agent(Machine):
    """An agent's rooms over a file with leases in a network of its own, and in the node's pod CIDRs."""

    def __init__(self, directory: Path, pod: str, held: int) -> None:
        directory.mkdir()
        store = SqliteStore(str(directory / "state.db"))
        store.put_all(leases(0, held, "n1", pod, "boot-1"))
        store.close()
        super().__init__(directory, pod)
        self.given: list[str] = []

    def __call__(self, command: str, container: str) -> None:
        config = {"cniVersion": "1.0.0", "type": "netplane", **NETWORK, "runtimeConfig": ASKED}
        frame = wire.Frame(command, container, self.netns, "eth0", "", "", json.dumps(config).encode())
        status, text = wire.unpack(self.server.answer(wire.request(frame)))
        assert status == b"0", text
        if command == "ADD":
            self.given.append(json.loads(text)["ips"][0]["address"])


def test_with_an_agent_an_add_costs_the_same_among_ten_leases_and_ten_thousand(
    tmp_path: Path, make_netns: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SQLite's file and the index of addresses: statements, steps, objects read and looked at, facts."""
    counted, pod = Counted(monkeypatch), make_netns("pod")
    costs: dict[int, list[Counter[str]]] = {}
    for held in (10, 10_000):
        machine = Agent(tmp_path / str(held), pod, held)
        machine("ADD", "warm")  # the first after a start makes the index
        machine("DEL", "warm")
        found = costs[held] = []
        for command in ("ADD", "DEL"):
            counted.work.clear()
            found.append(machine.costs(command) + counted.work)
        expected = [f"{ip_address(FIRST + held + i)}/16" for i in range(2)]
        assert machine.given == expected
        machine.close()
    for few, many in zip(costs[10], costs[10_000], strict=True):
        steps = few.pop("steps"), many.pop("steps")
        assert few == many and few["statements"] <= 15 and few["decoded"] <= 4, costs
        assert steps[1] <= 1.25 * steps[0], steps

"""Policy: load 1,000 policies over 1,000 pods on a node of 250, change one pod, and pass packets by them.

Everything runs from objects in a store through the agent's loop into the kernel of a new namespace.
Packets: a client and a server behind a routing node (client ── node ── server); beside our rules, in the
same run, no rules (the floor) and a rule for each peer and port (iptables' way, the peer).
"""

from __future__ import annotations

# ruff: noqa: E501 (programs and manifests in a line)
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from netplane.kernel import netns
from netplane.kernel.flowtable import FlowTable
from netplane.kernel.nft_text import transaction
from netplane.kernel.nftables import NftDriver
from netplane.kernel.underlay import own_addresses
from netplane.model import codec
from netplane.model.base import Object, amend
from netplane.model.facts import Plan
from netplane.policy.flows import PolicyFlows
from netplane.policy.room import PolicyRoom
from netplane.reconcile.core import Core
from netplane.store import open_store

PODS, LOCAL, CHANGES, PAIRS = 1000, 250, 41, 5
Doc = dict[str, object]


def pod(i: int) -> Doc:
    node = "node-1" if i < LOCAL else f"node-{2 + i % 9}"
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": f"p{i}", "namespace": f"ns{i % 10}",
                     "labels": {"app": f"a{i}", "role": f"r{i % 100}"}},
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIP": f"10.{i // 250}.{i % 250}.2"},
    }  # fmt: skip


def policy(i: int, pods: int) -> Doc:
    """From the ten pods of a role, by two ports, and from a network: for one pod."""
    peers = [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": f"r{(i + 1) % 100}"}}},
             {"ipBlock": {"cidr": "192.168.0.0/16", "except": [f"192.168.{i % 256}.0/24"]}}]  # fmt: skip
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": f"np{i}", "namespace": f"ns{i % pods % 10}"},
        "spec": {"podSelector": {"matchLabels": {"app": f"a{i % pods}"}},
                 "ingress": [{"from": peers, "ports": [{"port": 80}, {"port": 8000, "endPort": 8080}]}]},
    }  # fmt: skip


class Watched(NftDriver):
    """The driver, telling when a transaction was committed."""

    def __init__(self) -> None:
        super().__init__()
        self.committed = threading.Event()
        self.at = 0.0

    def apply(self, plan: Plan) -> None:
        super().apply(plan)
        self.at = time.perf_counter()
        self.committed.set()


class Bed:
    """A namespace with the loop of an agent that has the policy room alone."""

    def __init__(self, home: Path, objects: list[Object]) -> None:
        self.netns = str(home / "ns")
        netns.create(self.netns)
        self.store = open_store(f"sqlite://{home}/state.db")
        for obj in objects:
            self.store.put(obj)
        self.driver, table = netns.call(self.netns, lambda: (Watched(), FlowTable()))
        flows, room = PolicyFlows(table, own_addresses), PolicyRoom("node-1")
        self.core = Core(self.store, [(room, (self.driver, flows))])
        flows.judge = room.judge(self.core.snapshot)

    def load(self) -> float:
        """From an empty kernel to every rule committed; seconds, the store's list included."""
        begin = time.perf_counter()
        self.core.start()
        assert self.core.wait_synced(120)
        return time.perf_counter() - begin

    def change(self, obj: Object) -> float:
        """From the write's return to the commit; seconds."""
        self.driver.committed.clear()
        self.core.put(obj)
        begin = time.perf_counter()
        assert self.driver.committed.wait(10)
        return max(0.0, self.driver.at - begin)

    def close(self) -> None:
        self.core.stop()
        self.store.close()
        netns.delete(self.netns)


def loads(policies: int) -> tuple[float, float, float]:
    """(seconds to load, p50 of a pod's change, MB that this took of the process)."""
    objects = [
        codec.parse(dict(doc))
        for doc in (*map(pod, range(PODS)), *(policy(i, PODS) for i in range(policies)))
    ]
    with tempfile.TemporaryDirectory() as home:
        bed = Bed(Path(home), objects)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        took = bed.load()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        times = []
        for n in range(CHANGES):
            one = codec.parse(dict(pod(n)))
            role = f"r{(n * 7 + 3) % 100}"
            changed = amend(one, metadata=amend(one.metadata, labels={**one.metadata.labels, "role": role}))
            times.append(bed.change(changed))
        bed.close()
        return took, statistics.median(times), grown


# --- packets ----------------------------------------------------------------------------------------

SERVER = """
import socket, threading
s = socket.create_server(("", 7000), backlog=512); print("ready", flush=True)
def talk(c):
    c.setsockopt(6, 1, 1)
    while data := c.recv(64): c.send(data)
while True:
    threading.Thread(target=talk, args=(s.accept()[0],), daemon=True).start()
"""
CLIENT = """
import json, socket, statistics, time
def connect():
    begin = time.perf_counter(); c = socket.create_connection(("10.1.2.2", 7000)); return c, time.perf_counter() - begin
connects = []
for _ in range(300):
    c, took = connect(); connects.append(took); c.close()
c, _ = connect(); c.setsockopt(6, 1, 1); rounds = []
for _ in range(4000):
    begin = time.perf_counter(); c.send(b"x"); c.recv(64); rounds.append(time.perf_counter() - begin)
print(json.dumps([statistics.median(connects) * 1e6, statistics.median(rounds) * 1e6]))
"""


def wire(home: Path) -> dict[str, str]:
    places = {name: str(home / name) for name in ("node", "client", "server")}
    for path in places.values():
        netns.create(path)
    for i, name in enumerate(("client", "server"), 1):
        lines = [f"link add n{i} type veth peer name eth0 netns {places[name]}", f"link set n{i} up",
                 f"address add 10.1.{i}.1/24 dev n{i}"]  # fmt: skip
        netns.run(places["node"], "ip", "-batch", "-", input="\n".join(lines), stdin=None)
        lines = ["link set lo up", f"address add 10.1.{i}.2/24 dev eth0", "link set eth0 up",
                 f"route add default via 10.1.{i}.1"]  # fmt: skip
        netns.run(places[name], "ip", "-batch", "-", input="\n".join(lines), stdin=None)
    netns.call(places["node"], lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
    return places


def selecting(count: int) -> list[Object]:
    """A server that ``count`` policies select, each of its own port and four peers; the last allows ours."""
    pods: list[Doc] = [{**pod(1), "metadata": {"name": "server", "namespace": "x", "labels": {"app": "server"}},
                        "status": {"podIP": "10.1.2.2"}}]  # fmt: skip
    policies: list[Doc] = []
    for i in range(count):
        last = i == count - 1
        for j in range(4):
            ip = "10.1.1.2" if last and j == 3 else f"10.{100 + i // 250}.{i % 250}.{j + 2}"
            meta = {"name": f"p{i}-{j}", "namespace": "x", "labels": {"of": f"g{i}"}}
            pods.append({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": {"podIP": ip}})
        rule = {"from": [{"podSelector": {"matchLabels": {"of": f"g{i}"}}}],
                "ports": [{"port": 7000 if last else 9000 + i}]}  # fmt: skip
        policies.append({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": f"np{i:04}", "namespace": "x"},
            "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [rule]},
        })  # fmt: skip
    return [codec.parse(doc) for doc in (*pods, *policies)]


def ours(count: int) -> str:
    from netplane.model.snapshot import Snapshot

    snapshot, room = Snapshot.of(selecting(count)), PolicyRoom("node-1")
    facts = {f.key: f for scope in room.scopes(None, snapshot) for f in room.render(scope, snapshot)}
    return transaction(Plan(add=tuple(f for f in facts.values() if f.key[0] != "flows")))


def listed(count: int) -> str:
    """The same policies as iptables has them: one rule after another."""
    lines = ["add table inet netplane", "add chain inet netplane f { type filter hook forward priority 0; }",
             "add rule inet netplane f ct state established,related accept"]  # fmt: skip
    for i in range(count):
        last = i == count - 1
        for j in range(4):
            ip = "10.1.1.2" if last and j == 3 else f"10.{100 + i // 250}.{i % 250}.{j + 2}"
            dport = 7000 if last else 9000 + i
            lines.append(f"add rule inet netplane f ip daddr 10.1.2.2 ip saddr {ip} tcp dport {dport} accept")
    return "\n".join([*lines, "add rule inet netplane f ip daddr 10.1.2.2 drop"])


def packets(places: dict[str, str], rules: str) -> tuple[float, float]:
    """(connect p50, request-response p50) in µs under these rules of the node."""
    text = "add table inet netplane\ndelete table inet netplane\n" + rules
    netns.run(places["node"], "nft", "-f", "-", input=text, stdin=None)
    done = netns.run(places["client"], sys.executable, "-I", "-S", "-c", CLIENT)
    connect, round_trip = json.loads(done)
    return connect, round_trip


def compare(places: dict[str, str]) -> dict[str, list[float]]:
    """Every kind in turn, PAIRS times; medians."""
    floor = ("add table inet netplane\nadd chain inet netplane f { type filter hook forward priority 0; }\n"
             "add rule inet netplane f ct state established,related accept\n")  # fmt: skip
    makers: dict[str, Callable[[], str]] = {"none": lambda: floor}
    for count in (1, 100, 1000):
        makers[f"ours {count}"] = lambda count=count: ours(count)  # type: ignore[misc]
    for count in (100, 1000):
        makers[f"list {count}"] = lambda count=count: listed(count)  # type: ignore[misc]
    texts = {name: make() for name, make in makers.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in texts}
    for _ in range(PAIRS):
        for name, text in texts.items():
            found[name].append(packets(places, text))
    return {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in found.items()
    }


def main() -> int:
    netns.make_private(mounts=True, network=True)
    took, p50, grown = loads(1000)
    _, few, _ = loads(100)
    print(f"policy: load 1,000 policies, 1,000 pods, 250 here: {took:.2f} s (must: < 2 s); {grown:.0f} MB")
    print(f"policy: one pod's label, event to commit p50: {p50 * 1e3:.1f} ms with 1,000 policies,"
          f" {few * 1e3:.1f} ms with 100 (must: ≤ 10 ms)")  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        places = wire(Path(home))
        server = netns.popen(
            places["server"], [sys.executable, "-I", "-S", "-c", SERVER], stdout=subprocess.PIPE
        )
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        try:
            rows = compare(places)
        finally:
            server.kill()
            for path in places.values():
                netns.delete(path)
    base = rows["none"]
    for name, (connect, round_trip) in rows.items():
        print(f"policy: {name:>9} policies: connect {connect:.1f} µs ({connect / base[0]:.2f} ×),"
              f" request-response {round_trip:.1f} µs ({round_trip / base[1]:.2f} × none)")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Three namespaces with three pods each on two nodes, a prober in each, and the oracle beside them.

     node-1                      node-2
x/a  x/c  y/b  z/a  z/c     x/b  y/a  y/c  z/b        ports 80 and 81, TCP, UDP (and SCTP)

In front of every pod stands a service with an address of each family, whose port 80 leads to the pod's 81
and 81 to 80: a policy that looked at the service instead of the pod behind it would be seen.
"""

from __future__ import annotations

# ruff: noqa: E501 (manifests in a line)
import copy
import json
import socket
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from netplane.lab import Lab
from netplane.model import codec
from netplane.model.base import Key
from netplane.store import open_store

from .policy_oracle import OraclePod, World, allowed

NAMESPACES, NAMES, PORTS = ("x", "y", "z"), ("a", "b", "c"), (80, 81)
CROSSED = {80: 81, 81: 80}  # a service's port: the port of the pod behind it
PROTOCOLS = ("TCP", "UDP", "SCTP")
PROBER = Path(__file__).with_name("policy_prober.py")
PATIENCE = 0.15  # seconds for an answer; a doubtful answer is asked again with SURE
SURE = 1.0
PATIENT = 15.0  # for what the agents do once, at the start
ATTEMPTS = 3  # an agent says that it is in sync a moment before the last event reaches its queue
Probe = tuple[str, str, str, int]  # source pod, protocol, address, port


class PolicyWorld:
    """`check` applies policies, waits until both agents hold them, and compares packets with the oracle."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.store = open_store(lab.store)
        self.pods: dict[str, Any] = {}
        self._threads = ThreadPoolExecutor(16)
        self.oracle = World([], {ns: {"ns": ns} for ns in NAMESPACES})
        self.put(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns, "labels": {"ns": ns}}}
                   for ns in NAMESPACES))  # fmt: skip
        for i, key in enumerate(f"{ns}/{name}" for ns in NAMESPACES for name in NAMES):
            self.add_pod(key, lab.nodes[i % len(lab.nodes)])
        self.vips: dict[str, str] = {}  # a service's address: that of the pod behind it
        self._serve()

    def _serve(self) -> None:
        ports = [{"name": f"{k.lower()}-{p}", "protocol": k, "port": p, "targetPort": CROSSED[p]}
                 for p in PORTS for k in PROTOCOLS]  # fmt: skip
        keys = {key: key.split("/") for key in self.pods}
        self.put(*({"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"s-{name}", "namespace": ns},
                    "spec": {"selector": served(key), "ipFamilyPolicy": "RequireDualStack", "ports": ports}}
                   for key, (ns, name) in keys.items()))  # fmt: skip

        def addresses() -> dict[str, str]:
            found = {}
            for key, (ns, name) in keys.items():
                service: Any = self.store.get(Key("Service", ns, f"s-{name}"))
                for vip in service.spec.cluster_ips:
                    found[vip] = self.pods[key][0].ip_of("IPv6" if ":" in vip else "IPv4")
            return found

        wait(lambda: len(addresses()) == 2 * len(keys), PATIENT, "addresses of the services")
        self.vips = addresses()
        probes = [
            (key, k, vip, p) for key in keys for k in ("TCP", "UDP") for vip in self.vips for p in PORTS
        ]
        wait(lambda: all(self.probe(probes, SURE).values()), PATIENT, "every service answers every pod")

    def add_pod(self, key: str, node: Any, ports: list[dict[str, Any]] | None = None) -> None:
        ns, _, name = key.partition("/")
        ports = ports or [{"containerPort": p, "name": f"serve-{p}-{k.lower()}", "protocol": k}
                          for p in PORTS for k in PROTOCOLS]  # fmt: skip
        labels = {"pod": name, **served(key)}
        self.put({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": ns, "labels": labels},
                  "spec": {"nodeName": node.name, "containers": [{"name": "c", "ports": ports}]}})  # fmt: skip
        pod = node.add_pod(name, ns)
        process = pod.popen(
            "python3", "-I", "-S", str(PROBER), key, *map(str, PORTS), stdin=-1, stdout=-1, text=True
        )
        assert process.stdout.readline() == "ready\n"
        self.pods[key] = (pod, process)
        self.oracle.pods.append(OraclePod(ns, name, labels, list(pod.ips), ports))

    # --- objects ------------------------------------------------------------------------------------

    def put(self, *docs: dict[str, Any]) -> None:
        for doc in docs:
            obj = codec.parse(copy.deepcopy(doc))
            live = self.store.get(obj.key)
            if live is not None and live.KIND in ("Pod", "Namespace"):
                obj = codec.parse(
                    {
                        **codec.to_dict(live),
                        "metadata": {**codec.to_dict(live)["metadata"], **doc["metadata"]},
                    }
                )
            self.store.put(obj)

    def reset(self) -> None:
        """No policy, and the labels that pods and namespaces began with."""
        self.set_policies([])
        for space in NAMESPACES:
            self.label_namespace(space, {"ns": space})
            for name in NAMES:
                self.label_pod(f"{space}/{name}", {"pod": name})

    def set_policies(self, policies: Iterable[dict[str, Any]]) -> None:
        wanted = {codec.parse(copy.deepcopy(doc)).key: doc for doc in policies}
        for doc in self.oracle.policies:
            meta = doc["metadata"]
            key = Key(doc["kind"], meta.get("namespace", ""), meta["name"])
            if key not in wanted:
                self.store.delete(key)
        self.put(*wanted.values())
        self.oracle.policies = list(wanted.values())

    def label_pod(self, key: str, labels: dict[str, str]) -> None:
        ns, _, name = key.partition("/")
        labels = {**labels, **served(key)}
        self.put(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": ns, "labels": labels}}
        )
        next(p for p in self.oracle.pods if (p.namespace, p.name) == (ns, name)).labels = labels

    def label_namespace(self, name: str, labels: dict[str, str]) -> None:
        self.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        self.oracle.namespaces[name] = labels

    def settle(self, timeout: float = 10.0) -> None:
        settled(self.lab, timeout)

    # --- packets ------------------------------------------------------------------------------------

    def probe(self, probes: Iterable[Probe], timeout: float = PATIENCE) -> dict[Probe, str | None]:
        """Who answered each probe, all at once."""
        by_pod: dict[str, list[Probe]] = {}
        for one in probes:
            by_pod.setdefault(one[0], []).append(one)
        results = self._threads.map(lambda item: self._ask(*item, timeout), by_pod.items())
        return {probe: who for found in results for probe, who in found}

    def _ask(
        self, key: str, probes: list[Probe], timeout: float = PATIENCE
    ) -> list[tuple[Probe, str | None]]:
        process = self.pods[key][1]
        process.stdin.write(json.dumps([timeout, [p[1:] for p in probes]]) + "\n")
        process.stdin.flush()
        return list(zip(probes, json.loads(process.stdout.readline()), strict=True))

    def pairs(self, protocols: Iterable[str] = ("TCP",), ports: Iterable[int] = PORTS) -> Iterator[Probe]:
        """Every pod to every pod, directly and through its service, by every family."""
        for source in self.pods:
            for target, _ in self.pods.values():
                for address in (*target.ips, *(v for v, behind in self.vips.items() if behind in target.ips)):
                    yield from ((source, k, address, p) for k in protocols for p in ports)

    def expected(self, probe: Probe) -> bool:
        source, protocol, address, port = probe
        if address in self.vips:
            address, port = self.vips[address], CROSSED[port]
        mine = next(ip for ip in self.pods[source][0].ips if (":" in ip) == (":" in address))
        return allowed(self.oracle, mine, address, protocol, port)

    def verify(self, probes: Iterable[Probe]) -> None:
        """Packets do what the oracle says; what seems otherwise is asked again, with more patience."""
        want = {probe: self.expected(probe) for probe in probes}
        got = self.probe(want)
        wrong = [p for p, ok in want.items() if bool(got[p]) != ok]
        for _ in range(ATTEMPTS if wrong else 0):
            got = self.probe(wrong, SURE)
            wrong = [p for p in wrong if bool(got[p]) != want[p]]
        words = [
            f"{p[0]} → {p[1]} {p[2]}:{p[3]} should be {'allowed' if want[p] else 'denied'}" for p in wrong
        ]
        assert not wrong, "\n".join([f"{len(wrong)} of {len(want)} wrong:", *words[:12]])

    def check(self, *policies: dict[str, Any], protocols: Iterable[str] = ("TCP",)) -> None:
        self.set_policies(policies)
        self.settle()
        self.verify(list(self.pairs(tuple(protocols))))

    def close(self) -> None:
        self._threads.shutdown()
        self.store.close()


def served(key: str) -> dict[str, str]:
    """The label by which a pod's service finds it; it stays when a test changes the pod's labels."""
    return {"service": key.replace("/", "-")}


def settled(lab: Lab, timeout: float = 10.0) -> None:
    """Until every agent holds what the store says."""
    with closing(open_store(lab.store)) as store:
        _, revision = store.list()
    for node in lab.nodes:
        wait(lambda node=node: in_sync(node, int(revision)), timeout, f"{node.name} in sync")


def in_sync(node: Any, revision: int) -> bool:
    status = ask(node)
    return bool(status["synced"]) and int(status["revision"]) >= revision


def ask(node: Any) -> dict[str, Any]:
    """The agent's own word on its state."""
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(5)
        sock.connect(str(node.run_dir / "agent.sock"))
        sock.sendall(b"GET /status HTTP/1.0\r\n\r\n")
        data = b"".join(iter(lambda: sock.recv(65536), b""))
    found: dict[str, Any] = json.loads(data.partition(b"\r\n\r\n")[2])
    return found


def wait(condition: Any, timeout: float, what: str) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.005)

"""DNS of a whole agent: its file, its pods' resolv.conf, what operators ask of it, how fresh it is.

node-1 (agent) ── npbr0 10.244.x.1, fd00:10:244:x::1 ── pod "client" in namespace team
"""

from __future__ import annotations

import json
import socket
import statistics
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dnslib import DNSRecord

from netplane.lab import Lab, Settings
from netplane.lab.runner import until
from netplane.model.base import amend
from netplane.model.codec import parse_all
from netplane.model.services import EndpointSlice
from netplane.store import open_store

pytestmark = pytest.mark.root
OBJECTS = """
apiVersion: v1
kind: Service
metadata: {name: db, namespace: team}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: team, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], hostname: one}]
ports: [{port: 5432}]
---
apiVersion: v1
kind: Pod
metadata: {name: own, namespace: team}
spec:
  containers: [{name: c, image: i}]
  dnsPolicy: None
  dnsConfig: {nameservers: [9.9.9.9], searches: [lan.example], options: [{name: ndots, value: "1"}]}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("dns")
    (home / "dns.yaml").write_text("ttl: 7\nautopath: true\n")
    (home / "resolv.conf").write_text("search corp.example\n")
    return home


@pytest.fixture(scope="module")
def lab(make_module_lab: Callable[..., Lab], files: Path) -> Lab:
    args = ("--dns-config", str(files / "dns.yaml"), "--resolv-conf", str(files / "resolv.conf"),
            "--http-listen", "127.0.0.1:9153")  # fmt: skip
    found = make_module_lab(nodes=1, settings=Settings(agent_args=args))
    with closing(open_store(found.store)) as store:
        for obj in parse_all(OBJECTS):
            store.put(obj)
    found.start_agents()
    return found


@pytest.fixture(scope="module")
def client(lab: Lab) -> Any:
    return lab.nodes[0].add_pod("client", namespace="team")


def command(lab: Lab, *words: str) -> str:
    """`netplane dns …` against the node's agent: both streams."""
    node = lab.nodes[0]
    program = lab.settings.programs.netplane
    return node.run("sh", "-c", '"$@" 2>&1 || echo "exit $?"', "-", program, "dns", *words,
                    "--run-dir", node.run_dir)  # fmt: skip


def test_a_pods_resolv_conf_is_its_namespaces(client: Any) -> None:
    gateways = [entry["gateway"] for entry in client.result["ips"]]
    assert client.result["dns"] == {
        "nameservers": gateways,
        "search": ["team.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"],
        "options": ["ndots:5"],
    }
    assert "10.0.0.1" in client.run("getent", "ahostsv4", "db")


def test_a_pods_own_dns_config_is_in_the_result(lab: Lab) -> None:
    own = lab.nodes[0].add_pod("own", namespace="team")
    try:
        assert own.result["dns"] == {
            "nameservers": ["9.9.9.9"], "search": ["lan.example"], "options": ["ndots:1"]
        }  # fmt: skip
    finally:
        own.delete()


def test_a_change_in_the_store_is_in_the_answers_at_once(lab: Lab, client: Any) -> None:
    """Fifty milliseconds, from the write's return to the first right answer (median of nine)."""
    server = client.result["dns"]["nameservers"][0]
    query = bytes(DNSRecord.question("db.team.svc.cluster.local").pack())
    sock = client.python(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    took = []
    with closing(open_store(lab.store)) as store, sock:
        sock.settimeout(2)
        sock.connect((server, 53))
        (old,) = (o for o in store.list([EndpointSlice.KIND])[0] if o.name == "db-1")
        assert isinstance(old, EndpointSlice)
        for i in range(2, 11):
            address = f"10.0.0.{i}"
            (endpoint,) = old.endpoints
            store.put(amend(old, endpoints=(amend(endpoint, addresses=(address,)),)))
            began = time.monotonic()
            while True:
                sock.send(query)
                if str(DNSRecord.parse(sock.recv(512)).rr[0].rdata) == address:
                    break
                assert time.monotonic() < began + 5
                time.sleep(0.001)
            took.append(time.monotonic() - began)
    assert statistics.median(took) < 0.05, took


def test_health_says_that_it_serves(lab: Lab) -> None:
    def get(path: str) -> tuple[int, bytes]:
        with urllib.request.urlopen(f"http://127.0.0.1:9153{path}") as response:
            return response.status, response.read()

    for path in ("/readyz", "/healthz", "/livez"):
        assert lab.nodes[0].python(lambda: get(path))[0] == 200  # noqa: B023
    text = lab.nodes[0].python(lambda: get("/metrics"))[1].decode()
    for family in ("requests_total{", "responses_total{", "duration_seconds_bucket{", "waiting"):
        assert f"netplane_dns_{family}" in text


def test_names_that_are_computed_are_answered_to_pods(client: Any) -> None:
    """Over UDP, where C threads answer what is in the table, and leave these."""
    dashed = client.ip_of("IPv4").replace(".", "-")
    for name in ("tasks.db", "tasks.db.team.svc.cluster.local", "one.db"):
        assert "10.0.0." in client.run("getent", "ahostsv4", name)
    assert client.ip_of("IPv4") in client.run("getent", "ahostsv4", f"{dashed}.team.pod.cluster.local")
    own = client.ip_of("IPv6").replace(":", "-")
    assert client.ip_of("IPv6") in client.run("getent", "ahostsv6", f"{own}.team.pod.cluster.local")


def test_query_says_why(lab: Lab, client: Any) -> None:
    said = command(lab, "query", "db.team.svc.cluster.local")
    assert "Service team/db, headless" in said and "EndpointSlice team/db-1: ready" in said
    assert "NOERROR from agent" in said and "\tA\t10.0.0." in said
    said = command(lab, "query", "db", "--client", client.ip)
    assert "pod team/client asks: a short name means namespace team" in said and "\tA\t" in said
    assert "the upstreams are asked for example.com" in command(lab, "query", "example.com")
    said = command(lab, "query", "nope.team.svc.cluster.local")
    assert "no Service team/nope" in said and "NXDOMAIN" in said and "exit 1" in said
    store = lab.netplane("dns", "query", "one.db.team.svc.cluster.local", "--store", lab.store)
    assert "\tA\t10.0.0." in str(store)


def test_the_query_log_is_switched_at_run_time(lab: Lab, client: Any) -> None:
    log = lab.nodes[0].agent.log
    assert command(lab, "log").strip() == "off"
    assert command(lab, "log", "on").strip() == "on: every query"
    client.run("getent", "ahostsv4", "db")
    until(
        lambda: f"{client.ip} udp db.team.svc.cluster.local. A NOERROR" in log.read_text(),
        "a line in the log",
    )
    assert command(lab, "log", "on", "--sample", "1000").strip() == "on: one of 1000 queries"
    assert command(lab, "log", "off").strip() == "off"


def test_a_new_file_is_in_force_and_a_wrong_one_is_reported(lab: Lab, files: Path) -> None:
    name = "db.team.svc.cluster.local"
    assert f"{name}.\t7\tA\t" in command(lab, "query", name)
    (files / "dns.yaml").write_text("ttl: 99\nnegativeTTL: 3\n")
    until(lambda: f"{name}.\t99\tA\t" in command(lab, "query", name), "the new TTL")
    (files / "dns.yaml").write_text("ttl: 99\npods: sometimes\n")
    node = lab.nodes[0]
    status = ("status", "--run-dir", str(node.run_dir), "-o", "json")

    def refused() -> str:
        text = node.run(lab.settings.programs.netplane, *status)
        return str(json.loads(text).get("dns", {}).get("config", ""))

    until(lambda: "dns.yaml:2: pods: 'sometimes' is not supported" in refused(), "the refusal")
    assert f"{name}.\t99\tA\t" in command(lab, "query", name)
    metrics = node.python(lambda: urllib.request.urlopen("http://127.0.0.1:9153/metrics").read().decode())
    assert "netplane_dns_config_refused 1.0" in metrics and "netplane_dns_cache_entries" in metrics
    (files / "dns.yaml").write_text("ttl: 7\nautopath: true\n")
    until(lambda: refused() == "", "the good file")


def test_an_agent_with_a_wrong_file_does_not_start(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "dns.yaml").write_text("forward:\n  upstream: 1.1.1.1\n")
    program, home = lab.settings.programs.netplane, ("--run-dir", tmp_path, "--state-dir", tmp_path)
    words = ("agent", "--store", lab.store, *home, "--dns-config", tmp_path / "dns.yaml")
    said = lab.nodes[0].run("sh", "-c", '"$@" 2>&1 || echo "exit $?"', "-", program, *words)
    assert "dns.yaml:2: forward.upstream: object contains unknown field" in said and "exit 1" in said


def test_pods_ask_at_a_link_local_or_a_service_address(make_lab: Callable[..., Lab]) -> None:
    addresses = ["169.254.20.10", "10.96.0.53", "fd00:10:96::53"]
    listen = ",".join(f"[{a}]:53" if ":" in a else f"{a}:53" for a in addresses)
    lab = make_lab(nodes=1, settings=Settings(agent_args=("--dns-listen", listen)))
    with closing(open_store(lab.store)) as store:
        for obj in parse_all(OBJECTS):
            store.put(obj)
    lab.start_agents()
    pod = lab.nodes[0].add_pod("client", namespace="team")
    assert pod.result["dns"]["nameservers"] == addresses
    query = bytes(DNSRecord.question("db.team.svc.cluster.local").pack())
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with pod.python(socket.socket, family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((address, 53))  # so that only this address's answer counts
            sock.send(query)
            assert str(DNSRecord.parse(sock.recv(512)).rr[0].rdata) == "10.0.0.1"

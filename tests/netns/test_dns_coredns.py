"""The same objects, two servers, the same answers: ours beside CoreDNS with its kubernetes plugin.

One namespace, all on lo:

  dnspython-like client ──> 127.0.0.1:53 ours      (a Snapshot of the objects)
                       └──> 127.0.0.2:53 CoreDNS ──> 127.0.0.3:8080 an API server that lists the objects

CoreDNS is a peer of the tests: `GOBIN=$PWD/.venv/peers/bin go install github.com/coredns/coredns@v1.12.4`.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from dnslib import QTYPE, RCODE, DNSQuestion, DNSRecord

from netplane.dns.names import LocalNames, NameOptions
from netplane.dns.resolver import Resolver
from netplane.dns.server import DnsServer
from netplane.dns.table import NameTable
from netplane.dns.zone import DnsRoom
from netplane.kernel import netns
from netplane.model.base import Object
from netplane.model.codec import parse_all, to_dict
from netplane.model.facts import Plan
from netplane.model.nodes import Namespace
from netplane.model.pods import Pod
from netplane.model.services import EndpointSlice, Service
from netplane.model.snapshot import Snapshot

pytestmark = [pytest.mark.root, pytest.mark.peer]
COREDNS = Path(__file__).parents[2] / ".venv/peers/bin/coredns"

OBJECTS = """
{apiVersion: v1, kind: Namespace, metadata: {name: team}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: empty}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: team}
spec:
  {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, "fd00:96::a"],
   ports: [{name: http, port: 80, protocol: TCP}, {name: dns, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: v4, namespace: team}
spec: {clusterIP: 10.96.0.11, clusterIPs: [10.96.0.11], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: out, namespace: team}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: v1
kind: Service
metadata: {name: head, namespace: team}
spec: {clusterIP: None, clusterIPs: [None], ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: none, namespace: team}
spec: {clusterIP: None, clusterIPs: [None], ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: team, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.5], hostname: first}, {addresses: [10.244.0.6]}]
ports: [{name: http, port: 8080}, {name: dns, port: 5353, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: head-4, namespace: team, labels: {kubernetes.io/service-name: head}}
addressType: IPv4
endpoints:
- {addresses: [10.244.0.5], hostname: first}
- {addresses: [10.244.0.6]}
- {addresses: [10.244.0.7], conditions: {ready: false}}
ports: [{name: http, port: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: head-6, namespace: team, labels: {kubernetes.io/service-name: head}}
addressType: IPv6
endpoints: [{addresses: ["fd01::5"], hostname: first}, {addresses: ["fd01::6"]}]
ports: [{name: http, port: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: none-1, namespace: team, labels: {kubernetes.io/service-name: none}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.8], conditions: {ready: false}}]
ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: team}
spec: {containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.244.0.5, podIPs: [{ip: 10.244.0.5}]}
"""
PATHS: dict[str, type[Object]] = {
    "/api/v1/namespaces": Namespace, "/api/v1/services": Service, "/api/v1/pods": Pod,
    "/apis/discovery.k8s.io/v1/endpointslices": EndpointSlice,
}  # fmt: skip


PORTS = {"verified": 53, "insecure": 5300, "disabled": 5301}  # how each answers for pods


class Api(BaseHTTPRequestHandler):
    """Lists, and watches on which nothing ever happens: all that the plugin needs of an API server."""

    protocol_version = "HTTP/1.1"
    snapshot = Snapshot()
    stopping = threading.Event()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        kind = PATHS.get(path)
        if kind is None:
            self.answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404})
        elif "watch=" in query and "sendInitialEvents=true" in query:  # ask for a plain list, then
            self.answer(422, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid",
                              "code": 422})  # fmt: skip
        elif "watch=" in query:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.stopping.wait(60)
        else:
            items = [to_dict(o) for o in self.snapshot.list(kind)]
            for item in items:
                for port in (*item.get("ports", ()), *item.get("spec", {}).get("ports", ())):
                    port.setdefault("protocol", "TCP")  # as the API server does
                item["metadata"] |= {"resourceVersion": "1", "uid": item["metadata"]["name"]}
            self.answer(200, {"kind": f"{kind.KIND}List", "apiVersion": kind.API_VERSION,
                              "metadata": {"resourceVersion": "1"}, "items": items})  # fmt: skip

    def answer(self, code: int, doc: Any) -> None:
        body = json.dumps(doc).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not news."""


class Both:
    """`ask` gives both servers' answers to one question."""

    def __init__(self, ns: str) -> None:
        self._ns = ns

    def ask(self, name: str, kind: str, port: int = 53) -> tuple[Any, Any]:
        return self._one(("127.0.0.1", port), name, kind), self._one(("127.0.0.2", port), name, kind)

    def raw(self, name: str, kind: int, klass: int = 1, more: bytes = b"") -> tuple[Any, Any]:
        """For types that have no name: rcode, AA, answers, additional (OPT too), authority's owners."""
        question = DNSRecord(q=DNSQuestion(name, kind, klass)).pack()
        packet = bytes(question[:10]) + bytes((0, bool(more))) + bytes(question[12:]) + more
        return self._raw(("127.0.0.1", 53), packet), self._raw(("127.0.0.2", 53), packet)

    def _raw(self, server: tuple[str, int], packet: bytes) -> Any:
        reply = self._sent(server, packet)
        answers = sorted((str(r.rname).lower(), QTYPE[r.rtype], r.ttl) for r in reply.rr)
        more = [(str(r.rname), QTYPE[r.rtype], r.ttl) for r in reply.ar]
        return RCODE[reply.header.rcode], reply.header.aa, answers, more, [str(r.rname) for r in reply.auth]

    def _sent(self, server: tuple[str, int], packet: bytes) -> DNSRecord:
        with netns.call(self._ns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            sock.connect(server)
            sock.send(packet)
            return DNSRecord.parse(sock.recv(4096))

    def _one(self, server: tuple[str, int], name: str, kind: str) -> Any:
        reply = self._sent(server, bytes(DNSRecord.question(name, kind).pack()))
        sections = [
            sorted((str(r.rname).lower(), QTYPE[r.rtype], r.ttl, str(r.rdata)) for r in part)
            for part in (reply.rr, reply.ar)
        ]
        denial = [(str(r.rname), r.ttl, str(r.rdata).split()[-1]) for r in reply.auth]  # its minimum
        return RCODE[reply.header.rcode], reply.header.aa, *sections, denial


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    if not COREDNS.exists() and shutil.which("coredns") is None:
        pytest.skip(f"needs CoreDNS: GOBIN={COREDNS.parent} go install github.com/coredns/coredns@v1.12.4")
    home = tmp_path_factory.mktemp("coredns")
    ns = str(home / "ns")
    netns.create(ns)
    netns.run(ns, "ip", "link", "set", "lo", "up")
    snapshot = Api.snapshot = Snapshot.of(parse_all(OBJECTS))
    api = netns.call(ns, ThreadingHTTPServer, ("127.0.0.3", 8080), Api)
    api.daemon_threads = True
    threading.Thread(target=api.serve_forever, daemon=True).start()
    servers = [ours(snapshot, mode, port) for mode, port in PORTS.items()]
    for server in servers:
        netns.call(ns, server.start)
    blocks = "".join(
        f"cluster.local:{port} in-addr.arpa:{port} ip6.arpa:{port} {{\n bind 127.0.0.2\n kubernetes {{\n"
        f"  endpoint http://127.0.0.3:8080\n  pods {mode}\n  ttl 5\n }}\n}}\n"
        for mode, port in PORTS.items()
    )
    (home / "Corefile").write_text(blocks)
    program = str(COREDNS) if COREDNS.exists() else "coredns"
    with (home / "log").open("wb") as log:
        process = netns.popen(ns, [program, "-conf", str(home / "Corefile")], stdout=log, stderr=log)
    try:
        wait(Both(ns), process, home / "log")
        yield Both(ns)
    finally:
        Api.stopping.set()
        process.terminate()
        process.wait(10)
        for server in servers:
            server.stop()
        api.shutdown()
        api.server_close()
        netns.delete(ns)


def ours(snapshot: Snapshot, mode: str, port: int) -> DnsServer:
    room, table = DnsRoom("node", addresses=("127.0.0.1",)), NameTable()
    table.apply(Plan(add=tuple(f for s in room.scopes(None, snapshot) for f in room.render(s, snapshot))))
    table.mark_synced()
    server = DnsServer(table, [("127.0.0.1", port)])
    names = LocalNames(lambda: snapshot, "cluster.local", NameOptions(pods=mode))
    server.resolver = Resolver(server.resolver.routes.default, names=names)
    return server


def wait(both: Both, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 15
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            name = "web.team.svc.cluster.local"
            if all(both.ask(name, "A", port)[1][0] == "NOERROR" for port in PORTS.values()):
                return
        except OSError:
            time.sleep(0.05)


NAMES = (
    "web.team.svc", "WEB.Team.svc", "v4.team.svc", "head.team.svc", "none.team.svc", "out.team.svc",
    "nope.team.svc", "web.nowhere.svc", "team.svc", "empty.svc", "svc", "dns-version", "nope", "",
    "first.web.team.svc", "10-244-0-6.web.team.svc", "nope.web.team.svc",
    "first.head.team.svc", "10-244-0-6.head.team.svc", "fd01--6.head.team.svc", "10-244-0-7.head.team.svc",
    "_http._tcp.web.team.svc", "_dns._udp.web.team.svc", "_http._udp.web.team.svc", "_nope._tcp.web.team.svc",
    "_http._tcp.head.team.svc", "_http._tcp.v4.team.svc", "_http._tcp.none.team.svc",
    "10-244-0-5.team.pod", "10-244-0-9.team.pod", "10-244-0-5.empty.pod", "nonsense.team.pod", "team.pod",
    "pod",
    "nowhere.svc",
    "nowhere.pod",
    "10-244-0-5.nowhere.pod",
    "x.y.z.w.team.svc",
    "a.first.head.team.svc",
)  # fmt: skip


def comparable(name: str, kind: str) -> bool:
    """Not what only CoreDNS does: SRV of names without a port, addresses of names with one, NXDOMAIN
    for other types than TXT of dns-version and for TXT of names that have something beneath them, no
    CNAME for other types than addresses.
    """
    if kind == "SRV":
        return name.startswith("_") or name.startswith("n")
    if name.startswith("_") and name not in ("_nope._tcp.web.team.svc", "_http._udp.web.team.svc"):
        return kind in ("TXT", "CNAME")
    if name == "dns-version":
        return False  # with a TTL of 28800
    return kind != "TXT" or not (name in ("", "svc", "pod", "out.team.svc") or name.count(".") == 1)


CASES = [
    (name, kind) for name in NAMES for kind in ("A", "AAAA", "SRV", "TXT", "CNAME") if comparable(name, kind)
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_forward_names(both: Both, name: str, kind: str) -> None:
    mine, theirs = both.ask(f"{name}.cluster.local".lstrip("."), kind)
    assert mine == theirs


@pytest.mark.parametrize("mode", ["insecure", "disabled"])
@pytest.mark.parametrize("kind", ["A", "AAAA"])
@pytest.mark.parametrize(
    "name",
    ["10-244-0-5.team", "10-244-0-99.team", "fd01--5.team", "nonsense.team", "10-244-0-300.team", "team", "",
     "1-2-3.team", "nowhere", "10-244-0-5.nowhere"],
)  # fmt: skip
def test_names_of_pods(both: Both, mode: str, kind: str, name: str) -> None:
    mine, theirs = both.ask(f"{name}.pod.cluster.local".lstrip("."), kind, PORTS[mode])
    assert mine == theirs


@pytest.mark.parametrize("address", ["10.96.0.10", "fd00:96::a", "10.96.0.11", "fd01::5"])
def test_reverse_names(both: Both, address: str) -> None:
    mine, theirs = both.ask(ip_address(address).reverse_pointer, "PTR")
    assert mine == theirs


def test_the_zones_own_records(both: Both) -> None:
    mine, theirs = both.ask("cluster.local", "SOA")
    assert mine[0] == theirs[0] == "NOERROR"
    assert [record[:3] for record in mine[2]] == [record[:3] for record in theirs[2]]
    assert mine[2][0][3].split()[:2] == theirs[2][0][3].split()[:2]  # the serial stands still here


@pytest.mark.parametrize("name", ["web.team.svc", "head.team.svc", "nope.team.svc", "team.svc", ""])
@pytest.mark.parametrize("kind", ["HTTPS", "SVCB", "MX", "CAA", "NAPTR", "DS", "DNSKEY", "TYPE65280"])
def test_types_that_nothing_has(both: Both, name: str, kind: str) -> None:
    number = int(kind[4:]) if kind.startswith("TYPE") else QTYPE.reverse[kind]
    mine, theirs = both.raw(f"{name}.cluster.local".lstrip("."), number)
    assert mine == theirs


@pytest.mark.parametrize("name", ["version.bind", "version.server", "hostname.bind", "id.server"])
def test_chaos(both: Both, name: str) -> None:
    mine, theirs = both.raw(name, QTYPE.TXT, klass=3)
    assert mine == theirs
    assert mine[0] == "REFUSED"


@pytest.mark.parametrize("kind", [QTYPE.AXFR, QTYPE.IXFR])
def test_transfers(both: Both, kind: int) -> None:
    mine, theirs = both.raw("cluster.local", kind)
    assert mine[0] == "REFUSED" and not mine[2]
    assert not theirs[2]


def test_an_edns_version_that_is_not_known(both: Both) -> None:
    opt = b"\0\0\x29\4\xd0\0\1\0\0\0\0"
    mine, theirs = both.raw("web.team.svc.cluster.local", QTYPE.A, more=opt)
    assert mine == theirs
    assert mine[3][0][2] >> 24 == 1  # the upper bits of BADVERS


def test_any_gets_one_set_here_and_a_refusal_there(both: Both) -> None:
    """RFC 8482 4.1 and 4.3 leave the choice; all sets are given by neither."""
    mine, theirs = both.raw("web.team.svc.cluster.local", QTYPE.ANY)
    assert mine[0] == "NOERROR" and {record[1] for record in mine[2]} == {"A"}
    assert len({record[1] for record in theirs[2]}) <= 1

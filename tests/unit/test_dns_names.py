"""Names that depend on who asks, or are computed: pods, Docker's short names, aliases, hosts, autopath."""

from __future__ import annotations

from typing import Any

import pytest
from dnslib import QTYPE, RCODE, DNSRecord

from netplane.dns import hosts, wire
from netplane.dns.answer import Client, Forward, answer
from netplane.dns.explain import explain
from netplane.dns.names import LocalNames, NameOptions
from netplane.dns.table import NameTable
from netplane.dns.zone import DnsRoom
from netplane.model.codec import parse_all
from netplane.model.facts import Plan
from netplane.model.resolvconf import Resolv
from netplane.model.snapshot import Snapshot

D = "svc.cluster.local"
OBJECTS = """
{apiVersion: v1, kind: Namespace, metadata: {name: team}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: other}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: team}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: out, namespace: team}
spec: {type: ExternalName, externalName: www.example.com}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: team, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.244.0.5], hostname: first}
- {addresses: [10.244.0.6]}
- {addresses: [10.244.0.7], conditions: {ready: false}}
ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: team}
spec: {containers: [{name: c, image: i}]}
status: {podIP: 10.244.0.5, podIPs: [{ip: 10.244.0.5}, {ip: "fd01::5"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: other}
spec: {containers: [{name: c, image: i}]}
status: {podIP: 10.244.0.9, podIPs: [{ip: 10.244.0.9}]}
---
apiVersion: v1
kind: Pod
metadata: {name: h, namespace: team}
spec: {hostNetwork: true, containers: [{name: c, image: i}]}
status: {podIP: 192.168.0.1, podIPs: [{ip: 192.168.0.1}]}
---
apiVersion: netplane.io/v1
kind: Attachment
metadata: {name: a.node}
phase: Ready
spec: {node: node, containerID: a, ifname: eth0, netns: /n, network: net1, podNamespace: team, podName: a, hostIfname: h}
---
apiVersion: netplane.io/v1
kind: Attachment
metadata: {name: db.node}
phase: Ready
spec:
  {node: node, containerID: db, ifname: eth0, netns: /n, network: net1, podNamespace: x, podName: db, hostIfname: h,
   ips: [{address: 10.244.0.77/24}], config: {aliases: [DB]}}
"""  # noqa: E501
SNAPSHOT = Snapshot.of(parse_all(OBJECTS))
A, B, HOST, NOBODY = "10.244.0.5", "10.244.0.9", "192.168.0.1", "8.8.8.8"


def table() -> NameTable:
    room, found = DnsRoom("node"), NameTable()
    found.apply(Plan(add=tuple(f for s in room.scopes(None, SNAPSHOT) for f in room.render(s, SNAPSHOT))))
    found.mark_synced()
    return found


TABLE = table()


def ask(name: str, kind: str = "A", client: str = NOBODY, **options: Any) -> Any:
    """(rcode, the answer's data sorted), or the name that is forwarded."""
    names = LocalNames(lambda: SNAPSHOT, "cluster.local", NameOptions(**options))
    packet = bytes(DNSRecord.question(name, kind).pack())
    found = answer(packet, TABLE.view, Client(client), True, names)
    if isinstance(found, Forward):
        return wire.to_text(found.name)
    assert found is not None
    reply = DNSRecord.parse(found)
    return RCODE[reply.header.rcode], *sorted(str(rr.rdata) for rr in reply.rr)


NX = ("NXDOMAIN",)
NODATA = ("NOERROR",)


@pytest.mark.parametrize(
    ("name", "kind", "mode", "expected"),
    [
        ("10-244-0-5.team.pod", "A", "verified", ("NOERROR", A)),
        ("10-244-0-5.TEAM.Pod", "A", "verified", ("NOERROR", A)),
        ("10-244-0-5.team.pod", "AAAA", "verified", NODATA),
        ("fd01--5.team.pod", "AAAA", "verified", ("NOERROR", "fd01::5")),
        ("10-244-0-5.other.pod", "A", "verified", NX),  # another namespace's
        ("10-244-0-99.team.pod", "A", "verified", NX),
        ("10-244-0-99.team.pod", "A", "insecure", ("NOERROR", "10.244.0.99")),
        ("fd01--99.team.pod", "AAAA", "insecure", ("NOERROR", "fd01::99")),
        ("nonsense.team.pod", "A", "insecure", NX),
        ("10-244-0-300.team.pod", "A", "insecure", NX),
        ("fe80--1%eth0.team.pod", "AAAA", "insecure", NX),
        ("fe80::1.team.pod", "AAAA", "insecure", NX),
        ("10-244-0-5.nowhere.pod", "A", "insecure", NX),
        ("x.10-244-0-5.team.pod", "A", "insecure", NX),
        ("team.pod", "A", "verified", NODATA),
        ("pod", "A", "verified", NODATA),
        ("nowhere.pod", "A", "verified", NX),
        ("10-244-0-5.team.pod", "A", "disabled", NX),
        ("pod", "A", "disabled", NODATA),
    ],
)
def test_names_of_pods(name: str, kind: str, mode: str, expected: Any) -> None:
    assert ask(f"{name}.cluster.local", kind, pods=mode) == expected


@pytest.mark.parametrize(
    ("name", "client", "expected"),
    [
        ("web", A, ("NOERROR", "10.96.0.10")),
        ("WEB", A, ("NOERROR", "10.96.0.10")),
        ("web", B, "web"),  # no such service in its namespace
        ("web", NOBODY, "web"),
        ("web", HOST, "web"),  # an address that is the node's tells nothing
        ("tasks.web", A, ("NOERROR", "10.244.0.5", "10.244.0.6")),
        ("tasks.web", B, "tasks.web"),
        ("out", A, "www.example.com"),
        ("db", A, ("NOERROR", "10.244.0.77")),
        ("db", B, "db"),  # in another network
        (f"tasks.web.team.{D}", NOBODY, ("NOERROR", "10.244.0.5", "10.244.0.6")),
        (f"first.web.team.{D}", NOBODY, ("NOERROR", "10.244.0.5")),
        (f"10-244-0-6.web.team.{D}", NOBODY, ("NOERROR", "10.244.0.6")),
        (f"10-244-0-7.web.team.{D}", NOBODY, NX),  # not ready
        (f"tasks.out.team.{D}", NOBODY, NX),
    ],
)
def test_short_names_tasks_and_aliases(name: str, client: str, expected: Any) -> None:
    assert ask(name, client=client) == expected
    known = not isinstance(expected, str)
    if known and expected != NX:
        assert ask(name, "AAAA", client=client) == NODATA  # a known name is never forwarded


def test_tasks_take_turns() -> None:
    names = LocalNames(lambda: SNAPSHOT, "cluster.local")
    packet = bytes(DNSRecord.question(f"tasks.web.team.{D}").pack())
    first = set()
    for _ in range(4):
        found = answer(packet, TABLE.view, Client(), True, names)
        assert isinstance(found, bytes)
        first.add(str(DNSRecord.parse(found).rr[0].rdata))
    assert first == {"10.244.0.5", "10.244.0.6"}


def test_the_hosts_file() -> None:
    text = "# c\n10.9.9.9 Box box.lan # c\nfe80::1%eth0 box.lan\nnonsense x\n10.9.9.8\n1.2.3.4 a..b\n"
    mine = hosts.parse(text)
    assert ask("box.lan", hosts=mine) == ("NOERROR", "10.9.9.9")
    assert ask("BOX", "A", hosts=mine) == ("NOERROR", "10.9.9.9")
    assert ask("box.lan", "AAAA", hosts=mine) == ("NOERROR", "fe80::1")
    assert ask("box.lan", "MX", hosts=mine) == NODATA
    assert ask("9.9.9.10.in-addr.arpa", "PTR", hosts=mine) == ("NOERROR", "box.")
    assert ask("a.b", hosts=mine) == "a.b"
    mine = hosts.parse("10.9.9.7 www.example.com\n")  # an ExternalName's target too
    assert ask(f"out.team.{D}", hosts=mine) == ("NOERROR", "10.9.9.7", "www.example.com.")


def test_autopath_answers_a_search_list_at_once() -> None:
    host = Resolv(("10.0.0.1",), ("lan",))
    options = {"autopath": True, "host": host}
    name = f"web.team.{D}.team.{D}"
    assert ask(f"web.team.svc.team.{D}", client=A, **options) == ("NOERROR", "10.96.0.10", f"web.team.{D}.")
    assert ask(name, client=A, **options) == f"web.team.{D}.lan"  # the order is the list's
    assert ask(name, client=A, autopath=True) == ("NOERROR", "10.96.0.10", f"web.team.{D}.")
    assert ask(f"web.team.{D}", client=A, **options) == ("NOERROR", "10.96.0.10")
    assert ask(f"www.example.com.team.{D}", client=A, **options) == "www.example.com.lan"
    assert ask(f"www.example.com.team.{D}", client=A) == NX  # off
    assert ask(f"www.example.com.team.{D}", client=B, **options) == NX  # not its own list
    assert ask(f"www.example.com.team.{D}", client=NOBODY, **options) == NX
    assert ask(f"nope.{D}", client=A, **options) == NX  # not the first of its list


def test_autopath_goes_on_until_a_name_exists_and_ends_in_the_denial() -> None:
    names = LocalNames(
        lambda: SNAPSHOT, "cluster.local", NameOptions(autopath=True, host=Resolv((), ("lan",)))
    )
    packet = bytes(DNSRecord.question(f"www.example.com.team.{D}").pack())
    found = answer(packet, TABLE.view, Client(A), True, names)
    asked = []
    while isinstance(found, Forward):
        asked.append(wire.to_text(found.name))
        assert found.limit == 512 and len(found.chain) == 1
        found = found.otherwise
    assert asked == ["www.example.com.lan", "www.example.com"]
    assert isinstance(found, bytes)
    reply = DNSRecord.parse(found)
    assert reply.header.rcode == RCODE.NXDOMAIN and not reply.rr and reply.auth[0].rtype == QTYPE.SOA
    norecursion = DNSRecord.question(f"www.example.com.team.{D}")
    norecursion.header.rd = 0
    plain = answer(bytes(norecursion.pack()), TABLE.view, Client(A), True, names)
    assert isinstance(plain, bytes)


@pytest.mark.parametrize(
    ("name", "client", "reason"),
    [
        (f"web.team.{D}", "", "Service team/web, virtual IP 10.96.0.10"),
        (f"nope.team.{D}", "", "no Service team/nope"),
        (
            f"tasks.web.team.{D}",
            "",
            "EndpointSlice team/web-1: ready 10.244.0.5, 10.244.0.6; not ready, so not",
        ),
        (f"x.web.team.{D}", "", "no record 'x': it must be a ready endpoint's hostname"),
        (f"out.team.{D}", "", "Service team/out, ExternalName www.example.com"),
        (f"team.{D}", "", "namespace team: declared"),
        ("10-244-0-5.team.pod.cluster.local", "", "Pod team/a has 10.244.0.5"),
        ("99.0.96.10.in-addr.arpa", "", "not a name of the cluster: forwarded"),
        ("10.0.96.10.in-addr.arpa", "", "virtual IP of Service team/web"),
        ("web", A, "pod team/a asks: a short name means namespace team"),
        ("db", A, "pod team/a asks: 'db' is an alias in its network"),
        ("web", NOBODY, "the client is no pod"),
        ("cluster.local", "", "the zone's own name"),
        ("x.cluster.local", "", "nothing of the zone has this name"),
        (f"_http._tcp.web.team.{D}", "", "Service team/web"),
    ],
)
def test_reasons(name: str, client: str, reason: str) -> None:
    names = LocalNames(lambda: SNAPSHOT, "cluster.local")
    lines = explain(wire.name(name), TABLE.view, Client(client), names, SNAPSHOT)
    assert reason in "\n".join(lines)

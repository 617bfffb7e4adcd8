"""Objects in, the records of the cluster's zone out: one table, and laws that hold for any cluster."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netplane.dns.zone import DnsRoom
from netplane.model.base import Object, amend
from netplane.model.codec import parse
from netplane.model.errors import Invalid
from netplane.model.facts import Record, Scope
from netplane.model.own import ALLOCATED
from netplane.model.snapshot import Snapshot
from netplane.reconcile.base import Event

ROOM = DnsRoom("a")


def service(name: str, annotations: dict[str, str] | None = None, **spec: Any) -> Any:
    spec.setdefault("ports", [{"name": "http", "port": 80}])
    meta = {"name": name, "namespace": "default", "annotations": annotations or {}}
    return parse({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})


def endpoints(name: str, *addresses: str, of: str = "web", **more: Any) -> Object:
    """A slice; an address may say "!10.0.0.1" (not ready) or "pod-0=10.0.0.1" (hostname)."""
    family = "IPv6" if addresses and ":" in addresses[0].rpartition("=")[2] else "IPv4"
    found = []
    for text in addresses:
        host, _, address = text.removeprefix("!").rpartition("=")
        found.append({"addresses": [address], "conditions": {"ready": text[0] != "!"}, "hostname": host})
    doc = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": of}
        },
        "addressType": family,
        "endpoints": found,
        "ports": [{"name": "http", "port": 8080}],
        **more,
    }  # fmt: skip
    return parse(doc)


def lines(objects: list[Object], scope: str = "default/web") -> set[str]:
    """The scope's records as "name type data" with the domain left out, and * where they rotate."""
    found = set()
    for fact in ROOM.render(Scope("dns", scope), Snapshot.of(objects)):
        assert isinstance(fact, Record)
        for data in fact.data or ("-",):
            text = f"{fact.name} {fact.type} {data}{' *' if fact.rotate else ''}"
            found.add(text.replace(".default.svc.cluster.local", ".D"))
    return found


VIP = {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::a"]}
VIP_REVERSE = {
    "10.0.96.10.in-addr.arpa PTR web.D",
    "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa PTR web.D",
}
CASES = {
    "virtual IPs of both families answer, with or without endpoints": (
        [service("web", **VIP)],
        {"web.D A 10.96.0.10", "web.D AAAA fd00::a", "_http._tcp.web.D SRV 0 50 80 web.D", *VIP_REVERSE},
    ),
    "endpoints of a virtual IP have no names, and an unnamed port no SRV": (
        [service("web", clusterIP="10.96.0.10", ports=[{"port": 80}]), endpoints("s", "10.1.0.1")],
        {"web.D A 10.96.0.10", "10.0.96.10.in-addr.arpa PTR web.D"},
    ),
    "a service without its virtual IP yet": ([service("web")], set()),
    "headless: only ready endpoints, by hostname or by address": (
        [
            service("web", clusterIP="None"),
            endpoints("s4", "pod-0=10.1.0.1", "10.1.0.2", "!10.1.0.3"),
            endpoints("s6", "pod-0=fd01::1"),
        ],
        {
            "web.D A 10.1.0.1 *", "web.D A 10.1.0.2 *", "web.D AAAA fd01::1 *",
            "pod-0.web.D A 10.1.0.1 *", "pod-0.web.D AAAA fd01::1 *", "10-1-0-2.web.D A 10.1.0.2 *",
            "_http._tcp.web.D SRV 0 33 8080 pod-0.web.D *",
            "_http._tcp.web.D SRV 0 33 8080 10-1-0-2.web.D *",
            "1.0.1.10.in-addr.arpa PTR pod-0.web.D", "2.0.1.10.in-addr.arpa PTR 10-1-0-2.web.D",
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.d.f.ip6.arpa PTR pod-0.web.D",
        },
    ),
    "an address that ends in :: is no name with a hyphen at its end": (
        [service("web", clusterIP="None", ports=[]), endpoints("s6", "fd01::", ports=[])],
        {
            "web.D AAAA fd01:: *", "fd01--0.web.D AAAA fd01:: *",
            f"{'0.' * 28}1.0.d.f.ip6.arpa PTR fd01--0.web.D",
        },
    ),
    "headless without a ready endpoint does not exist": (
        [service("web", clusterIP="None"), endpoints("s", "!10.1.0.1")],
        set(),
    ),
    "an endpoint in two slices is one; another service's slice is not ours": (
        [
            service("web", clusterIP="None", ports=[]),
            endpoints("s1", "10.1.0.1", ports=[]),
            endpoints("s2", "10.1.0.1", ports=[]),
            endpoints("other", "10.1.0.9", of="db"),
        ],
        {"web.D A 10.1.0.1 *", "10-1-0-1.web.D A 10.1.0.1 *", "1.0.1.10.in-addr.arpa PTR 10-1-0-1.web.D"},
    ),
    "dnsrr: the endpoints instead of the virtual IP, which keeps its PTR": (
        [
            service("web", {"netplane.io/endpoint-mode": "dnsrr"}, clusterIP="10.96.0.10"),
            endpoints("s", "10.1.0.1", "10.1.0.2"),
        ],
        {
            "web.D A 10.1.0.1 *", "web.D A 10.1.0.2 *",
            "10-1-0-1.web.D A 10.1.0.1 *", "10-1-0-2.web.D A 10.1.0.2 *",
            "_http._tcp.web.D SRV 0 50 8080 10-1-0-1.web.D *",
            "_http._tcp.web.D SRV 0 50 8080 10-1-0-2.web.D *",
            "10.0.96.10.in-addr.arpa PTR web.D",
        },
    ),
    "ExternalName": (
        [service("web", type="ExternalName", externalName="WWW.Example.com.".lower(), ports=[])],
        {"web.D CNAME www.example.com"},
    ),
    "two ports of one name and two protocols": (
        [
            service("web", clusterIP="10.96.0.10", ports=[
                {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53},
            ]),
        ],
        {
            "web.D A 10.96.0.10", "10.0.96.10.in-addr.arpa PTR web.D",
            "_dns._udp.web.D SRV 0 100 53 web.D", "_dns-tcp._tcp.web.D SRV 0 100 53 web.D",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize(("objects", "expected"), CASES.values(), ids=CASES.keys())
def test_a_service_becomes_these_records(objects: list[Object], expected: set[str]) -> None:
    assert lines(objects) == expected


def test_an_address_that_was_refused_is_not_answered() -> None:
    asked = service("web", **VIP)
    refusal = [{"type": ALLOCATED, "status": "False", "message": "10.96.0.10 is held by default/other"}]
    refused = amend(asked, status=amend(asked.status, conditions=refusal))
    assert "10.96.0.10" in " ".join(lines([asked]))
    assert "10.96.0.10" not in " ".join(lines([refused]))


def test_the_zone_itself_names_this_nodes_server() -> None:
    node = parse(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"},
         "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]}}
    )  # fmt: skip
    assert lines([node], scope="") == {
        "cluster.local SOA ns.dns.cluster.local hostmaster.cluster.local 1 7200 1800 86400 5",
        "cluster.local NS ns.dns.cluster.local",
        "dns-version.cluster.local TXT 1.1.0",
        "svc.cluster.local A -",
        "ns.dns.cluster.local A 10.244.1.1",
        "ns.dns.cluster.local AAAA fd00:1::1",
    }
    assert list(ROOM.scopes(Event(None, node), Snapshot.of([node]))) == [Scope("dns")]


def test_a_namespace_exists_before_its_first_service() -> None:
    namespace = parse({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
    assert lines([namespace], scope="default") == {"default.svc.cluster.local A -"}
    assert lines([], scope="default") == set()


def test_an_event_touches_what_it_changes_and_nothing_else() -> None:
    vip, headless = service("web", clusterIP="10.96.0.10"), service("db", clusterIP="None")
    of_web, of_db = endpoints("s1", "10.1.0.1"), endpoints("s2", "10.1.0.2", of="db")
    snapshot = Snapshot.of([vip, headless, of_web, of_db])
    assert list(ROOM.scopes(Event(of_web, of_web), snapshot)) == []  # its virtual IP stays
    assert list(ROOM.scopes(Event(None, of_db), snapshot)) == [Scope("dns", "default/db")]
    assert list(ROOM.scopes(Event(of_db, None), snapshot)) == [Scope("dns", "default/db")]
    assert list(ROOM.scopes(Event(vip, None), snapshot)) == [Scope("dns", "default/web")]
    every = {Scope("dns"), Scope("dns", "default/web"), Scope("dns", "default/db")}
    assert set(ROOM.scopes(None, snapshot)) == every


SERVICES = st.lists(
    st.tuples(
        st.sampled_from(["web", "db", "dns-version"]),
        st.sampled_from(["None", "10.96.0.1", "10.96.0.2"]),
        st.booleans(),
        st.lists(st.sampled_from(["10.1.0.1", "x=10.1.0.1", "!10.1.0.2", "x=10.1.0.3"]), max_size=4),
    ),
    max_size=4,
    unique_by=lambda s: s[0],
)


@given(SERVICES)
def test_no_two_scopes_ever_want_one_key(cluster: list[Any]) -> None:
    """The ledger refuses one key with two marks; a pod behind two headless services is legal."""
    objects: list[Object] = []
    for name, ip, dnsrr, addresses in cluster:
        mode = {"netplane.io/endpoint-mode": "dnsrr"} if dnsrr else None
        objects += [service(name, mode, clusterIP=ip), endpoints(f"{name}-1", *addresses, of=name)]
    snapshot = Snapshot.of(objects)
    keys = [fact.key for scope in ROOM.scopes(None, snapshot) for fact in ROOM.render(scope, snapshot)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"domain": "Cluster_Local"}, "not a DNS name"),
        ({"domain": "x." * 30 + "local"}, "leave no room"),
        ({"ttl": 3601}, "0 to 3600"),
        ({"ttl": -1}, "0 to 3600"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(Invalid, match=reason):
        DnsRoom("a", **config)


def test_a_target_that_is_no_name_is_refused_where_it_stands() -> None:
    bad = service("web", type="ExternalName", externalName=f"{'x' * 64}.example.com", ports=[])
    with pytest.raises(Invalid, match=r"default/web.*externalName.*63"):
        lines([bad])


def test_an_endpoints_hostname_must_be_a_label() -> None:
    with pytest.raises(Invalid, match=r"endpoints\[0\].hostname"):
        endpoints("s", "a.b=10.1.0.1")

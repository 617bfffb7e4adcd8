"""What a pod's resolv.conf says, by dnsPolicy and dnsConfig, as kubelet makes it."""

from __future__ import annotations

from typing import Any

import pytest

from netplane.model.codec import parse
from netplane.model.pods import Pod
from netplane.model.resolvconf import Resolv, resolv
from netplane.model.resolvconf import parse as parse_conf

HOST = Resolv(("192.168.1.1",), ("lan",), ("rotate",))
CLUSTER = ("team.svc.cluster.local", "svc.cluster.local", "cluster.local")


def pod(**spec: Any) -> Pod:
    doc = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "team"}, "spec": spec}
    found = parse({**doc, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}})
    assert isinstance(found, Pod)
    return found


CONFIG = {
    "nameservers": ["1.1.1.1"],
    "searches": ["Example.org."],
    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, Resolv(("10.1.0.1",), (*CLUSTER, "lan"), ("ndots:5",))),
        ({"dnsPolicy": "ClusterFirst"}, Resolv(("10.1.0.1",), (*CLUSTER, "lan"), ("ndots:5",))),
        ({"dnsPolicy": "Default"}, HOST),
        ({"hostNetwork": True}, HOST),
        (
            {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"},
            Resolv(("10.1.0.1",), (*CLUSTER, "lan"), ("ndots:5",)),
        ),
        (
            {"dnsPolicy": "None", "dnsConfig": CONFIG},
            Resolv(("1.1.1.1",), ("example.org",), ("ndots:2", "edns0")),
        ),
        (
            {"dnsConfig": CONFIG},
            Resolv(("10.1.0.1", "1.1.1.1"), (*CLUSTER, "lan", "example.org"), ("ndots:2", "edns0")),
        ),
    ],
)
def test_policies(spec: dict[str, Any], expected: Resolv) -> None:
    assert resolv(pod(**spec), ("10.1.0.1",), "cluster.local", HOST) == expected


def test_bounds_of_resolv_conf() -> None:
    many = {"nameservers": [f"1.1.1.{i}" for i in range(1, 4)], "searches": [f"s{i}.x" for i in range(32)]}
    found = resolv(pod(dnsConfig=many), ("10.1.0.1",), "cluster.local", HOST)
    assert len(found.nameservers) == 3 and found.nameservers[0] == "10.1.0.1" and len(found.searches) == 32


def test_a_nodes_resolv_conf() -> None:
    text = (
        "# c\nnameserver 10.0.0.1 ; c\ndomain x\nsearch Lan. .\noptions ndots:1 rotate\nnonsense\nsortlist\n"
    )
    assert parse_conf(text) == Resolv(("10.0.0.1",), ("lan",), ("ndots:1", "rotate"))

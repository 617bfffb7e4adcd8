"""`netplane policy explain` and `matrix`: what users read, from objects alone."""

from __future__ import annotations

# ruff: noqa: E501 (a case is a line)
from typing import Any

import pytest
from click.testing import CliRunner, Result

from netplane.cli import netplane
from netplane.model import codec
from netplane.store import open_store

from ..policy_cases import DENY_IN, A, cnp, labels, np, ns, port


def pod_doc(space: str, name: str, ip: str, node: str = "node-1", **more: Any) -> dict[str, Any]:
    ports = [{"containerPort": 80, "name": "http"}, {"containerPort": 53, "protocol": "UDP"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": space, "labels": {"pod": name}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": ports}], **more},
            "status": {"phase": "Running", "podIP": ip}}  # fmt: skip


WORLD = [pod_doc("x", "a", "10.0.0.1"), pod_doc("x", "b", "10.0.0.2"), pod_doc("y", "a", "10.0.1.1", "node-2"),
         {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "y", "labels": {"ns": "y"}}}]  # fmt: skip


@pytest.fixture
def run(tmp_path: Any) -> Any:
    url = f"sqlite://{tmp_path}/s.db"

    def call(docs: list[dict[str, Any]], *args: str) -> Result:
        store = open_store(url)
        for doc in [*WORLD, *docs]:
            store.put(codec.parse(doc))
        store.close()
        return CliRunner().invoke(netplane, ["policy", *args, "--store", url])

    return call


def test_allowed_names_the_rule(run: Any) -> None:
    done = run([np("web", podSelector=A, ingress=[{"from": [ns(ns="y")], "ports": [port("http")]}])],
               "explain", "y/a", "x/a:80")  # fmt: skip
    assert done.exit_code == 0
    assert done.output.splitlines() == [
        "y/a (10.0.1.1) → x/a (10.0.0.1) port 80/TCP: allowed",
        "  egress of y/a at node-2: no policy selects y/a for egress",
        "  ingress of x/a at node-1: NetworkPolicy x/web spec.ingress[0] allows it",
    ]


def test_denied_names_who_isolates(run: Any) -> None:
    docs = [DENY_IN, np("web", podSelector=A, ingress=[{"from": [ns(ns="y")], "ports": [port(80)]}])]
    done = run(docs, "explain", "b", "a:80/TCP", "-n", "x")
    assert done.exit_code == 1
    assert "denied" in done.output
    assert "isolated for ingress by NetworkPolicy x/deny-ingress, NetworkPolicy x/web" in done.output


def test_a_cluster_policy_that_denies_is_named_with_its_rule(run: Any) -> None:
    rule = {"name": "no-y", "action": "Deny", "from": [{"namespaces": labels(ns="y")}]}
    done = run([cnp("fence", "Admin", 5, ingress=[rule])], "explain", "y/a", "10.0.0.1:53/UDP")
    assert done.exit_code == 1
    assert "ClusterNetworkPolicy fence no-y denies it" in done.output


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("x/none", "x/a:80"), "there is no pod x/none"),
        (("x/a", "x/b:http"), "the port is a number"),
        (("x/a", "[fd00::1]:80"), "no address family in common"),
    ],
)
def test_what_cannot_be_explained(run: Any, args: tuple[str, ...], why: str) -> None:
    done = run([], "explain", *args)
    assert done.exit_code == 1 and why in done.output


def test_matrix(run: Any) -> None:
    done = run([np("web", podSelector=A, ingress=[{"from": [ns(ns="y")], "ports": [port(80)]}])],
               "matrix", "-n", "x", "-A")  # fmt: skip
    assert done.exit_code == 0
    assert [line.split() for line in done.output.splitlines()] == [
        ["FROM", "\\", "TO", "a", "b"],
        ["x/a", "yes", "yes"],
        ["x/b", "no", "yes"],
        ["y/a", "80/tcp", "yes"],
    ]

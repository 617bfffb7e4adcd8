"""The policies of the Kubernetes end-to-end suite, case by case, as (name, policies). Data only.

The worlds are the suite's own: namespaces x, y, z labelled ns=<name>, pods a, b, c labelled pod=<name>,
ports 80 and 81. What a case means is the oracle's to say.
"""

from __future__ import annotations

from typing import Any

# ruff: noqa: E501 (a case is a line)

Doc = dict[str, Any]


def np(name: str, namespace: str = "x", **spec: Any) -> Doc:
    spec.setdefault("podSelector", {})
    types = [t for t, key in (("Ingress", "ingress"), ("Egress", "egress")) if key in spec]
    if types:
        spec.setdefault("policyTypes", types)
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


def cnp(name: str, tier: str, priority: int, subject: Doc | None = None, **rules: Any) -> Doc:
    spec = {"tier": tier, "priority": priority, "subject": subject or {"namespaces": {}}, **rules}
    version = "policy.networking.k8s.io/v1alpha2"
    return {"apiVersion": version, "kind": "ClusterNetworkPolicy", "metadata": {"name": name}, "spec": spec}


def labels(**pairs: str) -> Doc:
    return {"matchLabels": pairs}


def expr(key: str, operator: str, *values: str) -> Doc:
    return {
        "matchExpressions": [
            {"key": key, "operator": operator, **({"values": list(values)} if values else {})}
        ]
    }


def pod(**pairs: str) -> Doc:
    return {"podSelector": labels(**pairs)}


def ns(**pairs: str) -> Doc:
    return {"namespaceSelector": labels(**pairs)}


def block(cidr: str, *holes: str) -> Doc:
    return {"ipBlock": {"cidr": cidr, **({"except": list(holes)} if holes else {})}}


def port(number: Any, protocol: str = "TCP", **more: Any) -> Doc:
    return {"port": number, "protocol": protocol, **more}


A, B = labels(pod="a"), labels(pod="b")
DENY_IN, DENY_OUT = np("deny-ingress", ingress=[]), np("deny-egress", egress=[])

TCP: list[tuple[str, list[Doc]]] = [
    ("default deny ingress", [DENY_IN]),
    ("default deny ingress of one pod", [np("p", podSelector=A, ingress=[])]),
    ("default deny both ways", [np("p", ingress=[], egress=[])]),
    ("default deny both ways, two policies", [DENY_IN, DENY_OUT]),
    ("policyTypes default: ingress", [np("p", podSelector=A)]),
    ("policyTypes default: egress rules", [{**np("p"), "spec": {"podSelector": A, "egress": [{"to": [ns(ns="y")]}]}}]),
    ("policyTypes default: no egress rule", [{**np("p"), "spec": {"podSelector": A, "egress": []}}]),
    ("egress section, types only Ingress", [np("p", podSelector=A, policyTypes=["Ingress"], egress=[])]),
    ("ingress section, types only Egress", [np("p", podSelector=A, policyTypes=["Egress"], ingress=[{}])]),
    ("allow all ingress", [DENY_IN, np("all", ingress=[{}])]),
    ("allow all egress", [DENY_OUT, np("all", egress=[{}])]),
    ("from pods of the namespace", [np("p", podSelector=A, ingress=[{"from": [pod(pod="b")]}])]),
    ("from a namespace", [np("p", podSelector=A, ingress=[{"from": [ns(ns="y")]}])]),
    ("from two namespaces (or)", [np("p", ingress=[{"from": [ns(ns="y"), ns(ns="z")]}])]),
    ("namespace by expression In", [np("p", ingress=[{"from": [{"namespaceSelector": expr("ns", "In", "y")}]}])]),
    ("namespace by expression NotIn", [np("p", ingress=[{"from": [{"namespaceSelector": expr("ns", "NotIn", "x")}]}])]),
    ("namespace by its name", [np("p", ingress=[{"from": [ns(**{"kubernetes.io/metadata.name": "z"})]}])]),
    ("pod by expression In", [np("p", ingress=[{"from": [{"podSelector": expr("pod", "In", "a", "b")}]}])]),
    ("pod by expression Exists", [np("p", podSelector=expr("pod", "Exists"), ingress=[{"from": [pod(pod="c")]}])]),
    ("pod by expression DoesNotExist", [np("p", ingress=[{"from": [{"podSelector": expr("pod", "DoesNotExist")}]}])]),
    ("subject by expression NotIn", [np("p", podSelector=expr("pod", "NotIn", "a"), ingress=[])]),
    ("pod and namespace (and)", [np("p", podSelector=A, ingress=[{"from": [{**ns(ns="y"), **pod(pod="b")}]}])]),
    ("pod, namespace (or)", [np("p", podSelector=A, ingress=[{"from": [ns(ns="y"), pod(pod="b")]}])]),
    ("all pods of all namespaces", [np("p", ingress=[{"from": [{"namespaceSelector": {}}]}])]),
    ("all pods of this namespace", [np("p", ingress=[{"from": [{"podSelector": {}}]}])]),
    ("pods b of any namespace", [np("p", ingress=[{"from": [{"namespaceSelector": {}, **pod(pod="b")}]}])]),
    ("port 80 only", [np("p", podSelector=A, ingress=[{"ports": [port(80)]}])]),
    ("ports 80 and 81", [np("p", podSelector=A, ingress=[{"ports": [port(80)]}, {"ports": [port(81)]}])]),
    ("port 81 from y", [np("p", podSelector=A, ingress=[{"from": [ns(ns="y")], "ports": [port(81)]}])]),
    ("stacked: 80 from y, 81 from z", [
        np("one", podSelector=A, ingress=[{"from": [ns(ns="y")], "ports": [port(80)]}]),
        np("two", podSelector=A, ingress=[{"from": [ns(ns="z")], "ports": [port(81)]}]),
    ]),
    ("stacked, overlapping selectors", [
        np("one", podSelector=expr("pod", "In", "a", "b"), ingress=[{"from": [pod(pod="c")]}]),
        np("two", podSelector=expr("pod", "In", "b", "c"), ingress=[{"from": [ns(ns="z")]}]),
        DENY_IN,
    ]),
    ("named port", [np("p", podSelector=A, ingress=[{"ports": [port("serve-80-tcp")]}])]),
    ("named port, egress", [np("p", podSelector=A, egress=[{"to": [ns(ns="y")], "ports": [port("serve-81-tcp")]}])]),
    ("named port, egress to anybody", [np("p", podSelector=A, egress=[{"ports": [port("serve-80-tcp")]}])]),
    ("named port that nobody has", [np("p", podSelector=A, ingress=[{"ports": [port("nobody")]}])]),
    ("endPort", [np("p", podSelector=A, ingress=[{"ports": [port(79, endPort=80)]}])]),
    ("endPort, egress", [np("p", podSelector=A, egress=[{"ports": [port(81, endPort=90)]}])]),
    ("egress to a namespace", [np("p", podSelector=A, egress=[{"to": [ns(ns="y")]}])]),
    ("egress to pods b, port 80", [
        np("p", podSelector=A, egress=[{"to": [{"namespaceSelector": {}, **pod(pod="b")}], "ports": [port(80)]}])
    ]),
    ("egress deny beats the target's allow", [np("out", podSelector=A, egress=[]), np("in", "y", ingress=[{}])]),
    ("ingress and egress of one pod", [
        np("p", podSelector=A, ingress=[{"from": [ns(ns="y")]}], egress=[{"to": [ns(ns="z")]}])
    ]),
    ("a UDP rule allows no TCP", [np("p", podSelector=A, ingress=[{"ports": [port(80, "UDP")]}])]),
    ("cidr", [np("p", podSelector=A, egress=[{"to": [block("10.244.0.0/24"), block("fd00:10:244::/64")]}])]),
    ("cidr with except", [np("p", podSelector=A, egress=[{"to": [
        block("10.244.0.0/16", "10.244.0.0/24"), block("fd00:10:244::/48", "fd00:10:244::/64")]}])]),
    ("a host again within the except", [np("p", podSelector=A, egress=[{"to": [
        block("10.244.0.0/16", "10.244.0.0/24"), block("10.244.0.3/32")]}])]),
    ("except of another policy is no deny", [
        np("one", podSelector=A, egress=[{"to": [block("0.0.0.0/0", "10.244.0.0/24")]}]),
        np("two", podSelector=A, egress=[{"to": [block("10.244.0.0/16")]}]),
    ]),
    ("everything, by cidr", [np("p", egress=[{"to": [block("0.0.0.0/0"), block("::/0")]}])]),
    ("ingress by cidr", [np("p", ingress=[{"from": [block("10.244.1.0/24")], "ports": [port(80)]}])]),
    ("many rules in a row", [
        np("p", podSelector=A, ingress=[
            {"from": [{"namespaceSelector": expr("ns", "In", n, f"no-{i}"), **pod(pod=p)}], "ports": [port(80 + i % 2)]}
            for i, (n, p) in enumerate((n, p) for n in "xyz" for p in "abc")
        ] + [{"from": [block(f"10.244.{i}.0/24")], "ports": [port(90 + i, endPort=200)]} for i in range(12)]),
    ]),
]  # fmt: skip

UDP: list[tuple[str, list[Doc]]] = [
    ("UDP: deny all", [DENY_IN]),
    ("UDP: port 81 of one pod", [np("p", podSelector=A, ingress=[{"ports": [port(81, "UDP")]}])]),
    ("UDP: all ports from y", [np("p", ingress=[{"from": [ns(ns="y")], "ports": [{"protocol": "UDP"}]}])]),
    ("UDP: named, egress", [np("p", podSelector=A, egress=[{"ports": [port("serve-80-udp", "UDP")]}])]),
]  # fmt: skip

CLUSTER: list[tuple[str, list[Doc]]] = [
    ("admin deny", [cnp("p", "Admin", 10, {"namespaces": labels(ns="x")}, ingress=[
        {"action": "Deny", "from": [{"namespaces": labels(ns="y")}]}])]),
    ("admin deny beats NetworkPolicy", [DENY_IN, np("all", ingress=[{}]), cnp("p", "Admin", 10, ingress=[
        {"action": "Deny", "from": [{"namespaces": labels(ns="y")}],
         "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]}])]),
    ("admin accept beats NetworkPolicy", [DENY_IN, cnp("p", "Admin", 10, ingress=[
        {"action": "Accept", "from": [{"pods": {"podSelector": B}}]}])]),
    ("pass leaves it to NetworkPolicy", [np("p", podSelector=A, ingress=[{"from": [ns(ns="z")]}]),
        cnp("first", "Admin", 1, ingress=[{"action": "Pass", "from": [{"namespaces": labels(ns="z")}]}]),
        cnp("then", "Admin", 2, ingress=[{"action": "Deny", "from": [{"namespaces": {}}]}])]),
    ("priorities: the lower number first", [
        cnp("z-first", "Admin", 1, ingress=[{"action": "Accept", "from": [{"namespaces": labels(ns="z")}]}]),
        cnp("a-then", "Admin", 2, ingress=[{"action": "Deny", "from": [{"namespaces": {}}]}])]),
    ("rules in order", [cnp("p", "Admin", 5, egress=[
        {"action": "Accept", "to": [{"networks": ["10.244.0.3/32"]}]},
        {"action": "Deny", "to": [{"networks": ["10.244.0.0/24"]}], "protocols": [
            {"tcp": {"destinationPort": {"range": {"start": 80, "end": 90}}}}]}])]),
    ("baseline deny", [cnp("p", "Baseline", 0, ingress=[{"action": "Deny", "from": [{"namespaces": {}}]}])]),
    ("baseline does not bind isolated pods", [np("p", podSelector=A, ingress=[{"from": [ns(ns="y")]}]),
        cnp("b", "Baseline", 0, ingress=[{"action": "Deny", "from": [{"namespaces": {}}]}])]),
    ("baseline: accept before deny", [cnp("p", "Baseline", 0, ingress=[
        {"action": "Accept", "from": [{"namespaces": labels(ns="x")}]},
        {"action": "Deny", "from": [{"namespaces": {}}], "protocols": [{"tcp": {}}]}])]),
    ("named port", [cnp("p", "Admin", 0, ingress=[
        {"action": "Deny", "from": [{"namespaces": {}}], "protocols": [{"destinationNamedPort": "serve-81-tcp"}]}])]),
    ("named port, egress", [cnp("p", "Admin", 0, egress=[
        {"action": "Deny", "to": [{"pods": {"podSelector": B}}], "protocols": [
            {"destinationNamedPort": "serve-81-tcp"}]}])]),
    ("unknown peer: accept matches nothing", [DENY_IN, cnp("p", "Admin", 0, ingress=[
        {"action": "Accept", "from": [{"namespaces": {}}, {}]}])]),
    ("unknown peer: deny denies all", [cnp("p", "Admin", 0, {"pods": {"podSelector": A}}, ingress=[
        {"action": "Deny", "from": [{}], "protocols": [{"udp": {}}]}])]),
    ("unknown peer: pass denies all", [cnp("p", "Admin", 0, {"pods": {"podSelector": A}}, egress=[
        {"action": "Pass", "to": [{}]}])]),
]  # fmt: skip

SCTP: list[tuple[str, list[Doc]]] = [
    ("SCTP: deny all", [DENY_IN]),
    ("SCTP: port 80", [np("p", podSelector=A, ingress=[{"ports": [port(80, "SCTP")]}])]),
    ("SCTP: all ports from y", [np("p", ingress=[{"from": [ns(ns="y")], "ports": [{"protocol": "SCTP"}]}])]),
]  # fmt: skip

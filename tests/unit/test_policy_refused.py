"""Policies that the API would refuse: field path and reason, and nothing is stored."""

from __future__ import annotations

# ruff: noqa: E501 (a case is a line)
from typing import Any

import pytest

from netplane.model import codec
from netplane.model.errors import Invalid

from ..policy_cases import block, cnp, expr, np, port

ANY = {"namespaces": {}}


@pytest.mark.parametrize(
    ("doc", "said"),
    [
        (np("p", ingress=[{"ports": [port(80, endPort=79)]}]), "spec.ingress[0].ports[0].endPort: 79 is below port 80"),
        (np("p", ingress=[{"ports": [port("http", endPort=79)]}]), "spec.ingress[0].ports[0].endPort: needs a numeric"),
        (np("p", ingress=[{"ports": [port(0)]}]), "spec.ingress[0].ports[0].port: 0 is not a port"),
        (np("p", ingress=[{"ports": [port(1, "ICMP")]}]), "spec.ingress[0].ports[0].protocol: 'ICMP' is not supported"),
        (np("p", egress=[{"to": [block("10.0.0.0/8", "11.0.0.0/16")]}]), "spec.egress[0].to[0].ipBlock.except[0]"),
        (np("p", egress=[{"to": [block("10.0.0.1/8")]}]), "spec.egress[0].to[0].ipBlock.cidr: '10.0.0.1/8' is not"),
        (np("p", egress=[{"to": [{**block("10.0.0.0/8"), "podSelector": {}}]}]), "spec.egress[0].to[0]: ipBlock may not"),
        (np("p", egress=[{"to": [{}]}]), "spec.egress[0].to[0]: one of podSelector"),
        (np("p", podSelector=expr("a", "Is", "b")), "spec.podSelector.matchExpressions[0].operator: 'Is' is not"),
        (np("p", podSelector=expr("a", "In")), "spec.podSelector.matchExpressions[0].values: required"),
        (np("p", policyTypes=["Both"]), "spec.policyTypes[0]: 'Both' is not supported"),
        (cnp("p", "Middle", 1), "spec.tier: 'Middle' is not supported; use one of 'Admin', 'Baseline'"),
        (cnp("p", "Admin", 1001), "spec.priority: 1001 is out of range"),
        (cnp("p", "Admin", 1, {"namespaces": {}, "pods": {"podSelector": {}}}), "spec.subject: exactly one of"),
        (cnp("p", "Admin", 1, ingress=[{"action": "Allow", "from": [ANY]}]), "spec.ingress[0].action: 'Allow'"),
        (cnp("p", "Admin", 1, ingress=[{"action": "Deny", "from": []}]), "spec.ingress[0].from: at least one peer"),
        (cnp("p", "Admin", 1, egress=[{"action": "Deny", "to": [{"networks": ["10.0.0.1/8"]}]}]),
         "spec.egress[0].to[0].networks[0]: '10.0.0.1/8' is not a CIDR"),
        (cnp("p", "Admin", 1, egress=[{"action": "Deny", "to": [{"networks": ["10.0.0.0/8"], "namespaces": {}}]}]),
         "spec.egress[0].to[0]: namespaces and networks may not stand beside each other"),
        (cnp("p", "Admin", 1, ingress=[{"action": "Deny", "from": [ANY], "protocols": [{}]}]),
         "spec.ingress[0].protocols[0]: one of tcp, udp, sctp"),
        (cnp("p", "Admin", 1, ingress=[{"action": "Deny", "from": [ANY], "protocols": [
            {"tcp": {"destinationPort": {"range": {"start": 9, "end": 9}}}}]}]),
         "destinationPort.range.end: 9 must be above start 9"),
        (cnp("p", "Admin", 1, egress=[{"action": "Deny", "to": [{"domainNames": ["a.example"]}]}]),
         "spec.egress[0].to: domainNames may stand in Accept rules only"),
        (cnp("p", "Admin", 1, ingress=[{"action": "Deny", "from": [{"services": {}}]}]),
         "spec.ingress[0].from[0].services: unknown field"),
    ],
)  # fmt: skip
def test_refused(doc: dict[str, Any], said: str) -> None:
    with pytest.raises(Invalid) as caught:
        codec.parse(doc)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{doc['kind']} ")

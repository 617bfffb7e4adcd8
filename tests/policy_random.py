"""Random policies of both kinds over the worlds of policy_world. Pure: a seed in, manifests out."""

from __future__ import annotations

import random
from typing import Any

from .policy_cases import cnp, expr, labels, np

Doc = dict[str, Any]


def policies(rng: random.Random, count: int) -> list[Doc]:
    return [_cluster(rng, i) if rng.random() < 0.3 else _namespaced(rng, i) for i in range(count)]


def _namespaced(rng: random.Random, i: int) -> Doc:
    spec: Doc = {"podSelector": _pods(rng)}
    if rng.random() < 0.7:
        spec["ingress"] = [_rule(rng, "from") for _ in range(rng.randrange(4))]
    if rng.random() < 0.5:
        spec["egress"] = [_rule(rng, "to") for _ in range(rng.randrange(4))]
    return np(f"random-{i}", rng.choice("xyz"), **spec)


def _rule(rng: random.Random, word: str) -> Doc:
    rule: Doc = {}
    if rng.random() < 0.85:
        rule[word] = [_peer(rng) for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.6:
        rule["ports"] = [_port(rng) for _ in range(rng.randrange(1, 4))]
    return rule


def _peer(rng: random.Random) -> Doc:
    kind = rng.randrange(4)
    if kind == 0:
        return {"podSelector": _pods(rng)}
    if kind == 1:
        return {"namespaceSelector": _spaces(rng)}
    if kind == 2:
        return {"podSelector": _pods(rng), "namespaceSelector": _spaces(rng)}
    return {"ipBlock": _block(rng)}


def _block(rng: random.Random) -> Doc:
    node, host = rng.randrange(2), rng.randrange(2, 8)
    choices: list[tuple[str, list[str]]] = [
        ("10.244.0.0/16", [f"10.244.{node}.0/24"]),
        ("10.244.0.0/16", [f"10.244.{node}.{host & ~1}/31"]),
        (f"10.244.{node}.{host}/32", []),
        ("0.0.0.0/0", ["10.244.0.0/29", "10.244.1.4/30"]),
        ("fd00:10:244::/48", [f"fd00:10:244:{node}::/64"]),
        (f"fd00:10:244:{node}::{host}/128", []),
        ("::/0", []),
    ]
    cidr, holes = rng.choice(choices)
    return {"cidr": cidr, **({"except": holes} if holes and rng.random() < 0.8 else {})}


def _port(rng: random.Random) -> Doc:
    protocol = rng.choice(("TCP", "TCP", "UDP"))
    kind = rng.randrange(4)
    if kind == 0:
        return {"protocol": protocol}
    if kind == 1:
        return {"protocol": protocol, "port": f"serve-{rng.choice((80, 81))}-{protocol.lower()}"}
    if kind == 2:
        return {"protocol": protocol, "port": rng.choice((1, 80, 81)), "endPort": rng.choice((81, 90))}
    return {"protocol": protocol, "port": rng.choice((80, 81))}


def _pods(rng: random.Random) -> Doc:
    return _selector(rng, "pod", "abc")


def _spaces(rng: random.Random) -> Doc:
    return _selector(rng, "ns", "xyz")


def _selector(rng: random.Random, key: str, values: str) -> Doc:
    kind = rng.randrange(6)
    if kind == 0:
        return {}
    if kind == 1:
        return expr(key, "In", *rng.sample(values, 2))
    if kind == 2:
        return expr(key, "NotIn", rng.choice(values))
    if kind == 3:
        return expr(key, rng.choice(("Exists", "DoesNotExist")))
    return labels(**{key: rng.choice(values)})


def _cluster(rng: random.Random, i: int) -> Doc:
    tier = rng.choice(("Admin", "Baseline"))
    subject = {"namespaces": _spaces(rng)} if rng.random() < 0.5 else {"pods": _selected(rng)}
    rules: Doc = {}
    if rng.random() < 0.7:
        rules["ingress"] = [_cluster_rule(rng, "from") for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.6:
        rules["egress"] = [_cluster_rule(rng, "to") for _ in range(rng.randrange(1, 4))]
    return cnp(f"random-{i}", tier, rng.randrange(1000), subject, **rules)


def _selected(rng: random.Random) -> Doc:
    return {"podSelector": _pods(rng), "namespaceSelector": _spaces(rng)}


def _cluster_rule(rng: random.Random, word: str) -> Doc:
    rule: Doc = {"action": rng.choice(("Accept", "Deny", "Pass"))}
    rule[word] = [_cluster_peer(rng, word) for _ in range(rng.randrange(1, 3))]
    networks = any("networks" in p for p in rule[word])
    if rng.random() < 0.5:
        rule["protocols"] = [_cluster_port(rng, networks)]
    return rule


def _cluster_peer(rng: random.Random, word: str) -> Doc:
    kind = rng.randrange(20)
    if kind == 0:
        return {}
    if kind < 8 and word == "to":
        block = _block(rng)
        return {"networks": [block["cidr"]]}
    return {"namespaces": _spaces(rng)} if kind < 14 else {"pods": _selected(rng)}


def _cluster_port(rng: random.Random, networks: bool) -> Doc:
    kind = rng.randrange(4)
    if kind == 0 and not networks:
        return {"destinationNamedPort": f"serve-{rng.choice((80, 81))}-{rng.choice(('tcp', 'udp'))}"}
    port: Doc = {} if kind == 1 else {"destinationPort": {"number": rng.choice((80, 81))}}
    if kind == 2:
        port = {"destinationPort": {"range": {"start": 80, "end": rng.choice((81, 99))}}}
    return {rng.choice(("tcp", "udp")): port}

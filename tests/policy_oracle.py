"""What the Kubernetes API says of network policy, as a few pure functions over plain manifests.

Written from the API's documentation (networking.k8s.io/v1 NetworkPolicy, policy.networking.k8s.io/v1alpha2
ClusterNetworkPolicy) and from nothing of netplane's: dicts in, True or False out. It is the judge of what
packets do.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class OraclePod:
    namespace: str
    name: str
    labels: dict[str, str]
    ips: list[str]
    ports: list[dict[str, Any]] = field(default_factory=list)  # containerPort, name, protocol


@dataclass
class World:
    pods: list[OraclePod]
    namespaces: dict[str, dict[str, str]]
    policies: list[dict[str, Any]] = field(default_factory=list)

    def pod(self, ip: str) -> OraclePod | None:
        return next((p for p in self.pods if ip in p.ips), None)


def allowed(world: World, source: str, target: str, protocol: str, port: int) -> bool:
    """Whether a connection from one address to another (after any service's translation) may begin."""
    if source == target:
        return True
    return _side(world, "ingress", target, source, protocol, port, target) and _side(
        world, "egress", source, target, protocol, port, target
    )


def _side(world: World, direction: str, own: str, peer: str, protocol: str, port: int, target: str) -> bool:
    pod = world.pod(own)
    if pod is None:
        return True
    flow = (peer, protocol, port, target)
    verdict = _tier(world, "Admin", direction, pod, flow)
    if verdict in ("Accept", "Deny"):
        return verdict == "Accept"
    isolating = [p for p in world.policies if p["kind"] == "NetworkPolicy" and _isolates(p, pod, direction)]
    if isolating:
        return any(_np_allows(world, p, direction, flow) for p in isolating)
    return _tier(world, "Baseline", direction, pod, flow) != "Deny"


def _isolates(policy: dict[str, Any], pod: OraclePod, direction: str) -> bool:
    spec = policy["spec"]
    types = spec.get("policyTypes") or (["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])
    same = policy["metadata"]["namespace"] == pod.namespace
    return same and direction.capitalize() in types and selected(spec.get("podSelector", {}), pod.labels)


def _np_allows(world: World, policy: dict[str, Any], direction: str, flow: tuple[str, str, int, str]) -> bool:
    word = "from" if direction == "ingress" else "to"
    for rule in policy["spec"].get(direction) or []:
        peers, ports = rule.get(word) or [], rule.get("ports") or []
        who = not peers or any(_np_peer(world, policy, p, flow[0]) for p in peers)
        what = not ports or any(_np_port(world, p, flow) for p in ports)
        if who and what:
            return True
    return False


def _np_peer(world: World, policy: dict[str, Any], peer: dict[str, Any], ip: str) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        return within(ip, block["cidr"]) and not any(within(ip, hole) for hole in block.get("except", []))
    pod = world.pod(ip)
    if pod is None:
        return False
    if "namespaceSelector" in peer:
        if not selected(peer["namespaceSelector"], namespace_labels(world, pod.namespace)):
            return False
    elif pod.namespace != policy["metadata"]["namespace"]:
        return False
    return selected(peer.get("podSelector", {}), pod.labels)


def _np_port(world: World, port: dict[str, Any], flow: tuple[str, str, int, str]) -> bool:
    _, protocol, number, target = flow
    if port.get("protocol", "TCP") != protocol:
        return False
    if "port" not in port:
        return True
    if isinstance(port["port"], str):
        return number in named(world, target, port["port"], protocol)
    return port["port"] <= number <= port.get("endPort", port["port"])


def named(world: World, ip: str, name: str, protocol: str | None) -> list[int]:
    pod = world.pod(ip)
    return [
        p["containerPort"]
        for p in (pod.ports if pod else [])
        if p.get("name") == name and protocol in (None, p.get("protocol", "TCP"))
    ]


# --- ClusterNetworkPolicy ---------------------------------------------------------------------------


def _tier(
    world: World, tier: str, direction: str, pod: OraclePod, flow: tuple[str, str, int, str]
) -> str | None:
    """The first rule that matches decides: Accept, Deny, Pass; None when none does."""
    mine = [p for p in world.policies if p["kind"] == "ClusterNetworkPolicy" and p["spec"]["tier"] == tier]
    for policy in sorted(mine, key=lambda p: (p["spec"]["priority"], p["metadata"]["name"])):
        if not _subject(world, policy["spec"]["subject"], pod):
            continue
        for rule in policy["spec"].get(direction) or []:
            verdict = _cluster_rule(world, rule, direction, flow)
            if verdict:
                return verdict
    return None


def _cluster_rule(
    world: World, rule: dict[str, Any], direction: str, flow: tuple[str, str, int, str]
) -> str | None:
    peers = rule["from" if direction == "ingress" else "to"]
    known = ("namespaces", "pods", "nodes", "networks")
    if not all(any(k in peer for k in known) for peer in peers):  # an unknown type: fail closed
        return None if rule["action"] == "Accept" else "Deny"
    protocols = rule.get("protocols") or []
    who = any(_cluster_peer(world, peer, flow[0]) for peer in peers)
    what = not protocols or any(_cluster_port(world, p, flow) for p in protocols)
    return rule["action"] if who and what else None


def _subject(world: World, subject: dict[str, Any], pod: OraclePod) -> bool:
    if "namespaces" in subject:
        return selected(subject["namespaces"], namespace_labels(world, pod.namespace))
    return _namespaced_pod(world, subject["pods"], pod)


def _namespaced_pod(world: World, pods: dict[str, Any], pod: OraclePod) -> bool:
    spaces = selected(pods.get("namespaceSelector", {}), namespace_labels(world, pod.namespace))
    return spaces and selected(pods["podSelector"], pod.labels)


def _cluster_peer(world: World, peer: dict[str, Any], ip: str) -> bool:
    if "networks" in peer:
        return any(within(ip, cidr) for cidr in peer["networks"])
    pod = world.pod(ip)
    return pod is not None and "nodes" not in peer and _subject(world, peer, pod)


def _cluster_port(world: World, protocol: dict[str, Any], flow: tuple[str, str, int, str]) -> bool:
    _, proto, number, target = flow
    if "destinationNamedPort" in protocol:
        return number in named(world, target, protocol["destinationNamedPort"], proto)
    if proto.lower() not in protocol:
        return False
    port = (protocol[proto.lower()] or {}).get("destinationPort")
    if port is None:
        return True
    if "range" in port:
        return bool(port["range"]["start"] <= number <= port["range"]["end"])
    return bool(port["number"] == number)


# --- labels and addresses ---------------------------------------------------------------------------


def namespace_labels(world: World, name: str) -> dict[str, str]:
    return {**world.namespaces.get(name, {}), "kubernetes.io/metadata.name": name}


def selected(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    if any(labels.get(k) != v for k, v in (selector.get("matchLabels") or {}).items()):
        return False
    for need in selector.get("matchExpressions") or []:
        key, values = need["key"], need.get("values", [])
        held = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not held[need["operator"]]:
            return False
    return True


def within(ip: str, cidr: str) -> bool:
    address, network = ipaddress.ip_address(ip), ipaddress.ip_network(cidr)
    return address.version == network.version and address in network

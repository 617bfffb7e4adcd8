"""Whether policy allows one flow, and why: computed from the objects, for flows and for people. Pure.

Two rulings make an answer: egress, at the node of the source, and ingress, at the node of the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..model.base import Key
from ..model.nodes import Node
from ..model.pods import Pod
from ..model.snapshot import Snapshot
from .index import addresses, named_ports, pod_at, selects, within
from .rules import (
    ACCEPT,
    ADMIN,
    BASELINE,
    DENY,
    INGRESS,
    NAMESPACED,
    Nodes,
    Peers,
    Policy,
    Port,
    Rule,
)


class Packet(NamedTuple):
    """The first packet of a flow as the forward hook sees it: after DNAT, before masquerade."""

    source: str
    target: str
    protocol: str  # tcp, udp, sctp, icmp, …
    port: int = 0

    def ends(self, direction: str) -> tuple[str, str]:
        """(the pod that is ruled, its peer)."""
        return (self.target, self.source) if direction == INGRESS else (self.source, self.target)

    @property
    def towards(self) -> str:
        """Where it goes, as people write it: "10.0.0.1:80/tcp", "[fd00::1]:53/udp"."""
        host = f"[{self.target}]" if ":" in self.target else self.target
        return f"{host}:{self.port}/{self.protocol}"


class Ruling(NamedTuple):
    """``policies``: those that select this end in this direction. ``by``: the one that decided."""

    allowed: bool
    why: str
    policies: tuple[Key, ...] = ()
    by: Key | None = None


def judge(policies: Iterable[Policy], snapshot: Snapshot, pod: Pod, packet: Packet, direction: str) -> Ruling:
    """``policies`` select ``pod``, in the order in which they are asked."""
    peer = packet.ends(direction)[1]
    mine = [p for p in policies if p.rules(direction) is not None]
    keys = tuple(p.key for p in mine)
    word = "ingress" if direction == INGRESS else "egress"
    for tier in (ADMIN, NAMESPACED, BASELINE):
        here = [p for p in mine if p.tier == tier]
        hit = _first(here, snapshot, peer, packet, direction)
        if hit is not None and hit[1].action in (ACCEPT, DENY):
            policy, rule = hit
            verb = "allows" if rule.action == ACCEPT else "denies"
            return Ruling(rule.action == ACCEPT, f"{policy.key} {rule.where} {verb} it", keys, policy.key)
        if tier == NAMESPACED and here:
            names = ", ".join(str(p.key) for p in here)
            return Ruling(False, f"isolated for {word} by {names}, and no rule allows it", keys, here[0].key)
    if keys:
        return Ruling(True, f"no rule of {', '.join(map(str, keys))} decides it", keys)
    return Ruling(True, f"no policy selects {pod.namespace}/{pod.name} for {word}")


def _first(
    policies: Iterable[Policy], snapshot: Snapshot, peer: str, packet: Packet, direction: str
) -> tuple[Policy, Rule] | None:
    for policy in policies:
        for rule in policy.rules(direction) or ():
            if _peer(rule.peers, peer, snapshot) and _port(rule.ports, packet, snapshot):
                return policy, rule
    return None


def _peer(peers: Peers | None, address: str, snapshot: Snapshot) -> bool:
    if peers is None:
        return True
    pod = pod_at(snapshot, address)
    for member in peers.members:
        if isinstance(member, Nodes):
            if any(member.nodes.matches(n.labels) and address in addresses(n) for n in snapshot.list(Node)):
                return True
        elif pod is not None and selects(member, pod, snapshot):
            return True
    return within(peers.blocks, address)


def _port(ports: tuple[Port, ...] | None, packet: Packet, snapshot: Snapshot) -> bool:
    """Named ports are the destination's own, in both directions."""
    if ports is None:
        return True
    return any(
        protocol == packet.protocol and low <= packet.port <= high
        for port in ports
        for protocol, low, high in _numbers(port, packet, snapshot)
    )


def _numbers(port: Port, packet: Packet, snapshot: Snapshot) -> Iterator[tuple[str, int, int]]:
    if not port.name:
        yield port.protocol, port.low, port.high
        return
    target = pod_at(snapshot, packet.target)
    if target is not None:
        for protocol, number in named_ports(target, port.name, port.protocol):
            yield protocol, number, number

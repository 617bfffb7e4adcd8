"""A pod CIDR per node and family: claimed, seen to be unchallenged, then written into the Node.

Rule 1: a CIDR that a Node declares is honoured, or refused when it overlaps another's; never replaced.
Rule 2: claims of different sizes have different names and may overlap, so a claim counts only once
        it stands in the snapshot and no older one overlaps it; the younger of two gives way. An
        agent that saw its own claim before an older one of another says so on its node afterwards.
Rule 3: what is held stays: a node keeps its CIDR over restarts and changes of the cluster CIDR.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..model.base import amend
from ..model.changes import Event, Put, Write
from ..model.errors import Invalid
from ..model.facts import Scope
from ..model.nodes import Node
from ..model.own import Allocation
from ..model.snapshot import Snapshot
from . import claims
from .claims import Claim
from .conditions import node_refused
from .config import ClusterConfig, family_of, first_overlap, network, overlap, span

TYPE = "podcidr"


class PodCIDRs:
    """The controller of Node.spec.podCIDR and podCIDRs. Scope: the node's name."""

    name = "podcidr"
    kinds = frozenset((Node.KIND, Allocation.KIND))

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        return {Scope(self.name, name) for name in _touched(event, snapshot)}

    def decide(self, scope: Scope, snapshot: Snapshot) -> list[Write]:
        """Claims in one step, the node in the next, on a snapshot that shows the claims."""
        node = snapshot.get(Node, "", scope.name)
        held = claims.held_by(snapshot, Node.KIND, "", scope.name)
        if node is None:
            return list(claims.release(held))
        try:
            wanted = self._wanted(node, held, snapshot)
        except Invalid as exc:
            return _refuse(node, held, str(exc))
        writes: list[Write] = []
        for claim in wanted:
            writes += claims.take(snapshot, claim, node)
        cidrs = tuple(claim.value for claim in wanted)
        target = node_refused(node, "")
        if cidrs != node.spec.pod_cidrs and cidrs:
            target = amend(target, spec=amend(node.spec, pod_cidr=cidrs[0], pod_cidrs=cidrs))
        if target != node and not writes:
            writes.append(Put(target, expect=node.revision))
        if not writes:
            writes += claims.release(held, keep={claim.name for claim in wanted})
        return writes

    def _wanted(self, node: Node, held: tuple[Allocation, ...], snapshot: Snapshot) -> list[Claim]:
        """What the node declares, then one of each family that the cluster has and it has not."""
        others = [a for a in snapshot.by(Allocation, "cidr", "") if a.spec.holder_name != node.name]
        wanted = [self._declared(node, cidr, held, others) for cidr in node.pod_cidrs]
        have = [family_of(claim.value) for claim in wanted]
        if len(set(have)) < len(have):
            raise Invalid(f"spec.podCIDRs: {', '.join(node.pod_cidrs)}: at most one CIDR per family")
        for cidr in self.config.cluster_cidrs:
            if family_of(cidr) not in have:
                kept = self._kept(cidr, held, others)
                wanted.append(kept or self._chosen(cidr, _used(node, others, snapshot)))
        return wanted

    def _declared(
        self, node: Node, cidr: str, held: tuple[Allocation, ...], others: list[Allocation]
    ) -> Claim:
        clash = first_overlap(cidr, self.config.service_cidrs)
        if clash:
            raise Invalid(f"spec.podCIDRs: {cidr} overlaps service CIDR {clash}")
        mine = next((a for a in held if a.spec.value == cidr), None)
        rival = _rival(cidr, mine, others)
        if rival:
            where = f"{cidr} overlaps {rival.spec.value} of {claims.holder_text(rival)}"
            raise Invalid(f"spec.podCIDRs: {where}; give node {node.name} a CIDR of its own")
        return Claim(TYPE, cidr, settled=True)

    def _kept(self, cidr: str, held: tuple[Allocation, ...], others: list[Allocation]) -> Claim | None:
        """The claim that this node made and has not written into its spec yet, if nobody was first."""
        for mine in held:
            same = family_of(mine.spec.value) == family_of(cidr)
            if same and overlap(mine.spec.value, cidr) and _rival(mine.spec.value, mine, others) is None:
                return Claim(TYPE, mine.spec.value)
        return None

    def _chosen(self, cidr: str, used_cidrs: Iterable[str]) -> Claim:
        """The lowest block of the cluster CIDR that nobody holds any part of."""
        net, mask = network(cidr), self.config.node_mask(family_of(cidr))
        shift = net.max_prefixlen - mask
        base, blocks = int(net.network_address) >> shift, 1 << (mask - net.prefixlen)
        used = sorted(_blocks(used_cidrs, net.version, shift))
        candidate = base
        for first, last in used:
            if last >= candidate and first <= candidate:
                candidate = last + 1
        if candidate >= base + blocks:
            raise Invalid(
                f"cluster CIDR {cidr} is exhausted: all {blocks} node CIDRs of /{mask} are in use; "
                "use a wider cluster CIDR or a longer node mask"
            )
        address = type(net.network_address)(candidate << shift)
        return Claim(TYPE, f"{address}/{mask}")


def _used(node: Node, others: list[Allocation], snapshot: Snapshot) -> Iterator[str]:
    """What other nodes hold, and what they declare but have not claimed yet."""
    yield from (a.spec.value for a in others)
    for other in snapshot.list(Node):
        if other.name != node.name:
            yield from other.pod_cidrs


def _blocks(cidrs: Iterable[str], version: int, shift: int) -> Iterator[tuple[int, int]]:
    """The node-sized blocks that each CIDR of this IP version touches, first and last."""
    for text in cidrs:
        its_version, first, last = span(text)
        if its_version == version:
            yield first >> shift, last >> shift


def _rival(cidr: str, mine: Allocation | None, others: list[Allocation]) -> Allocation | None:
    """Another node's claim that overlaps and is older than ours; any that overlaps, before we claim."""
    for other in others:
        if overlap(other.spec.value, cidr) and (mine is None or other.revision < mine.revision):
            return other
    return None


def _refuse(node: Node, held: tuple[Allocation, ...], why: str) -> list[Write]:
    """Say so on the node; give up the claims that its spec does not name."""
    target = node_refused(node, why)
    writes: list[Write] = [Put(target, expect=node.revision)] if target != node else []
    keep = {claims.claim_name(TYPE, cidr) for cidr in node.pod_cidrs}
    writes += claims.release(held, keep=keep)
    if not writes:
        raise Invalid(f"{node.key}: {why}")
    return writes


def _touched(event: Event | None, snapshot: Snapshot) -> Iterator[str]:
    if event is None:
        yield from (node.name for node in snapshot.list(Node))
        yield from (a.spec.holder_name for a in snapshot.by(Allocation, "cidr", ""))
    elif isinstance(event.object, Node):
        yield event.object.name
    elif isinstance(event.object, Allocation) and event.object.spec.holder_kind == Node.KIND:
        yield event.object.spec.holder_name
        if event.new is None:
            yield from (node.name for node in snapshot.by(Node, "refused", ""))

"""The policy room: a scope for each pod address of this node, and one for each set of peers.

Scopes: "" the hooks; "address/<ip>" one pod address, its place in the maps and the chain that this
leads to; "group/<key>" the addresses of one selector's pods.

Rule 1: a pod's rules come from its attachment, which is written before its interface is made; so they
        stand before its first packet. An attachment whose Pod object is not there yet lets nothing
        through when any policy could select it.
Rule 2: a group is held only on a node where a policy that names it selects a pod.
Rule 3: memos rest on identity of immutable objects; the room answers the same without them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

from ..model.base import Object
from ..model.changes import Event
from ..model.clusterpolicies import ClusterNetworkPolicy
from ..model.facts import Element, Fact, Facts, Scope
from ..model.nodes import Namespace, Node
from ..model.own import Attachment
from ..model.pods import Pod
from ..model.policies import NetworkPolicy
from ..model.snapshot import Snapshot
from . import chains
from .flows import Flow, Flows
from .index import Holder, Index, addresses, holder, local, members, named_ports, pod_at, selects, within
from .rules import ADMIN, BASELINE, EGRESS, INGRESS, NAMESPACED, Group, Policy, Port, Rule, compiled, groups
from .verdict import Packet, Ruling, judge

ROOM = "policy"
BASE = Scope(ROOM)
ADDRESS, GROUP = "address/", "group/"


class PolicyRoom:
    name = ROOM
    kinds = frozenset(
        kind.KIND for kind in (Pod, Attachment, NetworkPolicy, ClusterNetworkPolicy, Namespace, Node)
    )

    def __init__(self, node: str) -> None:
        self.node = node
        self._index: tuple[object, object, Index] | None = None
        self._idle = True  # there has never been a policy, so nothing of any pod is held
        self._selecting: dict[tuple[str, str], tuple[object, object, object, tuple[Policy, ...]]] = {}

    # --- what an event touches ----------------------------------------------------------------------

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        """Addresses after the hooks, groups in any order: one change is one transaction."""
        if event is None:
            yield BASE
            yield from (Scope(ROOM, ADDRESS + a) for a, _ in local(snapshot, self.node))
            yield from (Scope(ROOM, GROUP + key) for key in self.index(snapshot).groups)
            return
        if self._idle:
            named = isinstance(event.object, NetworkPolicy | ClusterNetworkPolicy)
            self._idle = not (named or self.index(snapshot).policies)
            if self._idle and isinstance(event.object, Pod | Attachment):
                return
        found: dict[Scope, None] = {}
        for name in self._touched(event, snapshot):
            found[Scope(ROOM, name)] = None
        yield from found

    def _touched(self, event: Event, snapshot: Snapshot) -> Iterator[str]:
        kind = event.object
        if isinstance(kind, Pod):
            yield from self._by_pod(event.old, event.new, snapshot)
        elif isinstance(kind, Attachment):
            if not (isinstance(event.old, Attachment) and event.old.spec == kind.spec and event.new):
                yield from self._by_attachment(kind, snapshot)  # its phase is of no matter
        elif isinstance(kind, NetworkPolicy | ClusterNetworkPolicy):
            for obj in (event.old, event.new):
                if isinstance(obj, NetworkPolicy | ClusterNetworkPolicy):
                    yield from self._by_policy(compiled(obj), snapshot)
        elif isinstance(kind, Namespace):
            yield from self._by_namespace(event, kind.name, snapshot)
        elif isinstance(kind, Node):
            keys = {group.key for group in self.index(snapshot).node_groups}
            yield from (GROUP + key for key in keys)

    def _by_pod(self, old: Object | None, new: Object | None, snapshot: Snapshot) -> Iterator[str]:
        before, after = (_essence(p) if isinstance(p, Pod) else None for p in (old, new))
        if before == after:
            return
        index = self.index(snapshot)
        pods = [p for p in (old, new) if isinstance(p, Pod)]
        memberships = [index.groups_with(p, snapshot) for p in pods]
        moved = len(pods) < 2 or pods[0].ips != pods[1].ips or _ports(pods[0]) != _ports(pods[1])
        touched = set().union(*memberships) if moved else memberships[0] ^ memberships[1]
        yield from (GROUP + key for key in touched)
        yield from self._flattened(touched, snapshot)
        for pod in pods:
            mine = [a for a in pod.ips if holder(snapshot, self.node, a) or pod.spec.node_name == self.node]
            mine += self._attached(pod.namespace, pod.name, snapshot)
            yield from (ADDRESS + a for a in mine)
            if mine:
                yield from self._needed(pod, snapshot)

    def _by_attachment(self, attachment: Attachment, snapshot: Snapshot) -> Iterator[str]:
        spec = attachment.spec
        if spec.node != self.node:
            return
        yield from (ADDRESS + entry.address.partition("/")[0] for entry in spec.ips)
        pod = snapshot.get(Pod, spec.pod_namespace, spec.pod_name)
        if pod is not None:
            yield from self._needed(pod, snapshot)

    def _by_policy(self, policy: Policy, snapshot: Snapshot) -> Iterator[str]:
        for address, whose in local(snapshot, self.node):
            if whose.pod is None or selects(policy.subject, whose.pod, snapshot):
                yield ADDRESS + address
        yield from (GROUP + group.key for group in groups(policy))

    def _by_namespace(self, event: Event, name: str, snapshot: Snapshot) -> Iterator[str]:
        labels = [obj.labels if obj else {} for obj in (event.old, event.new)]
        if labels[0] == labels[1]:
            return
        keys = self.index(snapshot).namespace_groups
        yield from (GROUP + key for key in keys)
        yield from self._flattened(keys, snapshot)
        for address, whose in local(snapshot, self.node):
            if whose.namespace == name:
                yield ADDRESS + address

    def _flattened(self, keys: set[str], snapshot: Snapshot) -> Iterator[str]:
        """Addresses whose rules are so many that the members of these groups stand in their own sets."""
        named = {policy.key for key in keys for policy in self.index(snapshot).groups[key][1]}
        for address, whose in local(snapshot, self.node) if named else ():
            policies = self.selecting(whose.pod, snapshot) if whose.pod is not None else ()
            rules = sum(len(p.ingress or ()) + len(p.egress or ()) for p in policies)
            if 3 * rules > chains.MOST and any(p.key in named for p in policies):
                yield ADDRESS + address

    def _attached(self, namespace: str, name: str, snapshot: Snapshot) -> list[str]:
        return [
            entry.address.partition("/")[0]
            for attachment in snapshot.by(Attachment, "pod", f"{namespace}/{name}")
            if attachment.spec.node == self.node
            for entry in attachment.spec.ips
        ]

    def _needed(self, pod: Pod, snapshot: Snapshot) -> Iterator[str]:
        """The groups that begin or cease to be needed when this pod comes or goes."""
        for policy in self.selecting(pod, snapshot):
            yield from (GROUP + group.key for group in groups(policy))

    # --- what the kernel must hold --------------------------------------------------------------------

    def render(self, scope: Scope, snapshot: Snapshot) -> Facts:
        if scope == BASE:
            return tuple(chains.base())
        word, _, name = scope.name.partition("/")
        if word + "/" == ADDRESS:
            facts = tuple(self._address(name, snapshot))
        else:
            facts = tuple(self._group(name, snapshot))
        return (*facts, Flows.of_scope(scope.name, facts)) if facts else ()

    def _address(self, address: str, snapshot: Snapshot) -> Iterator[Fact]:
        whose = holder(snapshot, self.node, address)
        if whose is None:
            return
        tiers = {d: self.tiers(whose, d, snapshot) for d in chains.DIRECTIONS}
        yield from chains.held(address, tiers, lambda group: _items(group, snapshot))

    def tiers(self, whose: Holder, direction: str, snapshot: Snapshot) -> chains.Tiers | None:
        """The rules for a pod in one direction; None while its object is missing and policies exist."""
        if whose.pod is None:
            index = self.index(snapshot)
            may = any(p.subject.namespace in ("", whose.namespace) for p in index.policies)
            return None if may else chains.Tiers()
        return tiers_of(self.selecting(whose.pod, snapshot), direction, whose.pod)

    def _group(self, key: str, snapshot: Snapshot) -> Iterator[Fact]:
        index = self.index(snapshot)
        group, policies = index.groups.get(key, (None, ()))
        if group is None or not self._used(policies, snapshot):
            return
        named = bool(group.names)
        for family in chains.WORDS:
            yield chains.declared(key, family, named)
        for item in sorted(set(_items(group, snapshot)), key=str):
            yield Element(chains.group_set(key, chains.version(str(item[0])), named), item)

    def _used(self, policies: Iterable[Policy], snapshot: Snapshot) -> bool:
        wanted = {policy.key for policy in policies}
        return any(
            policy.key in wanted
            for _, whose in local(snapshot, self.node)
            if whose.pod is not None
            for policy in self.selecting(whose.pod, snapshot)
        )

    def judge(self, snapshot: Callable[[], Snapshot]) -> Callable[[], Callable[[Flow], bool]]:
        """What `PolicyFlows` asks: a judge of flows on the newest snapshot."""

        def at_once() -> Callable[[Flow], bool]:
            now = snapshot()
            here = {address for address, whose in local(now, self.node) if whose.pod is not None}

            @functools.lru_cache(maxsize=65536)
            def ask(source: str, target: str, protocol: str, port: int) -> bool:
                packet = Packet(source, target, protocol, port)
                ends = ((EGRESS, source), (INGRESS, target))
                return all(
                    self.ruling(now, packet, direction).allowed for direction, end in ends if end in here
                )

            def flow_allowed(flow: Flow) -> bool:
                forth = ask(flow.source, flow.target, flow.protocol, flow.port)
                back = not flow.loose or ask(flow.target, flow.source, flow.protocol, flow.source_port)
                return forth and back

            return flow_allowed

        return at_once

    def ruling(self, snapshot: Snapshot, packet: Packet, direction: str) -> Ruling:
        """What policy says of a packet at one of its ends."""
        own, peer = packet.ends(direction)
        pod = pod_at(snapshot, own)
        if own == peer or pod is None:
            return Ruling(True, "policy does not speak of it")
        return judge(self.selecting(pod, snapshot), snapshot, pod, packet, direction)

    # --- memos (rule 3) -------------------------------------------------------------------------------

    def index(self, snapshot: Snapshot) -> Index:
        tokens = (snapshot.version(NetworkPolicy), snapshot.version(ClusterNetworkPolicy))
        memo = self._index
        if memo is not None and memo[0] is tokens[0] and memo[1] is tokens[1]:
            return memo[2]
        index = Index(snapshot, memo[2] if memo else None)
        self._index = (*tokens, index)
        return index

    def selecting(self, pod: Pod, snapshot: Snapshot) -> tuple[Policy, ...]:
        index = self.index(snapshot)
        rests = (pod, index, snapshot.version(Namespace))
        memo = self._selecting.get((pod.namespace, pod.name))
        if memo is not None and all(a is b for a, b in zip(memo, rests, strict=False)):
            return memo[3]
        if len(self._selecting) > 65536:
            self._selecting = {}
        found = index.selecting(pod, snapshot)
        self._selecting[pod.namespace, pod.name] = (*rests, found)
        return found


def tiers_of(policies: Iterable[Policy], direction: str, pod: Pod) -> chains.Tiers:
    """The rules of these policies in one direction, ports that the pod itself names resolved."""
    found: dict[str, list[Rule] | None] = {ADMIN: [], NAMESPACED: None, BASELINE: []}
    for policy in policies:
        rules = policy.rules(direction)
        if rules is None:
            continue
        mine = found[policy.tier]
        if mine is None:
            mine = found[policy.tier] = []
        mine += rules if direction == EGRESS else (r for rule in rules for r in _resolved(rule, pod))
    namespaced = found[NAMESPACED]
    return chains.Tiers(
        tuple(found[ADMIN] or ()),
        None if namespaced is None else tuple(namespaced),
        tuple(found[BASELINE] or ()),
    )


def _resolved(rule: Rule, pod: Pod) -> Iterator[Rule]:
    """An ingress rule with the pod's own numbers for named ports; nothing when it names no port of it."""
    if rule.ports is None or not any(p.name for p in rule.ports):
        yield rule
        return
    ports: list[Port] = []
    for port in rule.ports:
        if port.name:
            ports += (Port(proto, n, n) for proto, n in named_ports(pod, port.name, port.protocol))
        else:
            ports.append(port)
    if ports:
        yield rule._replace(ports=tuple(ports))


def _items(group: Group, snapshot: Snapshot) -> Iterator[tuple[str | int, ...]]:
    for one in members(group.peers, snapshot):
        if not group.names:
            yield from ((address,) for address in addresses(one))
        elif isinstance(one, Pod):
            yield from _doors(one, group, one.ips)
    if group.names and group.peers is not None and group.peers.blocks:
        for pod in members(None, snapshot):
            if isinstance(pod, Pod):
                yield from _doors(pod, group, [ip for ip in pod.ips if within(group.peers.blocks, ip)])


def _doors(pod: Pod, group: Group, ips: Iterable[str]) -> Iterator[tuple[str | int, ...]]:
    """(address, protocol, number) of the ports that the group names, at these addresses of a pod."""
    for port in group.names:
        for protocol, number in named_ports(pod, port.name, port.protocol):
            yield from ((ip, protocol, number) for ip in ips)


def _ports(pod: Pod) -> list[tuple[str, str, int]]:
    containers = (*pod.spec.containers, *pod.spec.init_containers)
    return [(p.name, p.protocol, p.container_port) for c in containers for p in c.ports if p.name]


def _essence(pod: Pod) -> tuple[object, ...]:
    """All that policy sees of a pod."""
    return (pod.labels, pod.ips, pod.finished, pod.spec.host_network, pod.spec.node_name, _ports(pod))

"""Which policies select which pods, and who is a peer of what: look-ups over one snapshot. Pure.

Rule 1: nothing is searched that a label can find: policies and groups are filed under a namespace and
        one label pair that every pod which they select must carry.
Rule 2: what is remembered between snapshots rests on the identity of immutable objects alone.
Rule 3: a pod that has ended, or that lives in its node's own network, is neither selected nor a peer.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

from ..model.clusterpolicies import ClusterNetworkPolicy
from ..model.nodes import Namespace, Node
from ..model.own import Attachment
from ..model.pods import Pod
from ..model.policies import NetworkPolicy
from ..model.snapshot import Snapshot
from .rules import (
    EVERYTHING,
    METADATA_NAME,
    NAMESPACED,
    Group,
    Network,
    Nodes,
    Peers,
    Pods,
    Policy,
    compiled,
    groups,
)

T = TypeVar("T")
TIERS = ("Admin", NAMESPACED, "Baseline")


class Holder(NamedTuple):
    """Whose an address of this node is. ``pod`` None: the pod's object is not there (yet)."""

    namespace: str
    name: str
    pod: Pod | None


class Buckets(Generic[T]):
    """Things filed under the pods that they may select."""

    def __init__(self) -> None:
        self._filed: dict[tuple[str, str], list[T]] = {}

    def add(self, pods: Pods, item: T) -> None:
        pair = next((f"{k}={v}" for k, v in sorted(pods.pods.match_labels.items())), "")
        self._filed.setdefault((pods.namespace, pair), []).append(item)

    def find(self, pod: Pod) -> Iterator[T]:
        pairs = ["", *(f"{k}={v}" for k, v in pod.labels.items())]
        for namespace in (pod.namespace, ""):
            for pair in pairs:
                yield from self._filed.get((namespace, pair), ())


class Index:
    """All policies of one snapshot, compiled. ``before`` gives what has not changed since."""

    def __init__(self, snapshot: Snapshot, before: Index | None = None) -> None:
        known = before._compiled if before else {}
        self._compiled: dict[object, tuple[object, Policy]] = {}
        self.policies: list[Policy] = []
        self._by_subject: Buckets[Policy] = Buckets()
        self._by_member: Buckets[tuple[Pods, Group]] = Buckets()
        self.groups: dict[str, tuple[Group, list[Policy]]] = {}
        self.node_groups: list[Group] = []
        self.namespace_groups: set[str] = set()  # keys; what a namespace's labels may change
        for kind in (NetworkPolicy, ClusterNetworkPolicy):
            for obj in snapshot.list(kind):
                assert isinstance(obj, NetworkPolicy | ClusterNetworkPolicy)
                key = obj.key
                entry = known.get(key)
                if entry is None or entry[0] is not obj:
                    entry = (obj, compiled(obj))
                self._compiled[key] = entry
                self._file(entry[1])

    def _file(self, policy: Policy) -> None:
        self.policies.append(policy)
        self._by_subject.add(policy.subject, policy)
        for group in groups(policy):
            entry = self.groups.get(group.key)
            if entry is None:
                entry = self.groups[group.key] = (group, [])
                self._file_group(group)
            entry[1].append(policy)
            if by_namespace(policy.subject):  # which begins or ceases to need its groups here
                self.namespace_groups.add(group.key)

    def _file_group(self, group: Group) -> None:
        members: tuple[Pods | Nodes, ...] = group.peers.members if group.peers else (Pods(EVERYTHING),)
        if group.names and group.peers and group.peers.blocks:  # any pod may have an address there
            members = (*members, Pods(EVERYTHING))
        for member in members:
            if isinstance(member, Pods):
                self._by_member.add(member, (member, group))
        if any(isinstance(m, Nodes) for m in members):
            self.node_groups.append(group)
        if any(isinstance(m, Pods) and by_namespace(m) for m in members):
            self.namespace_groups.add(group.key)

    def selecting(self, pod: Pod, snapshot: Snapshot) -> tuple[Policy, ...]:
        """The policies whose subject is this pod, in the order in which they are asked."""
        if pod.spec.host_network:
            return ()
        found = [p for p in self._by_subject.find(pod) if selects(p.subject, pod, snapshot)]
        return tuple(sorted(found, key=lambda p: (TIERS.index(p.tier), p.priority, p.key)))

    def groups_with(self, pod: Pod, snapshot: Snapshot) -> set[str]:
        """The keys of the groups that this pod is a member of."""
        if not is_peer(pod):
            return set()
        return {group.key for member, group in self._by_member.find(pod) if selects(member, pod, snapshot)}


def is_peer(pod: Pod) -> bool:
    return not (pod.spec.host_network or pod.finished)


def namespace_labels(snapshot: Snapshot, name: str) -> Mapping[str, str]:
    """A namespace's labels with the one that Kubernetes sets itself; there even without an object."""
    namespace = snapshot.get(Namespace, "", name)
    return {**(namespace.labels if namespace else {}), METADATA_NAME: name}


def selects(pods: Pods, pod: Pod, snapshot: Snapshot) -> bool:
    if pods.namespace and pods.namespace != pod.namespace:
        return False
    if not pods.pods.matches(pod.labels):
        return False
    if pods.namespaces is None or not by_namespace(pods):
        return True
    return pods.namespaces.matches(namespace_labels(snapshot, pod.namespace))


def by_namespace(pods: Pods) -> bool:
    """Whether the labels of namespaces decide."""
    return pods.namespaces not in (None, EVERYTHING)


def members(peers: Peers | None, snapshot: Snapshot) -> Iterator[Pod | Node]:
    """The pods and nodes of these peers; all pods for None. May give one twice."""
    for member in peers.members if peers else (Pods(EVERYTHING),):
        if isinstance(member, Nodes):
            yield from (n for n in snapshot.list(Node) if member.nodes.matches(n.labels))
        else:
            for pod in _candidates(member, snapshot):
                if is_peer(pod) and selects(member, pod, snapshot):
                    yield pod


def within(blocks: Iterable[Network], address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return any(ip.version == block.version and ip in block for block in blocks)


def _candidates(pods: Pods, snapshot: Snapshot) -> Iterable[Pod]:
    if not pods.namespace:
        return snapshot.list(Pod)
    pair = next((f"{k}={v}" for k, v in sorted(pods.pods.match_labels.items())), "")
    if pair:
        return snapshot.by(Pod, "label", f"{pods.namespace}/{pair}")
    return snapshot.by(Pod, "namespace", pods.namespace)


def addresses(one: Pod | Node) -> tuple[str, ...]:
    """Where a member is found; a node at all of its addresses that are no names."""
    if isinstance(one, Pod):
        return one.ips
    return tuple(dict.fromkeys(a.address for a in one.status.addresses if a.type.endswith("IP")))


def holder(snapshot: Snapshot, node: str, address: str) -> Holder | None:
    """Whose address of this node it is: the attachment's pod, or a pod that somebody else attached."""
    for attachment in snapshot.by(Attachment, "ip", address):
        spec = attachment.spec
        if spec.node == node:
            return Holder(
                spec.pod_namespace, spec.pod_name, snapshot.get(Pod, spec.pod_namespace, spec.pod_name)
            )
    for pod in snapshot.by(Pod, "ip", address):
        if pod.spec.node_name == node and is_peer(pod):
            return Holder(pod.namespace, pod.name, pod)
    return None


def pod_at(snapshot: Snapshot, address: str) -> Pod | None:
    """The pod of the cluster that is reached at this address."""
    return next((p for p in snapshot.by(Pod, "ip", address) if is_peer(p)), None)


def local(snapshot: Snapshot, node: str) -> Iterator[tuple[str, Holder]]:
    """Every pod address of this node, once, with its holder."""
    seen: set[str] = set()
    for attachment in snapshot.by(Attachment, "node", node):
        spec = attachment.spec
        whose = Holder(
            spec.pod_namespace, spec.pod_name, snapshot.get(Pod, spec.pod_namespace, spec.pod_name)
        )
        for entry in spec.ips:
            address = entry.address.partition("/")[0]
            if address not in seen:
                seen.add(address)
                yield address, whose
    for pod in snapshot.by(Pod, "node", node):
        if is_peer(pod):
            for address in pod.ips:
                if address not in seen:
                    seen.add(address)
                    yield address, Holder(pod.namespace, pod.name, pod)


def named_ports(pod: Pod, port_name: str, protocol: str = "") -> Iterator[tuple[str, int]]:
    """(protocol, number) of the container ports with this name; any protocol for ""."""
    for container in (*pod.spec.containers, *pod.spec.init_containers):
        for port in container.ports:
            if port.name == port_name and protocol in ("", port.protocol.lower()):
                yield port.protocol.lower(), port.container_port

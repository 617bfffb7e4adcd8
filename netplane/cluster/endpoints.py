"""EndpointSlices from Service selectors and Pods, as Kubernetes' controller makes them.

Rule 1: only slices labelled managed-by netplane are ours; a user's own are never touched.
Rule 2: where an endpoint stands is remembered by the slice it stands in, so the change of one pod
        writes one slice; new endpoints fill slices that change anyway, then the fullest with room.
Rule 3: new and changed slices are written before old ones go, so a service is never without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..model.base import Object, ObjectMeta, OwnerReference, amend
from ..model.changes import Delete, Event, Put, Write
from ..model.facts import Scope, digest
from ..model.nodes import Node
from ..model.own import Attachment
from ..model.pods import Pod
from ..model.services import HEADLESS, SERVICE_NAME, Endpoint, EndpointSlice, Service
from ..model.snapshot import Snapshot
from .config import ClusterConfig
from .endpoint_pods import Group, services_of, wanted, zone_of

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"  # label
MANAGER = "netplane"
MAX_ENDPOINTS = 100  # per slice, Kubernetes' default


class Endpoints:
    """The controller of our EndpointSlices. Scope: "namespace/service"."""

    name = "endpoints"
    kinds = frozenset(kind.KIND for kind in (Service, EndpointSlice, Pod, Attachment, Node))

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        return {Scope(self.name, name) for name in _touched(event, snapshot)}

    def decide(self, scope: Scope, snapshot: Snapshot) -> list[Write]:
        namespace, _, name = scope.name.partition("/")
        service = snapshot.get(Service, namespace, name)
        ours = [s for s in snapshot.by(EndpointSlice, "service", scope.name) if managed(s)]
        if service is None or service.spec.type == "ExternalName" or not service.spec.selector:
            return [Delete(s.key, expect=s.revision) for s in ours]
        puts: list[Put] = []
        kept: set[str] = set()
        for group, endpoints in wanted(service, snapshot, self.config).items():
            mine = [s for s in ours if (s.address_type, s.ports) == group]
            for old, content in pack(endpoints, mine):
                name = old.name if old else _free_name(service, group, snapshot, kept)
                new = _slice(service, group, content, old, name)
                kept.add(new.name)
                if new != old:
                    puts.append(Put(new, expect=old.revision if old else 0))
        gone = [Delete(s.key, expect=s.revision) for s in ours if s.name not in kept]
        return [*puts, *gone]


def managed(slice_: EndpointSlice) -> bool:
    return slice_.labels.get(MANAGED_BY) == MANAGER


def pack(
    endpoints: list[Endpoint], slices: list[EndpointSlice]
) -> list[tuple[EndpointSlice | None, tuple[Endpoint, ...]]]:
    """Endpoints of one group into its slices: (slice, or None for a new one; what it shall hold).

    A slice that would be empty is not in the result.
    """
    waiting = {_identity(e): e for e in endpoints}
    contents = []
    for old in slices:
        stay = [waiting.pop(i) for i in map(_identity, old.endpoints) if i in waiting]
        contents.append((old, stay))
    newcomers = list(waiting.values())
    contents.sort(key=lambda c: (len(c[1]) == len(c[0].endpoints), -len(c[1]), c[0].name))
    packed: list[tuple[EndpointSlice | None, tuple[Endpoint, ...]]] = []
    for old, stay in contents:
        room = MAX_ENDPOINTS - len(stay)
        content, newcomers = (*stay, *newcomers[:room]), newcomers[room:]
        if content:
            packed.append((old, content))
    for start in range(0, len(newcomers), MAX_ENDPOINTS):
        packed.append((None, tuple(newcomers[start : start + MAX_ENDPOINTS])))
    return packed


def _identity(endpoint: Endpoint) -> tuple[str, str]:
    ref = endpoint.target_ref
    return (ref.name, ref.uid) if ref else ("", endpoint.addresses[0])


def _slice(
    service: Service, group: Group, content: tuple[Endpoint, ...], old: EndpointSlice | None, name: str
) -> EndpointSlice:
    meta = old.metadata if old else ObjectMeta(namespace=service.namespace, name=name)
    labels = {SERVICE_NAME: service.name, MANAGED_BY: MANAGER}
    if service.headless:
        labels[HEADLESS] = ""
    owner = OwnerReference(
        api_version="v1", kind=Service.KIND, name=service.name, uid=service.metadata.uid, controller=True
    )
    meta = amend(meta, labels=labels, owner_references=(owner,))
    return EndpointSlice(metadata=meta, address_type=group.family, endpoints=content, ports=group.ports)


def _free_name(service: Service, group: Group, snapshot: Snapshot, kept: set[str]) -> str:
    """The same from every agent, so that two of them meet in one name and not in two slices."""
    stem = f"{service.name}-{digest(group.family, *map(repr, group.ports))[:8]}"
    number = 1
    while f"{stem}-{number}" in kept or snapshot.get(EndpointSlice, service.namespace, f"{stem}-{number}"):
        number += 1
    return f"{stem}-{number}"


def _touched(event: Event | None, snapshot: Snapshot) -> Iterator[str]:
    if event is None:
        yield from (f"{s.namespace}/{s.name}" for s in snapshot.list(Service))
        yield from _owners(snapshot.list(EndpointSlice))
        return
    moved = zone_of(event.old) != zone_of(event.new)
    for state in (event.old, event.new):
        if isinstance(state, Service):
            yield f"{state.namespace}/{state.name}"
        elif isinstance(state, EndpointSlice):
            yield from _owners((state,))
        elif state is not None:
            for pod in _pods_behind(state, snapshot, moved):
                yield from (f"{s.namespace}/{s.name}" for s in services_of(pod, snapshot))


def _owners(slices: Iterable[EndpointSlice]) -> Iterator[str]:
    return (f"{s.namespace}/{s.service}" for s in slices if managed(s) and s.service)


def _pods_behind(state: Object, snapshot: Snapshot, moved: bool) -> Iterator[Pod]:
    """The pods whose endpoints may change with an object that is not a service; all of a node's when it
    ``moved`` to another zone."""
    if isinstance(state, Pod):
        yield state
    elif isinstance(state, Attachment):
        pod = snapshot.get(Pod, state.spec.pod_namespace, state.spec.pod_name)
        yield from (pod,) if pod else ()
    elif isinstance(state, Node):
        yield from (p for p in snapshot.by(Pod, "node", state.name) if moved or p.spec.host_network)

"""ClusterIPs and node ports: claimed as Allocations, then written into the Service.

Rule 1: all of a service's wants are granted together, or none is and the service says why.
Rule 2: what a spec names is honoured or refused, never replaced; what it does not name is found
        again among the service's own claims, so that applying a manifest anew changes nothing.
Rule 3: no decision looks at all services: a search starts at a hash and asks for names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..model.base import amend
from ..model.changes import Event, Put, Write
from ..model.errors import Invalid
from ..model.facts import Scope
from ..model.own import Allocation
from ..model.services import Service
from ..model.snapshot import Snapshot
from . import claims
from .conditions import service_refused
from .config import ClusterConfig
from .service_wants import Ask, grant


class Addresses:
    """The controller of Service.spec.clusterIP(s), ipFamilies, ipFamilyPolicy and node ports."""

    name = "addresses"
    kinds = frozenset((Service.KIND, Allocation.KIND))

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config

    def scopes(self, event: Event | None, snapshot: Snapshot) -> Iterable[Scope]:
        return {Scope(self.name, name) for name in self._touched(event, snapshot)}

    def _touched(self, event: Event | None, snapshot: Snapshot) -> Iterator[str]:
        if event is None:
            yield from (f"{s.namespace}/{s.name}" for s in snapshot.list(Service))
            yield from _holders(snapshot.list(Allocation))
        elif isinstance(event.object, Service):
            yield f"{event.object.namespace}/{event.object.name}"
        elif isinstance(event.object, Allocation) and _ours(event.object):
            yield from _holders(a for a in (event.old, event.new) if isinstance(a, Allocation))
            if event.new is None:  # something became free: whoever was refused may ask again
                yield from (f"{s.namespace}/{s.name}" for s in snapshot.by(Service, "refused", ""))

    def decide(self, scope: Scope, snapshot: Snapshot) -> list[Write]:
        """Claims first, then the service that uses them, then the release of what it does not."""
        namespace, _, name = scope.name.partition("/")
        service = snapshot.get(Service, namespace, name)
        held = claims.held_by(snapshot, Service.KIND, namespace, name)
        if service is None:
            return list(claims.release(held))
        given = grant(Ask(service, held, snapshot, self.config))
        why = "; ".join(given.refusals)
        target = service_refused(service, why)
        writes: list[Write] = []
        if not why:
            target = amend(target, spec=given.spec)
            for claim in given.claims:
                writes += claims.take(snapshot, claim, service)
        if target != service:
            writes.append(Put(target, expect=service.revision))
        writes += claims.release(held, keep=given.keep)
        if why and not writes:
            raise Invalid(f"{service.key}: {why}")
        return writes


def _ours(allocation: Allocation) -> bool:
    return allocation.spec.holder_kind == Service.KIND


def _holders(allocations: Iterable[Allocation]) -> Iterator[str]:
    for a in allocations:
        if _ours(a):
            yield f"{a.spec.holder_namespace}/{a.spec.holder_name}"

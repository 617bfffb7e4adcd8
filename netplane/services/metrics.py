"""Prometheus metrics of the service proxy, under kube-proxy's names so that its dashboards work, and
connections of each service, which kube-proxy does not have.

Rule 1: nothing is measured for a metric alone: the loop says what it did, the kernel's elements count.
Rule 2: what costs a look at all services is looked at when somebody scrapes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..model.changes import Event
from ..model.facts import Scope
from ..model.services import COUNT_PACKETS, EndpointSlice, Service
from ..model.snapshot import Snapshot
from . import packets
from .chains import DROPPED, REFUSED
from .frontends import frontends, served
from .room import ROOM
from .steps import OUTSIDE

PREFIX = "kubeproxy"
TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"
BUCKETS = tuple(0.001 * 2**n for n in range(15))  # kube-proxy's: 1 ms to 16 s
PROGRAMMING = (0.25, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 30, 45, 60, 120, 300)
Counts = Callable[[str], Mapping[tuple[Any, ...], tuple[int, Any]]]


class Settled(Protocol):
    """What the loop tells of one round of work (reconcile.base.Settled)."""

    @property
    def scopes(self) -> Sequence[Scope]: ...
    @property
    def seconds(self) -> float: ...
    @property
    def failed(self) -> int: ...
    @property
    def full(self) -> bool: ...


class ServiceMetrics:
    """Is told by the loop (`noticed`, `settled`), by flows (`swept`) and by probes (`probed`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, words: str, buckets: Sequence[float] = BUCKETS) -> Histogram:
            return Histogram(f"{PREFIX}_{name}_seconds", words, buckets=buckets, registry=registry)

        def counter(name: str, words: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"{PREFIX}_{name}_total", words, labels, registry=registry)

        def gauge(name: str, words: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", words, registry=registry)

        self._sync = histogram("sync_proxy_rules_duration", "Rules brought about, in any way")
        self._full = histogram("sync_full_proxy_rules_duration", "Everything compared and brought about")
        self._partial = histogram("sync_partial_proxy_rules_duration", "What changed brought about")
        self._programming = histogram(
            "network_programming_duration", "From a pod's change to its rules", PROGRAMMING
        )
        self._flows = histogram("conntrack_reconciler_sync_duration", "Tracked flows compared")
        self._forgotten = counter("conntrack_reconciler_deleted_entries", "Tracked flows forgotten")
        self._failures = counter("sync_proxy_rules_nftables_sync_failures", "Transactions nftables refused")
        self._probes = {
            path: counter(f"proxy_{path}", f"Answers to /{path}", ["code"]) for path in ("healthz", "livez")
        }
        self._changes = {
            kind: counter(f"sync_proxy_rules_{word}_changes", f"{kind} changes seen")
            for kind, word in ((Service.KIND, "service"), (EndpointSlice.KIND, "endpoint"))
        }
        self._pending = {
            kind: gauge(f"sync_proxy_rules_{word}_changes_pending", f"{kind} changes not yet in force")
            for kind, word in ((Service.KIND, "service"), (EndpointSlice.KIND, "endpoint"))
        }
        self._last = gauge("sync_proxy_rules_last_timestamp_seconds", "When rules last went well")
        self._queued = gauge("sync_proxy_rules_last_queued_timestamp_seconds", "When a change last came")
        self._waiting: dict[Scope, list[tuple[str, float]]] = {}

    def noticed(self, events: Iterable[Event]) -> None:
        for event in events:
            kind, obj = event.object.KIND, event.object
            if kind not in self._changes:
                continue
            self._changes[kind].inc()
            self._queued.set(time.time())
            name = obj.name if isinstance(obj, Service) else getattr(obj, "service", "")
            if name:
                scope = Scope(ROOM, f"{obj.namespace}/{name}")
                self._pending[kind].inc()
                self._waiting.setdefault(scope, []).append((kind, _triggered(obj.metadata.annotations)))

    def settled(self, work: Settled) -> None:
        if not any(scope.room == ROOM for scope in work.scopes):
            return
        self._sync.observe(work.seconds)
        (self._full if work.full else self._partial).observe(work.seconds)
        self._failures.inc(work.failed)
        now = time.time()
        if not work.failed:
            self._last.set(now)
        for scope in work.scopes:
            for kind, triggered in self._waiting.pop(scope, ()):
                self._pending[kind].dec()
                if triggered:
                    self._programming.observe(max(0.0, now - triggered))

    def swept(self, deleted: int, seconds: float) -> None:
        self._flows.observe(seconds)
        self._forgotten.inc(deleted)

    def probed(self, path: str, code: int) -> None:
        self._probes[path].labels(str(code)).inc()


class ServiceCounts:
    """A collector: connections by service from the elements' counters, and services without endpoints here.

    ``counts(map)`` gives {(address, protocol, port): (packets, class)}; a flow's first packet counts.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], counts: Counts, ips: tuple[str, ...]) -> None:
        self._snapshot, self._counts, self._ips = snapshot, counts, ips

    def collect(self) -> Iterator[Metric]:
        found = _Families()
        held = {**self._counts("svc-services4"), **self._counts("svc-services6")}
        later = {key: number for name in packets.SETS for key, (number, _) in self._counts(name).items()}
        nobody = {key for digit in "46" for key in self._nobody(f"svc-next{digit}")}
        for service in self._snapshot().list(Service):
            if served(service):
                self._count(service, held, later, found, nobody)
        for policy, number in found.nobody.items():
            found.local.add_metric([policy], number)
        yield from (found.made, found.lost, found.sent, found.local)

    def _nobody(self, name: str) -> Iterator[tuple[Any, ...]]:
        """The frontends whose traffic from outside finds no endpoint here; pods' goes on."""
        for (*key, step), (_, way) in self._counts(name).items():
            if step == OUTSIDE and way[0] == DROPPED:
                yield tuple(key)

    def _count(
        self,
        service: Service,
        held: Mapping[tuple[Any, ...], tuple[int, Any]],
        later: Mapping[tuple[Any, ...], int],
        found: _Families,
        nobody: Collection[tuple[Any, ...]],
    ) -> None:
        labels, sums = [service.namespace, service.name], {"": 0, "refused": 0, "dropped": 0}
        without: set[str] = set()
        more = 0
        for port in service.spec.ports:
            for frontend in frontends(service, port, self._ips):
                number, way = held.get(frontend.key, (0, ("",)))
                verdict = {REFUSED: "refused", DROPPED: "dropped"}.get(way[0], "")
                sums[verdict] += number
                more += later.get(frontend.key, 0)
                if verdict == "dropped" or frontend.key in nobody:
                    without.add("external" if frontend.external else "internal")
        for policy in without:
            found.nobody[policy] += 1
        if service.metadata.annotations.get(COUNT_PACKETS) == "on":
            found.sent.add_metric(labels, sums[""] + more)
        found.made.add_metric(labels, sums.pop(""))
        for verdict, number in sums.items():
            if number:
                found.lost.add_metric([*labels, verdict], number)


class _Families:
    """One scrape."""

    def __init__(self) -> None:
        service = ["namespace", "service"]
        self.made = CounterMetricFamily("netplane_service_connections", "New flows sent on", labels=service)
        self.lost = CounterMetricFamily(
            "netplane_service_drops",
            "New flows refused or dropped for want of an endpoint",
            labels=[*service, "verdict"],
        )
        self.sent = CounterMetricFamily(
            "netplane_service_packets", "Packets from clients, where a service asks for it", labels=service
        )
        self.local = GaugeMetricFamily(
            f"{PREFIX}_sync_proxy_rules_no_local_endpoints_total",
            "Services of traffic policy Local without an endpoint on this node",
            labels=["traffic_policy"],
        )
        self.nobody = {"internal": 0, "external": 0}


def _triggered(annotations: Mapping[str, str]) -> float:
    """When the pods changed that a slice follows, as Kubernetes' controller noted it; 0 without."""
    try:
        return datetime.fromisoformat(annotations[TRIGGER]).timestamp()
    except (KeyError, ValueError):
        return 0.0

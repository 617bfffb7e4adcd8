"""The edge of passive ejection: looks at the kernel's counts, and has services rendered anew.

Rule 1: nothing is looked at while no service asks for it; then a look costs what is watched.
Rule 2: what it decided is one immutable mapping, `room.ejected`, replaced whole: rendering stays a pure
        function of the objects and of it.
"""

from __future__ import annotations

import logging
import operator
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..model.errors import NetplaneError
from ..model.facts import Scope
from ..model.nodes import Node
from ..model.services import EndpointSlice, Service
from ..model.snapshot import Snapshot
from . import watch
from .ejection import LOOK, Ejected, Record, Rule, judge, rule
from .endpoints import Backend
from .room import ROOM, ServicesRoom

log = logging.getLogger(__name__)
Records = dict[str, dict[Backend, Record]]
Asking = tuple[str, Rule, set[Backend]]  # a service's name, what it asks for, whom it concerns


class Ejector:
    """``settle`` renders these scopes and brings them about; raises NetplaneError. Also a collector."""

    def __init__(
        self,
        room: ServicesRoom,
        snapshot: Callable[[], Snapshot],
        counts: watch.Counts,
        settle: Callable[[Iterable[Scope]], None],
    ) -> None:
        self._room, self._snapshot, self._counts, self._settle = room, snapshot, counts, settle
        self._records: Records = {}
        self._times: Counter[str] = Counter()  # ejections of each service
        self._versions: list[object] = [None] * 3
        self._asked: list[Asking] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ejector", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK):
            try:
                self.look(time.monotonic())
            except NetplaneError as exc:  # the loop reports what concerns a service; this is seen again
                log.warning("passive ejection: %s", exc)

    def look(self, now: float) -> None:
        """Judge every endpoint of every service that asks for it. Raises NetplaneError."""
        snapshot = self._snapshot()
        if not self._records and not snapshot.count_by(Service, "ejects", ""):
            return
        self._records = self._judged(snapshot, now)
        before, after = self._room.ejected, out(self._records)
        changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
        self._room.ejected = after
        self._tell(before, after)
        if changed:
            self._settle([Scope(ROOM, name) for name in changed])

    def _judged(self, snapshot: Snapshot, now: float) -> Records:
        counts = watch.read(self._counts)
        found: Records = {}
        for name, wanted, mine in self._asking(snapshot):
            known = self._records.get(name, {})
            found[name] = {b: judge(known.get(b), counts[b], wanted, now) for b in mine & counts.keys()}
        return found

    def _asking(self, snapshot: Snapshot) -> list[Asking]:
        """The services that ask for it; found anew only when an object changed that it rests on."""
        versions = [snapshot.version(kind) for kind in (Service, EndpointSlice, Node)]
        if not all(map(operator.is_, versions, self._versions)):
            self._versions = versions
            self._asked = list(asking(self._room, snapshot))
        return self._asked

    def _tell(self, before: Ejected, after: Ejected) -> None:
        for name, backend, why in _pairs(after):
            if backend not in before.get(name, {}):
                self._times[name] += 1
                log.warning("service %s: endpoint %s is out of rotation here: %s", name, place(backend), why)
        for name, backend, _ in _pairs(before):
            if backend not in after.get(name, {}):
                log.info("service %s: endpoint %s is back in rotation here", name, place(backend))

    def status(self) -> list[dict[str, Any]]:
        """Every endpoint that fails: its service, why, for how many seconds more it is out, and whether
        it is tried all the same, because most fail."""
        now, snapshot = time.monotonic(), self._snapshot()
        found: list[dict[str, Any]] = []
        for name, mine in sorted(self._records.items()):
            failing = sorted((backend, record) for backend, record in mine.items() if record.until)
            service = snapshot.get(Service, *name.split("/")) if failing else None
            tried = self._room.tried(service, snapshot) if service else set()
            for backend, record in failing:
                words = {"service": name, "endpoint": place(backend), "reason": record.reason}
                seconds = max(0, round(record.until - now))
                found.append({**words, "seconds": seconds, "tried": backend in tried})
        return found

    def collect(self) -> Iterator[Metric]:
        labels = ["namespace", "service"]
        ever = CounterMetricFamily(
            "netplane_service_ejections", "Endpoints taken out of rotation", labels=labels
        )
        now = GaugeMetricFamily("netplane_service_ejected_endpoints", "Endpoints out now", labels=labels)
        ejected = self._room.ejected
        for name in sorted(self._records):
            ever.add_metric(name.split("/"), self._times[name])
            now.add_metric(name.split("/"), len(ejected.get(name, {})))
        yield from (ever, now)


def asking(room: ServicesRoom, snapshot: Snapshot) -> Iterator[Asking]:
    for service in snapshot.by(Service, "ejects", ""):
        try:
            wanted = rule(service)
        except NetplaneError:  # the room says so
            continue
        if wanted is not None:
            yield f"{service.namespace}/{service.name}", wanted, room.watched(service, snapshot)


def out(records: Records) -> Ejected:
    """Those that are out, with the reason."""
    found = {
        name: {backend: record.reason for backend, record in mine.items() if record.until}
        for name, mine in records.items()
    }
    return {name: mine for name, mine in found.items() if mine}


def _pairs(ejected: Ejected) -> Iterator[tuple[str, Backend, str]]:
    return ((name, backend, why) for name, mine in ejected.items() for backend, why in mine.items())


def place(backend: Backend) -> str:
    address, port = backend
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

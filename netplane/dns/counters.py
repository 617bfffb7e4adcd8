"""What the server counts, as a prometheus_client collector (`registry.register(server.counters)`).

Rule: written by the server's thread alone; a reader may be one packet behind. Label values are bounded:
types and rcodes without a name count as "other".
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from . import wire

BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_TYPE_NAMES = {number: name for name, number in wire.TYPES.items()}
_RCODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")


class Fast(Protocol):
    """The C threads (loop.Loop)."""

    def counters(self) -> Any: ...


class Counters(Collector):
    """``requests`` by (source, protocol, type), ``responses`` by (source, rcode), ``upstream`` by (address,
    outcome). The source is "cluster" for what the table answered and "forward" for what an upstream did.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.responses: Counter[tuple[str, str]] = Counter()
        self.upstream: Counter[tuple[str, str]] = Counter()
        self.dropped: Counter[str] = Counter()  # by reason: silence, send, busy, error, limited
        self.loops = 0  # questions of ours that came back to us
        self._buckets = {source: [0] * (len(BOUNDS) + 1) for source in ("cluster", "forward")}
        self._seconds = {"cluster": 0.0, "forward": 0.0}
        self._fast: list[Fast] = []

    def follow(self, loop: Fast) -> None:
        """Add what the C threads count; its sum stays when they end."""
        self._fast.append(loop)

    def total(self) -> Counters:
        """With the C threads' counts in: a copy, so that nothing is added twice."""
        total = Counters()
        total.requests.update(self.requests)
        total.responses.update(self.responses)
        total.upstream, total.loops = self.upstream, self.loops
        total.dropped.update(self.dropped)
        total._buckets = {source: list(counts) for source, counts in self._buckets.items()}
        total._seconds = dict(self._seconds)
        for loop in self._fast:
            total._add(loop.counters())
        return total

    def _add(self, c: Any) -> None:
        """A struct np_counters (csrc/dns/dns.h): all over UDP, and from the table."""
        for kind, n in enumerate(c.requests):
            if n:
                self.requests["cluster", "udp", _TYPE_NAMES.get(kind, "other")] += n
        for rcode, n in enumerate(c.responses):
            if n:
                self.responses["cluster", _RCODES[rcode] if rcode < len(_RCODES) else "other"] += n
        for reason in ("silence", "send", "busy", "limited"):
            if getattr(c, reason):
                self.dropped[reason] += getattr(c, reason)
        self._buckets["cluster"] = [a + b for a, b in zip(self._buckets["cluster"], c.buckets, strict=True)]
        self._seconds["cluster"] += c.nanoseconds / 1e9

    def answered(self, protocol: str, source: str, reply: bytes, seconds: float) -> None:
        """One response of ours left; its question tells the type that was asked for."""
        end = reply.find(b"\0", wire.HEADER.size) + 1
        kind = int.from_bytes(reply[end : end + 2], "big") if end else 0
        self.requests[source, protocol, _TYPE_NAMES.get(kind, "other")] += 1
        rcode = reply[3] & 15
        self.responses[source, _RCODES[rcode] if rcode < len(_RCODES) else "other"] += 1
        self._buckets[source][bisect_left(BOUNDS, seconds)] += 1
        self._seconds[source] += seconds

    def collect(self) -> Iterator[Metric]:
        return self.total()._collect()

    def _collect(self) -> Iterator[Metric]:
        yield _counter("requests", "Queries that were answered", ("source", "proto", "type"), self.requests)
        yield _counter("responses", "Responses sent", ("source", "rcode"), self.responses)
        yield _counter("upstream", "Questions to upstreams", ("to", "outcome"), self.upstream)
        dropped = {(reason,): n for reason, n in self.dropped.items()}
        yield _counter("dropped", "Packets without a response", ("reason",), dropped)
        yield _counter("loops", "Questions to upstreams that came back", (), {(): self.loops})
        family = HistogramMetricFamily(
            "netplane_dns_duration_seconds", "From a query's arrival to its response", labels=("source",)
        )
        for source, counts in self._buckets.items():
            total, buckets = 0, []
            for bound, n in zip((*map(str, BOUNDS), "+Inf"), counts, strict=True):
                total += n
                buckets.append((bound, total))
            family.add_metric((source,), buckets, self._seconds[source])
        yield family


def _counter(name: str, text: str, labels: tuple[str, ...], values: object) -> CounterMetricFamily:
    family = CounterMetricFamily(f"netplane_dns_{name}", text, labels=labels)
    for key, value in dict(values).items():  # type: ignore[call-overload]
        family.add_metric(key, value)
    return family

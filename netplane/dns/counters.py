"""What the server counts, as a prometheus_client collector (`registry.register(server.counters)`).

Rule: written by the server's thread alone; a reader may be one packet behind. Label values are bounded:
types and rcodes without a name count as "other", names by the zone that is configured here, as CoreDNS does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from . import wire
from .stub import Routes

BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_NO_TIMES = (0,) * (len(BOUNDS) + 1)
_TYPE_NAMES = {number: name for name, number in wire.TYPES.items()}
_REVERSE = ("in-addr.arpa.", "ip6.arpa.")
_RCODES = ("NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED")


class Fast(Protocol):
    """The C threads (loop.Loop)."""

    def counters(self) -> Any: ...


class Counters(Collector):
    """``requests`` by (zone, source, protocol, type), ``responses`` by (zone, source, rcode), ``upstream`` by
    (address, outcome). The zone is the cluster's ``domain``, a reverse zone, a stub domain or "."; the source
    "cluster" for what the table answered and "forward" for what an upstream did.
    """

    def __init__(self, domain: str) -> None:
        self.domain = domain
        self._zones = _zones(domain)
        self.requests: Counter[tuple[str, str, str, str]] = Counter()
        self.responses: Counter[tuple[str, str, str]] = Counter()
        self.upstream: Counter[tuple[str, str]] = Counter()
        self.dropped: Counter[str] = Counter()  # by reason: silence, send, busy, error, limited
        self.loops = 0  # questions of ours that came back to us
        self._buckets: dict[tuple[str, str], list[int]] = {}  # by (zone, source)
        self._seconds: dict[tuple[str, str], float] = defaultdict(float)
        self._fast: list[Fast] = []

    def follow(self, loop: Fast) -> None:
        """Add what the C threads count; its sum stays when they end."""
        self._fast.append(loop)

    def know(self, stubs: Iterable[bytes]) -> None:
        """From now on names of these stub domains count as theirs."""
        self._zones = _zones(self.domain, stubs)

    def total(self) -> Counters:
        """With the C threads' counts in: a copy, so that nothing is added twice."""
        total = Counters(self.domain)
        total.requests.update(self.requests)
        total.responses.update(self.responses)
        total.upstream, total.loops = self.upstream, self.loops
        total.dropped.update(self.dropped)
        total._buckets = {key: list(counts) for key, counts in list(self._buckets.items())}
        total._seconds.update(self._seconds)
        for loop in self._fast:
            total._add(loop.counters())
        return total

    def _add(self, c: Any) -> None:
        """A struct np_counters (csrc/dns/dns.h): all over UDP, and from the table."""
        for number, zone in enumerate((f"{self.domain}.", *_REVERSE, ".")):  # NP_ZONE_…
            for kind, n in enumerate(c.requests[number]):
                if n:
                    self.requests[zone, "cluster", "udp", _TYPE_NAMES.get(kind, "other")] += n
            for rcode, n in enumerate(c.responses[number]):
                if n:
                    self.responses[zone, "cluster", _rcode(rcode)] += n
            self._add_times((zone, "cluster"), c.buckets[number], c.nanoseconds[number] / 1e9)
        for reason in ("silence", "send", "busy", "limited"):
            if getattr(c, reason):
                self.dropped[reason] += getattr(c, reason)

    def _add_times(self, key: tuple[str, str], counts: Iterable[int], seconds: float) -> None:
        before = self._buckets.get(key, _NO_TIMES)
        after = [a + b for a, b in zip(before, counts, strict=True)]
        if any(after):
            self._buckets[key] = after
            self._seconds[key] += seconds

    def answered(self, protocol: str, source: str, reply: bytes, seconds: float) -> None:
        """One response of ours left; its question tells what was asked for."""
        end = reply.find(b"\0", wire.HEADER.size) + 1
        kind = int.from_bytes(reply[end : end + 2], "big") if end else 0
        zone = self._zones.of(reply[wire.HEADER.size : end].lower()) if end else self._zones.default
        self.requests[zone, source, protocol, _TYPE_NAMES.get(kind, "other")] += 1
        self.responses[zone, source, _rcode(reply[3] & 15)] += 1
        self._buckets.setdefault((zone, source), list(_NO_TIMES))[bisect_left(BOUNDS, seconds)] += 1
        self._seconds[zone, source] += seconds

    def collect(self) -> Iterator[Metric]:
        return self.total()._collect()

    def _collect(self) -> Iterator[Metric]:
        yield _counter(
            "requests", "Queries that were answered", ("zone", "source", "proto", "type"), self.requests
        )
        yield _counter("responses", "Responses sent", ("zone", "source", "rcode"), self.responses)
        yield _counter("upstream", "Questions to upstreams", ("to", "outcome"), self.upstream)
        dropped = {(reason,): n for reason, n in self.dropped.items()}
        yield _counter("dropped", "Packets without a response", ("reason",), dropped)
        yield _counter("loops", "Questions to upstreams that came back", (), {(): self.loops})
        family = HistogramMetricFamily(
            "netplane_dns_duration_seconds",
            "From a query's arrival to its response",
            labels=("zone", "source"),
        )
        for key, counts in self._buckets.items():
            total, buckets = 0, []
            for bound, n in zip((*map(str, BOUNDS), "+Inf"), counts, strict=True):
                total += n
                buckets.append((bound, total))
            family.add_metric(key, buckets, self._seconds[key])
        yield family


def _zones(domain: str, stubs: Iterable[bytes] = ()) -> Routes[str]:
    zones = {wire.name(zone): zone for zone in (f"{domain}.", *_REVERSE)}
    return Routes(".", {stub: f"{wire.to_text(stub).rstrip('.')}." for stub in stubs} | zones)


def _rcode(rcode: int) -> str:
    return _RCODES[rcode] if rcode < len(_RCODES) else "other"


def _counter(name: str, text: str, labels: tuple[str, ...], values: object) -> CounterMetricFamily:
    family = CounterMetricFamily(f"netplane_dns_{name}", text, labels=labels)
    for key, value in dict(values).items():  # type: ignore[call-overload]
        family.add_metric(key, value)
    return family

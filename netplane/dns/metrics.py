"""What the resolver counts: cache, upstreams, configuration. A prometheus_client collector."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .setup import Setup


class DnsMetrics(Collector):
    """Read from the running configuration at each scrape; a new cache begins at zero, as a restart does."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def collect(self) -> Iterator[Metric]:
        cache = self._setup.server.resolver.cache
        if cache is not None:
            yield GaugeMetricFamily("netplane_dns_cache_entries", "Replies in the cache", len(cache))
            for name, text, value in (
                ("hits", "Questions that the cache answered", cache.hits),
                ("misses", "Questions that it could not", cache.misses),
                ("evicted", "Replies that gave way to others", cache.evicted),
                ("stale", "Answers past their time, when no upstream answered", cache.stale),
                ("prefetched", "Replies fetched again before they expired", cache.prefetched),
            ):
                yield CounterMetricFamily(f"netplane_dns_cache_{name}", text, value)
        up = GaugeMetricFamily("netplane_dns_upstream_up", "1: it answers", labels=("to",))
        for forwarder in self._setup.server.resolver.routes:
            down = forwarder.upstreams.down
            for upstream in forwarder.upstreams.all():
                up.add_metric((str(upstream),), int(upstream not in down))
        yield up
        yield GaugeMetricFamily("netplane_dns_waiting", "Questions under way", self._waiting())
        yield CounterMetricFamily(
            "netplane_dns_config_reloads", "Configurations that came into force later", self._setup.reloads
        )
        yield GaugeMetricFamily(
            "netplane_dns_config_refused", "1: the file is refused", int(bool(self._setup.problem))
        )

    def _waiting(self) -> int:
        return self._setup.server.resolver.waiting

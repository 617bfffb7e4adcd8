"""The DNS configuration file: YAML, strict, refused with line and reason. Pure but for `read`.

Rule 1: an unknown key, a wrong type and a value that cannot be are errors; nothing is guessed.
Rule 2: a file that is refused changes nothing; the configuration that runs, stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import field

from ..model import checks
from ..model.base import Fault, Struct
from ..model.documents import documents
from ..model.errors import Invalid
from . import hosts
from .cache import CacheOptions
from .forward import Limits
from .loop import RateLimit
from .pods import MODES
from .upstreams import POLICIES, Address, Upstream, parse_upstream
from .zone import MAX_TTL

MAX_UPSTREAMS = 15  # CoreDNS' bound


class ForwardConfig(Struct, frozen=True, kw_only=True):
    """A group of upstreams. ``upstreams``: see `upstreams.parse_upstream`; a path is a resolv.conf."""

    upstreams: tuple[str, ...]
    policy: str = "sequential"
    timeout: float = Limits().timeout
    attempts: int = Limits().attempts
    in_flight: int = Limits().in_flight
    probe_interval: float = Limits().probe
    ca: str = ""

    @property
    def sources(self) -> tuple[Upstream | str, ...]:
        return tuple(u if u.startswith("/") else parse_upstream(u) for u in self.upstreams)

    @property
    def limits(self) -> Limits:
        return Limits(self.timeout, self.attempts, self.in_flight, self.probe_interval)

    def check(self, path: str) -> Iterator[Fault]:
        if len(self.upstreams) > MAX_UPSTREAMS:
            yield f"{path}.upstreams", f"at most {MAX_UPSTREAMS} upstreams"
        for i, text in enumerate(self.upstreams):
            try:
                if not text.startswith("/"):
                    parse_upstream(text)
            except Invalid as exc:
                yield f"{path}.upstreams[{i}]", str(exc)
        yield from checks.one_of(f"{path}.policy", self.policy, POLICIES)
        yield from _between(f"{path}.timeout", self.timeout, 0.05, 30)
        yield from _between(f"{path}.attempts", self.attempts, 1, 10)
        yield from _between(f"{path}.inFlight", self.in_flight, 1, 65536)
        yield from _between(f"{path}.probeInterval", self.probe_interval, 0.05, 60)


class StubConfig(ForwardConfig, frozen=True, kw_only=True):
    """Everything at and below ``zone`` goes to these upstreams and to no others."""

    zone: str

    def check(self, path: str) -> Iterator[Fault]:
        yield from checks.dns_subdomain(f"{path}.zone", self.zone.rstrip("."))
        if not self.upstreams:
            yield f"{path}.upstreams", "a stub domain needs at least one upstream"
        yield from super().check(path)


class PrefetchConfig(Struct, frozen=True, kw_only=True):
    hits: int = CacheOptions().prefetch
    percent: int = 10

    def check(self, path: str) -> Iterator[Fault]:
        yield from _between(f"{path}.hits", self.hits, 0, 1_000_000)
        yield from _between(f"{path}.percent", self.percent, 1, 90)


class CacheConfig(Struct, frozen=True, kw_only=True):
    """Times in seconds; ``size`` in entries, 0: no cache."""

    size: int = CacheOptions().size
    max_ttl: int = field(default=CacheOptions().max_ttl, name="maxTTL")
    negative_ttl: int = field(default=CacheOptions().negative_ttl, name="negativeTTL")
    servfail_ttl: int = field(default=CacheOptions().servfail_ttl, name="servfailTTL")
    serve_stale: int = CacheOptions().serve_stale
    prefetch: PrefetchConfig = PrefetchConfig()

    @property
    def options(self) -> CacheOptions:
        return CacheOptions(
            self.size, self.max_ttl, self.negative_ttl, self.servfail_ttl,
            self.prefetch.hits, self.prefetch.percent / 100, self.serve_stale,
        )  # fmt: skip

    def check(self, path: str) -> Iterator[Fault]:
        yield from _between(f"{path}.size", self.size, 0, 10_000_000)
        yield from _between(f"{path}.maxTTL", self.max_ttl, 1, 604800)
        yield from _between(f"{path}.negativeTTL", self.negative_ttl, 0, 604800)
        yield from _between(f"{path}.servfailTTL", self.servfail_ttl, 0, 300)
        yield from _between(f"{path}.serveStale", self.serve_stale, 0, 604800)
        yield from self.prefetch.check(f"{path}.prefetch")


class HostsConfig(Struct, frozen=True, kw_only=True):
    file: str
    ttl: int = hosts.TTL

    def check(self, path: str) -> Iterator[Fault]:
        yield from _absolute(f"{path}.file", self.file)
        yield from _between(f"{path}.ttl", self.ttl, 0, 604800)


class TlsConfig(Struct, frozen=True, kw_only=True):
    """DNS over TLS (RFC 7858): where, and the PEM files, which are loaded again when they change."""

    listen: tuple[str, ...]
    cert: str
    key: str

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(parse_upstream(f"tls://{text}").address for text in self.listen)

    def check(self, path: str) -> Iterator[Fault]:
        if not self.listen:
            yield f"{path}.listen", "at least one IP or IP:PORT"
        for i, text in enumerate(self.listen):
            try:
                parse_upstream(f"tls://{text}")
            except Invalid:
                yield f"{path}.listen[{i}]", f"{text!r}: it takes IP or IP:PORT, IPv6 with a port in brackets"
        yield from _absolute(f"{path}.cert", self.cert)
        yield from _absolute(f"{path}.key", self.key)


class LogConfig(Struct, frozen=True, kw_only=True):
    """``queries``: write a line for one of every ``sample`` queries."""

    queries: bool = False
    sample: int = 1

    @property
    def every(self) -> int:
        return self.sample if self.queries else 0

    def check(self, path: str) -> Iterator[Fault]:
        yield from _between(f"{path}.sample", self.sample, 1, 1_000_000_000)


class RateConfig(Struct, frozen=True, kw_only=True):
    """Answers over UDP to one network (/24, /56): a second, at once, and which of those over it get TC."""

    per_second: float
    burst: float = 0.0  # 0: those of a second
    slip: int = 2

    @property
    def limit(self) -> RateLimit:
        return RateLimit(self.per_second, self.burst or max(1.0, self.per_second), self.slip)

    def check(self, path: str) -> Iterator[Fault]:
        yield from _between(f"{path}.perSecond", self.per_second, 0.01, 1_000_000)
        yield from _between(f"{path}.burst", self.burst or 1, 1, 1_000_000)
        yield from _between(f"{path}.slip", self.slip, 0, 1000)


class DnsConfig(Struct, frozen=True, kw_only=True):
    """The whole file. Without ``forward``, other names go where the node's resolv.conf says."""

    ttl: int = 5
    negative_ttl: int | None = field(default=None, name="negativeTTL")
    pods: str = "verified"
    autopath: bool = False
    forward: ForwardConfig | None = None
    stubs: tuple[StubConfig, ...] = ()
    cache: CacheConfig = CacheConfig()
    hosts: HostsConfig | None = None
    tls: TlsConfig | None = None
    log: LogConfig = LogConfig()
    rate_limit: RateConfig | None = None

    def check(self) -> Iterator[Fault]:
        yield from _between("ttl", self.ttl, 0, MAX_TTL)
        yield from _between("negativeTTL", self.negative_ttl or 0, 0, MAX_TTL)
        yield from checks.one_of("pods", self.pods, MODES)
        for name in ("forward", "cache", "hosts", "tls", "log"):
            part = getattr(self, name)
            if part is not None:
                yield from part.check(name)
        if self.rate_limit is not None:
            yield from self.rate_limit.check("rateLimit")
        for i, stub in enumerate(self.stubs):
            yield from stub.check(f"stubs[{i}]")
        yield from checks.unique("stubs[{}].zone", (s.zone.rstrip(".").lower() for s in self.stubs))

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it is made of, beside itself."""
        found = [self.hosts.file] if self.hosts else []
        return (*found, self.tls.cert, self.tls.key) if self.tls else tuple(found)


def _between(path: str, value: float, low: float, high: float) -> Iterator[Fault]:
    if not low <= value <= high:
        yield path, f"{value} is out of bounds: it must be {low} to {high}"


def _absolute(path: str, value: str) -> Iterator[Fault]:
    if not value.startswith("/"):
        yield path, f"{value!r} is not an absolute path"


# --- reading ------------------------------------------------------------------------------------


def read(path: str) -> DnsConfig:
    """Raises Invalid for a file that cannot be read, or is wrong."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise Invalid(f"{path}: {getattr(exc, 'strerror', None) or exc}") from None
    return parse(text, path)


def parse(text: str, source: str = "-") -> DnsConfig:
    """Raises Invalid: ``source:LINE: field: reason``, all faults of one kind at once."""
    lines = _Lines(text, source)
    found = documents(text, source)
    if len(found) > 1:
        raise Invalid(f"{source}: {len(found)} documents: the DNS configuration is one")
    try:
        config = msgspec.convert(found[0] if found else {}, DnsConfig)
    except msgspec.ValidationError as exc:
        reason, _, where = str(exc).partition(" - at `$")
        path = where.rstrip("`").lstrip(".")
        unknown = re.search(r"unknown field `(.*)`", reason)
        if unknown:
            path = f"{path}.{unknown[1]}".lstrip(".")
        raise Invalid(lines.fault(path, reason[:1].lower() + reason[1:])) from None
    faults = [lines.fault(path, reason) for path, reason in config.check()]
    if faults:
        raise Invalid("; ".join(faults))
    return config


class _Lines:
    """Where in a YAML text a field such as "stubs[1].upstreams[0]" stands."""

    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._root: Any = None
        try:
            self._root = next(yaml.compose_all(text, Loader=yaml.SafeLoader), None)
        except yaml.YAMLError:
            return  # `documents` says it better
        if isinstance(self._root, yaml.SequenceNode):
            raise Invalid(f"{source}:1: the DNS configuration is a mapping such as 'ttl: 5', not a list")

    def fault(self, path: str, reason: str) -> str:
        return f"{self._source}:{self._line(path)}: {path}: {reason}" if path else f"{self._source}: {reason}"

    def _line(self, path: str) -> int:
        """The line of the nearest thing that is there: a default has none of its own."""
        node, line = self._root, 1
        for part in re.findall(r"[^.\[\]]+", path):
            if isinstance(node, yaml.MappingNode):
                pair = next((pair for pair in node.value if pair[0].value == part), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
                node = node.value[int(part)]
                line = node.start_mark.line + 1
        return line

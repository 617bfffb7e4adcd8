"""A configuration into what runs, and again when a file changes. An edge.

Rule 1: everything of a new configuration is made before anything of it is used; when that fails the
        running one stays, is logged once, and `problem` says so.
Rule 2: what the cache holds stays, unless whom to ask has changed.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from ..model import resolvconf
from ..model.errors import Invalid, NetplaneError
from . import config as files
from . import hosts, tls, wire
from .cache import Cache
from .config import DnsConfig, ForwardConfig
from .counters import Counters
from .forward import Forwarder
from .handover import Inherited
from .names import LocalNames, NameOptions
from .resolver import Resolver
from .server import DnsServer
from .upstreams import Upstreams
from .watch import FileWatch

_log = logging.getLogger("netplane.dns")


class Setup:
    """Keeps a server as its file says. ``path`` "": the defaults, with ``resolv_conf`` as upstream.

    ``applied`` is called with each configuration that came into force (the zone's TTLs are the room's).
    """

    def __init__(
        self,
        server: DnsServer,
        names: LocalNames,
        path: str,
        resolv_conf: str,
        applied: Callable[[DnsConfig], None] = lambda _: None,
    ) -> None:
        self.config = DnsConfig()
        self.problem = ""
        self.reloads = 0
        self.server, self._names = server, names
        self._path, self._resolv_conf = path, resolv_conf
        self._applied = applied
        self._tls: tls.TlsListener | None = None
        self._cache: Cache | None = None
        self._lock = threading.Lock()
        self._watch: FileWatch | None = None
        self._inherited: Inherited | None = None

    def start(self, inherited: Inherited | None = None) -> None:
        """Bring the configuration into force, on a running server. Raises Invalid, KernelError."""
        self._inherited = inherited
        self._apply(files.read(self._path) if self._path else DnsConfig(), first=True)
        self._watch = FileWatch(self._paths, self.reload)
        self._watch.start()

    def stop(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    def reload(self) -> None:
        """Look at the files again; a refusal changes nothing but `problem`."""
        with self._lock:
            try:
                self._apply(files.read(self._path) if self._path else self.config)
            except NetplaneError as exc:
                if self.problem != str(exc):
                    _log.error("DNS configuration refused, the running one stays: %s", exc)
                self.problem = str(exc)
                return
            if self.problem:
                _log.info("DNS configuration accepted again")
            self.problem = ""
            self.reloads += 1

    def _paths(self) -> tuple[str, ...]:
        mine = (self._path,) if self._path else ()
        return (*mine, self._resolv_conf, *self.config.files)

    def _apply(self, new: DnsConfig, first: bool = False) -> None:
        """All that can fail comes before the first thing that is seen from outside."""
        options = self._options(new)
        listener = self._listener(new)
        cache = self._cache if new.cache == self.config.cache and not first else Cache(new.cache.options)
        if cache is not None and (new.forward, new.stubs) != (self.config.forward, self.config.stubs):
            cache = Cache(new.cache.options)
        try:
            resolver = self._resolver(new, cache)
            self.server.use(resolver, listener)
        except BaseException:
            if listener is not None and listener is not self._tls:
                listener.close()
            raise
        if new.log != self.config.log or first:  # what was switched by hand outlives other changes
            self.server.log.every = new.log.every
        self._names.options, self._tls, self._cache = options, listener, cache
        if new.rate_limit != self.config.rate_limit or first:
            self.server.limit(new.rate_limit.limit if new.rate_limit else None)
        self.server.divert()  # autopath may have come or gone
        self.config = new
        self._applied(new)

    def _options(self, new: DnsConfig) -> NameOptions:
        table = hosts.read(new.hosts.file, new.hosts.ttl) if new.hosts else hosts.Hosts({})
        return NameOptions(new.ttl, new.pods, new.autopath, node_resolv(self._resolv_conf), table)

    def _listener(self, new: DnsConfig) -> tls.TlsListener | None:
        if new.tls is None:
            return None
        if self._tls is not None and new.tls == self.config.tls:
            self._tls.certificate.refresh()
            return self._tls
        certificate = tls.Certificate(new.tls.cert, new.tls.key)
        return tls.TlsListener(new.tls.addresses, certificate, self._tls, self._inherited)

    def _resolver(self, new: DnsConfig, cache: Cache | None) -> Resolver:
        common = new.forward or ForwardConfig(upstreams=(self._resolv_conf,))
        counters, domain = self.server.counters, self._names.domain
        for i, stub in enumerate(new.stubs):
            if wire.within(wire.name(stub.zone), wire.name(domain)):
                where = f"{self._path}: stubs[{i}].zone: {stub.zone!r}"
                raise Invalid(f"{where} is within {domain}, which is answered here and never forwarded")
        stubs = {wire.name(stub.zone): forwarder(stub, counters) for stub in new.stubs}
        kept = cache if new.cache.size else None
        return Resolver(forwarder(common, counters), stubs, kept, self._names)


def forwarder(config: ForwardConfig, counters: Counters) -> Forwarder:
    """Raises Invalid when its authorities cannot be read."""
    if config.ca:
        tls.client(config.ca)
    upstreams = Upstreams(config.sources, config.policy)
    return Forwarder(upstreams, counters, config.limits, functools.partial(tls.client, config.ca))


def node_resolv(path: str) -> resolvconf.Resolv:
    """The node's own resolv.conf; an empty one when there is none."""
    try:
        return resolvconf.parse(Path(path).read_text(errors="replace"))
    except OSError:
        return resolvconf.Resolv()

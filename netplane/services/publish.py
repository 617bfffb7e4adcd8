"""One service port in one family: from its frontends and endpoints to the elements that publish it.

Rule 1: a frontend has at most two lists of endpoints: the one it is answered from, and, under
        externalTrafficPolicy Local, the cluster's for pods and this node.
Rule 2: without affinity every frontend has slots of its own; with it, all share those of the first.
Rule 3: an empty list is an answer too: refused when nobody is anywhere, dropped when somebody is
        elsewhere, because then another node may answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..model.facts import Element, Fact
from ..model.services import LOAD_BALANCING, Service
from . import affinity, chains, maglev, sources, steps
from .endpoints import Backend, Choice
from .frontends import Frontend, family
from .words import WORDS

DEFAULT_TIMEOUT = 10800  # seconds, Kubernetes'


@dataclass
class Port:
    """One port of a service in one family: ``reached`` by these frontends, the first is its home."""

    service: Service
    choice: Choice
    reached: Sequence[Frontend]
    node_ips: tuple[str, ...]
    _listed: set[bool] = field(default_factory=set)  # the lists of the home that were asked for

    def facts(self) -> Iterator[Fact]:
        for frontend in self.reached:
            if not frontend.host or self.choice.local:
                yield from self._frontend(frontend)
        timeout = self.timeout
        if self._listed:
            names = affinity.tokens({*self.choice.cluster, *self.choice.local})
            for local in sorted(self._listed):
                backends = self.choice.local if local else self.choice.cluster
                yield from affinity.endpoints(self.reached[0], backends, names, timeout, local)
        for address in self.choice.nearby:
            # only a pod of this node can reach itself: its own flows to itself are masked
            yield Element(f"svc-hairpin{self.digit}", (address, address))
        if any(f.mesh for f in self.reached):
            yield from (Element(f"svc-here{self.digit}", (a,)) for a in self.choice.here)

    @property
    def digit(self) -> str:
        return WORDS[family(self.reached[0].address)][0]

    @property
    def timeout(self) -> int:
        """Seconds of ClientIP affinity; 0 without."""
        spec = self.service.spec
        if spec.session_affinity != "ClientIP":
            return 0
        config = spec.session_affinity_config
        return config.client_ip.timeout_seconds if config and config.client_ip else DEFAULT_TIMEOUT

    @property
    def hashed(self) -> bool:
        return self.service.metadata.annotations.get(LOAD_BALANCING) == "maglev"

    def _frontend(self, frontend: Frontend) -> Iterator[Fact]:
        before: list[str] = []
        if frontend.guarded:
            before.append(steps.GUARD)
            ranges = self.service.spec.load_balancer_source_ranges
            yield from sources.allowed(frontend, ranges, self.node_ips)
        if not self.choice.cluster and not self.choice.local:
            yield from steps.route(frontend, *before, chains.REFUSED)
        elif frontend.external and frontend.local and not frontend.host:
            yield from steps.route(frontend, *before, steps.SPLIT)
            yield steps.after(frontend, steps.OUTSIDE, self._final(frontend, True))
            yield steps.after(frontend, steps.INSIDE, self._final(frontend, False, inside=True))
            yield from self._list(frontend, True)
            yield from self._list(frontend, False, inside=True)
        else:
            local = frontend.local or frontend.host
            plain = not (self.timeout or self.hashed)
            outside = frontend.external and not local
            if outside and plain and not frontend.mesh and self.choice.cluster:
                count = len(self.choice.cluster)
                yield from steps.route(frontend, *before, chains.klass(chains.EXT, count))
                yield from chains.way(family(frontend.address), frontend.protocol, chains.EXT, count)
            else:
                if outside:
                    before.append(steps.MESHED if frontend.mesh else steps.MARKED)
                yield from steps.route(frontend, *before, self._final(frontend, local))
            yield from self._list(frontend, local)

    def _backends(self, local: bool) -> tuple[Backend, ...]:
        return self.choice.local if local else self.choice.cluster

    def _final(self, frontend: Frontend, local: bool, inside: bool = False) -> str:
        """The class that draws from a list; ``inside``: from the frontend's second one."""
        backends = self._backends(local)
        if not backends:
            return chains.DROPPED
        if self.timeout:
            if frontend is not self.reached[0]:
                return steps.HOME_LOCAL if local else steps.HOME
            return affinity.klass(self.timeout, len(backends), local)
        return chains.klass(*self._kind(backends, inside))

    def _kind(self, backends: tuple[Backend, ...], inside: bool) -> tuple[int, int]:
        if self.hashed:
            return chains.IN_HASH if inside else chains.HASH, maglev.slots(self.service)
        return chains.IN if inside else chains.LB, len(backends)

    def _list(self, frontend: Frontend, local: bool, inside: bool = False) -> Iterator[Fact]:
        """The chain and the slots of a list that this frontend draws from."""
        backends = self._backends(local)
        if not backends:
            return
        if self.timeout:
            self._listed.add(local)
            if frontend is not self.reached[0]:
                yield from affinity.home(frontend, self.reached[0])
            return
        kind, count = self._kind(backends, inside)
        yield from chains.way(family(frontend.address), frontend.protocol, kind, count)
        slots = maglev.table(backends, count) if self.hashed else backends
        table = chains.endpoints(family(frontend.address), frontend.protocol)
        for slot, backend in enumerate(slots, inside * chains.INSIDE_SLOTS):
            place = (frontend.address, frontend.port, slot)
            yield Element(table, place, (backend.address, backend.port))

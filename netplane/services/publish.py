"""One service port in one family: from its frontends and endpoints to the elements that publish it.

Rule 1: a frontend has at most two lists of endpoints: the one it is answered from, and, under
        externalTrafficPolicy Local, the cluster's for pods and this node.
Rule 2: without affinity every frontend has slots of its own; with it, all share those of the first.
Rule 3: an empty list is an answer too: refused when nobody is anywhere, dropped when somebody is
        elsewhere, because then another node may answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..model.facts import Element, Fact
from ..model.services import LOAD_BALANCING, Service, ServiceSpec
from . import affinity, chains, maglev, sources, steps
from .endpoints import Backend, Choice
from .frontends import Frontend, family
from .words import WORDS

DEFAULT_TIMEOUT = 10800  # seconds, Kubernetes'


class Port:
    """One port of a service in one family: ``reached`` by these frontends, the first is its home."""

    def __init__(
        self, service: Service, choice: Choice, reached: Sequence[Frontend], node_ips: tuple[str, ...]
    ) -> None:
        self.service, self.choice, self.reached, self.node_ips = service, choice, reached, node_ips
        self.family = family(reached[0].address)
        self.digit = WORDS[self.family][0]
        self.timeout = _timeout(service.spec)
        self.slots = 0  # of consistent hashing
        if service.metadata.annotations.get(LOAD_BALANCING) == "maglev":
            self.slots = maglev.slots(service)
        self._listed: set[bool] = set()  # the lists of the home that are asked for

    def facts(self) -> Iterator[Fact]:
        for frontend in self.reached:
            if not frontend.host or self.choice.local:
                yield from self._frontend(frontend)
        if self._listed:
            names = affinity.tokens({*self.choice.cluster, *self.choice.local})
            for local in sorted(self._listed):
                backends = self._backends(local)
                yield from affinity.endpoints(self.reached[0], backends, names, self.timeout, local)
        for address in self.choice.nearby:
            # only a pod of this node can reach itself: its own flows to itself are masked
            yield Element(f"svc-hairpin{self.digit}", (address, address))
        if any(f.mesh for f in self.reached):
            yield from (Element(f"svc-here{self.digit}", (a,)) for a in self.choice.here)

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
            yield from self._single(frontend, before)

    def _single(self, frontend: Frontend, before: list[str]) -> Iterator[Fact]:
        """A frontend with one list, whoever asks."""
        local = frontend.local or frontend.host
        final = self._final(frontend, local)
        if frontend.external and not local:
            plain = not (self.timeout or self.slots or frontend.mesh)
            if plain:  # the common case has a chain that marks and draws
                count = len(self.choice.cluster)
                final = chains.klass(chains.EXT, count)
                yield from chains.way(self.family, frontend.protocol, chains.EXT, count)
            else:
                before.append(steps.MESHED if frontend.mesh else steps.MARKED)
        yield from steps.route(frontend, *before, final)
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
        if self.slots:
            return chains.IN_HASH if inside else chains.HASH, self.slots
        return chains.IN if inside else chains.LB, len(backends)

    def _list(self, frontend: Frontend, local: bool, inside: bool = False) -> list[Fact]:
        """The chain and the slots of a list that this frontend draws from."""
        backends = self._backends(local)
        if not backends:
            return []
        if self.timeout:
            self._listed.add(local)
            at_home = frontend is self.reached[0]
            return [] if at_home else list(affinity.home(frontend, self.reached[0]))
        kind, count = self._kind(backends, inside)
        slots = maglev.table(backends, count) if self.slots else backends
        table, place = chains.endpoints(self.family, frontend.protocol), (frontend.address, frontend.port)
        first = chains.INSIDE_SLOTS if inside else 0
        found: list[Fact] = [*chains.way(self.family, frontend.protocol, kind, count)]
        found += [Element(table, (*place, slot), backend) for slot, backend in enumerate(slots, first)]
        return found


def _timeout(spec: ServiceSpec) -> int:
    """Seconds of ClientIP affinity; 0 without."""
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    return config.client_ip.timeout_seconds if config and config.client_ip else DEFAULT_TIMEOUT

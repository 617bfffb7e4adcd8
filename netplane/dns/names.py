"""Names that are computed when asked for: from the snapshot of the moment, the hosts file, and who asks.

Rule: the table comes first; what is here costs nothing until somebody asks, and is never stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import NamedTuple

from ..model.pods import Pod
from ..model.resolvconf import Resolv
from ..model.snapshot import Snapshot
from . import autopath, pods, swarm, wire
from .answer import Client
from .hosts import Hosts
from .loop import Divert
from .table import RRset, View

_turn = count()


class NameOptions(NamedTuple):
    """``host``: the node's own resolv.conf, whose search domains pods have too."""

    ttl: int = 5
    pods: str = "verified"
    autopath: bool = False
    host: Resolv = Resolv()
    hosts: Hosts = Hosts({})


class LocalNames:
    """`answer.Names` over a snapshot. ``options`` may be replaced at any time."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        domain: str,
        options: NameOptions = NameOptions(),  # noqa: B008
    ) -> None:
        self.options = options
        self._snapshot = snapshot
        self.domain = domain
        self._depth = len(wire.labels_of(wire.name(domain)))

    @property
    def computes(self) -> Divert:
        """What the C threads must not deny by themselves: `find` or `search` may know more."""
        searches = Divert.DENIALS if self.options.autopath else Divert.NOTHING
        return Divert.PODS | Divert.ENDPOINTS | searches

    def find(self, name: bytes, view: View, client: Client) -> tuple[RRset, ...] | None:
        if wire.within(name, view.apex):
            return self._inside(wire.labels_of(name)[: -self._depth])
        found = self._by_client(name, view, client)
        return found if found is not None else self.options.hosts.find(name)

    def search(self, name: bytes, client: Client) -> Iterable[bytes]:
        if not self.options.autopath:
            return ()
        pod = self._pod(client)
        return autopath.candidates(name, pod, self.domain, self.options.host) if pod else ()

    def _pod(self, client: Client) -> Pod | None:
        return pods.pod_of(self._snapshot(), client.address)

    def _inside(self, labels: tuple[str, ...]) -> tuple[RRset, ...] | None:
        kind, inner = labels[-1:], labels[:-1]
        if kind == ("pod",):
            return self._rrsets(pods.pod_addresses(inner, self._snapshot(), self.options.pods))
        if kind == ("svc",):
            return self._rrsets(swarm.endpoint_addresses(inner, self._snapshot()))
        return None

    def _by_client(self, name: bytes, view: View, client: Client) -> tuple[RRset, ...] | None:
        labels = wire.labels_of(name)
        if not (len(labels) == 1 or (len(labels) == 2 and labels[0] == swarm.TASKS)):
            return None
        pod = self._pod(client)
        if pod is None:
            return None
        inside = name[:-1] + wire.name(f"{pod.namespace}.svc.{self.domain}")
        found = view.find(inside) if len(inside) <= 255 else None
        if found is None:
            found = self._inside((*labels, pod.namespace, "svc"))
        if found is None:
            found = self._rrsets(swarm.aliased_addresses(labels[0], self._snapshot(), pod))
        return found

    def _rrsets(self, addresses: Iterable[str] | None) -> tuple[RRset, ...] | None:
        """Each answer begins with the next one."""
        if addresses is None:
            return None
        families: dict[str, list[bytes]] = {}
        for address in addresses:
            kind = "AAAA" if ":" in address else "A"
            families.setdefault(kind, []).append(wire.record(kind, self.options.ttl, address))
        return tuple(RRset(wire.TYPES[kind], tuple(rrs), _turn) for kind, rrs in families.items())

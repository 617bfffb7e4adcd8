"""The driver of Translation facts: tracked UDP flows follow their service's endpoints.

A UDP flow keeps the translation of its first packet for as long as the client goes on sending: to an
endpoint that is gone (Kubernetes #125467), past one that has come after a time without any (#139628).

Rule 1: UDP alone. A TCP flow ends by itself, and cutting it would break a graceful close (#102631).
Rule 2: a plan costs one dump for each family it names, and a deletion for each stale flow.
Rule 3: it runs after the rules are committed, or a flow would be taken up again by the old ones.
Rule 4: what was forgotten before this process began is not known: the first plans check everything, and
        what was in force then and nobody wants any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from ..model.facts import Fact, FactKey, Mark, Plan, Translation
from . import nlmsg as nl
from .conntrack import Conntrack
from .ctnetlink import ORIG, REPLY

Place = tuple[bytes, bytes]  # an address and a port as on the wire
Done = Callable[[int, float], None]


class FlowDriver:
    """``done(deleted, seconds)`` is told of every sweep; ``before()`` are the translations of the process
    before this one. Works in the namespace it is made in."""

    name = "conntrack"
    accepts: tuple[type[Fact], ...] = (Translation,)
    parallel = False

    def __init__(
        self, done: Done | None = None, before: Callable[[], Iterable[FactKey]] | None = None
    ) -> None:
        self._conntrack = Conntrack()
        self._done, self._before = done, before
        self._held: dict[FactKey, Mark] = {}
        self._lock = threading.Lock()

    def observe(self) -> Mapping[FactKey, Mark]:
        """The translations that flows were held to since this process began, and those before it, to what
        is not known. Raises KernelError."""
        with self._lock:
            if self._before is not None:
                self._held.update(dict.fromkeys(self._before()))
                self._before = None
            return dict(self._held)

    def apply(self, plan: Plan) -> None:
        """Forget flows that are answered from where they should not be. Raises KernelError."""
        begin = time.monotonic()
        wanted: dict[FactKey, Mark] = {f.key: f.mark for f in (*plan.add, *plan.change)}
        by_version: dict[int, dict[Place, frozenset[Place]]] = {}
        for key in (*wanted, *plan.remove):
            _, _, address, port = key
            backends = wanted.get(key, ())
            allowed = frozenset(_place(a, p) for a, p in backends)  # type: ignore[attr-defined]
            table = by_version.setdefault(6 if ":" in str(address) else 4, {})
            table[_place(str(address), int(port))] = allowed  # type: ignore[call-overload]
        deleted = sum(self._sweep(version, table) for version, table in by_version.items())
        with self._lock:
            self._held.update(wanted)
            for key in plan.remove:
                self._held.pop(key, None)
        if self._done is not None:
            self._done(deleted, time.monotonic() - begin)

    def _sweep(self, version: int, table: Mapping[Place, frozenset[Place]]) -> int:
        def stale(flow: bytes) -> bool:
            found = nl.attrs(flow, 4)
            allowed = table.get(_end(found[ORIG], destination=True))
            return allowed is not None and _end(found[REPLY], destination=False) not in allowed

        return self._conntrack.sweep("udp", version, stale)


def _place(address: str, port: int) -> Place:
    return nl.ip_bytes(address), port.to_bytes(2, "big")


def _end(flow_tuple: bytes, destination: bool) -> Place:
    """One end of a tuple: CTA_TUPLE_IP (V4_SRC 1, V4_DST 2, V6_SRC 3, V6_DST 4) and CTA_TUPLE_PROTO."""
    parts = nl.attrs(flow_tuple)
    addresses, protocol = nl.attrs(parts[1]), nl.attrs(parts[2])
    which = 2 if destination else 1
    address = addresses.get(which) or addresses.get(which + 2, b"")
    return address, protocol.get(which + 1, b"")

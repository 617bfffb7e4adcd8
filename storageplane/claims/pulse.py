"""This node's sign of life in the store, and what is looked at again with each beat.

Rule 1: a Lease of our own namespace: netplane's agent has one for the node, and neither speaks for the
        other. Who asks whether a node lives (`lost`) looks at both.
Rule 2: a beat that fails is logged once and tried again at the next; nothing else waits for it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from netplane.model.base import Key, ObjectMeta, amend
from netplane.model.errors import NetplaneError
from netplane.model.nodes import Lease, LeaseSpec

from .writer import Writer

log = logging.getLogger(__name__)

NAMESPACE = "storageplane-node-lease"
NODES = "kube-node-lease"  # where netplane's agents, and kubelets, have theirs
EVERY = 10.0  # seconds
LASTS = 40  # seconds


def expires(lease: Lease) -> float:
    """When it runs out, in seconds since the epoch; 0.0 when nobody holds it."""
    if not lease.spec.holder_identity:
        return 0.0
    try:
        renewed = datetime.fromisoformat(lease.spec.renew_time).timestamp()
    except ValueError:
        return 0.0
    return renewed + (lease.spec.lease_duration_seconds or LASTS)


class Pulse:
    """A thread that beats until `stop`. ``beside``: what else is done with each beat."""

    def __init__(self, store: Writer, node: str, beside: Callable[[], object]) -> None:
        self._store = store
        self._node = node
        self._beside = beside
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._problem = ""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop, and give the lease up: who gives the node up now need not wait."""
        self._stop.set()
        self._thread.join(timeout=5)
        self._try(lambda: self.beat(""))

    def beat(self, holder: str | None = None) -> None:
        """Renew the lease. Raises Conflict, Unavailable."""
        key = Key(Lease.KIND, NAMESPACE, self._node)
        found = self._store.get(key)
        spec = LeaseSpec(
            holder_identity=f"{self._node}_{os.getpid()}" if holder is None else holder,
            lease_duration_seconds=LASTS,
            renew_time=datetime.fromtimestamp(time.time(), UTC).isoformat(),
        )
        made = Lease(metadata=ObjectMeta(name=self._node, namespace=NAMESPACE), spec=spec)
        lease = amend(found, spec=spec) if isinstance(found, Lease) else made
        self._store.put(lease, expect=lease.revision)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._try(self.beat)
            self._try(self._beside)
            self._stop.wait(EVERY)

    def _try(self, step: Callable[[], object]) -> None:
        try:
            step()
            self._problem = ""
        except NetplaneError as exc:
            if str(exc) != self._problem:
                log.warning("pulse: %s", exc)
            self._problem = str(exc)

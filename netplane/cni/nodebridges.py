"""The bridges of the node's pods: npbr0, npbr1, …, and which of them a new pod gets.

The kernel goes through a bridge's ports for each that comes or goes, and lets it have 1,023 of them. Pods are
routed, also to neighbours on the same bridge, so it is all the same to them on which one they are.

Rule 1: a bridge has `PODS` pods, and a new one goes to the first with room: a node of no more has the one.
Rule 2: the record says which it is (`spec.bridge`); this counts, from the records when it is first asked.
        Who sees few of them (narrow.py) has the kernel count.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import count

from ..model.base import amend
from ..model.own import Attachment
from .names import node_bridge
from .wiring import on_node_bridge

PODS = 128  # more than the 110 that a node of Kubernetes has unless told otherwise


class NodeBridges:
    """Thread-safe. ``records`` gives the attachments of this node as they are now; ``count`` says how many
    are on a bridge, where the records do not."""

    def __init__(
        self, records: Callable[[], Iterable[Attachment]], count: Callable[[str], int] | None = None
    ) -> None:
        self._records = records
        self._lock = threading.Lock()
        self._of: dict[str, str] | None = None  # the bridge of each attachment, by its name
        self._pods: Counter[str] = Counter()
        self._count = count or self._pods.__getitem__

    def place(self, attachment: Attachment) -> Attachment:
        """With the bridge that it is on from now until `release`; itself when it is on none of the node's."""
        if not on_node_bridge(attachment):
            return attachment
        with self._lock:
            self._forget(attachment.name)
            bridge = next(name for name in map(node_bridge, count()) if self._count(name) < PODS)
            placed: Attachment = amend(attachment, spec=amend(attachment.spec, bridge=bridge))
            self._enter(placed)
            return placed

    def release(self, name: str) -> None:
        with self._lock:
            self._forget(name)

    def _known(self) -> dict[str, str]:
        if self._of is None:
            self._of = {}
            for record in filter(on_node_bridge, self._records()):
                self._enter(record)
        return self._of

    def _enter(self, attachment: Attachment) -> None:
        self._known()[attachment.name] = attachment.spec.bridge
        self._pods[attachment.spec.bridge] += 1

    def _forget(self, name: str) -> None:
        bridge = self._known().pop(name, "")
        if bridge:
            self._pods[bridge] -= 1

"""Attachments that go: pod, record, kernel, address. DELs that come at once are one piece of work.

Rule 1: the record goes before the kernel is cleaned; what is under way is owed, and found by its name until
        the kernel holds nothing of it. Each step may be done again.
Rule 2: an address and a port return only when the kernel holds nothing of them any more.
Rule 3: who finds nobody at work begins at once, those who come meanwhile go together: one transaction, one
        plan, one look at the flows. Where that fails each goes alone, as do several of one pod, of which
        one decides what the other finds, and those that owe another plugin an answer, which takes its time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from ..model.changes import Put, Write
from ..model.facts import Scope
from ..model.gather import Gathering
from ..model.own import Allocation, Attachment
from . import delegate, plan, turns
from .host import Host
from .names import turn_name
from .networks import Networks
from .podwriter import PodWriter
from .wiring import ROOM

log = logging.getLogger(__name__)


class _Asked:
    def __init__(self, record: Attachment) -> None:
        self.record = record
        self.done = False

    @property
    def pod(self) -> tuple[str, str]:
        return self.record.spec.pod_namespace, self.record.spec.pod_name


class Leaving:
    """Thread-safe, for different containers. ``give_back``: an attachment's address and ports are free."""

    def __init__(
        self, host: Host, networks: Networks, pods: PodWriter, give_back: Callable[[Attachment], None]
    ) -> None:
        self.owed: dict[str, Attachment] = {}  # record gone, kernel not yet clean
        self._host, self._networks, self._pods = host, networks, pods
        self._give_back = give_back
        self._together = Gathering[_Asked](self._round)

    def release(self, record: Attachment) -> None:
        """Return when it is gone. Raises NetplaneError: then it is owed."""
        asked = _Asked(record)
        if not delegate.is_delegated(record):
            self._together.do(asked)
        if not asked.done:
            self._release([record])

    def _round(self, round_: list[_Asked]) -> None:
        """Those that stay are not done."""
        chosen = list({asked.pod: asked for asked in round_}.values())
        try:
            self._release([asked.record for asked in chosen])
        except Exception as exc:
            if len(round_) == 1:
                raise
            log.info("%d attachments cannot go together, so each goes alone: %s", len(chosen), exc)
            return
        for asked in chosen:
            asked.done = True

    def _release(self, records: Sequence[Attachment]) -> None:
        for record in records:
            self.owed[record.name] = record
            ipam = self._networks.of(record)
            if ipam is not None:
                ipam.pin(record)
        self._host.sync([Scope(ROOM, record.name) for record in records], lambda: self._take_off(records))
        self._host.forget_all(records)
        for record in records:
            self._give_back(record)
            if delegate.is_delegated(record):
                delegate.tell("DEL", record)
                self._pods.down([plan.owed(record)])
            del self.owed[record.name]

    def _take_off(self, records: Sequence[Attachment]) -> None:
        for record in records:
            self._host.retract(record)
        self._pods.down(records, self._turns_of, plan.owed if delegate.is_delegated(records[0]) else None)

    def _turns_of(self, records: Iterable[Attachment]) -> list[Write]:
        """What is to be kept of these records' addresses."""
        kept: dict[str, Allocation] = {}
        for record in records:
            network, ipam = turns.network_of(record), self._networks.of(record)
            if network is not None and ipam is not None and ipam.at_turn(record.spec.ips):
                more = turns.keep(kept.get(network) or self.turn(network), record)
                kept |= {network: more} if more is not None else {}
        fresh = sum(bool(network) and not one.revision for network, one in kept.items())
        every = self._host.snapshot().list(Allocation) if fresh else ()
        forgotten = turns.outgrown(self._host.node, every, fresh)
        return [*(Put(one, one.revision) for one in kept.values()), *forgotten]

    def turn(self, network: str) -> Allocation | None:
        """What is kept of the addresses of a network (`turns`)."""
        return self._host.snapshot().get(Allocation, "", turn_name(self._host.node, network))

"""Established flows follow policy: what is no longer allowed is forgotten by the kernel.

A rule that changes says nothing of flows that were accepted before, which the hook lets pass. So every
scope of the room carries a `Flows` fact, whose mark is the digest of what the scope holds: when it
changes, the driver reads conntrack once, judges each flow between pods anew, and deletes what is no
longer allowed. The next packet of such a flow meets the new rules. Allowed flows are not touched.

Rule 1: nftables first: a flow that is deleted before its rule is there would come back.
Rule 2: one thread sweeps; changes that come while it works are one further sweep.
Rule 3: at a start everything counts as changed: policies may have changed while nobody looked.
Rule 4: what begins or ends at an address of this node passes no rule of ours, and is never cut: its entry
        may hold a service's translation, without which the flow is lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from ..model.errors import NetplaneError
from ..model.facts import Fact, FactKey, Mark, Plan, digest

log = logging.getLogger(__name__)


class Flows(Fact, frozen=True):
    """The flows that a scope speaks of, as they are after ``state``."""

    TYPE: ClassVar[str] = "flows"

    scope: str
    state: str

    @property
    def key(self) -> FactKey:
        return ("flows", self.scope)

    @property
    def mark(self) -> Mark:
        return self.state

    @classmethod
    def of_scope(cls, scope: str, facts: Iterable[Fact]) -> Flows:
        return cls(scope, digest(*(f"{f.key}{f.mark}" for f in facts)))


class Flow(Protocol):
    """One entry of conntrack: who began it, and who answers (after NAT).

    ``loose``: it was taken up in its middle, perhaps by a reply; so it must be allowed both ways, and
    one that is wrongly forgotten is taken up again by its next packet, in the direction it has.
    """

    @property
    def source(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def protocol(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def source_port(self) -> int: ...
    @property
    def loose(self) -> bool: ...


F = TypeVar("F", bound=Flow)


class Tracker(Protocol[F]):
    def flows(self) -> list[F]: ...
    def forget(self, flows: Iterable[F]) -> int: ...


class PolicyFlows:
    """A Driver of `Flows`. ``judge`` tells of flows on the newest snapshot; set before `start`.

    ``own`` gives this node's addresses. Raises KernelError.
    """

    name = "flows"
    accepts: tuple[type[Fact], ...] = (Flows,)
    parallel = False

    def __init__(self, tracker: Tracker[Any], own: Callable[[], Container[str]]) -> None:
        self._tracker = tracker
        self._own = own
        self.judge: Callable[[], Callable[[Flow], bool]] | None = None
        self.cut = 0  # flows that were ended by a change
        self._changed = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="flows", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._changed.set()
        self._thread.join(timeout=10)

    def observe(self) -> Mapping[FactKey, Mark]:
        return {}

    def apply(self, plan: Plan) -> None:
        if plan.add or plan.change:
            self._changed.set()

    def _run(self) -> None:
        while True:
            self._changed.wait()
            if self._stopping:
                return
            self._changed.clear()
            try:
                self.sweep()
            except NetplaneError as exc:
                log.warning("flows that are no longer allowed may go on: %s", exc)
            except Exception:  # a bug must not end the thread
                log.exception("flows cannot be judged")

    def sweep(self) -> int:
        """Judge every flow; how many were cut. Raises KernelError."""
        if self.judge is None:
            return 0
        allowed = self.judge()
        denied = [flow for flow in self._tracker.flows() if not allowed(flow)]
        own = self._own() if denied else ()
        gone = [flow for flow in denied if flow.source not in own and flow.target not in own]
        if gone:
            cut = self._tracker.forget(gone)
            self.cut += cut
            log.info("policy changed: %d established flows are no longer allowed and were cut", cut)
        return len(gone)

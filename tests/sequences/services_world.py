"""The services room on a real kernel behind a real loop, with a store in memory: for sequences."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from netplane.kernel import netns
from netplane.kernel.nftables import NftDriver
from netplane.model.base import Key, Object
from netplane.model.facts import Chain, Element, Fact, FactKey, Mark, Set
from netplane.model.snapshot import Snapshot
from netplane.reconcile.core import Core
from netplane.services import ServicesRoom

from ..unit.memory_store import MemoryStore

NODE_IPS = ("192.0.2.1", "2001:db8::1")


class ServicesWorld:
    """`write` and `delete` objects, `settle`, and compare `held` with `rendered`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.store = MemoryStore()
        self.room = ServicesRoom(
            "n1", NODE_IPS, ("10.244.0.0/16", "fd01::/48"), ("10.96.0.0/16", "fd96::/112")
        )
        self.start()

    def start(self) -> None:
        """A new process would do the same: a new driver, a new ledger."""
        self.driver = netns.call(self.path, NftDriver)
        self.core = Core(self.store, [(self.room, [self.driver])])
        self.core.start()

    def stop(self) -> None:
        self.core.stop()

    def write(self, *objects: Object) -> None:
        for obj in objects:
            self.store.put(obj)

    def delete(self, obj: Object) -> None:
        self.store.delete(obj.key)

    def settle(self, seconds: float = 30.0) -> dict[str, Any]:
        """Wait until all that was written has been worked on; the status."""
        give_up = time.monotonic() + seconds
        while True:
            status = self.core.status()
            if (
                status["revision"] == len(self.store.log)
                and not status["pending"]
                and self.core.wait_synced(0)
            ):
                return status
            assert time.monotonic() < give_up, status
            time.sleep(0.005)

    def until(self, condition: Callable[[], Any], seconds: float = 10.0) -> None:
        give_up = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < give_up, self.core.status()
            time.sleep(0.005)

    def failing(self) -> dict[str, str]:
        found: dict[str, str] = self.core.status()["rooms"]["services"]["failing"]
        return found

    def held(self) -> dict[FactKey, Mark]:
        """What a fresh process sees in the kernel."""
        return dict(netns.call(self.path, NftDriver).observe())

    def rendered(self, *without: Key) -> dict[FactKey, Mark]:
        """What the kernel must hold for the store's objects, rendered from scratch."""
        objects = [o for o in self.store.list()[0] if o.key not in without]
        snapshot = Snapshot.of(objects)
        facts: list[Fact] = []
        for scope in self.room.scopes(None, snapshot):
            facts += self.room.render(scope, snapshot)
        return {f.key: f.mark for f in facts if isinstance(f, (Chain, Set, Element))}

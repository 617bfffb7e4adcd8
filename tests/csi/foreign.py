"""Volumes of another driver: ours under another name, behind its socket, and the objects that want them.

store ── CsiVolumes, CsiProvisioning ── ROOT/plugins/foreign.example/csi.sock ── the other driver
pod ── publish ── CsiVolume ── NodeStage, NodePublish ── ROOT/pods/UID/…/mount ── TARGET/data
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from netplane.model.base import Key, amend
from netplane.model.codec import parse
from netplane.model.errors import NetplaneError, Unavailable
from netplane.model.facts import Fact, Plan
from netplane.model.storage_facts import CsiVolume, Provision, Withdraw
from storageplane.claims.bind import Binder
from storageplane.claims.snapshots import Snapshotter
from storageplane.csi.attach import Attachments
from storageplane.csi.claims import CsiVolumes
from storageplane.csi.client import Clients
from storageplane.csi.provisioning import CsiProvisioning
from tests.sequences.storage_world import World, pvc, storage_class
from tests.sequences.test_storage_snapshots import snapshot_class

from .conftest import Driver

NAME = "foreign.example"


def beside(kind: Callable[..., Any], tmp_path: Path) -> Any:
    """The other driver: its own root, its socket where drivers are found beneath ours."""
    place = tmp_path / "ours" / "plugins" / NAME
    place.mkdir(parents=True)
    (tmp_path / "other").mkdir()
    return kind(tmp_path / "other", "--driver-name", NAME, socket=place / "csi.sock")


def until(true: Callable[[], Any], what: str) -> Any:
    give_up = time.monotonic() + 20
    while not (found := true()):
        assert time.monotonic() < give_up, what
        time.sleep(0.02)
    return found


def volumes(driver: Driver) -> list[str]:
    return [e.volume.volume_id for e in driver.call("ListVolumes").entries]


class Bench:
    """A store in memory, one claim, and the driver of provisioning made anew for each try."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.world = World(storage_class("fast", NAME, parameters={"backend": "directory"}))
        self.claim = self.world.put(parse(pvc("c", "8Mi", storageClassName="fast")))
        uid = self.claim.metadata.uid
        self.fact = Provision(namespace="default", claim="c", uid=uid, driver=NAME)

    def driver(self) -> CsiProvisioning:
        return CsiProvisioning(self.root, "n1", self.world, Clients(self.root))

    def volume(self) -> Any:
        return self.world.get(Key("PersistentVolume", "", str(self.fact.key[1])))

    def attempt(self, *facts: Fact) -> None:
        """Once. Raises as the driver does."""
        self.driver().apply(Plan(add=facts))

    def converge(self, plan: Plan) -> None:
        give_up = time.monotonic() + 20
        while True:
            try:
                return self.driver().apply(plan)
            except NetplaneError:
                assert time.monotonic() < give_up
                time.sleep(0.02)

    def withdraw(self) -> None:
        """The claim is gone: the volume, if it stands, is released and goes."""
        volume = self.volume()
        if volume is not None:
            self.world.objects.pop(self.claim.key, None)
            released = amend(volume, status=amend(volume.status, phase="Released"))
            released = amend(released, metadata=amend(released.metadata, finalizers=()))
            self.world.put(released)
            uid = volume.metadata.uid
            self.converge(Plan(add=(Withdraw(volume=volume.name, uid=uid, driver=NAME),)))
        self.world.put(self.claim)


class Shots(Bench):
    """The bench with a provisioned claim c, snapshots and their controller."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.driver().apply(Plan(add=(self.fact,)))
        self.world.put(parse(snapshot_class("snap", NAME)))
        self.settle()

    def settle(self) -> None:
        self.world.settle(Binder(), Snapshotter())

    def due(self, driver: CsiProvisioning | None = None) -> None:
        """What the room wants of contents, and the sweep of what it does not want, until nothing is left."""
        driver, give_up = driver or self.driver(), time.monotonic() + 20
        while True:
            self.settle()
            room, snapshot = CsiVolumes("n1", (NAME,)), self.world.snapshot()
            contents = [s for s in room.scopes(None, snapshot) if s.name.startswith("content/")]
            facts = [f for s in contents for f in room.render(s, snapshot)]
            unwanted = set(driver.observe()) - {f.key for f in facts}
            if not facts and not unwanted:
                return
            with contextlib.suppress(Unavailable):
                driver.apply(Plan(add=tuple(facts), remove=tuple(unwanted)))
            assert time.monotonic() < give_up, facts

    def snap(self) -> Any:
        return self.world.get(Key("VolumeSnapshot", "default", "s"))

    def content(self, name: str = "") -> Any:
        """By name, or whatever there is."""
        found = [o for k, o in self.world.objects.items() if k.kind == "VolumeSnapshotContent"]
        return next((o for o in found if name in ("", o.name)), None)

    def gone(self, key: Key) -> None:
        if self.world.get(key) is not None:
            self.world.delete(key)


def snapshots(driver: Driver) -> list[str]:
    return [e.snapshot.snapshot_id for e in driver.call("ListSnapshots").entries]


def write(bench: Bench, handle: str, text: str) -> None:
    fact = CsiVolume(target="pods/u/v/mount", driver=NAME, handle=handle)
    Attachments(bench.root).publish(fact)
    (bench.root / fact.target / "word").write_text(text)
    Attachments(bench.root).unpublish(fact.target)


def read(bench: Bench, name: str) -> str:
    handle = bench.world.get(Key("PersistentVolume", "", name)).spec.csi.volume_handle
    fact = CsiVolume(target="pods/u/v/mount", driver=NAME, handle=handle)
    Attachments(bench.root).publish(fact)
    found = (bench.root / fact.target / "word").read_text()
    Attachments(bench.root).unpublish(fact.target)
    return found

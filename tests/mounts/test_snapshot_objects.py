"""VolumeSnapshots as users have them: manifests, commands, an agent, and pods that write and read.

example ── netplane apply ── store ── storageplane agent ── ROOT ── publish ── TARGET/data
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from netplane.cli import netplane
from netplane.model.base import Key
from netplane.model.codec import documents, parse
from netplane.store import open_store
from storageplane import agent
from storageplane.pods import publish, session
from tests.csi.foreign import until
from tests.sequences.storage_world import pod, pvc, storage_class

from .bed import Bed

pytestmark = pytest.mark.root
EXAMPLE = Path(__file__).parents[2] / "docs/examples/snapshots/snapshot.yaml"
SNAPSHOT = Key("VolumeSnapshot", "default", "monday")


class Site:
    def __init__(self, bed: Bed) -> None:
        self.bed, self.url = bed, f"sqlite://{bed.base}/s.db"
        self.store: Any = open_store(self.url)
        self.running = agent.Agent(open_store(self.url), agent.Config("n1", bed.root), CollectorRegistry())
        self.running.start()

    def run(self, *words: str) -> str:
        done = CliRunner().invoke(netplane, [*words, "--store", self.url])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    def shown(self, claim: str) -> Path:
        """Publish a pod of this claim's name."""
        self.store.put(parse(pod(claim, claim=claim)))
        found, snapshot = session.ready(
            self.store, Key("Pod", "default", claim), "n1", str(self.bed.root), ()
        )
        done = publish.publish(found, snapshot, "n1", self.bed.driver, str(self.bed.base / claim))
        return Path(done.paths["data"])

    def stop(self) -> None:
        for name in ("data", "data-of-monday"):
            publish.unpublish("default", name, self.bed.driver)
        self.running.stop()
        self.store.close()


@pytest.fixture
def site(bed: Bed) -> Iterator[Site]:
    made = Site(bed)
    yield made
    made.stop()


def test_the_example_works_and_says_what_it_does(site: Site) -> None:
    claim_alone(site)
    place = site.shown("data")
    content = os.urandom(3 << 20)
    (place / "file").write_bytes(content)
    os.sync()
    site.run("apply", "-f", str(EXAMPLE))
    until(lambda: site.store.get(SNAPSHOT).status.ready_to_use, "the snapshot is never ready")
    (place / "file").write_bytes(b"later")
    copied = site.shown("data-of-monday")
    digest = hashlib.sha256((copied / "file").read_bytes()).hexdigest()
    assert digest == hashlib.sha256(content).hexdigest()
    assert (place / "file").read_bytes() == b"later"

    listed = site.run("get", "vs")
    assert listed.split("\n")[0].split()[:3] == ["NAME", "READYTOUSE", "SOURCEPVC"]
    assert listed.split("\n")[1].split()[:4] == ["monday", "true", "data", "64Mi"]
    assert "storageplane.io/local" in site.run("get", "vsc") and "Delete" in site.run("get", "vsclass")
    told = site.run("describe", "vs", "monday")
    assert "SnapshotReady" in told and "goes with it" in told
    assert "Copy of:         VolumeSnapshot monday\n" in site.run("describe", "pvc", "data-of-monday")
    assert "Lies on:         n1\n" in site.run("describe", "vsc")
    site.run("delete", "vs", "monday")
    until(lambda: site.store.get(SNAPSHOT) is None, "the snapshot stays")
    assert not list((site.bed.root / "snapshots/data").iterdir())
    assert (copied / "file").read_bytes() == content


def claim_alone(site: Site) -> None:
    """The example's class and claim, before its snapshot is."""
    for doc in documents(EXAMPLE.read_text(), "example"):
        if doc["kind"] == "StorageClass" or doc["metadata"]["name"] == "data":
            site.store.put(parse(doc))


def test_an_image_in_use_is_of_one_instant(site: Site) -> None:
    """A writer goes on while the snapshot is taken; what is restored is a state that was once."""
    claim_alone(site)
    place, over = site.shown("data"), threading.Event()
    assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize < 70 << 20  # an image

    def write() -> None:
        number = 0
        while not over.is_set():
            for name in ("first", "second"):  # the second never has more lines than the first
                with open(place / name, "a") as file:
                    file.write(f"{number}\n")
                    file.flush()
                    os.fsync(file.fileno())
            number += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: (place / "second").exists(), "nothing is written")
        site.run("apply", "-f", str(EXAMPLE))
        until(lambda: site.store.get(SNAPSHOT).status.ready_to_use, "the snapshot is never ready")
        copied = site.shown("data-of-monday")
    finally:
        over.set()
        writer.join()
    first, second = ((copied / n).read_text().splitlines() for n in ("first", "second"))
    assert 0 <= len(first) - len(second) <= 1 and second == first[: len(second)] and first


def test_a_larger_copy_of_xfs_grows_under_its_pod(site: Site) -> None:
    """Its file system has the source's size until it is mounted, which is when xfs grows."""
    xfs = {"backend": "image", "fsType": "xfs"}
    site.store.put(parse(storage_class("x", "storageplane.io/local", parameters=xfs)))
    site.store.put(parse(pvc("data", "320Mi", storageClassName="x")))
    (site.shown("data") / "word").write_text("kept")
    clone = {"kind": "PersistentVolumeClaim", "name": "data"}
    site.store.put(parse(pvc("data-of-monday", "640Mi", storageClassName="x", dataSource=clone)))
    place = site.shown("data-of-monday")
    assert (place / "word").read_text() == "kept"
    site.running.grow_what_waits()
    found = os.statvfs(place)
    assert found.f_blocks * found.f_frsize > 560 << 20
    claim = Key("PersistentVolumeClaim", "default", "data-of-monday")
    until(lambda: site.store.get(claim).status.capacity == {"storage": "640Mi"}, "the claim never says so")
    assert not site.store.get(claim).status.conditions

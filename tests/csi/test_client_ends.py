"""Volumes and snapshots of another driver, deleted and grown, while that driver or we ourselves die.

Each step of a deletion and of a growth is the last one once, on either side; then it is begun again, as a
restarted agent would. Nothing is leaked, what is gone is not asked for again, and a neighbour stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.model.base import amend
from netplane.model.codec import parse
from netplane.model.facts import Fact, Plan
from netplane.model.storage_facts import CsiVolume, Discard, Grow, Provision, Withdraw
from storageplane.csi.attach import Attachments
from storageplane.csi.client import Client
from storageplane.host.durable import Shelf
from tests.sequences.storage_world import World, pvc, storage_class
from tests.sequences.test_storage_snapshots import volume_snapshot

from .conftest import MIB, Driver, loops, mounts
from .crashes import Dies, crashing
from .foreign import NAME, Bench, Shots, snapshots, volumes
from .test_kill_steps import Mortal

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


class Asked:
    """The calls of a driver that were answered with success, by this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        real = Client.raw

        def raw(client: Client, method: str, **fields: Any) -> Any:
            answer = real(client, method, **fields)
            self.calls.append(method)
            return answer

        monkeypatch.setattr(Client, "raw", raw)

    def count(self, method: str) -> int:
        return self.calls.count(method)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


@pytest.fixture
def we_die(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> Dies:
    """At a record, a call or a write."""
    del asked  # its patch lies beneath ours
    places = ((Shelf, "put"), (Shelf, "remove"), (World, "put"), (World, "delete"), (Client, "raw"))
    return crashing(monkeypatch, *places)


@pytest.fixture(params=["the driver dies", "we die"])
def dying(request: pytest.FixtureRequest) -> Iterator[tuple[Driver, Dies]]:
    """A driver, and how it or we die."""
    if request.param == "we die":
        yield request.getfixturevalue("other"), request.getfixturevalue("we_die")
    else:
        driver: Mortal = request.getfixturevalue("mortal")
        yield driver, driver.dies_while


# --- deleted ----------------------------------------------------------------------------------------


def released(bench: Bench) -> Fact:
    """The volume of the bench's claim, made and then let go; what the room wants of it."""
    bench.converge(Plan(add=(bench.fact,)))
    volume = bench.volume()
    bench.world.objects.pop(bench.claim.key)
    loose = amend(volume, status=amend(volume.status, phase="Released"))
    bench.world.put(amend(loose, metadata=amend(loose.metadata, finalizers=())))
    return Withdraw(volume=volume.name, uid=volume.metadata.uid, driver=NAME)


def neighbour(bench: Bench) -> Provision:
    claim = bench.world.put(parse(pvc("n", "8Mi", storageClassName="fast")))
    return Provision(namespace="default", claim="n", uid=claim.metadata.uid, driver=NAME)


def test_a_volume_is_deleted_whoever_dies(dying: tuple[Driver, Dies], asked: Asked, tmp_path: Path) -> None:
    driver, dies = dying
    bench = Bench(tmp_path / "ours")
    bench.converge(Plan(add=(neighbour(bench),)))
    others = volumes(driver)
    for step in range(1, 100):
        due = released(bench)
        asked.calls.clear()
        died = dies(step, bench.attempt, due)
        bench.converge(Plan(add=(due,)))
        assert (bench.volume(), volumes(driver)) == (None, others), f"step {step}"
        assert not bench.driver().observe()
        done = asked.count("DeleteVolume")
        assert 1 <= done <= (2 if died else 1), f"step {step}: deleted {done} times"
        bench.attempt(due)
        assert asked.count("DeleteVolume") == done, "asked for again when it was gone"
        bench.world.put(bench.claim)
        if not died:
            break
    assert 5 < step < 99
    assert len(list((driver.root / "csi" / "data").iterdir())) == len(others)


def test_a_snapshot_is_deleted_whoever_dies(dying: tuple[Driver, Dies], asked: Asked, tmp_path: Path) -> None:
    driver, dies = dying
    bench = Shots(tmp_path / "ours")
    bench.world.put(parse(volume_snapshot("other")))
    bench.due()
    others, kept = snapshots(driver), bench.content().name
    for step in range(1, 100):
        bench.world.put(parse(volume_snapshot()))
        bench.due()
        bench.gone(bench.snap().key)
        bench.settle()
        content = next(c for c in contents(bench) if c.name != kept)
        assert content.deleting
        due = Discard(content=content.name, uid=content.metadata.uid, driver=NAME)
        asked.calls.clear()
        died = dies(step, bench.attempt, due)
        bench.due()
        assert (bench.snap(), snapshots(driver)) == (None, others), f"step {step}"
        assert [c.name for c in contents(bench)] == [kept] and not bench.driver().observe()
        done = asked.count("DeleteSnapshot")
        assert 1 <= done <= (2 if died else 1), f"step {step}: deleted {done} times"
        bench.attempt(due)
        assert asked.count("DeleteSnapshot") == done, "asked for again when it was gone"
        if not died:
            break
    assert 5 < step < 99


def contents(bench: Bench) -> list[Any]:
    return [o for k, o in bench.world.objects.items() if k.kind == "VolumeSnapshotContent"]


# --- grown ------------------------------------------------------------------------------------------


def test_a_volume_grows_where_it_is_published_whoever_dies(
    dying: tuple[Driver, Dies], tmp_path: Path
) -> None:
    """The file system is larger, the data is there, and claim, volume and driver say the same size."""
    driver, dies = dying
    bench = Bench(tmp_path / "ours")
    parameters = {"fsType": "xfs", "overcommit": "true"}
    bench.world.put(parse(storage_class("fast", NAME, parameters=parameters)))
    bench.world.put(parse(pvc("c", "320Mi", storageClassName="fast")))
    bench.converge(Plan(add=(bench.fact,)))
    handle = bench.volume().spec.csi.volume_handle
    at = CsiVolume(target="pods/u/v/mount", driver=NAME, handle=handle)
    Attachments(bench.root).publish(at)
    place = bench.root / at.target
    (place / "word").write_text("kept")
    bound(bench)
    for step in range(1, 100):
        size, before = (320 + 32 * step) * MIB, room(place)
        due = Grow(volume=bench.volume().name, uid=bench.volume().metadata.uid, driver=NAME, size=size)
        died = dies(step, bench.attempt, due)
        if bench.volume().spec.capacity != {"storage": str(size)}:  # else the room wants nothing more
            bench.converge(Plan(add=(due,)))
        assert room(place) > before + 16 * MIB, f"step {step}: the file system is as it was"
        assert bench.volume().spec.capacity == bench.world.pvc().status.capacity == {"storage": str(size)}
        (entry,) = driver.call("ListVolumes").entries
        assert entry.volume.capacity_bytes == size and (place / "word").read_text() == "kept"
        if not died:
            break
    assert 5 < step < 99
    Attachments(bench.root).unpublish(at.target)
    assert mounts(tmp_path) == [] and loops(tmp_path) == []


def bound(bench: Bench) -> None:
    """The claim bound to its volume, as the binder leaves it."""
    claim, volume = bench.world.pvc(), bench.volume()
    bench.world.put(amend(claim, spec=amend(claim.spec, volume_name=volume.name)))


def room(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_blocks * found.f_frsize

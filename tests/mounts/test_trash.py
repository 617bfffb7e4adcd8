"""Deleted volumes of claims lie in the trash for a grace period: taken back by a command, or removed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prometheus_client import CollectorRegistry

from netplane.model.base import Key
from netplane.model.codec import parse
from netplane.model.errors import NetplaneError
from netplane.store import open_store
from storageplane import agent
from storageplane.cli import cli
from storageplane.host import loops
from storageplane.host.trash import Thrown, Trash
from tests.csi.conftest import Driver
from tests.csi.foreign import until
from tests.sequences.storage_world import pvc, storage_class
from tests.sequences.test_storage_snapshots import LOCAL, Site, digest, fill, site

from .bed import Bed

pytestmark = pytest.mark.root


def keeping(root: Path, backend: str = "directory", grace: float = 600) -> Site:
    node = site(root, backend)
    node.driver.trash = Trash(node.root, "trash", grace)
    return node


def command(*words: str) -> Result:
    return CliRunner().invoke(cli, ["trash", *words])


def put_back(node: Site, name: str, tmp_path: Path, *more: str) -> Result:
    """The command, with a store in a file; what it wrote goes to the node's world."""
    url = f"sqlite://{tmp_path}/s.db"
    done = command("restore", name, "--root", str(node.root), "--store", url, *more)
    store = open_store(url)
    for obj in store.list()[0]:
        node.world.put(obj, expect=0)
    store.close()
    return done


@pytest.mark.parametrize("backend", ["directory", "image"])
def test_a_claims_data_is_taken_back(bed: Bed, tmp_path: Path, backend: str) -> None:
    node = keeping(bed.root, backend)
    home = node.data("pvc-u1")
    before = fill(home) if backend == "directory" else digest(home)
    node.gone("PersistentVolumeClaim", "c")
    assert node.directories() == [] and node.world.pv("pvc-u1") is None
    listed = command("list", "--root", str(node.root)).output
    assert "-pvc-u1  " in listed and listed.endswith(f"  {backend} 16Mi of default/c\n")

    assert "is back for claim default/c" in put_back(node, "pvc-u1", tmp_path).output
    node.put(pvc("x", "16Mi", storageClassName="d", meta={"uid": "ux"}))
    assert node.world.pv("pvc-u1").status.phase == "Available" and digest(home) == before
    assert node.world.pvc("x").spec.volume_name == "pvc-ux"  # it is kept for the claim that it had
    node.put(pvc(size="16Mi", storageClassName="d", meta={"uid": "u2"}))
    assert node.world.pvc().spec.volume_name == "pvc-u1" and digest(home) == before
    assert command("list", "--root", str(node.root)).output == ""
    node.gone("PersistentVolumeClaim", "c")
    assert "pvc-u1" in command("list", "--root", str(node.root)).output
    command("empty", "--root", str(node.root))
    assert os.listdir(bed.root / "trash") == os.listdir(bed.root / "trash.notes") == []


def test_it_is_taken_back_for_another_claim(bed: Bed, tmp_path: Path) -> None:
    node = keeping(bed.root)
    before = fill(node.data("pvc-u1"))
    node.gone("PersistentVolumeClaim", "c")
    put_back(node, "pvc-u1", tmp_path, "--claim", "default/other")
    node.put(pvc("other", "16Mi", storageClassName="d", meta={"uid": "u2"}))
    assert node.world.pvc("other").spec.volume_name == "pvc-u1"
    assert digest(node.data("pvc-u1")) == before


@pytest.mark.parametrize("name", ["nothing", "../volumes/pvc-u1"])
def test_what_is_not_there_is_said(bed: Bed, name: str) -> None:
    node = keeping(bed.root)
    for words in (["restore", name, "--store", "sqlite:////nowhere/s.db"], ["empty", name]):
        done = command(*words, "--root", str(node.root))
        assert isinstance(done.exception, NetplaneError) and "not in the trash" in str(done.exception)
    assert node.directories() == ["pvc-u1"]


def test_only_what_is_named_is_removed_and_only_what_is_over(bed: Bed) -> None:
    node = keeping(bed.root)
    node.put(pvc("k", "16Mi", storageClassName="d", meta={"uid": "uk"}))
    node.gone("PersistentVolumeClaim", "c").gone("PersistentVolumeClaim", "k")
    assert list(node.driver.trash.empty()) == []
    assert command("empty", "pvc-uk", "--root", str(node.root)).output == "removed pvc-uk from the trash\n"
    assert [thrown.name for thrown in node.driver.trash.all()] == ["pvc-u1"]
    assert list(Trash(node.root, "trash", 0.0).empty()) == ["removed pvc-u1 from the trash"]


def test_memory_and_what_nobody_keeps_goes_at_once(bed: Bed) -> None:
    node = keeping(bed.root, "tmpfs")
    node.gone("PersistentVolumeClaim", "c")
    plain = keeping(bed.base / "other", grace=0)
    plain.gone("PersistentVolumeClaim", "c")
    assert not (bed.root / "trash").exists() and not (plain.root / "trash").exists()
    assert node.directories() == plain.directories() == []


def test_a_link_in_the_trash_leads_nowhere(bed: Bed) -> None:
    node = keeping(bed.root)
    (bed.host / "kept").write_text("kept")
    (node.data("pvc-u1") / "out").symlink_to(bed.host)
    node.gone("PersistentVolumeClaim", "c")
    assert command("empty", "--root", str(node.root)).output == "removed pvc-u1 from the trash\n"
    assert (bed.host / "kept").read_text() == "kept"


def test_the_agent_empties_the_trash_and_moves_what_is_taken_back(bed: Bed, tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/s.db"
    store: Any = open_store(url)
    cls = storage_class("d", LOCAL, parameters={"backend": "directory"})
    for doc in (cls, pvc(size="16Mi", storageClassName="d")):
        store.put(parse(doc))
    running = agent.Agent(open_store(url), agent.Config("n1", bed.root, trash=600), CollectorRegistry())
    running.start()
    try:
        claim = Key("PersistentVolumeClaim", "default", "c")
        name = until(lambda: store.get(claim).spec.volume_name, "it is not bound")
        home = bed.root / "volumes" / name
        until(home.exists, "it has no data")
        (home / "word").write_text("kept")
        store.delete(claim)
        until(lambda: not home.exists() and not store.get(Key("PersistentVolume", "", name)), "it stays")
        done = command("restore", name, "--root", str(bed.root), "--store", url)
        assert done.exit_code == 0, done.output
        until(lambda: (home / "word").exists(), "it does not come back")
        store.put(parse(pvc(size="16Mi", storageClassName="d")))
        until(lambda: store.get(claim).status.phase == "Bound", "it is not bound again")
        assert store.get(claim).spec.volume_name == name and (home / "word").read_text() == "kept"
        running.look_again()
        assert not running._data.trash.all()
    finally:
        running.stop()
        store.close()


def test_what_is_being_taken_back_is_not_removed_although_its_time_is_over(bed: Bed, tmp_path: Path) -> None:
    """Taken back while no agent ran, or shortly before the end of its time: the data is not moved yet."""
    node = keeping(bed.root)
    before = fill(node.data("pvc-u1"))
    node.gone("PersistentVolumeClaim", "c")
    url = f"sqlite://{tmp_path}/s.db"
    command("restore", "pvc-u1", "--root", str(node.root), "--store", url)
    running = agent.Agent(open_store(url), agent.Config("n1", bed.root), CollectorRegistry())
    running.look_again()  # the list is not in
    assert running._data.trash.all()
    running.core.load()
    running.empty_the_trash()
    assert digest(bed.root / "trash" / running._data.trash.all()[0].item) == before
    running.start()
    try:
        until(lambda: (node.data("pvc-u1") / "deep").exists(), "it does not come back")
        assert digest(node.data("pvc-u1")) == before
    finally:
        running.stop()


def test_a_volume_of_the_csi_driver_is_taken_back_by_its_name(tmp_path: Path) -> None:
    driver = Driver(tmp_path, "--trash", "600")
    try:
        volume = driver.create("wanted again")
        (driver.publish(volume) / "word").write_text("kept")
        driver.withdraw(volume)
        driver.call("DeleteVolume", volume_id=volume)
        listed = command("list", "--root", str(driver.root)).output
        assert "csi volume wanted again" in listed
        done = command("restore", volume, "--root", str(driver.root))
        assert "create a volume of the name wanted again" in done.output
        assert driver.create("wanted again") == volume
        assert (driver.publish(volume) / "word").read_text() == "kept"
        driver.withdraw(volume)
    finally:
        driver.kill()
    assert loops.backed_by(tmp_path) == []


def test_a_crash_before_the_data_is_moved_leaves_it_where_it_was(bed: Bed) -> None:
    node = keeping(bed.root)
    before = fill(node.data("pvc-u1"))
    trash = node.driver.trash
    trash._notes.open()
    trash._notes.put("1-pvc-u1", Thrown(name="pvc-u1", since=1.0))
    (bed.root / "trash").mkdir()
    assert trash.all() == [] and list(trash.empty()) == []
    assert os.listdir(bed.root / "trash.notes") == [] and digest(node.data("pvc-u1")) == before

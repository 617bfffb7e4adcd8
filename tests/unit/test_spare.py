"""What a spare holds, what is put back from it, and what is not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from netplane.model.base import Key, ObjectMeta, amend
from netplane.model.changes import Delete, Put
from netplane.model.nodes import Node
from netplane.model.own import Attachment, AttachmentIP, AttachmentSpec
from netplane.model.pods import Pod
from netplane.spare import Spare
from netplane.store.sqlite import SqliteStore

BOOT = "boot-1"


def attachment(name: str, phase: str = "Ready", node: str = "n1", boot: str = BOOT) -> Attachment:
    ip = AttachmentIP(address="10.244.3.5/32", gateway="10.244.3.1", subnet="10.244.3.0/24")
    spec = AttachmentSpec(
        node=node, container_id=name, ifname="eth0", netns=f"/n/{name}", network="net", pod_name=name,
        pod_namespace="shop", host_ifname="npv1", ips=(ip,), boot_id=boot,
    )  # fmt: skip
    return Attachment(metadata=ObjectMeta(name=f"{name}.{node}"), spec=spec, phase=phase)


def pod(name: str) -> Pod:
    return Pod(metadata=ObjectMeta(name=name, namespace="shop", labels={"app": name}))


class World:
    """A state file that can be lost, and a run directory that stays."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.open()

    def open(self) -> None:
        self.store = SqliteStore(str(self.at / "state.db"))
        self.spare = Spare(self.at / "run", self.store)
        self.spare.settle("n1", BOOT)

    def lose(self) -> None:
        self.store.close()
        for path in self.at.glob("state.db*"):
            path.unlink()
        self.open()

    def names(self) -> list[str]:
        return [obj.name for obj in self.store.list(["Attachment"])[0]]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_was_whole_comes_back_with_its_pod_and_the_nodes_range(world: World) -> None:
    world.spare.keep([pod("a"), world.store.put(attachment("a"))])
    world.spare.keep([attachment("cut", phase="Pending")])
    world.lose()
    assert world.names() == ["a.n1"]
    back, node = world.store.get(Key("Pod", "shop", "a")), world.store.get(Key("Node", "", "n1"))
    assert isinstance(back, Pod) and back.labels == {"app": "a"}
    assert isinstance(node, Node) and node.pod_cidrs == ("10.244.3.0/24",)


def test_another_boots_and_another_nodes_do_not(world: World) -> None:
    for one in (attachment("old", boot="boot-0"), attachment("other", node="n2")):
        world.spare.keep([one])
    world.lose()
    assert world.names() == [] and world.store.get(Key("Node", "", "n1")) is None


def test_a_record_that_went_takes_its_spare_along(world: World) -> None:
    record = world.store.put(attachment("a"))
    world.spare.keep([record])
    world.spare.drop([Delete(record.key)])
    world.lose()
    assert world.names() == []


def test_from_the_same_store_nothing_is_put_back_and_what_has_no_spare_gets_one(world: World) -> None:
    world.spare.keep([world.store.put(attachment("a"))])
    world.store.delete(Key("Attachment", "", "a.n1"))
    world.store.put(attachment("b"))
    world.open()
    assert world.names() == ["b.n1"]
    world.lose()
    assert world.names() == ["b.n1"]


def test_what_the_new_store_has_already_stays_as_it_is(world: World) -> None:
    world.spare.keep([world.store.put(attachment("a")), pod("a")])
    world.store.close()
    for path in world.at.glob("state.db*"):
        path.unlink()
    fresh = SqliteStore(str(world.at / "state.db"))
    fresh.put(amend(pod("a"), metadata=amend(pod("a").metadata, labels={"app": "declared"})))
    world.open()
    back = world.store.get(Key("Pod", "shop", "a"))
    assert world.names() == ["a.n1"] and back is not None and back.labels == {"app": "declared"}


def test_a_spare_that_cannot_be_written_or_read_costs_a_line(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.spare.keep([world.store.put(attachment("a"))])
    (file,) = (world.at / "run").glob("spare/*/a.n1")
    file.write_bytes(b"Attachment {half of i")
    world.lose()
    assert world.names() == [] and "cannot be read" in caplog.text
    for path in (world.at / "run").glob("spare/*/*"):
        path.unlink()
    directory = next((world.at / "run").glob("spare/*"))
    directory.rmdir()
    directory.write_text("in the way")
    world.spare.keep([attachment("b")])
    assert "no spare of b.n1" in caplog.text


def test_a_record_whose_interface_goes_is_no_spare_though_it_stays(world: World) -> None:
    record = world.store.put(attachment("a"))
    world.spare.keep([record])
    world.spare.drop([Put(record, record.revision)])
    assert world.spare.is_settled()
    left = attachment("a", phase="Pending")
    world.spare.drop([Put(left, record.revision)])
    world.store.put(left, record.revision)
    assert [one.phase for one in world.spare.leaving()] == ["Ready"]
    world.lose()
    assert world.names() == []


def test_what_is_being_deleted_is_known_until_it_is_gone(world: World) -> None:
    """By any later process, and to nobody as a spare."""
    for name in ("a", "b"):
        record = world.store.put(attachment(name))
        world.spare.keep([record])
        world.spare.drop([Delete(record.key)])
        world.store.delete(record.key)
    world.spare.drop([Delete(Key("Attachment", "", "never.n1"))])
    world.spare.gone("b.n1")
    world.spare.gone("never.n1")
    world.open()
    (left,) = world.spare.leaving()
    assert left.name == "a.n1" and left.spec.ips[0].address == "10.244.3.5/32"
    world.lose()
    assert world.names() == []
    world.spare.gone("a.n1")
    assert world.spare.leaving() == []


def test_the_first_that_are_deleted_together_are_all_put_aside(world: World, tmp_path: Path) -> None:
    """Each of them meets that there is no directory for it yet."""
    for turn in range(8):
        spare, records = Spare(tmp_path / f"run{turn}", world.store), [attachment(f"c{i}") for i in range(8)]
        for record in records:
            spare.keep([record])
        together = threading.Barrier(len(records))

        def drop(record: Attachment, spare: Spare = spare, together: threading.Barrier = together) -> None:
            together.wait(5)
            spare.drop([Delete(record.key)])

        threads = [threading.Thread(target=drop, args=(record,)) for record in records]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert sorted(one.name for one in spare.leaving()) == [record.name for record in records]

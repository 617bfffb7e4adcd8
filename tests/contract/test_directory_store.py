"""DirectoryStore beyond the contract: files in, editors' habits, broken and doubled manifests."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.model import codec
from netplane.model.base import Key, Object, amend
from netplane.model.errors import Invalid, Unavailable
from netplane.store.directory import DirectoryStore

WEB = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""
WEB_KEY = Key("Service", "default", "web")


def config(name: str, value: str = "1") -> str:
    return f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: '{value}'}}\n"


def key(name: str) -> Key:
    return Key("ConfigMap", "default", name)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    return path


@pytest.fixture
def opened(home: Path) -> Iterator[Callable[[], DirectoryStore]]:
    stores: list[DirectoryStore] = []

    def make() -> DirectoryStore:
        stores.append(DirectoryStore(str(home)))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def replace(path: Path, text: str) -> None:
    """As editors save: a file beside it, renamed over it."""
    beside = path.parent / f".{path.name}.swp"
    beside.write_text(text)
    beside.rename(path)


class Follower:
    def __init__(self, store: DirectoryStore) -> None:
        self.watch = store.watch(store.list()[1])

    def until(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 5) -> dict[str, Any]:
        """The last object (None: deleted) by name, once ``wanted`` holds of them."""
        state: dict[str, Any] = {}
        deadline = time.monotonic() + seconds
        while not wanted(state) and time.monotonic() < deadline:
            for change in self.watch.next(deadline - time.monotonic()):
                state[change.object.name] = None if change.deleted else change.object
        assert wanted(state), state
        return state


def test_files_are_objects(home: Path, opened: Any) -> None:
    (home / "a.yaml").write_text(config("a") + "---\n" + config("b"))
    (home / "sub" / "deep").mkdir(parents=True)
    (home / "sub" / "deep" / "c.json").write_text(
        '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"}}'
    )
    (home / "notes.txt").write_text("not a manifest")
    (home / ".hidden.yaml").write_text(config("hidden"))
    objects, _ = opened().list()
    assert sorted(o.name for o in objects) == ["a", "b", "c"]


def test_a_watch_follows_edits_renames_new_directories_and_removals(home: Path, opened: Any) -> None:
    follower = Follower(opened())
    (home / "a.yaml").write_text(config("a"))
    follower.until(lambda s: "a" in s)
    replace(home / "a.yaml", config("a", "2"))
    follower.until(lambda s: "a" in s and s["a"].data == {"k": "2"})
    (home / "new" / "er").mkdir(parents=True)
    (home / "new" / "er" / "b.yml").write_text(config("b"))
    follower.until(lambda s: "b" in s)
    (home / "new" / "er" / "b.yml").write_text(config("b", "3"))
    follower.until(lambda s: "b" in s and s["b"].data == {"k": "3"})
    (home / "a.yaml").unlink()
    follower.until(lambda s: s.get("a", 1) is None)
    (home / "new").rename(home.parent / "elsewhere")
    follower.until(lambda s: s.get("b", 1) is None)


def test_an_object_that_moves_to_another_file_is_not_deleted_between(home: Path, opened: Any) -> None:
    (home / "a.yaml").write_text(config("a"))
    store = opened()
    uid = store.get(key("a")).metadata.uid
    follower = Follower(store)
    (home / "a.yaml").rename(home / "b.yaml")
    follower.until(lambda s: "a" in s)
    moved = store.get(key("a"))
    assert moved.metadata.uid == uid
    assert moved.metadata.annotations["netplane.io/manifest"] == "b.yaml"


def test_a_broken_file_is_reported_and_its_last_good_content_stays(
    home: Path, opened: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "a.yaml").write_text(config("a") + "---\n" + config("b"))
    store = opened()
    with caplog.at_level(logging.WARNING):
        replace(home / "a.yaml", config("a", "2") + "---\n" + config("b").replace("\ndata:", "\ndada:"))
        assert [o.name for o in store.list()[0]] == ["a", "b"]
    reason = f"{home}/a.yaml: ConfigMap b: dada: unknown field"
    assert store.faults == {"a.yaml": reason} and reason in caplog.text
    assert store.get(key("a")).data == {"k": "1"}, "nothing of a broken file is taken"
    store.close()
    again = opened()
    assert [o.name for o in again.list()[0]] == ["a", "b"], "also over a restart"
    assert again.faults == {"a.yaml": reason}
    replace(home / "a.yaml", config("a", "3"))
    assert [(o.name, o.data) for o in again.list()[0]] == [("a", {"k": "3"})]
    assert again.faults == {}


def test_the_same_object_in_two_files_is_refused_with_both_places(home: Path, opened: Any) -> None:
    (home / "a.yaml").write_text(config("x", "a"))
    store = opened()
    (home / "b.yaml").write_text(config("x", "b") + "---\n" + config("y"))
    assert [o.data for o in store.list()[0]] == [{"k": "a"}]
    assert store.faults == {
        "b.yaml": f"{home}/b.yaml: ConfigMap default/x stands in {home}/a.yaml already: remove one of the two"
    }
    (home / "a.yaml").unlink()
    assert {o.name: o.data for o in store.list()[0]} == {"x": {"k": "b"}, "y": {"k": "1"}}
    assert store.faults == {}


def test_a_file_that_is_emptied_keeps_its_objects(home: Path, opened: Any) -> None:
    """A save may truncate first; a full cluster must not vanish for it."""
    (home / "a.yaml").write_text(config("a"))
    store = opened()
    (home / "a.yaml").write_text("")
    assert store.get(key("a")) is not None
    assert "is empty now; remove the file" in store.faults["a.yaml"]


def test_a_file_still_open_for_writing_is_not_read_half(home: Path, opened: Any) -> None:
    (home / "a.yaml").write_text(config("a") + "---\n" + config("b"))
    store = opened()
    follower = Follower(store)
    with (home / "a.yaml").open("w") as file:
        file.write(config("a", "2"))
        file.flush()
        (home / "other.yaml").write_text(config("other"))  # wakes the store meanwhile
        follower.until(lambda s: "other" in s)
        assert store.get(key("b")) is not None
        file.write("---\n" + config("b", "2"))
    state = follower.until(lambda s: "b" in s)
    assert state["b"].data == {"k": "2"}


def test_writes_of_agents_stay_off_the_files_and_survive_edits(home: Path, opened: Any) -> None:
    (home / "web.yaml").write_text(WEB)
    store = opened()
    web = store.get(WEB_KEY)
    store.put(amend(web, spec=amend(web.spec, cluster_ip="10.96.0.5")), web.revision)
    assert (home / "web.yaml").read_text() == WEB
    replace(home / "web.yaml", WEB.replace("port: 80", "port: 81"))
    web = store.get(WEB_KEY)
    assert (web.spec.cluster_ip, web.spec.ports[0].port) == ("10.96.0.5", 81)
    store.close()
    assert opened().get(WEB_KEY) == web, "a restart writes nothing"


def test_status_of_a_manifest_is_a_start_that_controllers_own_afterwards(home: Path, opened: Any) -> None:
    node = (
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n"
        "status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n"
    )
    (home / "n.yaml").write_text(node)
    store = opened()
    where = Key("Node", "", "n1")
    found = store.get(where)
    other = codec.parse(
        {
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.2"}]},
        }
    )  # fmt: skip
    store.put(amend(found, status=other.status))  # type: ignore[attr-defined]
    store.close()
    store = opened()
    assert store.get(where).internal_ips == ("192.0.2.2",)
    replace(home / "n.yaml", node.replace("192.0.2.1", "192.0.2.3"))
    assert store.get(where).internal_ips == ("192.0.2.3",), "the user's edit is news again"


def test_a_write_against_a_manifest_is_refused_with_its_file(home: Path, opened: Any) -> None:
    (home / "web.yaml").write_text(WEB)
    store = opened()
    web = store.get(WEB_KEY)
    with pytest.raises(
        Invalid, match=f"Service default/web: stands in {home}/web.yaml, which says otherwise"
    ):
        store.put(amend(web, spec=amend(web.spec, selector={"app": "other"})))
    with pytest.raises(Invalid, match=f"Service default/web: stands in {home}/web.yaml: remove it there"):
        store.delete(WEB_KEY)


def test_a_manifest_that_changes_what_is_chosen_once_is_a_fault(home: Path, opened: Any) -> None:
    (home / "web.yaml").write_text(WEB)
    store = opened()
    web = store.get(WEB_KEY)
    store.put(amend(web, spec=amend(web.spec, cluster_ip="10.96.0.5")))
    replace(home / "web.yaml", WEB.replace("spec: {", "spec: {clusterIP: 10.96.0.6, "))
    assert store.get(WEB_KEY).spec.cluster_ip == "10.96.0.5"
    assert "spec.clusterIP: '10.96.0.5' is set and cannot change" in store.faults["web.yaml"]


def test_what_was_removed_while_nobody_looked_is_gone_at_start(home: Path, opened: Any) -> None:
    (home / "a.yaml").write_text(config("a") + "---\n" + config("b"))
    store = opened()
    store.put(codec.parse_all(config("ours"))[0])
    store.close()
    (home / "a.yaml").write_text(config("b"))
    again = opened()
    assert [o.name for o in again.list()[0]] == ["b", "ours"]


def test_a_finalizer_outlives_the_file_and_a_file_that_returns_makes_a_new_object(
    home: Path, opened: Any
) -> None:
    (home / "a.yaml").write_text(config("a"))
    store = opened()
    first: Object = store.get(key("a"))
    held: Object = store.put(amend(first, metadata=amend(first.metadata, finalizers=("x/y",))))
    (home / "a.yaml").unlink()
    marked = store.get(key("a"))
    assert marked.deleting and marked.metadata.finalizers == ("x/y",)
    (home / "a.yaml").write_text(config("a"))
    again = store.get(key("a"))
    assert again.deleting, "a deletion is not taken back"
    store.put(amend(again, metadata=amend(again.metadata, finalizers=())))
    fresh = store.get(key("a"))
    assert fresh is not None and not fresh.deleting and fresh.metadata.uid != held.metadata.uid


def test_two_agents_share_a_directory(home: Path, opened: Any) -> None:
    one, two = opened(), opened()
    follower = Follower(two)
    (home / "web.yaml").write_text(WEB)
    follower.until(lambda s: "web" in s)
    for store in (one, two):
        web = store.get(WEB_KEY)
        changed = {**web.metadata.annotations, "seen": str(id(store))}
        store.put(amend(web, metadata=amend(web.metadata, annotations=changed)), web.revision)
    before = one.list()[1]
    replace(home / "web.yaml", WEB.replace("80", "81"))
    assert {s.get(WEB_KEY).spec.ports[0].port for s in (one,)} == {81}
    follower.until(lambda s: "web" in s and s["web"].spec.ports[0].port == 81)
    assert one.list()[1] == before + 1, "the second to see an edit writes nothing"


def test_an_unmounted_directory_is_an_outage_not_an_empty_cluster(home: Path, opened: Any) -> None:
    (home / "a.yaml").write_text(config("a"))
    store = opened()
    away = home.parent / "away"
    os.rename(home, away)
    home.mkdir()
    with pytest.raises(Unavailable):
        store.list()
    home.rmdir()
    os.rename(away, home)
    assert [o.name for o in store.list()[0]] == ["a"]


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(Invalid, match="is not a directory: use sqlite://"):
        DirectoryStore(str(tmp_path / "f"))

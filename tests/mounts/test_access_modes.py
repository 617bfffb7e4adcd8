"""One access mode in force at a time, over nodes, with everything real: two roots, one store in a file.

n1: ROOT/n1 ──┐                     ┌── ROOT/n2 :n2
              ├── claim c: DATA ────┤
pods a, b, …  ┘   (a hostPath)      └ pods a, b, …
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from netplane.model.base import Key
from netplane.model.codec import parse
from netplane.model.errors import Invalid, NetplaneError, Unavailable
from netplane.store import open_store
from storageplane import agent, cli, names
from storageplane.claims import access, lost, steps
from storageplane.host import mountinfo
from storageplane.host.mounts import Mounts
from storageplane.pods import publish, session
from storageplane.pods.journal import Journal

from ..sequences.storage_world import pod, pv, pvc

pytestmark = pytest.mark.root
RWO, ROX = "ReadWriteOnce", "ReadOnlyMany"
VOLUME = Key("PersistentVolume", "", "v")


class Cluster:
    """The store, and both nodes' publishing."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.store = open_store(f"sqlite://{base}/state.db")
        (base / "data").mkdir()

    def claim(self, *modes: str) -> Cluster:
        for doc in (
            pv("v", accessModes=list(modes), hostPath={"path": str(self.base / "data")}),
            pvc(accessModes=list(modes)),
        ):
            self.store.put(parse(doc))
        return self

    def pods(self, *names: str) -> Cluster:
        """From the oldest to the youngest (by name, in one second); those that begin with r only read."""
        assert list(names) == sorted(names)
        for name in names:
            doc = pod(name, "")
            doc["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = name.startswith("r")
            self.store.put(parse(doc))
        return self

    def root(self, node: str) -> Path:
        return agent.prepare_root(self.base / node)

    def ready(self, name: str, node: str, store: Any = None) -> Any:
        root = self.root(node)
        controllers = agent.controllers(agent.Config(node, root))
        key = Key("Pod", "default", name)
        return session.ready(store or self.store, key, node, str(root), controllers, 0.5)

    def publish(self, name: str, node: str, store: Any = None, found: Any = None) -> publish.Publication:
        root, store = self.root(node), store or self.store
        driver, target = Mounts(root), str(self.base / f"t-{name}")
        return session.publish(
            store,
            found or self.ready(name, node, store),
            (node, str(root)),
            lambda p, s: publish.publish(p, s, node, driver, target),
        )

    def refused(self, name: str, node: str) -> str:
        with pytest.raises(Unavailable) as caught:
            self.publish(name, node)
        assert not (self.base / f"t-{name}").exists()
        return str(caught.value)

    def unpublish(self, name: str, node: str) -> None:
        publish.unpublish("default", name, Mounts(self.root(node)))

    def agent(self, node: str) -> agent.Agent:
        """Not started: `look_again` is what its pulse does."""
        made = agent.Agent(self.store, agent.Config(node, self.root(node)), CollectorRegistry())
        made.core.start()
        assert made.core.wait_synced(10)
        return made

    def forget(self) -> None:
        volume: Any = self.store.get(VOLUME)
        self.store.put(access.held_by(volume, {}))

    def using(self) -> list[tuple[str, str, str]]:
        volume: Any = self.store.get(VOLUME)
        return sorted((h.pod.rpartition("/")[2], h.mode, h.node) for h in access.holds(volume).values())


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(Path(os.path.realpath(tmp_path)))
    yield made
    for node in ("n1", "n2"):
        for record in Journal(made.root(node)).records():
            made.unpublish(record.name, node)
    made.store.close()
    assert mountinfo.beneath(str(made.base)) == []


def test_an_older_pod_that_comes_later_gets_no_other_mode(cluster: Cluster) -> None:
    cluster.claim(RWO, ROX).pods("old", "r-here", "r-there", "young")
    cluster.publish("young", "n1")
    assert "is ReadWriteOnce and in use by pod default/young" in cluster.refused("r-here", "n1")
    assert "in use by pod default/young on node n1" in cluster.refused("r-there", "n2")
    assert "in use by pod default/young on node n1" in cluster.refused("old", "n2")
    assert cluster.using() == [("young", RWO, "n1")]


def test_pods_that_share_the_mode_use_it_together_and_the_last_frees_it(cluster: Cluster) -> None:
    cluster.claim(RWO, ROX).pods("a-writer", "r1", "r2")
    cluster.publish("r2", "n2")
    cluster.publish("r1", "n1")
    cluster.publish("r1", "n1")
    assert cluster.using() == [("r1", ROX, "n1"), ("r2", ROX, "n2")]
    assert "is ReadOnlyMany and in use by pod" in cluster.refused("a-writer", "n1")
    cluster.unpublish("r1", "n1")
    assert "in use by pod default/r2 on node n2" in cluster.refused("a-writer", "n1")
    assert cluster.using() == [("r2", ROX, "n2")]  # r1's was put right by the publication on its node
    url = f"sqlite://{cluster.base}/state.db"
    words = ["unpublish", "r2", "--root", str(cluster.root("n2")), "--store", url]
    assert CliRunner().invoke(cli.cli, words).exit_code == 0
    assert cluster.using() == []
    cluster.publish("a-writer", "n1")
    assert cluster.using() == [("a-writer", RWO, "n1")]


def test_what_is_published_counts_although_its_pod_is_gone_until_its_agent_says_so(cluster: Cluster) -> None:
    cluster.claim(RWO).pods("old", "young")
    cluster.publish("young", "n1")
    cluster.store.delete(Key("Pod", "default", "young"))
    assert "its object is gone: unpublish it there" in cluster.refused("old", "n2")
    running = cluster.agent("n1")
    running.look_again()
    assert cluster.using() == [("young", RWO, "n1")]
    cluster.unpublish("young", "n1")
    running.look_again()
    running.core.stop()
    assert cluster.using() == []
    cluster.publish("old", "n2")


def test_a_failed_publication_holds_nothing(cluster: Cluster) -> None:
    cluster.claim(RWO).pods("old", "young")
    (cluster.base / "t-young").write_text("")
    with pytest.raises(NetplaneError, match="t-young"):
        cluster.publish("young", "n1")
    assert cluster.using() == []
    cluster.publish("old", "n2")


def test_what_a_killed_publication_left_is_let_go_by_the_next_one(cluster: Cluster) -> None:
    """Killed after it took hold and before its record was written."""
    cluster.claim(RWO, ROX).pods("old", "r-here", "young")
    child = os.fork()
    if child == 0:
        publish.publish = lambda *_: os._exit(0)
        cluster.publish("young", "n1", open_store(f"sqlite://{cluster.base}/state.db"))
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert cluster.using() == [("young", RWO, "n1")]
    assert "in use by pod default/young on node n1" in cluster.refused("old", "n2")
    cluster.store.delete(Key("Pod", "default", "old"))
    cluster.publish("r-here", "n1")
    assert cluster.using() == [("r-here", ROX, "n1")]


def test_what_was_published_before_anybody_wrote_it_down_is_written_down(cluster: Cluster) -> None:
    cluster.claim(RWO).pods("a").publish("a", "n1")
    cluster.forget()
    running = cluster.agent("n1")
    running.look_again()
    running.core.stop()
    assert cluster.using() == [("a", RWO, "n1")]


def test_the_first_look_waits_for_the_stores_list(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.claim(RWO).pods("a").publish("a", "n1")
    cluster.forget()
    asked, listed = threading.Event(), cluster.store.list

    def slow(*kinds: Any) -> Any:
        assert asked.wait(10)
        return listed(*kinds)

    monkeypatch.setattr(cluster.store, "list", slow)
    running = agent.Agent(cluster.store, agent.Config("n1", cluster.root("n1")), CollectorRegistry())
    synced = running.core.wait_synced
    monkeypatch.setattr(running.core, "wait_synced", lambda _: asked.set() or synced(10))
    running.core.start()
    running.look_again()
    asked.set()
    running.core.stop()
    assert cluster.using() == [("a", RWO, "n1")]


def test_a_volume_that_says_nonsense_keeps_no_other_waiting(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.claim(RWO).pods("a").publish("a", "n1")
    cluster.forget()
    broken: Any = parse(pv("a-first", accessModes=[RWO], hostPath={"path": str(cluster.base / "data")}))
    cluster.store.put(steps.annotated(broken, {names.IN_USE: "nonsense"}))
    running = cluster.agent("n1")
    grown: list[bool] = []
    monkeypatch.setattr(running, "grow_what_waits", lambda: grown.append(True))
    with pytest.raises(Invalid, match=r"a-first: metadata\.annotations: .* remove it"):
        running.look_again()
    running.core.stop()
    assert cluster.using() == [("a", RWO, "n1")] and grown == [True]


def test_a_damaged_record_lets_nothing_go_and_stops_no_other_pod(cluster: Cluster) -> None:
    cluster.claim(RWO).pods("a", "b").publish("a", "n1")
    path = next(Journal(cluster.root("n1")).folder.glob("*.json"))
    good = path.read_bytes()
    path.write_bytes(b"damaged")
    cluster.publish("b", "n1")
    assert cluster.using() == [("a", RWO, "n1"), ("b", RWO, "n1")]
    path.write_bytes(good)


def test_of_two_nodes_at_once_one_gets_it(cluster: Cluster) -> None:
    cluster.claim(RWO).pods("a", "b")
    done: list[str] = []
    refused: list[str] = []

    def one(name: str, node: str) -> None:
        store = open_store(f"sqlite://{cluster.base}/state.db")
        try:
            cluster.publish(name, node, store)
            done.append(name)
        except Unavailable as exc:
            refused.append(str(exc))
        finally:
            store.close()

    threads = [threading.Thread(target=one, args=words) for words in (("a", "n1"), ("b", "n2"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == len(refused) == 1
    assert f"is ReadWriteOnce and in use by pod default/{done[0]}" in refused[0]
    assert [name for name, *_ in cluster.using()] == done


def test_who_was_ready_first_and_takes_it_later_is_refused(cluster: Cluster) -> None:
    cluster.claim(RWO).pods("old", "young")
    found = cluster.ready("old", "n2")
    cluster.store.put(parse({**pod("young", ""), "spec": {**pod("young", "n1")["spec"]}}))
    with pytest.raises(Unavailable, match="in use by pod default/old on node n2"):
        cluster.publish("young", "n1")  # nobody has it: the older one, which is placed, comes first
    volume: Any = cluster.store.get(VOLUME)
    young: Any = cluster.store.get(Key("Pod", "default", "young"))
    hold = {young.metadata.uid: access.Hold("default/young", RWO, "n1")}
    cluster.store.put(access.held_by(volume, hold))  # as if it had been quicker
    with pytest.raises(Unavailable, match="in use by pod default/young on node n1"):
        cluster.publish("old", "n2", found=found)
    assert cluster.using() == [("young", RWO, "n1")]


def test_the_journal_alone_keeps_two_modes_apart_on_its_node(cluster: Cluster) -> None:
    """Where the annotation was removed by hand, and the pod's object too."""
    cluster.claim(RWO, ROX).pods("a", "r").publish("a", "n1")
    cluster.store.delete(Key("Pod", "default", "a"))
    cluster.forget()
    snapshot = session.Snapshot.of(*cluster.store.list(session.KINDS))
    later = snapshot.get(session.Pod, "default", "r")
    assert later is not None
    with pytest.raises(
        Unavailable, match="PersistentVolume v is ReadWriteOnce and published for pod default/a"
    ):
        publish.publish(later, snapshot, "n1", Mounts(cluster.root("n1")), str(cluster.base / "t-r"))


def test_a_node_that_is_given_up_keeps_nobody_waiting(cluster: Cluster) -> None:
    cluster.claim(RWO).pods("old", "young")
    meta = {"name": "n1", "labels": {names.HOSTNAME: "n1"}}
    cluster.store.put(parse({"apiVersion": "v1", "kind": "Node", "metadata": meta}))
    cluster.publish("young", "n1")
    assert "in use by pod default/young on node n1" in cluster.refused("old", "n2")
    assert list(lost.give_up(cluster.store, "n1")) == ["volume v not in use there any more"]
    cluster.publish("old", "n2")
    assert cluster.using() == [("old", RWO, "n2")]

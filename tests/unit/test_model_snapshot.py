"""Snapshots never change, and their indexes agree with a search of all objects after any history."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from netplane.model import codec
from netplane.model.base import Key, Object, amend
from netplane.model.pods import Pod
from netplane.model.services import EndpointSlice, Service
from netplane.model.snapshot import INDEXES, Snapshot


def pod(name: str, node: str = "", ip: str = "", claim: str = "", revision: int = 0) -> Object:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}] if claim else []
    obj = codec.parse(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name},
            "spec": {"nodeName": node, "containers": [{"name": "a"}], "volumes": volumes},
            "status": {"podIP": ip},
        }
    )
    changed: Object = amend(obj, metadata=amend(obj.metadata, resource_version=str(revision or "")))
    return changed


def key(name: str) -> Key:
    return Key("Pod", "default", name)


def test_a_snapshot_never_changes() -> None:
    empty = Snapshot()
    one = empty.with_put(pod("a", node="n1", revision=4))
    two = one.with_put(pod("a", node="n2", revision=5))
    gone = two.with_delete(key("a"), 6)
    assert [s.count(Pod) for s in (empty, one, two, gone)] == [0, 1, 1, 0]
    assert [s.revision for s in (empty, one, two, gone)] == [0, 4, 5, 6]
    assert [[p.name for p in s.by(Pod, "node", "n1")] for s in (empty, one, two, gone)] == [[], ["a"], [], []]
    assert [[p.name for p in s.by(Pod, "node", "n2")] for s in (empty, one, two, gone)] == [[], [], ["a"], []]


def test_what_is_absent_is_none_or_nothing() -> None:
    empty = Snapshot()
    assert empty.get(Pod, "default", "a") is None
    assert empty.find(key("a")) is None
    assert list(empty.list(Pod)) == [] and empty.by(Pod, "node", "n") == ()
    assert empty.with_delete(key("a"), 3).revision == 3


def test_list_by_namespace_and_lookups() -> None:
    a, b = pod("a"), pod("b")
    b = amend(b, metadata=amend(b.metadata, namespace="other"))
    snapshot = Snapshot.of([a, b])
    assert {p.name for p in snapshot.list(Pod)} == {"a", "b"}
    assert [p.name for p in snapshot.list(Pod, "other")] == ["b"]
    assert snapshot.get(Pod, "other", "b") is b and snapshot.find(a.key) is a
    assert snapshot.kinds() == ("Pod",) and set(snapshot.keys()) == {a.key, b.key}


def test_synced_is_kept_until_it_is_said_otherwise() -> None:
    first = Snapshot()
    assert not first.synced and not first.with_put(pod("a")).synced
    assert first.at(7, True).with_put(pod("a")).with_delete(key("a")).synced


def test_slices_are_found_by_their_service() -> None:
    doc: dict[str, Any] = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
    }
    snapshot = Snapshot.of([codec.parse(doc)])
    assert [s.name for s in snapshot.by(EndpointSlice, "service", "default/web")] == ["web-1"]
    doc["metadata"]["labels"] = {}
    assert snapshot.with_put(codec.parse(doc)).by(EndpointSlice, "service", "default/web") == ()
    assert snapshot.count(Service) == 0


changes = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.none()
        | st.tuples(
            st.sampled_from(["", "n1", "n2"]),
            st.sampled_from(["", "10.0.0.1", "10.0.0.2"]),
            st.sampled_from(["", "c1", "c2"]),
        ),
    ),
    max_size=25,
)


@given(changes)
def test_indexes_agree_with_a_search(history: list[tuple[str, tuple[str, str, str] | None]]) -> None:
    snapshot, model = Snapshot(), dict[str, Object]()
    for name, state in history:
        if state is None:
            snapshot = snapshot.with_delete(key(name))
            model.pop(name, None)
        else:
            model[name] = pod(name, *state)
            snapshot = snapshot.with_put(model[name])
    assert {p.name: p for p in snapshot.list(Pod)} == model
    for index, values in INDEXES["Pod"].items():
        wanted: dict[str, list[str]] = {}
        for name in sorted(model):
            for value in values(model[name]):
                wanted.setdefault(value, []).append(name)
        for value in ("n1", "n2", "10.0.0.1", "10.0.0.2", "default/c1", "default/c2"):
            assert [p.name for p in snapshot.by(Pod, index, value)] == wanted.get(value, [])

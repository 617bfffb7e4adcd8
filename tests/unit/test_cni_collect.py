"""GC: what the runtime does not list goes, of its own network; not what is under way or was made again."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from netplane.model.own import Attachment
from tests.cnihost import MemoryHost
from tests.unit.test_cni_verbs import Runtime


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(MemoryHost())


def test_gc_releases_what_is_not_listed_of_its_own_network(runtime: Runtime) -> None:
    runtime("ADD", container="keep")
    runtime("ADD", container="drop")
    runtime("ADD", container="other", name="othernet")
    valid = [{"containerID": "keep", "ifname": "eth0"}]
    assert runtime("GC", **{"cni.dev/valid-attachments": valid}) == ""
    left = {a.spec.container_id for a in runtime.host.snapshot().list(Attachment)}
    assert left == {"keep", "other"}
    runtime("ADD", container="drop")
    assert runtime("GC", **{"cni.dev/attachments": valid}) == ""  # the name in 1.1.0's own text
    assert {a.spec.container_id for a in runtime.host.snapshot().list(Attachment)} == left
    assert runtime("GC", **{"cni.dev/valid-attachments": None}) == ""  # Go's nil slice: none is valid
    assert {a.spec.container_id for a in runtime.host.snapshot().list(Attachment)} == {"other"}


def test_gc_beside_an_add_leaves_the_pod_that_comes_of_it(runtime: Runtime) -> None:
    """The runtime made its list before the ADD was answered; the record may be there already."""
    said: list[Any] = []
    beside = threading.Thread(target=lambda: said.append(runtime("GC", **{"cni.dev/valid-attachments": []})))

    def collect(verb: str, _scope: object) -> None:
        if verb == "sync" and beside.ident is None and runtime.host.snapshot().count(Attachment):
            beside.start()
            beside.join(10)

    runtime.host.fail = collect
    result = runtime("ADD")
    assert said == [""] and len(result["ips"]) == 2
    (record,) = runtime.host.snapshot().list(Attachment)
    assert record.phase == "Ready"
    assert runtime("GC", **{"cni.dev/valid-attachments": []}) == "" and runtime.nothing_left()


def test_gc_leaves_what_was_made_again_since_it_looked(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for container in ("c1", "c2"):
        runtime("ADD", container=container)
    first, second = (a.spec.container_id for a in runtime.host.snapshot().by(Attachment, "node", "n1"))
    again: list[Any] = []
    release = runtime.server.verbs._release

    def between(gone: Attachment) -> None:
        release(gone)
        if not again:  # GC has released the first one
            again.append(None)
            assert runtime("DEL", container=second) == ""
            again.append(runtime("ADD", container=second))

    monkeypatch.setattr(runtime.server.verbs, "_release", between)
    assert runtime("GC", **{"cni.dev/valid-attachments": []}) == ""
    assert "ips" in again[1]
    assert [a.spec.container_id for a in runtime.host.snapshot().list(Attachment)] == [second] != [first]


def test_gc_without_a_list_releases_only_what_has_no_namespace_any_more(runtime: Runtime) -> None:
    for container in ("alive", "dead"):
        runtime("ADD", container=container)
    runtime.host.gone.add("/n/dead")
    assert runtime("GC") == ""
    assert {a.spec.container_id for a in runtime.host.snapshot().list(Attachment)} == {"alive"}

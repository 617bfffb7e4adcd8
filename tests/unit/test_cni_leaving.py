"""DELs that come at once go together, and what is wrong with one of them is no other's concern."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from netplane.model.base import Object, ObjectMeta
from netplane.model.changes import Write
from netplane.model.errors import KernelError
from netplane.model.facts import Scope
from netplane.model.own import Allocation, Attachment
from netplane.model.pods import Pod
from tests.cnihost import MemoryHost
from tests.unit.test_cni_verbs import Runtime


class Counted(MemoryHost):
    """How many objects each transaction wrote."""

    writes: list[int]

    def write(self, writes: Sequence[Write]) -> list[Object]:
        self.writes.append(len(writes))
        return super().write(writes)


@pytest.fixture
def runtime() -> Runtime:
    host = Counted()
    host.writes = []
    return Runtime(host)


def at_once(runtime: Runtime, requests: Sequence[dict[str, Any]]) -> list[Any]:
    """The answers to DELs that come while another one is at work; that one's writes are not counted."""
    begun, go_on = threading.Event(), threading.Event()
    goes_wrong = runtime.host.fail

    def wait(verb: str, _what: object) -> None:
        if verb == "sync":
            runtime.host.fail = goes_wrong
            begun.set()
            assert go_on.wait(10)

    assert "ips" in runtime("ADD", container="first")
    answers: list[Any] = [None] * len(requests)
    runtime.host.fail = wait
    first = threading.Thread(target=lambda: runtime("DEL", container="first"))
    first.start()
    assert begun.wait(10)
    runtime.host.writes.clear()

    def ask(i: int) -> None:
        answers[i] = runtime("DEL", **requests[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    together = runtime.server.verbs._leaving._together
    while len(together) < len(requests):
        pass
    go_on.set()
    for thread in (first, *threads):
        thread.join(10)
    return answers


def added(runtime: Runtime, *containers: str) -> list[dict[str, Any]]:
    for container in containers:
        assert "ips" in runtime("ADD", container=container)
    return [{"container": container} for container in containers]


def test_many_are_one_transaction(runtime: Runtime) -> None:
    assert at_once(runtime, added(runtime, "a", "b", "c", "d")) == [""] * 4
    assert runtime.host.writes == [8], "four records and four pods"
    assert runtime.nothing_left() and len(runtime.host.left) == 5


def test_one_that_the_kernel_holds_does_not_hold_the_others(runtime: Runtime) -> None:
    requests = added(runtime, "a", "b", "c")
    stuck = next(r for r in runtime.host.snapshot().list(Attachment) if r.spec.container_id == "b")

    def fail(verb: str, what: object) -> None:
        if verb == "sync" and what == Scope("cni", stuck.name):
            raise KernelError(16, "the link of b")

    runtime.host.fail = fail
    answers = at_once(runtime, requests)
    assert answers[0] == answers[2] == "" and "the link of b" in answers[1]["msg"]
    assert "1 of" in runtime.server.verbs.networks.node.usage()[0], "its address is not free yet"
    assert len(runtime.host.left) == 3 and stuck.name not in runtime.host.left
    runtime.host.fail = lambda _verb, _what: None
    assert runtime("DEL", container="b") == "" and runtime.nothing_left()


def test_one_whose_pod_somebody_deletes_meanwhile_does_not_hold_the_others(runtime: Runtime) -> None:
    requests, meanwhile = added(runtime, "a", "b"), []
    pod = next(p for p in runtime.host.snapshot().list(Pod) if "10.244.1.2" in p.ips)

    def fail(verb: str, what: object) -> None:
        if (verb, what) == ("delete", pod.key) and not meanwhile:
            meanwhile.append(what)
            runtime.host.delete(pod.key)

    runtime.host.fail = fail
    assert at_once(runtime, requests) == ["", ""]
    assert meanwhile and runtime.nothing_left()


def test_two_of_one_pod_leave_it_without_addresses(runtime: Runtime) -> None:
    """What one of them finds is what the other has left."""
    runtime.host.put(Pod(metadata=ObjectMeta(name="web", namespace="shop")))
    requests = [{"container": name, "pod": "web"} for name in ("old", "new")]
    for request in requests:
        assert "ips" in runtime("ADD", **request)
    assert at_once(runtime, [*requests, *added(runtime, "other")]) == [""] * 3
    pod = runtime.host.snapshot().get(Pod, "shop", "web")
    assert pod is not None and pod.ips == () and pod.status.phase == "Pending"
    assert not runtime.host.snapshot().count(Attachment)


def test_of_many_the_turn_of_each_range_is_kept(runtime: Runtime) -> None:
    """An agent that has just started does not know yet whose turn it was."""
    two = {"type": "netplane", "ranges": [[{"subnet": "10.9.0.0/30"}, {"subnet": "10.9.1.0/24"}]]}
    networks = [{"name": name, "ipam": two, "bridge": f"br-{name}"} for name in ("a", "b")]
    own = [{"container": f"{one['name']}{i}", **one} for one in networks for i in range(3)]
    for request in own:
        assert "ips" in runtime("ADD", **request)
    requests = [*added(runtime, "x", "y", "z"), *own]
    again = Runtime(runtime.host)
    assert at_once(again, requests) == [""] * 9 and again.host.writes == [2 * 9 + 2]
    kept = {one.spec.holder_name: one.spec.value for one in again.host.snapshot().list(Allocation)}
    assert kept.keys() == {"n1", "a", "b"}
    assert all("10.9.0.2@" in kept[name] and "10.9.1.3@" in kept[name] for name in ("a", "b"))
    assert again("ADD", container="next")["ips"][0]["address"] == "10.244.1.6/32"

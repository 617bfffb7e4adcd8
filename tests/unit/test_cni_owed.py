"""Where another plugin gives the addresses: every address goes back to it, however long it takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from netplane.cni import delegate
from netplane.cni.delegate import BUDGET, PATIENCE, Lease
from netplane.cni.errors import LATER, Refused
from netplane.cni.render import BASE
from netplane.cni.request import Request
from netplane.model.own import Attachment, AttachmentIP
from netplane.model.pods import Pod
from tests.cnihost import MemoryHost
from tests.unit.test_cni_verbs import Runtime

NONE_VALID = {"cni.dev/valid-attachments": []}
CONFIG: dict[str, Any] = {"ipam": {"type": "other-ipam"}, "bridge": "br-other"}


class Killed(BaseException):
    """What nothing of ours outlives."""


class Plugin:
    """Each of its answers takes ``seconds``; what it gave and was not asked to take back is ``held``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.seconds, self.killed = 1000.0, 0.0, False
        self.held: list[str] = []
        self.asked: list[str] = []
        monkeypatch.setattr(delegate, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(delegate, "lease", self.lease)
        monkeypatch.setattr(delegate, "ask", self.ask)

    def lease(self, _name: str, request: Request) -> Lease:
        self.held.append(request.container_id)
        return Lease((AttachmentIP(address=f"10.5.0.{len(self.held)}/24"),))

    def ask(self, command: str, _name: str, request: Request, _config: object) -> dict[str, Any]:
        left = delegate._until.get() - self.now
        if left <= 0:
            raise Refused(LATER, f"not asked for {command}")
        self.asked.append(command)
        if self.killed:
            raise Killed
        if self.seconds > min(left, PATIENCE):
            self.now += min(left, PATIENCE)
            raise Refused(LATER, f"did not answer {command}")
        self.now += self.seconds
        if command == "DEL":
            self.held.remove(request.container_id)
        return {}


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Plugin:
    return Plugin(monkeypatch)


@pytest.fixture
def runtime(plugin: Plugin) -> Runtime:
    made = Runtime(MemoryHost())
    for i in range(6):
        assert "ips" in made("ADD", container=f"c{i}", **CONFIG)
    assert len(plugin.held) == 6
    return made


def test_what_there_is_no_time_for_is_the_next_ones(runtime: Runtime, plugin: Plugin) -> None:
    plugin.seconds = (BUDGET - PATIENCE) * 0.9
    begin = plugin.now
    answer = runtime("GC", **NONE_VALID, **CONFIG)
    assert "3 attachments stay for the next GC" in answer["msg"] and plugin.now - begin <= BUDGET
    left = {record.spec.container_id for record in runtime.host.snapshot().list(Attachment)}
    assert left == set(plugin.held) and len(left) == 3, "nothing is forgotten that was not given back"
    assert "GC" not in plugin.asked
    assert runtime("GC", **NONE_VALID, **CONFIG) == "" and not plugin.held and runtime.nothing_left()


def test_what_hung_is_asked_for_again(runtime: Runtime, plugin: Plugin) -> None:
    plugin.seconds = PATIENCE + 1
    answer = runtime("GC", **NONE_VALID, **CONFIG)
    assert "did not answer DEL" in answer["msg"] and "5 attachments stay" in answer["msg"]
    plugin.seconds = 0
    assert runtime("GC", **NONE_VALID, **CONFIG) == "" and not plugin.held and runtime.nothing_left()


def again(runtime: Runtime) -> Runtime:
    """The next process."""
    runtime.host.restart()
    return Runtime(runtime.host)


def wanted(runtime: Runtime) -> int:
    return len(runtime.host.kernel.keys() - {BASE})


@pytest.mark.parametrize("command", ["GC", "DEL"])
def test_what_was_not_taken_back_outlives_the_process(runtime: Runtime, plugin: Plugin, command: str) -> None:
    """The interface went; a start waits for no plugin, and what is owed is asked for again, nothing else."""
    plugin.seconds = PATIENCE + 1
    more = NONE_VALID if command == "GC" else {}
    assert "did not answer DEL" in runtime(command, container="c0", **more, **CONFIG)["msg"]
    assert len(plugin.held) == 6 and wanted(runtime) == 5 and runtime.host.snapshot().count(Pod) == 5
    begin, runtime = plugin.now, again(runtime)
    assert plugin.now == begin and wanted(runtime) == 5
    runtime.server.verbs.pay()
    assert len(plugin.held) == 6, "it hangs yet"
    plugin.seconds = 0
    runtime.server.verbs.pay()
    assert len(plugin.held) == 5 == wanted(runtime) == runtime.host.snapshot().count(Attachment)
    assert runtime("GC", **NONE_VALID, **CONFIG) == "" and not plugin.held and runtime.nothing_left()


def test_a_start_after_a_reboot_waits_no_longer_than_a_request(runtime: Runtime, plugin: Plugin) -> None:
    plugin.seconds, runtime.host.boot_id = PATIENCE + 1, "boot-2"
    begin, runtime = plugin.now, again(runtime)
    assert plugin.now - begin <= BUDGET and len(plugin.held) == 6 and not wanted(runtime)
    plugin.seconds = 0
    runtime.server.verbs.pay()
    assert not plugin.held and runtime.nothing_left()


@pytest.mark.parametrize("command", ["GC", "DEL", "ADD"])
def test_killed_while_the_plugin_is_asked(runtime: Runtime, plugin: Plugin, command: str) -> None:
    """Whichever comes next sees to it: GC, the runtime's DEL, or an ADD of the same container."""
    plugin.killed = True
    with pytest.raises(Killed):
        runtime("DEL", container="c0", **CONFIG)
    plugin.killed, runtime = False, again(runtime)
    assert len(plugin.held) == 6
    kept = [{"containerID": f"c{i}", "ifname": "eth0"} for i in range(1, 6)]
    answer = runtime(command, container="c0", **{"cni.dev/valid-attachments": kept, **CONFIG})
    assert sorted(plugin.held) == ["c0"] * (command == "ADD") + ["c1", "c2", "c3", "c4", "c5"], answer
    assert runtime.host.snapshot().count(Attachment) == len(plugin.held) == wanted(runtime)
    assert runtime("GC", **NONE_VALID, **CONFIG) == "" and not plugin.held and runtime.nothing_left()


def test_when_a_link_went_nobody_waits_for_a_plugin(runtime: Runtime, plugin: Plugin) -> None:
    """What a namespace took along is released before anything is made again; the plugin is asked after."""
    plugin.asked.clear()
    runtime.host.gone.add("/n/c0")
    runtime.server.look()
    assert not plugin.asked and len(plugin.held) == 6 and wanted(runtime) == 5
    runtime.server.verbs.pay()
    assert plugin.asked == ["DEL"] and plugin.held == ["c1", "c2", "c3", "c4", "c5"]

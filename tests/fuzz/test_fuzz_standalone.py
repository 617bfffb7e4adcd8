"""CNI without an agent, with anything in the configuration and the environment: CNI's JSON, and no traceback.

The process's own code in this process (`carry_out`); the store, the lock and the kernel are real ones, of
directories and namespaces of the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netplane import standalone
from netplane.cni import frame as wire
from netplane.cni.errors import INTERNAL
from netplane.kernel import netns
from netplane.store.sqlite import SqliteStore
from tests.faults.test_cni_fuzz import DEEP, JSON, VERBS
from tests.faults.test_cni_wire import KEYS

pytestmark = pytest.mark.root
SETTINGS = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
ODD = st.sampled_from(
    ("", "here", "/\0", "\0", "/a\0b", "/proc/none/x", "/" + "x" * 300, "/file/x", "/own", 7)
)
OURS = (
    "stateDir",
    "socket",
    "resolvConf",
    "dataDir",
    "forceAddress",
    "standalone",
    "ipam",
    "cniVersion",
    "name",
)
WORDS = st.sampled_from(("", "c1", "c2", "eth0", "..", "a/b", "lo")) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)) | st.just("\udcff"), max_size=17
)


class Place:
    """Where all that is written goes: absolute paths are put beneath it."""

    def __init__(self, work: Path) -> None:
        self.work, self.node, self.pod = work, str(work / "node"), str(work / "pod")
        (work / "file").write_text("not a directory")

    def beneath(self, value: Any) -> Any:
        return f"{self.work}{value}" if isinstance(value, str) and value.startswith("/") else value

    def config(self, doc: dict[str, Any]) -> bytes:
        for key in ("stateDir", "socket"):
            doc[key] = self.beneath(doc.get(key)) or str(self.work / "state" / key)
        ipam = doc.get("ipam")
        if isinstance(ipam, dict):
            doc["ipam"] = {
                k: self.beneath(v) if k in ("dataDir", "resolvConf") else v for k, v in ipam.items()
            }
        return json.dumps(doc).encode()

    def ask(self, frame: wire.Frame) -> tuple[int, bytes]:
        found: tuple[int, bytes] = netns.call(self.node, standalone.carry_out, frame)
        return found


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="npf") as work, pytest.MonkeyPatch.context() as patch:
        made = Place(Path(work))
        patch.setattr(standalone, "STATE_DIR", f"{work}/default")
        patch.setattr(standalone, "SOCKET", f"{work}/default/cni.sock")
        for path in (made.node, made.pod):
            netns.create(path)
        netns.run(made.node, "ip", "link", "add", "w0", "up", "type", "bridge")
        yield made
        for path in (made.node, made.pod):
            netns.delete(path)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    doc: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "netplane", "standalone": True}
    if draw(st.booleans()):
        doc["ipam"] = {"ranges": [[{"subnet": "10.88.0.0/24"}]]}
    for key in draw(st.lists(st.sampled_from((*OURS, *sorted(KEYS))), max_size=4, unique=True)):
        if key in ("dataDir", "resolvConf"):
            ipam = doc["ipam"] = {"ranges": [[{"subnet": "10.88.0.0/24"}]]}
            ipam[key] = draw(ODD | JSON)
        else:
            doc[key] = draw(ODD | JSON | KEYS.get(key, JSON) | DEEP.get(key, JSON))
    return doc


def judge(status: int, text: bytes, stderr: str) -> None:
    assert "Traceback" not in stderr and status in (0, 1)
    if status:
        doc = json.loads(text)
        assert doc["msg"] and doc["cniVersion"], doc
        assert doc["code"] != INTERNAL or doc["msg"].startswith("host-local: "), doc
    elif text.strip():
        assert json.loads(text)["cniVersion"]


def clear(place: Place) -> None:
    """DEL of every record of every state directory leaves nothing in the kernel."""
    for path in place.work.rglob("state.db"):
        store = SqliteStore(str(path))
        records = store.list(["Attachment"])[0]
        store.close()
        for record in records:
            doc: dict[str, Any] = {"cniVersion": "1.1.0", "name": record.spec.network, "type": "netplane"}  # type: ignore[attr-defined]
            doc |= {"standalone": True, "stateDir": str(path.parent), "socket": str(path.parent / "socket")}
            spec = record.spec  # type: ignore[attr-defined]
            frame = wire.Frame("DEL", spec.container_id, "", spec.ifname, "", "", json.dumps(doc).encode())
            assert place.ask(frame) == (0, b""), path


def test_whatever_is_asked_is_answered(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    @SETTINGS
    @given(
        st.sampled_from(("ADD", "ADD", "ADD", "CHECK", "DEL", "GC", "STATUS"))
        | st.sampled_from(VERBS)
        | WORDS,
        WORDS,
        st.sampled_from((place.pod, place.pod, place.pod, "/proc/self/ns/net", place.pod + "\udcff", ""))
        | WORDS,
        WORDS,
        st.sampled_from(("", "", "IP=10.88.0.9", "K8S_POD_NAME=web", "x")) | WORDS,
        configs(),
    )
    def run(verb: str, container: str, path: str, ifname: str, args: str, doc: dict[str, Any]) -> None:
        frame = wire.Frame(verb, container, path, ifname, args, "/usr/lib/cni", place.config(doc))
        status, text = place.ask(frame)
        judge(status, text, capsys.readouterr().err)

    @settings(SETTINGS, max_examples=50)
    @given(WORDS, st.binary(max_size=60) | st.just(b"[" * 100_000) | st.just(b'{"a":' * 100_000))
    def noise(verb: str, raw: bytes) -> None:
        status, text = place.ask(wire.Frame(verb, "c", place.pod, "eth0", "", "", raw))
        judge(status, text, capsys.readouterr().err)

    run()
    noise()
    clear(place)
    assert "npv" not in netns.run(place.node, "ip", "-o", "link")
    assert "cni-hostports" not in netns.run(place.node, "nft", "list", "ruleset")


def test_a_bug_is_one_error_with_its_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise LookupError("no such thing")

    monkeypatch.setattr(standalone, "_of_ours", broken)
    status, text = place.ask(
        wire.Frame("ADD", "c", place.pod, "eth0", "", "", place.config({"standalone": True}))
    )
    assert status == 1 and json.loads(text)["code"] == INTERNAL
    assert json.loads(text)["msg"] == "LookupError: no such thing"


@pytest.mark.parametrize("end", ["hangs", "hangs up", "goes"])
def test_an_agent_that_comes_up_and_does_not_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Try again later: 11, as from the binary."""
    monkeypatch.setattr(standalone, "ANSWER", 0.5)
    path = place.work / f"{end}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0 if end == "goes" else 8)
        if end == "goes":
            for _ in range(2):  # its queue is full: nobody accepts
                waiting = socket.socket(socket.AF_UNIX)
                waiting.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    waiting.connect(str(path))
        config = json.dumps({"standalone": True, "socket": str(path), "stateDir": str(place.work / end)})
        if end == "hangs up":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bytes(16))
            monkeypatch.setattr(wire, "request", lambda _: b"x" * 10_000_000)  # more than it takes
        status, text = place.ask(wire.Frame("ADD", "c", place.pod, "eth0", "", "", config.encode()))
    answer = json.loads(text)
    assert status == 1 and answer["code"] == 11 and str(path) in answer["msg"], answer


@pytest.mark.parametrize("closed", ["<&-", ">&-", ">/dev/full"])
def test_a_runtime_without_stdin_or_stdout_gets_no_traceback(closed: str) -> None:
    command = f'exec "$0" -m netplane.standalone {closed}'
    env = {"CNI_COMMAND": "ADD", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["sh", "-c", command, sys.executable],
        input=b"",
        env=env,
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    if closed.startswith("<"):
        assert json.loads(done.stdout)["code"] == 7

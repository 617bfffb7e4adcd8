"""Requests that nobody should send: always CNI's JSON with a code, never a traceback, never a leak."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netplane.cni import frame as wire
from netplane.cni.errors import INTERNAL
from netplane.cni.server import CniServer
from netplane.commands.install import BINARY
from netplane.model.own import Attachment
from netplane.model.pods import Pod
from tests.cnihost import CONFIG, MemoryHost, node

VERBS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION", "", "add", "NOPE")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    "cniVersion", "name", "type", "mtu", "ipMasq", "hairpinMode", "standalone", "capabilities", "dns", "args",
    "runtimeConfig", "prevResult", "cni.dev/valid-attachments", "x",
)  # fmt: skip
DEEP = {
    "args": st.fixed_dictionaries({"cni": st.dictionaries(st.sampled_from(("labels", "ips", "mac")), JSON)}),
    "runtimeConfig": st.dictionaries(st.sampled_from(("ips", "mac", "dns", "portMappings", "x")), JSON),
}
GOOD = {"cniVersion": "1.1.0", "name": "net", "type": "netplane"}
WORDS = st.sampled_from(
    ("", "c1", "eth0", "/n/c1", "..", "a/b", "K8S_POD_NAME=web", "IP=10.244.1.9")
) | st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)


@st.composite
def configs(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        return draw(st.binary(max_size=40))
    doc: dict[str, Any] = dict(GOOD)
    for key in draw(st.lists(st.sampled_from(KEYS), max_size=3)):
        doc[key] = draw(DEEP.get(key, JSON) if draw(st.booleans()) else JSON)
    return json.dumps(doc).encode()


class Server:
    def __init__(self, path: Path) -> None:
        self.host = MemoryHost(node("10.244.1.0/29"))  # five addresses: one that is lost is soon missed
        self.path = str(path)
        self.server = CniServer(self.path, self.host, CONFIG, workers=2)
        self.server.start()

    def ask(self, raw: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            connection.connect(self.path)
            with contextlib.suppress(OSError):  # it may have heard enough
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                return b"".join(iter(lambda: connection.recv(1 << 16), b""))
        return b""

    def release(self) -> None:
        """DEL for all that is there must leave nothing, and room for another."""
        good = wire.Frame("ADD", "good", "/n/good", "eth0", "", "", json.dumps(GOOD).encode())
        assert b'"ips"' in wire.unpack(self.ask(wire.request(good)))[1]
        for record in list(self.host.snapshot().list(Attachment)):
            spec = record.spec
            config = json.dumps({**GOOD, "name": spec.network}).encode()
            frame = wire.Frame("DEL", spec.container_id, "", spec.ifname, "", "", config)
            assert wire.unpack(self.ask(wire.request(frame)))[0] == b"0"
        assert not self.host.snapshot().count(Attachment) and not self.host.snapshot().count(Pod)
        assert all(not scope.name for scope in self.host.kernel)
        assert all("0 of" in words for words in self.server.verbs.networks.node.usage())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as work:
        made = Server(Path(work) / "cni.sock")
        yield made
        made.server.stop()


RULES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def judge(text: bytes, status: int) -> None:
    if status:
        doc = json.loads(text)
        assert doc["code"] != INTERNAL and doc["msg"] and "Traceback" not in doc["msg"], doc
    elif text.strip():
        assert json.loads(text)["cniVersion"]


@RULES
@given(st.binary(max_size=200) | st.builds(wire.pack, st.binary(max_size=20), st.binary(max_size=20)))
def test_bytes_that_are_no_request(server: Server, caplog: pytest.LogCaptureFixture, raw: bytes) -> None:
    answer = server.ask(raw)
    if answer:
        status, text = wire.unpack(answer)
        judge(text, int(status))
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    server.release()


@RULES
@given(st.sampled_from(VERBS), WORDS, WORDS, WORDS, WORDS, configs())
def test_frames_with_anything_in_them(
    server: Server, verb: str, container: str, netns: str, ifname: str, args: str, config: bytes
) -> None:
    frame = wire.Frame(verb, container, netns, ifname, args, "", config)
    status, text = wire.unpack(server.ask(wire.request(frame)))
    judge(text, int(status))
    server.release()


@settings(RULES, max_examples=60)
@given(st.sampled_from(VERBS), WORDS, WORDS, WORDS, WORDS, configs())
def test_the_binary_with_anything_on_stdin(
    server: Server, verb: str, container: str, netns: str, ifname: str, args: str, config: bytes
) -> None:
    with contextlib.suppress(ValueError, AttributeError):
        doc = json.loads(config)
        config = json.dumps({**doc, "socket": server.path}).encode() if isinstance(doc, dict) else config
    words = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": ifname}
    done = subprocess.run(
        [BINARY],
        input=config,
        env={**words, "CNI_ARGS": args, "NETPLANE_CNI_TIMEOUT": "5"},
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert done.returncode in (0, 1) and not done.stderr
    judge(done.stdout, done.returncode)
    server.release()

"""Each version of the specification, by the binary itself, and what is said to and by another plugin.

runtime ── netplane (the binary) ──?── agent on node-1 (ns) ── an IPAM plugin in CNI_PATH
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from netplane.commands.install import BINARY
from netplane.kernel import netns
from netplane.lab import Lab
from tests.cnirun import OWN, Cni, plain, run
from tests.netns.test_cni_features import records
from tests.netns.test_cni_server import Runtime
from tests.policy_world import settled

MakeNetns = Callable[[str], str]
MakeLab = Callable[..., Lab]
VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


@pytest.fixture(scope="module")
def lab(make_module_lab: MakeLab) -> Lab:
    lab = make_module_lab(nodes=1)
    lab.start_agents()
    return lab


# --- the binary alone --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_version_is_answered_in_the_version_asked(version: str) -> None:
    answer = Runtime("/nowhere")("VERSION", cniVersion=version)
    assert answer == {"cniVersion": version, "supportedVersions": VERSIONS}


@pytest.mark.parametrize("stdin", [b"\n", b"{", b'{"socket": 7}', b'{"cniVersion": 1}'])
def test_version_is_answered_whatever_stdin_holds(stdin: bytes) -> None:
    """By hand nobody gives it any: CNI_COMMAND=VERSION netplane </dev/null"""
    answer = Runtime("/nowhere")("VERSION", stdin=stdin)
    assert answer == {"cniVersion": "1.1.0", "supportedVersions": VERSIONS}


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_binary_refuses_itself_is_in_the_version_asked(version: str, tmp_path: Path) -> None:
    """No agent, one that goes, a socket's path that cannot be, and JSON that ends behind the version."""
    runtime = Runtime(str(tmp_path / "cni.sock"))
    broken = f'{{"cniVersion": "{version}", "name": '.encode()
    answers = {
        11: runtime("ADD", "/n", cniVersion=version),
        50: runtime("STATUS", cniVersion=version),
        7: runtime("ADD", "/n", cniVersion=version, socket=7),
        6: runtime("ADD", "/n", stdin=broken),
    }
    assert {code: (a["code"], a["cniVersion"]) for code, a in answers.items()} == {
        code: (code, version) for code in answers
    }


def test_what_it_says_of_an_agent_that_hangs_is_in_the_version_asked(tmp_path: Path) -> None:
    runtime = Runtime(str(tmp_path / "cni.sock"))

    def hung(version: str) -> tuple[int, str]:
        answer = runtime("DEL", "/n", cniVersion=version, NETPLANE_CNI_TIMEOUT="1")
        return answer["code"], answer["cniVersion"]

    with socket.socket(socket.AF_UNIX) as listener, ThreadPoolExecutor() as pool:
        listener.bind(str(tmp_path / "cni.sock"))
        listener.listen(len(VERSIONS))
        assert list(pool.map(hung, VERSIONS)) == [(11, version) for version in VERSIONS]


def test_json_whose_version_cannot_be_read_is_answered_in_the_newest() -> None:
    runtime = Runtime("/nowhere")
    for text in (
        b'{"cniVersion": "0.4',
        b'{"cniVersion": "7", "name": ',
        b'{"name": nul, "cniVersion": "0.4.0"}',
    ):
        answer = runtime("ADD", "/n", stdin=text)
        assert (answer["code"], answer["cniVersion"]) == (6, "1.1.0"), text


# --- a delegate, and records that are not there ----------------------------------------------------------


FAKE = """#!/usr/bin/python3
import json, os, sys
config, command, here = json.load(sys.stdin), os.environ["CNI_COMMAND"], os.path.dirname(__file__)
words = [command, os.environ.get("CNI_CONTAINERID", ""), os.environ.get("CNI_NETNS", "")]
open(os.path.join(here, "log"), "a").write(" ".join(words) + "\\n")
if command == "VERSION":
    print(json.dumps({"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}))
elif command in open(os.path.join(here, "fails")).read().split():
    print(json.dumps({"cniVersion": "1.1.0", "code": 123, "msg": "no luck with " + command}))
    sys.exit(1)
elif command == "ADD":
    print(json.dumps({"cniVersion": "1.1.0", "ips": [{"address": "10.96.7.7/24"}]}))
"""
DELEGATED = {"ipam": {"type": "unlucky"}, "bridge": "br-fake"}


class Fake:
    """An IPAM plugin in a directory of CNI_PATH that fails at what it is told to, and notes its calls."""

    def __init__(self, at: Path) -> None:
        self.at = at
        self.fails("")
        (at / "unlucky").write_text(FAKE)
        (at / "unlucky").chmod(0o755)

    def fails(self, commands: str) -> None:
        (self.at / "fails").write_text(commands)

    def calls(self) -> list[list[str]]:
        """What it was asked since the last look, but for its version."""
        log = self.at / "log"
        lines = [line.split(" ") for line in log.read_text().splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        return [line for line in lines if line[0] != "VERSION"]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


@pytest.mark.root
def test_a_delegates_add_that_fails_is_followed_by_its_del(
    lab: Lab, make_netns: MakeNetns, fake: Fake
) -> None:
    cni, a = Cni(lab, str(fake.at)), make_netns("a")
    fake.fails("ADD")
    answer = cni.call("ADD", a, DELEGATED)
    assert (answer["code"], answer["msg"]) == (123, "unlucky: no luck with ADD")
    assert fake.calls() == [["ADD", "ns-a", a], ["DEL", "ns-a", a]]
    assert not records(lab) and "eth0" not in netns.run(a, "ip", "link")
    fake.fails("ADD DEL")
    assert (
        cni.call("ADD", a, DELEGATED)["msg"] == "unlucky: no luck with ADD"
    )  # the first error is the answer's
    fake.fails("")
    cni.add(a, DELEGATED)
    cni.delete(a, DELEGATED)


@pytest.mark.root
def test_del_without_a_record_asks_the_delegate_all_the_same(
    lab: Lab, make_netns: MakeNetns, fake: Fake
) -> None:
    """What we know nothing of, it may: the ADD of another node's database, or a record that was lost."""
    cni, a = Cni(lab, str(fake.at)), make_netns("a")
    assert cni.call("DEL", a, DELEGATED) == ""
    assert cni.call("DEL", a, DELEGATED, NETNS="") == ""
    assert fake.calls() == [["DEL", "ns-a", a], ["DEL", "ns-a", ""]]
    fake.fails("DEL")
    answer = cni.call("DEL", a, DELEGATED)
    assert (answer["code"], answer["msg"]) == (123, "unlucky: no luck with DEL")
    assert cni.call("DEL", a) == ""  # and without a delegate there is nothing to do


@pytest.mark.root
def test_a_delegates_del_that_fails_is_said_and_done_by_the_next(
    lab: Lab, make_netns: MakeNetns, fake: Fake
) -> None:
    """Our part is gone after the first; the record's words are kept until the delegate has let go."""
    cni, a = Cni(lab, str(fake.at)), make_netns("a")
    cni.add(a, DELEGATED)
    fake.fails("DEL")
    fake.calls()
    answer = cni.call("DEL", a, DELEGATED, NETNS="")
    assert (answer["code"], answer["msg"]) == (123, "unlucky: no luck with DEL")
    assert "eth0" not in netns.run(a, "ip", "link") and "br-fake" not in lab.nodes[0].run("ip", "link")
    fake.fails("")
    assert cni.call("DEL", a, NETNS="", PATH="") == ""  # by what our own record said
    assert fake.calls() == [["DEL", "ns-a", a]] * 2
    assert cni.call("DEL", a, NETNS="", PATH="") == "" and fake.calls() == []


@pytest.mark.root
def test_gc_goes_on_past_a_release_that_fails_and_reports_it(
    lab: Lab, make_netns: MakeNetns, fake: Fake
) -> None:
    """Of three pods that nobody lists the middle one cannot be let go: the others are, and it is named."""
    cni, pods = Cni(lab, str(fake.at)), [make_netns(name) for name in ("a", "b", "c")]
    cni.add(pods[0], {"ipam": OWN, "bridge": "br-own"})
    cni.add(pods[1], DELEGATED)
    cni.add(pods[2])
    fake.fails("DEL GC")
    answer = cni.call("GC", "", {**DELEGATED, "cni.dev/valid-attachments": []})
    assert answer["code"] == 5 and "unlucky: no luck with DEL" in answer["msg"], answer
    assert "unlucky: no luck with GC" in answer["msg"] and answer["msg"].count("no luck") == 2
    for pod in pods:
        assert "eth0" not in netns.run(pod, "ip", "link"), pod
    assert not [one for one in records(lab) if one["spec"]["netns"] != pods[1]]
    fake.fails("")
    assert cni.call("GC", "", {**DELEGATED, "cni.dev/valid-attachments": []}) == ""
    assert cni.call("DEL", pods[1], DELEGATED) == "" and not records(lab)


# --- our addresses under another plugin ----------------------------------------------------------------


def asked(lab: Lab, command: str, pod: str, **more: Any) -> Any:
    """Our binary as another plugin calls it, for addresses alone."""
    config = {
        "cniVersion": "1.0.0", "name": "theirs", "type": "bridge", "socket": str(lab.nodes[0].socket),
        "ipam": OWN, **more,
    }  # fmt: skip
    return run(str(BINARY), command, pod, config, {"PATH": os.path.dirname(BINARY)})


@pytest.mark.root
def test_check_of_addresses_alone_fails_when_the_lease_is_gone(lab: Lab, make_netns: MakeNetns) -> None:
    a, b = make_netns("a"), make_netns("b")
    result = asked(lab, "ADD", a)
    other = asked(lab, "ADD", b)
    assert asked(lab, "CHECK", a, prevResult=result) == "" == asked(lab, "CHECK", a)
    mixed = asked(lab, "CHECK", a, prevResult=other)
    assert mixed["code"] == 7 and plain(result)[0] in mixed["msg"], (
        "its address is not the one that the pod has"
    )
    assert asked(lab, "DEL", b) == ""
    (record,) = records(lab)
    lab.netplane("delete", "Attachment", record["metadata"]["name"])
    settled(lab)
    answer = asked(lab, "CHECK", a, prevResult=result)
    assert answer["code"] == 3 and "ns-a in network theirs was never added" in answer["msg"], answer
    assert asked(lab, "DEL", a) == ""

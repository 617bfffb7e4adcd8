"""ADD without an agent reads what it needs alone: what it cannot do, it undoes knowing all, and says as ever.

pods a … d (ns)
  eth0
   │ veth
───┴── br-own ── node (ns)
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from netplane import standalone
from netplane.cni import delegate
from netplane.cni import frame as wire
from netplane.kernel import netns
from netplane.kernel.rtnetlink import LinkDriver
from netplane.model.facts import Plan
from tests.cnirun import reference, run
from tests.netns.test_cni_agent import SLOW
from tests.netns.test_cni_server import HANGS
from tests.netns.test_cni_standalone import Machine, plain

pytestmark = pytest.mark.root
MakeNetns = Callable[[str], str]
PORT = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}}
OWN: dict[str, Any] = {
    "name": "own",
    "bridge": "br-own",
    "isGateway": True,
    "ipMasq": True,
    "ipam": {"ranges": [[{"subnet": "10.88.0.0/29"}], [{"subnet": "fd00:88::/64"}]]},
}


@pytest.fixture
def machine(make_netns: MakeNetns, tmp_path: Path) -> Machine:
    return Machine(make_netns("node"), tmp_path)


def host(machine: Machine) -> list[Any]:
    links = sorted(one["ifname"] for one in json.loads(netns.run(machine.at, "ip", "-j", "link")))
    neighbours = netns.run(machine.at, "ip", "neigh", "show", "nud", "permanent").splitlines()
    return [links, sorted(neighbours), netns.run(machine.at, "nft", "list", "ruleset"), machine.attachments()]


def test_an_add_that_fails_takes_nothing_of_those_who_share(machine: Machine, make_netns: MakeNetns) -> None:
    a, b, c = make_netns("a"), make_netns("b"), make_netns("c")
    first = plain(machine("ADD", a, **OWN, **PORT))
    second = plain(machine("ADD", b, **OWN))
    before = host(machine)
    held = machine("ADD", c, **OWN, **PORT)
    assert held["code"] == 11 and f"held by pod default/{os.path.basename(a)}" in held["msg"]
    taken = machine("ADD", c, **{**OWN, "runtimeConfig": {"ips": [second[0]]}})
    assert taken["code"] == 11 and f"held by pod default/{os.path.basename(b)}" in taken["msg"]
    broken = machine("ADD", c, **OWN, sysctl={"net.core.somaxconn": "none"})
    assert broken["code"] == 5 and "somaxconn" in broken["msg"]
    other = machine("ADD", c, **{**OWN, "name": "other", "promiscMode": True, "hairpinMode": False})
    assert "br-own is already held by" in other["msg"]
    assert host(machine) == before
    for address in second:
        netns.run(a, "ping", "-c", "1", "-W", "2", address)
    third = plain(machine("ADD", c, **OWN))
    assert not set(third) & {*first, *second}
    for pod in (a, b, c):
        assert machine("DEL", pod, **OWN) == ""
    assert not machine.links() and "br-own" not in netns.run(machine.at, "ip", "link")


def test_a_full_range_is_said_or_cleared_of_what_is_gone(machine: Machine, make_netns: MakeNetns) -> None:
    pods = [make_netns(f"p{i}") for i in range(5)]
    assert [plain(machine("ADD", pod, **OWN))[0] for pod in pods] == [f"10.88.0.{i}" for i in (2, 3, 4, 5, 6)]
    one_more = make_netns("more")
    answer = machine("ADD", one_more, **OWN)
    assert answer["code"] == 11 and "5 of 5 addresses in use" in answer["msg"]
    netns.delete(pods[1])
    assert plain(machine("ADD", one_more, **OWN))[0] == "10.88.0.3"


def test_what_an_agent_or_a_user_writes_is_found(machine: Machine, make_netns: MakeNetns) -> None:
    """By the file's own triggers: a record of another process's making holds its address and its port."""
    a, b = make_netns("a"), make_netns("b")
    assert plain(machine("ADD", a, **OWN))[0] == "10.88.0.2"
    text = machine.netplane("get", "Attachment", "-o", "json", "--store", machine.store)
    doc = json.loads(text.replace("10.88.0.2/", "10.88.0.3/").replace("fd00:88::2/", "fd00:88::3/"))
    doc = doc.get("items", [doc])[0]
    doc["metadata"] = {"name": "0123456789ab." + doc["spec"]["node"]}
    doc["spec"] |= {
        "containerID": "theirs",
        "podName": "theirs",
        "ports": [{"hostPort": 9, "containerPort": 9}],
    }
    (machine.work / "theirs.json").write_text(json.dumps(doc))
    machine.netplane("apply", "--store", machine.store, "-f", str(machine.work / "theirs.json"))
    nine = {"runtimeConfig": {"portMappings": [{"hostPort": 9, "containerPort": 9, "protocol": "tcp"}]}}
    assert "held by pod default/theirs" in machine("ADD", b, **OWN, **nine)["msg"]
    assert plain(machine("ADD", b, **OWN)) == ["10.88.0.4", "fd00:88::4"]
    machine.netplane("delete", "Attachment", doc["metadata"]["name"], "--store", machine.store)
    with sqlite3.connect(machine.work / "state" / "state.db") as db:
        assert not db.execute("SELECT 1 FROM attachment_terms WHERE value LIKE '%10.88.0.3'").fetchall()


def test_a_check_and_a_del_of_nothing_read_no_others_records(machine: Machine, make_netns: MakeNetns) -> None:
    """One of which cannot be read; so what takes away is refused, for it must know who shares."""
    a, b = make_netns("a"), make_netns("b")
    machine("ADD", a, **OWN)
    result = machine("ADD", b, **OWN)
    with sqlite3.connect(machine.work / "state" / "state.db") as db:
        strange = "CAST(replace(CAST(body AS TEXT), 'containerID', 'x') AS BLOB)"
        query = f"UPDATE objects SET body = {strange} WHERE kind = 'Attachment' AND CAST(body AS TEXT) LIKE ?"
        assert db.execute(query, (f'%"{os.path.basename(a)}"%',)).rowcount == 1
    assert machine("CHECK", b, **OWN, prevResult=result) == ""
    netns.run(b, "ip", "addr", "del", result["ips"][0]["address"], "dev", "eth0")
    assert "cannot be read" in machine("CHECK", b, **OWN, prevResult=result)["msg"]
    assert machine("DEL", make_netns("never"), **OWN) == ""
    assert "cannot be read" in machine("DEL", b, **OWN)["msg"] and len(machine.links()) == 2


def test_of_two_adds_of_one_interface_at_once_one_wins(machine: Machine, make_netns: MakeNetns) -> None:
    pod = make_netns("pod")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: machine("ADD", pod, **OWN, **PORT), range(4)))
    won = [answer for answer in answers if "ips" in answer]
    lost = [answer for answer in answers if "ips" not in answer]
    assert len(won) == 1 and [answer["code"] for answer in lost] == [4] * 3, answers
    assert all("eth0 exists already" in answer["msg"] for answer in lost)
    assert machine.attachments() == [os.path.basename(pod)] and len(machine.links()) == 1
    assert plain(won[0])[0] in netns.run(pod, "ip", "-o", "addr", "show", "eth0")
    other = make_netns("other")
    assert plain(machine("ADD", other, **OWN))[0] == "10.88.0.3"  # the losers hold none
    for one in (pod, other):
        assert machine("DEL", one, **OWN, **PORT) == ""
    assert not machine.links() and not machine.attachments()


def test_a_reboot_frees_addresses_and_ports(machine: Machine, make_netns: MakeNetns) -> None:
    """What another boot recorded: its namespaces and links are gone, whatever stands at their paths."""
    one = {**OWN, "ipam": {"ranges": [[{"subnet": "10.88.0.0/30"}]]}}
    old, new = make_netns("old"), make_netns("new")
    assert plain(machine("ADD", old, **one, **PORT)) == ["10.88.0.2"]
    assert "1 of 1 addresses in use" in machine("ADD", new, **one)["msg"]
    record = machine.netplane("get", "Attachment", "-o", "json", "--store", machine.store)
    doc = json.loads(record)
    doc = doc.get("items", [doc])[0]
    doc["spec"]["bootID"] = "00000000-1111-2222-3333-444444444444"
    (machine.work / "rebooted.json").write_text(json.dumps(doc))
    machine.netplane("apply", "--store", machine.store, "-f", str(machine.work / "rebooted.json"))
    for link in (*machine.links(), "br-own"):
        netns.run(machine.at, "ip", "link", "del", link)
    netns.run(machine.at, "nft", "flush", "ruleset")
    assert plain(machine("ADD", new, **one, **PORT)) == ["10.88.0.2"]
    assert machine.attachments() == [os.path.basename(new)]
    assert machine("DEL", new, **one) == "" == machine("DEL", old, **one)
    assert not machine.links() and not machine.attachments()


@pytest.mark.skipif(
    not Path(reference("bridge")).exists(), reason="apt-get install containernetworking-plugins"
)
def test_the_reference_bridge_plugin_gets_our_addresses(machine: Machine, make_netns: MakeNetns) -> None:
    """``ipam.type: netplane``: in turn, CHECK and GC included, and nothing is left."""
    a, b = make_netns("a"), make_netns("b")
    ours = {"type": "netplane", "ranges": [[{"subnet": "10.91.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
    config = {
        **machine.config, "cniVersion": "1.0.0", "type": "bridge", "bridge": "br-ref", "isGateway": True,
        "ipam": ours,
    }  # fmt: skip
    del config["standalone"]  # an ipam section of ours is enough

    def call(command: str, pod: str, **more: Any) -> Any:
        env = {"PATH": str(machine.work / "bin")}
        return netns.call(machine.at, run, reference("bridge"), command, pod, {**config, **more}, env)

    first, second = call("ADD", a), call("ADD", b)
    assert plain(first) + plain(second) == ["10.91.0.2", "10.91.0.3"], (first, second)
    assert first["ips"][0]["gateway"] == "10.91.0.1" and first["routes"] == [{"dst": "0.0.0.0/0"}]
    netns.run(a, "ping", "-c", "1", "-W", "2", "10.91.0.3")
    assert call("CHECK", a, prevResult=first) == ""
    assert sorted(machine.attachments()) == sorted(map(os.path.basename, (a, b)))
    assert call("DEL", a) == "" == call("DEL", a)
    assert plain(call("ADD", a)) == ["10.91.0.4"]
    for pod in (a, b):
        assert call("DEL", pod) == ""
    assert not machine.attachments()


class Killed(BaseException):
    """What nothing of ours outlives."""


def test_killed_before_the_interface_went_that_has_another_plugins_address(
    machine: Machine, make_netns: MakeNetns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next process takes the interface away, and the runtime's DEL gives the address back."""
    binary, pod, config = tmp_path / "slow-ipam", make_netns("pod"), {"name": "slow", "bridge": "br-slow"}
    binary.write_text(SLOW)
    binary.chmod(0o755)
    text = json.dumps({**machine.config, **config, "ipam": {"type": binary.name}}).encode()

    def carry_out(command: str) -> int:
        frame = wire.Frame(command, "c", pod, "eth0", "", str(tmp_path), text)
        return netns.call(machine.at, standalone.carry_out, frame)[0]

    def killed(_driver: LinkDriver, plan: Plan) -> None:
        assert plan.remove
        raise Killed

    assert carry_out("ADD") == 0 and len(machine.links()) == 1
    with monkeypatch.context() as patch:
        patch.setattr(LinkDriver, "apply", killed)
        with pytest.raises(Killed):
            carry_out("DEL")
    assert len(machine.links()) == 1
    assert "ips" in machine("ADD", make_netns("other"))
    assert len(machine.links()) == 1 and "br-slow" not in netns.run(machine.at, "ip", "link")
    assert "DEL" not in Path(f"{binary}.log").read_text() and len(machine.attachments()) == 2
    assert carry_out("DEL") == 0 and Path(f"{binary}.log").read_text().count("DEL") == 1
    assert machine.attachments() == ["ns-other"]


def test_a_plugin_that_hangs_is_not_asked_again_on_all_records(
    machine: Machine, make_netns: MakeNetns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request has one time in all, here too, and the plugin that took it is named."""
    plain(machine("ADD", make_netns("a"), **OWN))  # from now on an ADD reads what it needs
    monkeypatch.setattr(delegate, "PATIENCE", 0.7)
    monkeypatch.setattr(delegate, "BUDGET", 1.2)
    binary, b = tmp_path / "slow-ipam", make_netns("b")
    binary.write_text(HANGS)
    binary.chmod(0o755)
    Path(f"{binary}.ADD").touch()
    config = {**machine.config, "name": "slow", "bridge": "br-slow", "ipam": {"type": "slow-ipam"}}
    frame = wire.Frame("ADD", "b", b, "eth0", "", str(tmp_path), json.dumps(config).encode())
    status, text = netns.call(machine.at, lambda: standalone.carry_out(frame))
    assert status == 1 and json.loads(text)["code"] == 11
    assert re.search(r"ipam\.type slow-ipam: did not answer ADD in 0\.\d s", json.loads(text)["msg"]), text
    assert Path(f"{binary}.log").read_text().split() == ["VERSION", "ADD", "DEL"]
    assert machine.attachments() == ["ns-a"]

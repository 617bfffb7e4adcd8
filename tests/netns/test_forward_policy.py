"""Somebody else's policy drop at forward: pods reach nothing, `netplane doctor` says so, and what opens it.

outside (ns) ── wire ── node-1 (ns), iptables -P FORWARD DROP ── npbr0 ── pod a (ns)
192.168.77.1            192.168.77.11
"""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netplane.commands.doctor import Check, Lack, _forward_policy, examine
from netplane.kernel import forwarding, netns
from netplane.lab import Lab
from netplane.lab.node import Node
from tests.cnirun import REFERENCE, Cni
from tests.netns.test_cni_chain import theirs
from tests.netns.test_cni_features import pings, reached

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("iptables", path="/usr/sbin:/sbin") is None, reason="needs iptables"),
]
MakeNetns = Callable[[str], str]
MakeLab = Callable[..., Lab]


@pytest.fixture(scope="module")
def lab(make_module_lab: MakeLab) -> Lab:
    lab = make_module_lab(nodes=1)
    lab.start_agents()
    return lab


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    node = lab.nodes[0]
    yield node
    for family in ("ip", "ip6", "inet"):
        for table in ("filter", "fw"):
            node.run("nft", "delete", "table", family, table, check=False)


def finding(node: Node, tmp_path: Path) -> dict[str, Any]:
    """What the doctor says in the node's namespace; its exit status is that of the required."""
    program = str(Path(sys.executable).parent / "netplane")
    text = node.run(program, "doctor", "--state-dir", str(tmp_path), "-o", "json", check=False)
    return next(one for one in json.loads(text) if one["name"] == "forward policy")


def shut(node: Node, *programs: str) -> None:
    for program in programs:
        node.run(program, "-P", "FORWARD", "DROP")


@pytest.mark.skipif(not Path(REFERENCE, "firewall").exists(), reason="needs containernetworking-plugins")
def test_the_firewall_plugin_after_us_lets_pods_through(
    lab: Lab, node: Node, make_netns: MakeNetns, tmp_path: Path
) -> None:
    cni, a, b = Cni(lab), make_netns("a"), make_netns("b")
    assert finding(node, tmp_path)["detail"] == "nobody's chain has policy drop"
    results = [cni.add(pod, {"cniVersion": "1.0.0"}) for pod in (a, b)]
    four, six = (ip["address"].partition("/")[0] for ip in results[1]["ips"])
    assert pings(a, "192.168.77.1") and pings(a, four)
    shut(node, "iptables", "ip6tables")
    found = finding(node, tmp_path)
    assert not found["ok"] and "ip filter FORWARD, ip6 filter FORWARD drops" in found["detail"]
    assert '{"type": "firewall"}' in found["remedy"] and "-i npbr+ -j ACCEPT" in found["remedy"]
    assert not reached(a, "192.168.77.1", four, six)
    after = [{"cniVersion": "1.0.0", "name": "net", "type": "firewall", "prevResult": one} for one in results]
    for pod, chained in zip((a, b), after, strict=True):
        assert "ips" in theirs(lab, "firewall", "ADD", pod, chained, REFERENCE)
    assert all(pings(a, to) for to in ("192.168.77.1", four, six))
    found = finding(node, tmp_path)
    assert found["ok"] and "pods pass by the firewall plugin's CNI-FORWARD" in found["detail"]
    for pod, chained in zip((a, b), after, strict=True):
        theirs(lab, "firewall", "DEL", pod, chained, REFERENCE)
        cni.delete(pod, {"cniVersion": "1.0.0"})


def test_rules_for_the_bridge_let_pods_through(
    lab: Lab, node: Node, make_netns: MakeNetns, tmp_path: Path
) -> None:
    """What the doctor advises where Docker is."""
    cni, a = Cni(lab), make_netns("a")
    cni.add(a)
    node.run("iptables", "-N", "DOCKER-USER")
    node.run("iptables", "-I", "FORWARD", "-j", "DOCKER-USER")
    shut(node, "iptables")
    node.run("iptables", "-I", "DOCKER-USER", "-i", "npbr0", "-j", "ACCEPT")
    assert not finding(node, tmp_path)["ok"] and not reached(a, "192.168.77.1")  # replies are dropped
    node.run("iptables", "-I", "DOCKER-USER", "-o", "npbr+", "-j", "ACCEPT")
    found = finding(node, tmp_path)
    assert found["ok"] and "pods pass by rules for npbr0" in found["detail"], found
    assert pings(a, "192.168.77.1")
    node.run("ip", "link", "add", "npbr1", "type", "bridge")  # to which one rule leads, and one does not
    assert not finding(node, tmp_path)["ok"]
    node.run("iptables", "-I", "DOCKER-USER", "-i", "npbr+", "-j", "ACCEPT")
    assert "npbr0, npbr1" in finding(node, tmp_path)["detail"]
    node.run("ip", "link", "del", "npbr1")
    cni.delete(a)


def test_a_chain_of_nft_counts_and_one_of_another_hook_does_not(node: Node, tmp_path: Path) -> None:
    node.run(
        "nft", "add table inet fw; add chain inet fw in { type filter hook input priority 0; policy drop; }"
    )
    node.run("nft", "add rule inet fw in accept")
    assert finding(node, tmp_path)["ok"]
    node.run("nft", "add chain inet fw through { type filter hook forward priority 0; policy drop; }")
    node.run("nft", "add rule inet fw through iifname npbr0 tcp dport 80 accept")
    node.run("nft", "add rule inet fw through oifname npbr0 accept")
    found = finding(node, tmp_path)
    assert not found["ok"] and "inet fw through" in found["detail"]
    assert not found["required"]


def test_the_older_iptables_is_seen_too(make_netns: MakeNetns, tmp_path: Path) -> None:
    at, program = make_netns("old"), "iptables-legacy"
    if netns.run(at, "sh", "-c", f"{program} -P FORWARD DROP && echo set", check=False).strip() != "set":
        pytest.skip("needs iptables-legacy and its kernel modules")
    doctor = str(Path(sys.executable).parent / "netplane")
    text = netns.run(at, doctor, "doctor", "--state-dir", str(tmp_path), "-o", "json", check=False)
    found = next(one for one in json.loads(text) if one["name"] == "forward policy")
    assert not found["ok"] and "iptables-legacy FORWARD" in found["detail"]


def test_a_lock_that_somebody_keeps_is_said_and_no_traceback(
    make_netns: MakeNetns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, lock = make_netns("locked"), tmp_path / "xtables.lock"
    if netns.run(at, "sh", "-c", "iptables-legacy -P FORWARD DROP && echo set", check=False).strip() != "set":
        pytest.skip("needs iptables-legacy and its kernel modules")
    monkeypatch.setenv("XTABLES_LOCKFILE", str(lock))
    monkeypatch.setattr(forwarding, "WAIT", 1)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        check = Check("forward policy", lambda: netns.call(at, _forward_policy), Lack("reach", "remedy"))
        found = examine(check)
    assert not found.ok and "iptables-legacy -w 1 -S" in found.detail and "lock" in found.detail
